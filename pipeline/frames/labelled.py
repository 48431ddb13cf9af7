"""Labelled frames for fine-tuning: which clips are used, and batches of them from memory or from a stream.

Label fractions take whole clips, in an order drawn by seed, so the clips of a small fraction are among those of a
larger one.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.evaluation.image_metrics import mean_joints_2d
from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.epoch_plan import StreamPlan
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.read_items import LABEL_COLUMNS
from pipeline.frames.shards import opened, read_rows
from pipeline.geometry import BONE_NAMES, bone_joints, default_camera, project, rays
from pipeline.hands import NUM_JOINTS

PLANE_M = 0.5
"""Depth of joints of which only the places in the image are known."""


class LabelSettings(Settings):
    """How many of the labels training may use."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the split's labelled frames to train on. Whole clips are drawn by the seed."""
    num: int | None = Field(default=None, ge=1)
    """About how many labelled frames to train on (whole clips, until there are as many). none leaves it to
    `fraction`."""
    seed: int = Field(default=5, ge=0)
    """Seed that chooses the clips. It is separate from the training seed, so that runs with several seeds use the same
    labels."""


class PoseBatch(NamedTuple):
    """Labelled crops."""

    frames: Tensor
    """(B, 3, S, S) uint8."""
    joints_3d: Tensor
    """(B, 21, 3) metres, camera frame, FreiHAND order; where only their places in the image are known, see `complete_labels`."""
    camera: Tensor
    """(B, 3, 3) of the crop, pixels."""
    has_3d: Tensor
    """(B,) bool: whether depth and size are known, or only where the joints project to."""
    frame_ids: Sequence[str] = ()
    """Of each crop."""

    def to(self, device: torch.device) -> "PoseBatch":
        """The batch on a device."""
        frames, joints_3d, camera, has_3d = (tensor.to(device, non_blocking=True) for tensor in self[:4])
        return PoseBatch(frames, joints_3d, camera, has_3d, self.frame_ids)


@dataclass(frozen=True)
class LabelledFrames:
    """Labelled frames in memory, as arrays, so that processes of one machine can share them."""

    frames: np.ndarray
    """(N, S, S, 3) uint8."""
    joints_3d: np.ndarray
    """(N, 21, 3) float32, metres."""
    camera: np.ndarray
    """(N, 3, 3) float32, of the crop."""
    has_3d: np.ndarray
    """(N,) bool, as in PoseBatch."""
    pixel_size: np.ndarray
    """(N,) float32, side of a pixel of the crop in pixels of the source."""
    frame_ids: list[str]
    hands: list[str]
    """"right" or "left", as seen in the source; left hands are stored mirrored."""

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, rows: np.ndarray | slice) -> PoseBatch:
        """The rows as tensors of their own."""
        frames = torch.from_numpy(np.array(self.frames[rows])).permute(0, 3, 1, 2)  # channels-last, as decoded
        joints_3d, camera, has_3d = (
            torch.from_numpy(np.array(values[rows])) for values in (self.joints_3d, self.camera, self.has_3d)
        )
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return PoseBatch(frames, joints_3d, camera, has_3d, [self.frame_ids[number] for number in numbers])

    def share(self, rank: int, world_size: int) -> "LabelledFrames":
        """The rows of one worker. Every worker gets as many; up to world_size - 1 rows are left out."""
        rows = slice(rank, len(self) // world_size * world_size, world_size)
        return LabelledFrames(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def of_clips(self, clips: frozenset[str]) -> "LabelledFrames":
        """The rows of these clips."""
        chosen = [name.rsplit("/", 1)[0] in clips for name in self.frame_ids]
        values: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            values[each.name] = value[chosen] if isinstance(value, np.ndarray) else [*compress(value, chosen)]
        return LabelledFrames(**values)


@dataclass(frozen=True)
class LabelSelection:
    """The clips that training uses."""

    clips: frozenset[str]
    num_frames: int
    num_unlabelled: int
    """Frames left out because their clip has frames without labels."""
    num_2d_only: int
    """Chosen frames with joints in the image only."""
    mean_bone_length: dict[str, float]
    """Mean length in metres of each reference bone (geometry.BONE_NAMES) over the chosen frames with joints in 3D; empty where
    there are none."""
    constant: Constant | None
    """The fixed hands that answer best for the chosen frames with joints in 3D."""
    constant_2d: np.ndarray = field(compare=False)
    """(21, 2) see image_metrics.mean_joints_2d."""


def select_labels(frame_set: FrameSet, split: str, labels: LabelSettings) -> LabelSelection:
    """Choose the clips to train on; only the label columns are read.

    A clip counts as labelled when all of its frames are. Raises DataError when there are no or too few labels.
    """
    clips = _read_labels(frame_set, split)
    usable = {name: clip for name, clip in clips.items() if len(clip.joints_2d) == clip.num_rows}
    total = sum(clip.num_rows for clip in usable.values())
    if not usable:
        raise DataError(
            f"{frame_set.uri}: no labelled clip in split '{split}' (joints_3d and camera, or joints_2d, are needed for all of "
            f"its frames); the set has {frame_set.manifest.counts_text()}"
        )
    if labels.num is not None and labels.num > total:
        raise DataError(f"{frame_set.uri}: labels.num = {labels.num}, but split '{split}' has {total} labelled frames")
    wanted = labels.num if labels.num is not None else round(labels.fraction * total)
    chosen: dict[str, _Clip] = {}
    num_chosen = 0
    for name in sorted(usable, key=lambda name: clip_place(name, labels.seed)):
        if num_chosen >= max(1, wanted):
            break
        chosen[name] = usable[name]
        num_chosen += usable[name].num_rows
    poses = _poses(chosen.values())
    return LabelSelection(
        clips=frozenset(chosen),
        num_frames=num_chosen,
        num_unlabelled=sum(clip.num_rows for clip in clips.values()) - total,
        num_2d_only=num_chosen - len(poses),
        mean_bone_length=mean_bone_lengths(poses) if len(poses) else {},
        constant=Constant.of(torch.from_numpy(poses)) if len(poses) else None,
        constant_2d=mean_joints_2d(_joints_2d(chosen.values(), frame_set)),
    )


def read_poses(frame_set: FrameSet, split: str) -> np.ndarray:
    """All labelled poses (N, 21, 3) of a split, metres, clip by clip; N may be 0. Only the label columns are read."""
    return _poses(_read_labels(frame_set, split).values())


def read_joints_2d(frame_set: FrameSet, split: str) -> np.ndarray:
    """All labelled joints in the image (N, 21, 2) of a split, also of poses in 3D, in fractions of the crop's side; N may be 0."""
    return _joints_2d(_read_labels(frame_set, split).values(), frame_set)


def mean_bone_lengths(joints_3d: np.ndarray) -> dict[str, float]:
    """Mean length of each reference bone (geometry.BONE_NAMES), in the unit of the joints (N, 21, 3)."""
    lengths = {}
    for bone in BONE_NAMES:
        start, end = bone_joints(bone)
        lengths[bone] = float(np.linalg.norm(joints_3d[:, end] - joints_3d[:, start], axis=-1).mean())
    return lengths


def complete_labels(columns: Mapping[str, Tensor], side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of crops of `side` pixels without gaps: (joints_3d (B, 21, 3), camera (B, 3, 3), has_3d (B,) bool).

    columns: LABEL_COLUMNS, NaN where a row lacks a value. One with joints in the image only gets the default camera where it has none, and joints on a plane
    half a metre before it, which project to those in the image: u and v are right, depth and size are made up.
    """
    joints_3d, camera, joints_2d = (columns[name] for name in LABEL_COLUMNS)
    has_camera = camera.isfinite().all(2).all(1)
    has_3d = has_camera & joints_3d.isfinite().all(2).all(1)
    camera = torch.where(has_camera[:, None, None], camera, default_camera(len(camera), side))
    plane = rays(joints_2d, camera) * PLANE_M
    return torch.where(has_3d[:, None, None], joints_3d, plane), camera, has_3d


def decoded_megabytes(num_frames: int, image_size: int) -> float:
    """Memory of decoded frames (uint8), MB."""
    return num_frames * 3 * image_size**2 / 1e6


def load_labelled(
    frame_set: FrameSet, split: str, clips: frozenset[str] | None = None, limit: int | None = None
) -> LabelledFrames:
    """Labelled frames of a split in memory, at most `limit` (drawn by row group).

    Raises DataError naming frames without labels.
    """
    loaded = frame_set.load(split, columns=(*LABEL_COLUMNS, "crop", "frame_id", "hand"), clips=clips, limit=limit)
    labels = complete_labels(loaded.columns, frame_set.manifest.image_size)
    joints_3d, camera, has_3d = (values.numpy() for values in labels)
    return LabelledFrames(
        frames=loaded.frames.permute(0, 2, 3, 1).contiguous().numpy(),
        joints_3d=joints_3d,
        camera=camera,
        has_3d=has_3d,
        pixel_size=np.abs(np.linalg.det(loaded.columns["crop"][:, :, :2].numpy())) ** -0.5,
        frame_ids=[str(name) for name in loaded.columns["frame_id"]],
        hands=[str(name) for name in loaded.columns["hand"]],
    )


def memory_epoch(
    data: LabelledFrames, batch_size: int, steps: int, seed: int, epoch: int, rank: int = 0
) -> Iterator[PoseBatch]:
    """One epoch of `steps` shuffled batches; the rows left over are others in every epoch."""
    order = np.random.default_rng([seed, epoch, rank]).permutation(len(data))
    for step in range(steps):
        yield data.batch(order[step * batch_size : (step + 1) * batch_size])


def stream_forever(frame_set: FrameSet, plan: StreamPlan, first_epoch: int) -> Iterator[PoseBatch]:
    """Batches of the plan's clips from an epoch on, pass after pass, more of them than its epochs need.

    Workers hold unequal numbers of the chosen clips' rows, so the training loop counts its epochs in steps: a worker with
    fewer rows starts its next pass earlier.
    """
    left = plan.epochs - first_epoch
    stream = frame_set.stream(replace(plan, columns=("frame_id", *LABEL_COLUMNS), epochs=first_epoch + 2 * left + 2))
    stream.load_state_dict({"epoch": first_epoch, "step": 0})
    for batch in stream:
        labels = complete_labels(batch.columns, frame_set.manifest.image_size)
        yield PoseBatch(batch.frames, *labels, batch.columns["frame_id"])


def clip_place(clip: str, seed: int) -> bytes:
    """A clip's place in the order drawn by seed, of which fractions take the first."""
    return hashlib.blake2b(f"{seed}/{clip}".encode(), digest_size=8).digest()


@dataclass
class _Clip:
    """Labels of a clip."""

    num_rows: int = 0
    """With labels and without."""
    poses: list[np.ndarray] = field(default_factory=list)
    """(21, 3) each, of rows with joints in 3D and camera."""
    joints_2d: list[np.ndarray] = field(default_factory=list)
    """(21, 2) each, pixels of the crop, of all labelled rows."""


def _read_labels(frame_set: FrameSet, split: str) -> dict[str, _Clip]:
    """The labels of each clip."""
    clips: dict[str, _Clip] = {}
    for shard in frame_set.shards(split):
        with opened(frame_set.shard_uri(shard)) as file:
            table = read_rows(file, ("clip_id", *LABEL_COLUMNS))
        of_row = [clips.setdefault(name, _Clip()) for name in table["clip_id"].to_pylist()]
        for clip in of_row:
            clip.num_rows += 1
        labels = {name: table[name].combine_chunks() for name in LABEL_COLUMNS}
        in_3d = pc.and_(labels["joints_3d"].is_valid(), labels["camera"].is_valid())
        in_2d = pc.and_(labels["joints_2d"].is_valid(), pc.invert(in_3d))
        poses, cameras = (
            _values(labels[name].filter(in_3d)).reshape(-1, n, 3)
            for name, n in (("joints_3d", NUM_JOINTS), ("camera", 3))
        )
        projected = project(torch.tensor(poses), torch.tensor(cameras)).numpy()
        for row, pose, points in zip(np.flatnonzero(in_3d), poses, projected, strict=True):
            of_row[row].poses.append(pose)
            of_row[row].joints_2d.append(points)
        for row, points in zip(
            np.flatnonzero(in_2d), _values(labels["joints_2d"].filter(in_2d)).reshape(-1, NUM_JOINTS, 2), strict=True
        ):
            of_row[row].joints_2d.append(points)
    return clips


def _values(lists: pa.ListArray) -> np.ndarray:
    """The numbers of all lists, one after the other."""
    values: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
    return values


def _poses(clips: Iterable[_Clip]) -> np.ndarray:
    """(N, 21, 3) of all rows with joints in 3D."""
    return np.array([pose for clip in clips for pose in clip.poses]).reshape(-1, NUM_JOINTS, 3)


def _joints_2d(clips: Iterable[_Clip], frame_set: FrameSet) -> np.ndarray:
    """(N, 21, 2) of all labelled rows, in fractions of the crop's side."""
    joints = np.array([points for clip in clips for points in clip.joints_2d]).reshape(-1, NUM_JOINTS, 2)
    return joints / frame_set.manifest.image_size
