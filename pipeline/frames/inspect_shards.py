"""Run one function over every shard of a frame set: in threads of this process, or as Ray Data tasks over a cluster.

Either way a result comes back for each shard in its order, and is all that is kept of it, so memory does not grow with
the set.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pipeline.frames.manifest import Shard
from pipeline.ray_map import ray_map

MIN_SHARDS_FOR_RAY = 64
"""From here on Ray's start (some seconds) is soon made up for."""
_THREADS = 4

Result = TypeVar("Result")


def map_shards(
    work: Callable[[Shard], Result], shards: Sequence[Shard], use_ray: bool
) -> Iterator[tuple[Shard, Result]]:
    """(shard, work(shard)) in the order of the shards. use_ray: needs a running Ray; work must then be picklable."""
    results = ray_map(work, shards, ordered=True) if use_ray else _in_threads(work, shards)
    return zip(shards, results, strict=True)


def _in_threads(work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, shards)
