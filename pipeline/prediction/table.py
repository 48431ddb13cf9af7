"""The rows that prediction writes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.prediction.hands import Row

FLOATS = pa.list_(pa.float32())

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("timestamp_s", pa.float64()),
        pa.field("hand", pa.string(), nullable=False),
        pa.field("track", pa.int32(), nullable=False),
        pa.field("joints_2d", FLOATS, nullable=False),
        pa.field("joints_3d", FLOATS, nullable=False),
        pa.field("wrist_3d", FLOATS, nullable=False),
        pa.field("scale_source", pa.string(), nullable=False),
        pa.field("bone_length_m", pa.float32()),
        pa.field("camera_source", pa.string(), nullable=False),
        pa.field("camera", FLOATS, nullable=False),
        pa.field("confidence", pa.float32()),
        pa.field("crop", FLOATS, nullable=False),
    ]
)
"""Columns of predictions.parquet, one row a hand. Joints are in FreiHAND order, matrices and points row-major.

name           image or video, relative to the input; clip of a frame set
frame_id       unique: "<name>#<track>/<frame_index>", or the frame set's own frame_id
frame_index    number of the frame in its video or clip, from 0; 0 for images
timestamp_s    time in the video, seconds; null for images
hand           "right" | "left", as seen in the image
track          number of the hand: the same in every frame of a video; counts the hands of an image
joints_2d      21x2, pixels of the SOURCE image (continuous coordinates)
joints_3d      21x3 relative to the wrist, axes of the camera; metres, or lengths of the model's reference bone where
               scale_source is "none"
wrist_3d       the wrist in the camera frame, same unit. joints_2d is the projection of joints_3d + wrist_3d by `camera`.
               Where camera_source is "default" its distance is a guess
scale_source   "given" (the hand's bone length was), "mean-bone" (that of the training set's mean hand), "none"
bone_length_m  length of the reference bone that joints_3d was scaled with; null where scale_source is "none"
camera_source  "given" | "default" (assumed: see the settings)
camera         3x3 intrinsics of the source image that were used
confidence     the detector's handedness score, or what the input gave; null where there was none. It says that a hand was
               found, not that its joints are right: the pose model gives no confidence
crop           2x3, source pixels -> pixels of the view that the model saw last, mirroring included
"""


def make_table(rows: Sequence[Row], scale: str, mean_bone_length: float, given_bone_length: float | None) -> pa.Table:
    """Rows with poses ("joints_2d" (21, 2), "joints_3d" (21, 3) in bone lengths, "view" (2, 3)) as an Arrow table.

    scale: "none" | "mean-bone" | "labels", where no given_bone_length (metres) is set.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        source, length = _scale(row, scale, mean_bone_length, given_bone_length)
        joints = row["joints_3d"] * (length or 1.0)
        values = {
            **{name: row[name] for name in ("name", "frame_id", "frame_index", "hand", "track", "camera_source")},
            "timestamp_s": _or_null(row["timestamp_s"]),
            "joints_2d": _floats(row["joints_2d"]),
            "joints_3d": _floats(joints - joints[:1]),
            "wrist_3d": _floats(joints[0]),
            "scale_source": source,
            "bone_length_m": length,
            "camera": _floats(row["camera"]),
            "confidence": _or_null(row["confidence"]),
            "crop": _floats(row["view"]),
        }
        for name, column in columns.items():
            column.append(values[name])
    return pa.table(columns, schema=SCHEMA)


def _scale(row: Row, scale: str, mean: float, given: float | None) -> tuple[str, float | None]:
    """scale_source and bone length in metres of one hand."""
    if given is not None:
        return "given", given
    if scale == "mean-bone":
        return "mean-bone", mean
    if scale == "labels" and np.isfinite(row["bone_length_m"]):
        return "given", float(row["bone_length_m"])
    return "none", None


def _or_null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _floats(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).reshape(-1)
