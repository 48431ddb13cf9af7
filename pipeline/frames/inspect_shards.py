"""Run one function over every shard of a frame set: in threads of this process, or as Ray Data tasks over a cluster.

Either way a result comes back for each shard in its order, and is all that is kept of it, so memory does not grow with
the set.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, one_line
from pipeline.frames.manifest import Shard
from pipeline.frames.schema import with_later_columns
from pipeline.ray_map import ray_map
from pipeline.storage import join, resolve

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


def open_shard(uri: str, shard: Shard) -> pq.ParquetFile:
    """A shard of the set at `uri`. Raises what the file system and pyarrow raise."""
    filesystem, path = resolve(join(uri, shard.path))
    return pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=True)


def read_columns(uri: str, shard: Shard, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The row groups of a shard of any version one by one, these columns only. Raises DataError where it cannot be read."""
    try:
        with open_shard(uri, shard) as file:
            for index in range(file.num_row_groups):
                table = file.read_row_group(index, columns=list(columns))
                table.validate(full=True)  # damaged text would fail only where it is used
                yield with_later_columns(table, columns)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(uri, shard, error) from None


def unreadable(uri: str, shard: Shard, error: Exception) -> DataError:
    """What to say of a shard that cannot be read."""
    text = one_line(error, 200)
    return DataError(f"{join(uri, shard.path)}: cannot be read ({text}); --verify finds all damage of the set")


def _in_threads(work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, shards)
