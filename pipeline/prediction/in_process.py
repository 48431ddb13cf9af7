"""Poses of hands in a few images, in this process: no Ray, no files."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipeline.errors import DataError
from pipeline.frames.crop import FOCAL_FACTOR
from pipeline.frames.rejects import REASONS, Rejects
from pipeline.frames.sources import Hand
from pipeline.geometry import bone_joints
from pipeline.models.weights import LoadedPoseModel, load_pose_model
from pipeline.prediction.hands import CropPlan, hand_row, poses_in_source

_BATCH = 64


class HandPoses(NamedTuple):
    """Joints of N hands, FreiHAND order."""

    joints_2d: npt.NDArray[np.float64]
    """(N, 21, 2) pixels of their images, (0, 0) being the corner."""
    joints_3d: npt.NDArray[np.float64]
    """(N, 21, 3) metres, camera frame. Scale and distance are those of a hand of the training set's mean size."""


def predict_hands(
    images: Sequence[npt.NDArray[np.uint8] | Image.Image],
    boxes: npt.ArrayLike,
    hands: str | Sequence[str] = "right",
    model: str | LoadedPoseModel = "equihand-small",
    cameras: npt.ArrayLike | None = None,
    passes: int = 2,
) -> HandPoses:
    """Poses of one hand in each image; an image with two hands is given twice.

    images: N, RGB, uint8 (H, W, 3) or Pillow's, which are turned as their EXIF tag says, as viewers show them. boxes: (N, 4) x0, y0,
    x1, y1 around the hands, pixels of what is shown. hands: "right" or "left", of all or of each. model: a name or URI as
    `load_pose_model` takes it, or what that gave.
    cameras: (N, 3, 3) or (3, 3), of the images; none assumes an ordinary lens. passes: see `predict_poses`.
    Raises DataError naming the image whose box cannot be used.
    """
    loaded = load_pose_model(model) if isinstance(model, str) else model
    where = np.asarray(boxes, dtype=np.float64)
    if where.shape != (len(images), 4):
        raise DataError(f"boxes: {len(images)} images need ({len(images)}, 4) numbers, found {where.shape}")
    sides = [hands] * len(images) if isinstance(hands, str) else list(hands)
    if len(sides) != len(images) or set(sides) - {"left", "right"}:
        raise DataError(f"hands: 'left' or 'right', one or {len(images)} of them, found {hands!r}")
    known = None if cameras is None else np.broadcast_to(np.asarray(cameras, np.float64), (len(images), 3, 3))
    plan = CropPlan.for_model(loaded.view_size, loaded.view_margin, bone_joints(loaded.model.convention.bone))
    found: list[dict[str, np.ndarray]] = []
    for start in range(0, len(images), _BATCH):
        rows = []
        for number in range(start, min(start + _BATCH, len(images))):
            rejects = Rejects()
            picture = images[number]
            row = hand_row(
                _upright(picture).convert("RGB"),
                Hand(0, sides[number], tuple(where[number])),
                plan,
                rejects,
                name=f"image {number}",
                frame_index=number,
                timestamp_s=None,
                camera=None if known is None else known[number],
                focal_factor=FOCAL_FACTOR,
            )
            if row is None:
                reason = next(iter(rejects.counts))
                raise DataError(f"image {number}: box {where[number].tolist()}: {REASONS[reason]}")
            rows.append(row)
        found += poses_in_source(loaded, rows, np.stack([row["image"] for row in rows]), passes)
    size_m = float(loaded.model.mean_bone_length)
    shapes = {"joints_2d": (-1, 21, 2), "joints_3d": (-1, 21, 3)}
    joints = {k: np.array([each[k] for each in found]).reshape(shape) for k, shape in shapes.items()}
    return HandPoses(joints["joints_2d"], joints["joints_3d"] * size_m)


def _upright(picture: np.ndarray | Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(picture) if isinstance(picture, Image.Image) else Image.fromarray(picture)
