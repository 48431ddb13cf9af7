"""Predict FreiHAND's evaluation images, write its prediction file, score it."""

import io
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError
from pipeline.frames.crop import crop_camera, crop_matrix, cut
from pipeline.frames.sources.published import continuous_camera
from pipeline.geometry import bone_joints
from pipeline.models.shipped import model_uri
from pipeline.models.weights import LoadedPoseModel, load_pose_model
from pipeline.prediction.hands import CropPlan, box_in_crop
from pipeline.prediction.poses import predict_poses
from pipeline.progress import SILENT, Progress
from pipeline.reports.freihand import score, training_constant, write_predictions
from pipeline.storage import exists, join, preflight, read_bytes, read_json, write_json

FIRST_BOX = 0.33
"""Side of the first pass's box, in sides of the image and in its middle: PeCLR's published prediction script. FreiHAND
centres its images on the hand, and gives no boxes."""


class FreiHandSettings(Settings):
    """FreiHAND's evaluation."""

    data: Uri
    """URI of the set's folder: evaluation_K.json, evaluation_scale.json and evaluation/rgb for predicting; evaluation_xyz.json
    (and evaluation_verts.json) for scoring; training_xyz.json for a constant pose where the model brings none."""
    predictions: Uri
    """URI of the prediction file, .json or .zip. It is written if a model is given, and read otherwise."""
    model: Uri | None = None
    """URI of a pose model to predict with. none scores an existing file."""
    scores: Uri | None = None
    """URI of a JSON file for the scores. none writes no file."""
    passes: Literal[1, 2] = 2
    """2 predicts again in the box of the joints found first, as the published script does."""
    first_box: float = Field(default=FIRST_BOX, gt=0.05, le=1)
    """Side of the first box, as a fraction of the image's side."""
    batch_size: int = Field(default=64, ge=1)
    """Images that the model sees at a time."""
    use_gpu: bool | None = None
    """Whether to run on a GPU. none uses one if there is one."""


def run_freihand(settings: FreiHandSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Predict, write and score, as far as the settings and the files allow.

    Returns {"predictions", "num_predicted" (0 where the file was read), "scores": freihand.score or None}.
    """
    preflight(settings.data)
    can_score = exists(join(settings.data, "evaluation_xyz.json"))
    num_predicted = 0
    constant = None
    if settings.model is not None:
        preflight(model_uri(settings.model))
        preflight(settings.predictions, write=True)
        loaded = load_pose_model(settings.model)
        constant = loaded.constant
        joints = predict_evaluation(loaded, settings, progress)
        write_predictions(settings.predictions, joints)
        num_predicted = len(joints)
    elif not can_score:
        raise SettingsError(
            f"nothing to do: no model is given, and {settings.data} has no evaluation_xyz.json to score with"
        )
    scores = None
    if can_score:
        scores = score(settings.predictions, settings.data, constant or training_constant(settings.data))
    if settings.scores is not None and scores is not None:
        write_json(settings.scores, scores)
    return {"predictions": settings.predictions, "num_predicted": num_predicted, "scores": scores}


def predict_evaluation(
    loaded: LoadedPoseModel, settings: FreiHandSettings, progress: Progress = SILENT
) -> torch.Tensor:
    """(N, 21, 3) metres, camera frame, for all evaluation images; the scale is the one that the set gives for each."""
    cameras = np.asarray(read_json(join(settings.data, "evaluation_K.json")), dtype=np.float64)
    scales = np.asarray(read_json(join(settings.data, "evaluation_scale.json")), dtype=np.float64).reshape(-1)
    if cameras.ndim != 3 or cameras.shape[1:] != (3, 3) or len(cameras) != len(scales):
        raise DataError(f"{settings.data}: evaluation_K.json and evaluation_scale.json do not fit together")
    if loaded.model.convention.bone != "middle":
        raise DataError(
            f"{settings.model}: its reference bone is '{loaded.model.convention.bone}'; FreiHAND's scales are lengths of the "
            "bone middle MCP to PIP (head.root 'palm')"
        )
    use_gpu = torch.cuda.is_available() if settings.use_gpu is None else settings.use_gpu
    loaded.model.to("cuda" if use_gpu else "cpu")
    plan = CropPlan.for_model(loaded.view_size, loaded.view_margin, bone_joints("middle"))
    progress.start("predict FreiHAND", len(cameras), "images")
    parts = []
    for start in range(0, len(cameras), settings.batch_size):
        numbers = range(start, min(start + settings.batch_size, len(cameras)))
        rows = [_crop(settings, number, plan) for number in numbers]
        frames, matrices, boxes = (np.stack(values) for values in zip(*rows, strict=True))
        crop_cameras = [
            crop_camera(continuous_camera(cameras[n]), matrix) for n, matrix in zip(numbers, matrices, strict=True)
        ]
        poses = predict_poses(
            loaded.model,
            torch.from_numpy(frames).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack(crop_cameras)).float(),
            torch.from_numpy(boxes).float(),
            loaded.view_size,
            loaded.view_margin,
            settings.passes,
        )
        parts.append(poses.joints_3d.double().cpu() * torch.from_numpy(scales[list(numbers)])[:, None, None])
        progress.advance(len(numbers))
    progress.finish()
    return torch.cat(parts)


def _crop(settings: FreiHandSettings, number: int, plan: CropPlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crop (S, S, 3), its matrix (2, 3), and the first box (4,) in its pixels, of one evaluation image."""
    uri = join(settings.data, "evaluation", "rgb", f"{number:08d}.jpg")
    try:
        with Image.open(io.BytesIO(read_bytes(uri))) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError):
        raise DataError(f"{uri}: not a readable image") from None
    centre, half = np.array(image.size) / 2, settings.first_box * max(image.size) / 2
    box = np.concatenate([centre - half, centre + half])
    matrix = crop_matrix(box.tolist(), plan.size, plan.margin, mirrored=False)
    return np.asarray(cut(image, matrix, plan.size)), matrix, box_in_crop(box, matrix)
