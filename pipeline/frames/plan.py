"""What an ingest will do, decided before anything is done: settings, and from them and the listing tasks, splits, buckets."""

import math
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from pipeline.config import Settings
from pipeline.frames.groups import assign_splits
from pipeline.frames.rejects import Rejects
from pipeline.frames.schema import SPLITS
from pipeline.frames.sources import Source, SourceSettings, Unit
from pipeline.storage import absolute

MIN_FRAMES_PER_TASK = 512
MAX_TASKS = 1024
"""A large set gets larger tasks instead of more of them, so that stage 2 reads fewer and longer pieces."""


class SplitFractions(Settings):
    """Fractions of the clips, by split. They add up to 1."""

    train: float = Field(default=1.0, ge=0, le=1)
    """For pretraining on unlabelled video; a labelled set that is to be evaluated on needs `val` and `test` as well."""
    val: float = Field(default=0.0, ge=0, le=1)
    """For choosing between models."""
    test: float = Field(default=0.0, ge=0, le=1)
    """For the figures that are reported."""

    @field_validator("test")
    @classmethod
    def _whole(cls, value: float, info: Any) -> float:
        total = value + info.data.get("train", 0.0) + info.data.get("val", 0.0)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train, val and test add up to {total:g}, not 1")
        return value


class IngestSettings(Settings):
    """What goes into a frame set, and how."""

    source: SourceSettings
    """Where hand images come from."""
    image_size: int = Field(default=160, ge=16, le=1024)
    """Side of the stored square crops, pixels. Somewhat more than the views' size."""
    box_margin: float = Field(default=1.5, ge=1, le=4)
    """Side of the crop in hand boxes, so that a rotated or shifted view still has pixels."""
    jpeg_quality: int = Field(default=92, ge=50, le=100)
    """Of the stored crops."""
    group_size: int = Field(default=4, ge=1, le=64)
    """Frames of one clip that stay neighbours: positives in time and hard negatives of one batch. 1 is a plain shuffle."""
    group_stride_s: float = Field(default=0.2, ge=0)
    """Time between the frames of a group, at least, seconds."""
    splits: SplitFractions = SplitFractions()
    """Whole clips are split, never their frames; all hands of one video go the same way."""
    seed: int = Field(default=0, ge=0)
    """Of splits and shuffle."""
    rows_per_shard: int = Field(default=8192, ge=16)
    """Rows of a shard, about (8192 crops of 160 px are some 50 MB)."""
    row_group_size: int = Field(default=256, ge=1)
    """Rows of a Parquet row group, at most; what a reader takes at once. At least group_size."""
    num_workers: int | None = Field(default=None, ge=1)
    """Workers that decode and crop, one CPU each; none takes all CPUs of the cluster."""

    @field_validator("row_group_size")
    @classmethod
    def _holds_a_group(cls, value: int, info: Any) -> int:
        if value < info.data.get("group_size", 1):
            raise ValueError("must be at least group_size")
        return value

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the rows, as plain values."""
        values = self.model_dump(mode="json")
        del values["num_workers"], values["source"]["max_reject_fraction"]
        values["source"]["name"] = self.source.resolved_name()
        for key in ("uri", "boxes"):
            if values["source"][key] is not None:
                values["source"][key] = absolute(values["source"][key])
        return values


@dataclass(frozen=True)
class Task:
    """A few units for one worker."""

    number: int
    units: list[tuple[Unit, str]]
    """With their splits."""


@dataclass(frozen=True)
class Plan:
    """What has to be done, decided before anything is."""

    tasks: list[Task]
    num_buckets: dict[str, int]
    num_clips: int
    """Units and what was rejected instead of becoming one."""
    rejects: Rejects
    """Found while listing."""

    @property
    def num_frames(self) -> int:
        """Expected."""
        return sum(unit.num_frames for task in self.tasks for unit, _ in task.units)


def make_plan(settings: IngestSettings, source: Source) -> Plan:
    """List the source and decide splits, tasks and buckets."""
    rejects = Rejects()
    units = source.list_units(rejects)
    splits = assign_splits([unit.name for unit in units], settings.splits.model_dump(), settings.seed)
    per_task = max(MIN_FRAMES_PER_TASK, math.ceil(sum(unit.num_frames for unit in units) / MAX_TASKS))
    packed: list[list[tuple[Unit, str]]] = []
    filled = per_task
    for unit in units:
        if filled >= per_task:
            packed.append([])
            filled = 0
        packed[-1].append((unit, splits[unit.name]))
        filled += max(unit.num_frames, 1)
    expected = {split: sum(u.num_frames for u in units if splits[u.name] == split) for split in SPLITS}
    num_buckets = {split: max(1, round(rows / settings.rows_per_shard)) for split, rows in expected.items()}
    tasks = [Task(number, members) for number, members in enumerate(packed)]
    return Plan(tasks, num_buckets, len(units) + rejects.num_clips, rejects)
