"""How workers divide the batch of a step.

The batch of all workers together consists of shares of equal size. Which frames a share holds, in which order, how they are
viewed, and over which of them BatchNorm takes its statistics, is decided share by share, whoever works on it. A run has as many
shares as it has workers at its start, one for each. Where it goes on with fewer workers, each takes several shares; with more,
several workers divide one. So the batches, and what is learnt from them, stay the same.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Rows start to stop of a share's batches."""

    share: int
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many."""
        return self.stop - self.start


def parts_of(rank: int, world_size: int, num_shares: int, share_size: int) -> tuple[Part, ...]:
    """What one worker takes of every batch: whole shares, or a part of one. Parts follow each other in order of rank.

    share_size: rows of a share in one batch. With more workers than rows of a share some parts are empty.
    """
    if world_size <= num_shares:
        own = range(rank * num_shares // world_size, (rank + 1) * num_shares // world_size)
        return tuple(Part(share, 0, share_size) for share in own)
    share = share_of(rank, world_size, num_shares)
    colleagues = workers_of(share, world_size, num_shares)
    place, among = colleagues.index(rank), len(colleagues)
    return (Part(share, place * share_size // among, (place + 1) * share_size // among),)


def share_of(rank: int, world_size: int, num_shares: int) -> int:
    """The share that a worker has a part of, where there are more workers than shares."""
    return rank * num_shares // world_size


def workers_of(share: int, world_size: int, num_shares: int) -> Sequence[int]:
    """The ranks that divide a share, where there are more workers than shares."""
    return [rank for rank in range(world_size) if share_of(rank, world_size, num_shares) == share]


def rows_of_workers(world_size: int, num_shares: int, share_size: int) -> tuple[int, ...]:
    """Rows of a batch that each worker takes; they add up to num_shares * share_size."""
    return tuple(
        sum(part.num_rows for part in parts_of(rank, world_size, num_shares, share_size)) for rank in range(world_size)
    )
