"""What each worker reads in an epoch, decided before anything is read.

The row groups of a set are permuted by (seed, pass over the set, set), laid end to end, and cut into one stretch a share of the
batch (see shares.py): usually one a worker. So every row comes at the same place of the order whenever seed, epoch and number of
shares are the same, whatever machine is fast or slow, and however many workers there are. Row groups were shuffled across clips
when the set was written (see ingest.py); a few of them together make one work item, inside which whole frame groups are permuted
again. No shuffle buffer is needed.

Of a set an epoch takes a quota of rows, all that it has or more or fewer where sets are mixed. Of several sets (see mixing.py)
every share gets its stretch of each. Its batches take rows from all of them, evenly through the epoch: after any number of
batches each set has given its part of the rows, to one row. A worker reads from one or more such sources: a set for a share.

Remainder rule: share s of S gets rows floor(s q / S) to floor((s + 1) q / S) of the q rows that an epoch takes of a set, so
counts differ by one a set at most. With drop_last every share makes as many full batches as the one with the fewest rows
holds, and the epoch's last few rows (others every epoch) are left out; without it the last batch is smaller.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.frames.shares import Part, parts_of

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
    """Frames of a share in each step: of a worker, where shares are not counted otherwise."""
    epochs: int = 1
    """Of the whole run: the stream ends before this one."""
    rank: int = 0
    world_size: int = 1
    num_shares: int | None = None
    """Shares of which the batch of all workers consists; None: one for each worker."""
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
    reader_cpus: float = 1
    """Logical CPUs that each of them reserves; where it is none and num_readers None, there are two."""
    window_mb: int = 192
    """Decoded frames of one Ray Data execution, MiB; three windows are held for each worker."""

    @property
    def shares(self) -> int:
        """Shares of which the batch of all workers consists."""
        return self.num_shares or self.world_size

    @property
    def parts(self) -> tuple[Part, ...]:
        """What this worker takes of every batch."""
        return parts_of(self.rank, self.world_size, self.shares, self.batch_size)


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
    """Of the items of this set for this share in this epoch."""
    of_set: int
    """Its place among the sets."""
    source: int
    """Its place among what this worker reads: of the first share each set, then of the next."""
    uri: str
    """Of the set."""
    group_size: int
    ranges: tuple[RowRange, ...]
    spares: tuple[RowRange, ...] = ()
    """Row groups of other shards, to replace the rows of an item none of which can be used."""
    wanted: tuple[int, ...] | None = None
    """Which of the rows, in the order that they come in; None: all of them."""

    @property
    def num_rows(self) -> int:
        """Rows, if none of them is left out by their clip."""
        return sum(each.num_rows for each in self.ranges)

    @property
    def num_wanted(self) -> int:
        """Those of them that are wanted."""
        return self.num_rows if self.wanted is None else len(self.wanted)


def share_rows(quotas: Sequence[int], share: int, num_shares: int) -> tuple[int, ...]:
    """Rows of each set that a share gets in every epoch."""
    return tuple((share + 1) * quota // num_shares - share * quota // num_shares for quota in quotas)


def steps_per_epoch(quotas: Sequence[int], batch_size: int, num_shares: int, drop_last: bool) -> int:
    """Batches of an epoch (a worker whose last batch is empty yields one fewer without drop_last)."""
    rows = [sum(share_rows(quotas, share, num_shares)) for share in range(num_shares)]
    return min(rows) // batch_size if drop_last else math.ceil(max(rows) / batch_size)


def plan_epoch(
    sets: "Sequence[FrameSet]", quotas: Sequence[int], plan: StreamPlan, epoch: int, step: int = 0
) -> list[Item]:
    """One worker's work items of an epoch from a step on, in the order in which their rows are needed."""
    needed: list[tuple[float, int, Item]] = []
    for place, part in enumerate(plan.parts):
        rows = share_rows(quotas, part.share, plan.shares)
        before = rows_before(rows, plan.batch_size, step)
        for index, each in enumerate(sets):
            source = place * len(sets) + index
            cut = None if part.num_rows == plan.batch_size else _in_part(rows, index, part, plan.batch_size)
            begun = 0
            for item in _share_items(each, index, source, quotas[index], part.share, plan, epoch):
                start, begun = begun, begun + item.num_rows
                if begun <= before[index]:
                    continue  # left out unread
                wanted = range(max(0, before[index] - start), item.num_rows)
                if cut is not None:
                    item = replace(item, wanted=tuple(row for row in wanted if cut[start + row]))
                elif len(wanted) < item.num_rows:
                    item = replace(item, wanted=tuple(wanted))
                if item.wanted != ():
                    needed.append((start / rows[index], source, item))
    return [item for *_, item in sorted(needed, key=lambda each: each[:2])]


def _share_items(
    frames: "FrameSet", index: int, source: int, quota: int, share: int, plan: StreamPlan, epoch: int
) -> Iterator[Item]:
    """All items of a share's stretch of one set. index: the set's place."""
    first = epoch * quota + share * quota // plan.shares
    end = epoch * quota + (share + 1) * quota // plan.shares
    rng = np.random.default_rng([plan.seed, epoch, index, share, 3])
    groups = [
        (shard.path, number, rows)
        for shard in frames.shards(plan.split)
        for number, rows in enumerate(shard.row_groups)
    ]
    for number, ranges in enumerate(_of_items(_stretch(groups, first, end, index, plan))):
        spares = _spares(groups, ranges, rng)
        yield Item(epoch, number, index, source, frames.uri, frames.manifest.group_size, ranges, spares)


def rows_of_steps(quotas: Sequence[int], plan: StreamPlan) -> np.ndarray:
    """(batches, sources) how many rows this worker's batches of an epoch take of each of its sources."""
    columns = []
    for part in plan.parts:
        rows = share_rows(quotas, part.share, plan.shares)
        counts = np.diff(rows_after(rows, plan.batch_size), axis=0)
        if part.num_rows < plan.batch_size:
            ends = counts.cumsum(1).clip(part.start, part.stop)
            counts = np.diff(ends, axis=1, prepend=part.start)
        columns.append(counts)
    longest = max(len(counts) for counts in columns)
    padded = [np.pad(counts, ((0, longest - len(counts)), (0, 0))) for counts in columns]
    return np.concatenate(padded, axis=1)


def rows_before(rows: tuple[int, ...], batch_size: int, step: int) -> list[int]:
    """Rows of each set that the batches of a share before a step take; rows: of each set in an epoch."""
    after = rows_after(rows, batch_size)
    taken: list[int] = after[min(step, len(after) - 1)].tolist()  # its epoch may be a batch shorter than that of others
    return taken


def _in_part(rows: tuple[int, ...], index: int, part: Part, batch_size: int) -> np.ndarray:
    """(rows of the set,) whether each row of a share's stretch of one set lies in the part of the share's batches."""
    after = rows_after(rows, batch_size)
    counts = np.diff(after, axis=0)
    batch = np.repeat(np.arange(len(counts)), counts[:, index])
    place = np.arange(rows[index]) - after[batch, index] + counts[batch, :index].sum(1)
    return (place >= part.start) & (place < part.stop)


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
