"""What each worker reads in an epoch, decided before anything is read.

The row groups of a set are permuted by (seed, pass over the set, set), laid end to end, and cut into one stretch a worker.
So every row is read by the same worker at the same place of the order whenever seed, epoch and number of workers are the
same, whatever machine is fast or slow. Row groups were shuffled across clips when the set was written (see ingest.py); a
few of them together make one work item, inside which whole frame groups are permuted again. No shuffle buffer is needed.

Of a set an epoch takes a quota of rows, all that it has or more or fewer where sets are mixed. Of several sets (see mixing.py) every worker gets its stretch of each. Its batches take rows from all of them, evenly
through the epoch: after any number of batches each set has given its part of the rows, to one row.

Remainder rule: worker r of W gets rows floor(r q / W) to floor((r + 1) q / W) of the q rows that an epoch takes of a set, so
counts differ by one a set at most. With drop_last every worker yields as many full batches as the one with the fewest rows
holds, and the epoch's last few rows (others every epoch) are left out; without it the last batch is smaller.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pipeline.frames.frame_set import FrameSet

ITEM_ROWS = 512
"""Rows of one work item: large enough for long reads, small enough (39 MB at 160 px) to keep a few in flight."""
_NUM_SPARES = 3


class Position(NamedTuple):
    """A place in the data: before a batch."""

    epoch: int = 0
    step: int = 0
    """Batches of the epoch that lie before."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """What a worker reads of frame sets, in which order, and how."""

    split: str
    batch_size: int
    """Frames per worker and step."""
    epochs: int = 1
    """Of the whole run: the stream ends before this one."""
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    """Of the order."""
    shuffle: bool = True
    drop_last: bool = True
    """Whether rows that make no full batch are left out of an epoch."""
    columns: tuple[str, ...] = ()
    """What to read besides the frames; columns not named are not read."""
    clips: frozenset[str] | None = None
    """Only rows of these clips (label fractions) of a single set; every worker gets those among its rows."""
    pairs: str | None = None
    """Name of mined pairs (see pairs.py) whose partners come along; `columns` may then name theirs too."""
    max_bad_fraction: float = 0.01
    """Share of unusable rows in an epoch of a worker above which the stream ends with an error."""
    num_readers: int | None = None
    """Reading tasks at a time for this worker; None lets Ray Data decide."""
    window_mb: int = 192
    """Decoded frames of one Ray Data execution, MiB; three windows are held for each worker."""


class RowRange(NamedTuple):
    """Rows of one row group."""

    path: str
    """The shard, as in the manifest."""
    row_group: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True)
class Item:
    """What one reading task reads: rows of one set."""

    epoch: int
    number: int
    """Of the set's items of this worker in this epoch."""
    of_set: int
    """Its place among the sets."""
    uri: str
    """Of the set."""
    group_size: int
    ranges: tuple[RowRange, ...]
    spares: tuple[RowRange, ...] = ()
    """Row groups of other shards, to replace the rows of an item none of which can be used."""

    @property
    def num_rows(self) -> int:
        """Rows, if none of them is left out by their clip."""
        return sum(each.num_rows for each in self.ranges)


def worker_rows(quotas: Sequence[int], rank: int, world_size: int) -> tuple[int, ...]:
    """Rows of each set that a worker gets in every epoch."""
    return tuple((rank + 1) * quota // world_size - rank * quota // world_size for quota in quotas)


def steps_per_epoch(quotas: Sequence[int], batch_size: int, world_size: int, drop_last: bool) -> int:
    """Batches each worker yields in an epoch (a worker whose last batch is empty yields one fewer without drop_last)."""
    rows = [sum(worker_rows(quotas, rank, world_size)) for rank in range(world_size)]
    return min(rows) // batch_size if drop_last else math.ceil(max(rows) / batch_size)


def plan_epoch(sets: "Sequence[FrameSet]", quotas: Sequence[int], plan: StreamPlan, epoch: int) -> list[Item]:
    """One worker's work items of an epoch, in the order in which their rows are needed."""
    needed: list[tuple[float, int, Item]] = []
    for index, (each, quota) in enumerate(zip(sets, quotas, strict=True)):
        first = epoch * quota + plan.rank * quota // plan.world_size
        end = epoch * quota + (plan.rank + 1) * quota // plan.world_size
        rng = np.random.default_rng([plan.seed, epoch, index, plan.rank, 3])
        groups = [
            (shard.path, number, rows)
            for shard in each.shards(plan.split)
            for number, rows in enumerate(shard.row_groups)
        ]
        begun = 0
        for number, ranges in enumerate(_of_items(_stretch(groups, first, end, index, plan))):
            spares = _spares(groups, ranges, rng)
            item = Item(epoch, number, index, each.uri, each.manifest.group_size, ranges, spares)
            needed.append((begun / (end - first), index, item))
            begun += item.num_rows
    return [item for *_, item in sorted(needed, key=lambda each: each[:2])]


@lru_cache(maxsize=64)
def rows_after(rows: tuple[int, ...], batch_size: int) -> np.ndarray:
    """(batches + 1, sets) how many rows of each set the first batches of an epoch take; the last row is all there are.

    rows: of each set, in this epoch. The sets' rows are spread evenly over the epoch.
    """
    total = sum(rows)
    ends = [*range(0, total, batch_size), total]
    if len(rows) == 1:
        return np.array(ends)[:, None]
    places = np.concatenate([(np.arange(count) + 0.5) / max(1, count) for count in rows])
    owners = np.repeat(np.arange(len(rows)), rows)[np.argsort(places, kind="stable")]
    taken = [np.concatenate([[0], np.cumsum(owners == index)])[ends] for index in range(len(rows))]
    return np.stack(taken, axis=1)


_RowGroup = tuple[str, int, int]
"""(shard, number, rows)."""


def _stretch(groups: list[_RowGroup], first: int, end: int, index: int, plan: StreamPlan) -> Iterator[RowRange]:
    """Rows first to end of the passes over a set, one after the other without end."""
    in_pass = sum(rows for *_, rows in groups)
    if end <= first:
        return
    for number in range(first // in_pass, (end - 1) // in_pass + 1):
        # A set's place enters the seed last and 0 adds nothing, so a single set's order does not depend on mixing.
        rng = np.random.default_rng([plan.seed, number, index])
        order = rng.permutation(len(groups)) if plan.shuffle else range(len(groups))
        position = number * in_pass
        for place in order:
            path, row_group, rows = groups[place]
            start, stop = max(first - position, 0), min(end - position, rows)
            position += rows
            if start < stop:
                yield RowRange(path, row_group, start, stop)


def _of_items(ranges: Iterator[RowRange]) -> Iterator[tuple[RowRange, ...]]:
    """Ranges put together until there are ITEM_ROWS rows."""
    item: list[RowRange] = []
    for rows in ranges:
        item.append(rows)
        if sum(each.num_rows for each in item) >= ITEM_ROWS:
            yield tuple(item)
            item = []
    if item:
        yield tuple(item)


def _spares(groups: list[_RowGroup], ranges: tuple[RowRange, ...], rng: np.random.Generator) -> tuple[RowRange, ...]:
    used = {rows.path for rows in ranges}
    drawn = [groups[place] for place in rng.integers(len(groups), size=4 * _NUM_SPARES)]
    others = [RowRange(path, row_group, 0, rows) for path, row_group, rows in drawn if path not in used]
    return tuple(others[:_NUM_SPARES])
