"""Labelled frames for fine-tuning: which clips are used, and batches of them from memory or from a stream.

Label fractions take whole clips, in an order drawn by seed, so the clips of a small fraction are among those of a
larger one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.manifest import Manifest
from pipeline.frames.stream import load_frames, stream_batches
from pipeline.geometry import BONE_NAMES, bone_joints
from pipeline.hands import NUM_JOINTS
from pipeline.storage import join, resolve


class LabelSettings(Settings):
    """How many of the labels training may use."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the split's labelled frames; whole clips, drawn by seed."""
    num: int | None = Field(default=None, ge=1)
    """About how many labelled frames (whole clips until there are as many); none leaves it to fraction."""
    seed: int = Field(default=5, ge=0)
    """Seed of the choice of clips, apart from the training seed so that runs with several seeds share their labels."""


class PoseBatch(NamedTuple):
    """Labelled crops."""

    frames: Tensor
    """(B, 3, S, S) uint8."""
    joints_3d: Tensor
    """(B, 21, 3) metres, camera frame, FreiHAND order."""
    camera: Tensor
    """(B, 3, 3) of the crop, pixels."""

    def to(self, device: torch.device) -> "PoseBatch":
        """The batch on a device."""
        return PoseBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class LabelledFrames:
    """Labelled frames in memory, as arrays, so that processes of one machine can share them."""

    frames: np.ndarray
    """(N, S, S, 3) uint8."""
    joints_3d: np.ndarray
    """(N, 21, 3) float32, metres."""
    camera: np.ndarray
    """(N, 3, 3) float32, of the crop."""
    frame_ids: list[str]
    hands: list[str]
    """"right" or "left", as seen in the source; left hands are stored mirrored."""

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, rows: np.ndarray | slice) -> PoseBatch:
        """The rows as tensors of their own."""
        frames = torch.from_numpy(np.array(self.frames[rows])).permute(0, 3, 1, 2)  # channels-last, as decoded
        joints, camera = np.array(self.joints_3d[rows]), np.array(self.camera[rows])
        return PoseBatch(frames, torch.from_numpy(joints), torch.from_numpy(camera))

    def share(self, rank: int, world_size: int) -> "LabelledFrames":
        """The rows of one worker. Every worker gets as many; up to world_size - 1 rows are left out."""
        rows = slice(rank, len(self) // world_size * world_size, world_size)
        return LabelledFrames(
            self.frames[rows], self.joints_3d[rows], self.camera[rows], self.frame_ids[rows], self.hands[rows]
        )


@dataclass(frozen=True)
class LabelSelection:
    """The clips that training uses."""

    clips: frozenset[str]
    num_frames: int
    num_unlabelled: int
    """Frames left out because their clip has frames without joints or camera."""
    mean_bone_length: dict[str, float]
    """Mean length in metres of each reference bone (geometry.BONE_NAMES) over the chosen frames."""
    constant: Constant
    """The fixed hands that answer best for the chosen frames."""


def select_labels(frame_set: str, split: str, labels: LabelSettings, manifest: Manifest) -> LabelSelection:
    """Choose the clips to train on; only the label columns are read.

    A clip counts as labelled when all of its frames are. Raises DataError when there are no or too few labels.
    """
    rows, joints = _read_labels(frame_set, split, manifest)
    labelled = {clip: np.concatenate(parts) for clip, parts in joints.items()}
    usable = {clip: values for clip, values in labelled.items() if len(values) == rows[clip]}
    total = sum(len(values) for values in usable.values())
    if not usable:
        raise DataError(
            f"{frame_set}: no labelled clip in split '{split}' (joints_3d and camera are needed for all of its frames); "
            f"the set has {manifest.counts_text()}"
        )
    if labels.num is not None and labels.num > total:
        raise DataError(f"{frame_set}: labels.num = {labels.num}, but split '{split}' has {total} labelled frames")
    wanted = labels.num if labels.num is not None else round(labels.fraction * total)
    chosen: dict[str, np.ndarray] = {}
    num_chosen = 0
    for clip in sorted(usable, key=lambda name: _place(name, labels.seed)):
        if num_chosen >= max(1, wanted):
            break
        chosen[clip] = usable[clip]
        num_chosen += len(usable[clip])
    poses = np.concatenate(list(chosen.values()))
    return LabelSelection(
        clips=frozenset(chosen),
        num_frames=len(poses),
        num_unlabelled=sum(rows.values()) - total,
        mean_bone_length=mean_bone_lengths(poses),
        constant=Constant.of(torch.from_numpy(poses)),
    )


def read_poses(frame_set: str, split: str, manifest: Manifest) -> np.ndarray:
    """All labelled poses (N, 21, 3) of a split, metres, clip by clip; N may be 0. Only the label columns are read."""
    _, joints = _read_labels(frame_set, split, manifest)
    return np.concatenate([np.zeros((0, NUM_JOINTS, 3)), *(pose for poses in joints.values() for pose in poses)])


def mean_bone_lengths(joints_3d: np.ndarray) -> dict[str, float]:
    """Mean length of each reference bone (geometry.BONE_NAMES), in the unit of the joints (N, 21, 3)."""
    lengths = {}
    for bone in BONE_NAMES:
        start, end = bone_joints(bone)
        lengths[bone] = float(np.linalg.norm(joints_3d[:, end] - joints_3d[:, start], axis=-1).mean())
    return lengths


def decoded_megabytes(num_frames: int, image_size: int) -> float:
    """Memory of decoded frames (uint8), MB."""
    return num_frames * 3 * image_size**2 / 1e6


def load_labelled(
    frame_set: str,
    split: str,
    manifest: Manifest,
    clips: frozenset[str] | None = None,
    limit: int | None = None,
) -> LabelledFrames:
    """Labelled frames of a split in memory, at most `limit` (drawn by row group).

    Raises DataError naming frames without joints or camera.
    """
    columns = ("joints_3d", "camera", "frame_id", "hand")
    loaded = load_frames(frame_set, split=split, columns=columns, clips=clips, limit=limit, manifest=manifest)
    return LabelledFrames(
        frames=loaded.frames.permute(0, 2, 3, 1).contiguous().numpy(),
        joints_3d=loaded.columns["joints_3d"].numpy(),
        camera=loaded.columns["camera"].numpy(),
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


def stream_forever(
    frame_set: str,
    split: str,
    selection: LabelSelection,
    manifest: Manifest,
    batch_size: int,
    seed: int,
    first_epoch: int,
    num_epochs: int,
    rank: int,
    world_size: int,
) -> Iterator[PoseBatch]:
    """Batches of the chosen clips, pass after pass, more of them than `num_epochs` epochs need.

    Workers hold unequal numbers of the chosen clips' rows, so the training loop counts its epochs in steps: a worker with
    fewer rows starts its next pass earlier.
    """
    stream = stream_batches(
        frame_set,
        split=split,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        start_epoch=first_epoch,
        num_epochs=2 * num_epochs + 2,
        columns=("joints_3d", "camera"),
        clips=selection.clips,
        manifest=manifest,
    )
    for batch in stream:
        yield PoseBatch(batch.frames, batch.columns["joints_3d"], batch.columns["camera"])


def _place(clip: str, seed: int) -> bytes:
    """A clip's place in the order drawn by seed."""
    return hashlib.blake2b(f"{seed}/{clip}".encode(), digest_size=8).digest()


def _read_labels(frame_set: str, split: str, manifest: Manifest) -> tuple[dict[str, int], dict[str, list[np.ndarray]]]:
    """By clip: the number of its frames, and the joints (n, 21, 3) of those with joints and camera."""
    rows: dict[str, int] = {}
    joints: dict[str, list[np.ndarray]] = {}
    for shard in (s for s in manifest.shards if s.split == split):
        filesystem, path = resolve(join(frame_set, shard.path))
        table = pq.read_table(path, columns=["clip_id", "joints_3d", "camera"], filesystem=filesystem)
        complete = pa.compute.and_(table["joints_3d"].is_valid(), table["camera"].is_valid())
        for clip in table["clip_id"].to_pylist():
            rows[clip] = rows.get(clip, 0) + 1
        labelled = table.filter(complete)
        poses = labelled["joints_3d"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, 21, 3)
        for clip, pose in zip(labelled["clip_id"].to_pylist(), poses, strict=True):
            joints.setdefault(clip, []).append(pose[None])
    return rows, joints
