"""What an ingest will do, decided before anything is done: settings, and from them and the listing tasks, splits, buckets."""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.config import Settings, Uri
from pipeline.errors import DataError
from pipeline.frames.groups import assign_splits
from pipeline.frames.manifest import MAX_GROUP_ROWS
from pipeline.frames.pieces import into_pieces, pack
from pipeline.frames.quality import QualitySettings
from pipeline.frames.rejects import Rejects
from pipeline.frames.schema import SPLITS
from pipeline.frames.sources import AnySource, Reader, Unit
from pipeline.frames.split_list import apply_split_list, check_complete, content_digest, read_split_list

MIN_FRAMES_PER_TASK = 512
MAX_TASKS = 1024
"""A large set gets larger tasks instead of more of them, so that stage 2 reads fewer and longer pieces."""


class SplitSettings(Settings):
    """Which clips go to which split: drawn by the seed, in fractions that add up to 1, or as a file says."""

    train: float = Field(default=1.0, ge=0, le=1)
    """Share of the clips to train on. 1 is for pretraining on unlabelled video; a labelled set needs `val` and `test`
    too."""
    val: float = Field(default=0.0, ge=0, le=1)
    """Share of the clips for choosing between models."""
    test: float = Field(default=0.0, ge=0, le=1)
    """Share of the clips for the figures that are reported."""
    file: Uri | None = None
    """URI of a list of clips and their splits (JSON, CSV or text, see docs/data.md). none draws the split of every
    clip."""
    unlisted: Literal["refuse", "draw", "train", "val", "test"] = "refuse"
    """What happens to clips that `file` does not name: stop (refuse), draw them in the shares above, or put them all
    into one split."""

    @field_validator("unlisted")
    @classmethod
    def _only_with_a_list(cls, value: str, info: Any) -> str:
        if value != "refuse" and info.data.get("file") is None:
            raise ValueError("has no meaning without splits.file")
        return value

    @field_validator("test")
    @classmethod
    def _whole(cls, value: float, info: Any) -> float:
        total = value + info.data.get("train", 0.0) + info.data.get("val", 0.0)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train, val and test add up to {total:g}, not 1")
        return value


class IngestSettings(Settings):
    """What goes into a frame set, and how."""

    source: AnySource
    """Where hand images come from."""
    image_size: int = Field(default=160, ge=16, le=1024)
    """Side of the stored square crops in pixels. Make it somewhat larger than the views of training."""
    box_margin: float = Field(default=1.5, ge=1, le=4)
    """Side of the crop, as a multiple of the hand's box. The margin gives rotated and shifted views something to
    show."""
    jpeg_quality: int = Field(default=92, ge=50, le=100)
    """JPEG quality of the stored crops."""
    group_size: int = Field(default=4, ge=1, le=64)
    """How many frames of one clip stay neighbours, so that a batch has positives in time and hard negatives. 1 shuffles
    every frame on its own."""
    group_stride_s: float = Field(default=0.2, ge=0)
    """Least time between the frames of a group, in seconds."""
    quality: QualitySettings = QualitySettings()
    """Hands to leave out by choice."""
    splits: SplitSettings = SplitSettings()
    """Whole clips are split, never their frames; all hands of one video go the same way."""
    seed: int = Field(default=0, ge=0)
    """Seed of the splits and of the shuffle."""
    rows_per_shard: int = Field(default=8192, ge=16)
    """About how many rows a shard has (8192 crops of 160 px are some 50 MB)."""
    row_group_size: int = Field(default=256, ge=1, le=MAX_GROUP_ROWS)
    """Largest number of rows in a Parquet row group, which a reader takes at once. At least `group_size`."""
    num_workers: int | None = Field(default=None, ge=1)
    """Number of workers that decode and crop, with one CPU each. none takes all CPUs of the cluster."""
    num_detectors: int | None = Field(default=None, ge=1)
    """Number of workers that find hands with the detector, with one CPU each. none takes as many as `num_workers`."""

    @field_validator("row_group_size")
    @classmethod
    def _holds_a_group(cls, value: int, info: Any) -> int:
        if value < info.data.get("group_size", 1):
            raise ValueError("must be at least group_size")
        return value

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the rows, as plain values. Reads splits.file: its content decides, not its name."""
        values = self.model_dump(mode="json")
        if self.splits.file is None:
            del values["splits"]["file"], values["splits"]["unlisted"]
        else:
            values["splits"]["file"] = content_digest(read_split_list(self.splits.file))
        del values["num_workers"], values["num_detectors"]
        values["source"] = self.source.deciding()
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
    """Units (of long videos: pieces) and what was rejected instead of becoming one."""
    rejects: Rejects
    """Found while listing."""

    @property
    def num_frames(self) -> int:
        """Expected."""
        return sum(unit.num_frames for task in self.tasks for unit, _ in task.units)

    def digest(self) -> str:
        """The same for plans whose finished tasks can stand for each other."""
        value = hashlib.blake2b(json.dumps(self.num_buckets).encode(), digest_size=16)
        for task in self.tasks:
            for unit, split in task.units:
                value.update(json.dumps([task.number, vars(unit), split]).encode())
        return value.hexdigest()


def make_plan(settings: IngestSettings, reader: Reader) -> Plan:
    """List the source and decide splits, tasks and buckets. Raises DataError where units or the list of splits do not fit."""
    rejects = Rejects(max_examples=sys.maxsize)  # all names, because the list of splits may name what was left out
    units = reader.list_units(rejects)
    if twice := [name for name, count in Counter(unit.name for unit in units).items() if count > 1]:
        raise DataError(f"{settings.source.uri}: two clips would both be called '{twice[0]}'; rename one of them")
    splits = _decide_splits(settings, units, rejects)
    units = into_pieces(units)
    per_task = max(MIN_FRAMES_PER_TASK, math.ceil(sum(unit.num_frames for unit in units) / MAX_TASKS))
    expected = {split: sum(u.num_frames for u in units if splits[u.name] == split) for split in SPLITS}
    num_buckets = {split: max(1, round(rows / settings.rows_per_shard)) for split, rows in expected.items()}
    packed = pack(units, per_task)
    tasks = [Task(number, [(unit, splits[unit.name]) for unit in members]) for number, members in enumerate(packed)]
    return Plan(tasks, num_buckets, len(units) + rejects.num_clips, rejects)


def _decide_splits(settings: IngestSettings, units: Sequence[Unit], rejects: Rejects) -> dict[str, str]:
    """The split of each unit, by name."""
    chosen = settings.splits
    keys = {unit.name: unit.split_key or unit.name for unit in units}
    splits: dict[str, str] = {}
    for unit in units:
        if unit.split is not None and splits.setdefault(keys[unit.name], unit.split) != unit.split:
            raise DataError(
                f"{settings.source.uri}: the labels give '{keys[unit.name]}' two splits, {splits[keys[unit.name]]} and "
                f"{unit.split}"
            )
    if splits and chosen.file is not None:
        raise DataError(
            f"{settings.source.uri}: the labels give splits, and so does splits.file; leave out one of them"
        )
    if chosen.file is not None:
        left_out = {name for names in rejects.examples.values() for name in names}
        splits = apply_split_list(chosen.file, read_split_list(chosen.file), keys, left_out)
        if chosen.unlisted == "refuse":
            check_complete(chosen.file, splits, keys)
    rest = [key for key in keys.values() if key not in splits]
    if chosen.unlisted in SPLITS:
        splits |= dict.fromkeys(rest, chosen.unlisted)
    else:
        fractions = {split: getattr(chosen, split) for split in SPLITS}
        splits |= assign_splits(rest, fractions, settings.seed)
    return {name: splits[key] for name, key in keys.items()}
