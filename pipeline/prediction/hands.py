"""Hands to predict: the row that goes from reading to the model, whatever it was read from.

A row holds a square crop with some room around the hand, mirrored if it is a left hand, so that the model's views, also
those of a second pass, are cut from it on the device, and whole frames need not travel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.frames.crop import assumed_camera, crop_camera, crop_matrix, cut, mirror_joints
from pipeline.frames.rejects import Rejects
from pipeline.frames.rows import usable_labels
from pipeline.frames.sources import Hand
from pipeline.models.weights import LoadedPoseModel
from pipeline.prediction.poses import predict_poses

Row = dict[str, Any]

ROOM = 1.8
"""Side of a crop in sides of the model's view, so that a second view may be larger or beside the first."""
_DENSITY = 1.05  # pixels of the crop for one of the view: stored crops, on which models train, have about as many


@dataclass(frozen=True)
class CropPlan:
    """How crops are cut for a model."""

    size: int
    """Side, pixels."""
    margin: float
    """Side, in hand boxes."""
    bone: tuple[int, int]
    """Joints at the ends of the model's reference bone."""

    @classmethod
    def for_model(cls, view_size: int, view_margin: float, bone: tuple[int, int]) -> "CropPlan":
        """Crops for a model with such views."""
        return cls(math.ceil(ROOM * _DENSITY * view_size), ROOM * view_margin, bone)


def hand_row(
    image: Image.Image,
    hand: Hand,
    plan: CropPlan,
    rejects: Rejects,
    *,
    name: str,
    frame_index: int,
    timestamp_s: float | None,
    camera: np.ndarray | None,
    focal_factor: float,
) -> Row | None:
    """The row of one hand of an image; None where it cannot be used (and is counted).

    camera: (3, 3) of the image, over the one that the label brings; with neither it is assumed.
    """
    frame_id = f"{name}#{hand.track}/{frame_index:06d}"
    labels = usable_labels(hand, image, frame_id, rejects)
    if labels is None:
        return None
    joints, labelled_camera, _ = labels
    known = camera if camera is not None else labelled_camera
    mirrored = hand.hand == "left"
    matrix = crop_matrix(hand.box, plan.size, plan.margin, mirrored)
    return {
        "name": name,
        "frame_id": frame_id,
        "frame_index": frame_index,
        "timestamp_s": np.nan if timestamp_s is None else timestamp_s,
        "hand": hand.hand,
        "track": hand.track,
        "image": np.asarray(cut(image, matrix, plan.size)),
        "crop": matrix,
        "camera": known if known is not None else assumed_camera(*image.size, focal_factor),
        "camera_source": "default" if known is None else "given",
        "box": box_in_crop(hand.box, matrix),
        "confidence": np.nan if hand.confidence is None else hand.confidence,
        "bone_length_m": np.nan if joints is None else bone_length(joints, plan.bone),
    }


def box_in_crop(box: Any, matrix: np.ndarray) -> np.ndarray:
    """(4,) box of the source in pixels of the crop; mirroring exchanges left and right."""
    x0, y0, x1, y1 = (float(value) for value in box)
    corners = np.array([[x0, y0], [x1, y1]]) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(0), corners.max(0)])


def bone_length(joints_3d: np.ndarray, bone: tuple[int, int]) -> float:
    """Distance of two of the joints (21, 3)."""
    return float(np.linalg.norm(joints_3d[bone[1]] - joints_3d[bone[0]]))


def camera_of_source(camera: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(3, 3) of the source from that of a crop and the crop's (2, 3) matrix: the inverse of crop.crop_camera."""
    mirror = np.diag([-1.0 if matrix[0, 0] < 0 else 1.0, 1.0, 1.0])
    return np.linalg.inv(np.vstack([matrix, [0.0, 0.0, 1.0]])) @ camera @ mirror


def camera_of_crop(row: Row) -> np.ndarray:
    """(3, 3) of a row's crop."""
    return crop_camera(row["camera"], row["crop"])


def to_source(row: Row, joints_2d: np.ndarray, joints_3d: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
    """A pose in a crop -> in the source image: mirrored back for left hands.

    joints_2d: (21, 2) pixels of the crop. joints_3d: (21, 3). view: (2, 3) from the crop's to the view's pixels.
    """
    crop = np.vstack([row["crop"], [0.0, 0.0, 1.0]])
    back = np.linalg.inv(crop)[:2]
    return {
        "joints_2d": joints_2d @ back[:, :2].T + back[:, 2],
        "joints_3d": mirror_joints(joints_3d) if crop[0, 0] < 0 else joints_3d,
        "view": (np.vstack([view, [0.0, 0.0, 1.0]]) @ crop)[:2],
    }


def poses_in_source(
    loaded: LoadedPoseModel, rows: Sequence[Row], images: np.ndarray, passes: int
) -> list[dict[str, np.ndarray]]:
    """Of each row "joints_2d" (source pixels), "joints_3d" (camera frame, in lengths of the model's bone) and "view" (source -> view).

    images: (N, S, S, 3) uint8, the rows' crops. passes: see `predict_poses`.
    """
    poses = predict_poses(
        loaded.model,
        torch.from_numpy(np.array(images)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack([camera_of_crop(row) for row in rows])).float(),
        torch.from_numpy(np.stack([row["box"] for row in rows])).float(),
        loaded.view_size,
        loaded.view_margin,
        passes,
    )
    arrays = [value.double().cpu().numpy() for value in poses]
    return [to_source(row, *values) for row, *values in zip(rows, *arrays, strict=True)]
