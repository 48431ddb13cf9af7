"""What each worker reads in an epoch, decided before anything is read.

The row groups of a set are permuted by (seed, pass over the set, set), laid end to end, and cut into one stretch a worker.
So every row is read by the same worker at the same place of the order whenever seed, epoch and number of workers are the
same, whatever machine is fast or slow. Row groups were shuffled across clips when the set was written (see ingest.py); a
few of them together make one work item, inside which whole frame groups are permuted again. No shuffle buffer is needed.

Of several sets (see mixing.py) every worker gets its stretch of each. Its batches take rows from all of them, evenly
through the epoch: after any number of batches each set has given its part of the rows, to one row.

Remainder rule: worker r of W gets rows floor(r q / W) to floor((r + 1) q / W) of the q rows that an epoch takes of a set, so
counts differ by one a set at most. With drop_last every worker yields as many full batches as the one with the fewest rows
holds, and the epoch's last few rows (others every epoch) are left out; without it the last batch is smaller.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pipeline.frames.manifest import Manifest
from pipeline.frames.mixing import FrameSet, quotas

ITEM_ROWS = 512
"""Rows of one work item: large enough for long reads, small enough (39 MB at 160 px) to keep a few in flight."""
_NUM_SPARES = 3


class Piece(NamedTuple):
    """Rows of one row group."""

    path: str
    """The shard, as in the manifest."""
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Item:
    """What one reading task reads: rows of one set."""

    epoch: int
    number: int
    """Of the set's items of this worker in this epoch."""
    of_set: int
    pieces: tuple[Piece, ...]
    spares: tuple[Piece, ...] = ()
    """Row groups of other shards, to replace the rows of an item none of which can be used."""

    @property
    def num_rows(self) -> int:
        """Rows, if none of them is left out by their clip."""
        return sum(piece.stop - piece.start for piece in self.pieces)


def worker_rows(sets: Sequence[FrameSet], split: str, rank: int, world_size: int) -> list[int]:
    """Rows of each set that a worker gets in every epoch."""
    return [(rank + 1) * quota // world_size - rank * quota // world_size for quota in quotas(sets, split)]


def steps_per_epoch(sets: Sequence[FrameSet], split: str, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Batches each worker yields in an epoch (a worker whose last batch is empty yields one fewer without drop_last)."""
    rows = [sum(worker_rows(sets, split, rank, world_size)) for rank in range(world_size)]
    return min(rows) // batch_size if drop_last else math.ceil(max(rows) / batch_size)


def num_batches(manifest: Manifest, split: str, batch_size: int, world_size: int, drop_last: bool) -> int:
    """`steps_per_epoch` of a single set."""
    return steps_per_epoch([FrameSet("", manifest)], split, batch_size, world_size, drop_last)


def plan_epoch(
    sets: Sequence[FrameSet], split: str, rank: int, world_size: int, seed: int, epoch: int, shuffle: bool = True
) -> list[Item]:
    """One worker's work items of an epoch, in the order in which their rows are needed."""
    needed: list[tuple[float, int, Item]] = []
    for index, (each, quota) in enumerate(zip(sets, quotas(sets, split), strict=True)):
        first = epoch * quota + rank * quota // world_size
        end = epoch * quota + (rank + 1) * quota // world_size
        rng = np.random.default_rng([seed, epoch, index, rank, 3])
        groups = _row_groups(each.manifest, split)
        begun = 0
        for number, pieces in enumerate(_items(_stretch(groups, first, end, seed, index, shuffle))):
            item = Item(epoch, number, index, pieces, _spares(groups, pieces, rng))
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


_Group = tuple[str, int, int]
"""(shard, row group, rows)."""


def _row_groups(manifest: Manifest, split: str) -> list[_Group]:
    return [
        (shard.path, index, rows)
        for shard in manifest.shards
        if shard.split == split
        for index, rows in enumerate(shard.row_groups)
    ]


def _stretch(groups: list[_Group], first: int, end: int, seed: int, index: int, shuffle: bool) -> Iterator[Piece]:
    """Rows first to end of the passes over a set, one after the other without end."""
    in_pass = sum(rows for *_, rows in groups)
    if end <= first:
        return
    for number in range(first // in_pass, (end - 1) // in_pass + 1):
        # A set's place enters the seed last and 0 adds nothing, so a single set's order does not depend on mixing.
        order = np.random.default_rng([seed, number, index]).permutation(len(groups)) if shuffle else range(len(groups))
        position = number * in_pass
        for place in order:
            path, row_group, rows = groups[place]
            start, stop = max(first - position, 0), min(end - position, rows)
            position += rows
            if start < stop:
                yield Piece(path, row_group, start, stop)


def _items(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Pieces put together until there are ITEM_ROWS rows."""
    item: list[Piece] = []
    for piece in pieces:
        item.append(piece)
        if sum(each.stop - each.start for each in item) >= ITEM_ROWS:
            yield tuple(item)
            item = []
    if item:
        yield tuple(item)


def _spares(groups: list[_Group], pieces: tuple[Piece, ...], rng: np.random.Generator) -> tuple[Piece, ...]:
    used = {piece.path for piece in pieces}
    drawn = [groups[place] for place in rng.integers(len(groups), size=4 * _NUM_SPARES)]
    others = [Piece(path, row_group, 0, rows) for path, row_group, rows in drawn if path not in used]
    return tuple(others[:_NUM_SPARES])
