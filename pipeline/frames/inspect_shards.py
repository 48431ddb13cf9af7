"""Run one function over every shard of a frame set: in threads of this process, or as Ray Data tasks over a cluster.

Either way a result comes back for each shard in its order, and is all that is kept of it, so memory does not grow with
the set.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pipeline.errors import DataError, EquihandError
from pipeline.frames.manifest import Shard

MIN_SHARDS_FOR_RAY = 64
"""From here on Ray's start (some seconds) is soon made up for."""
_THREADS = 4

Result = TypeVar("Result")


def map_shards(
    work: Callable[[Shard], Result], shards: Sequence[Shard], use_ray: bool
) -> Iterator[tuple[Shard, Result]]:
    """(shard, work(shard)) in the order of the shards. use_ray: needs a running Ray; work must then be picklable.

    Raises DataError with the message of an EquihandError in `work`.
    """
    results = _in_ray(work, shards) if use_ray else _in_threads(work, shards)
    return zip(shards, results, strict=True)


def _in_threads(work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, shards)


def _in_ray(work: Callable[[Shard], Result], shards: Sequence[Shard]) -> Iterator[Result]:
    import ray

    def run(batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": [_pickled(work, Shard.model_validate_json(text)) for text in batch["shard"]]}

    dataset = ray.data.from_items(
        [{"shard": shard.model_dump_json()} for shard in shards], override_num_blocks=len(shards)
    ).map_batches(run, batch_size=1, num_cpus=1)
    dataset.context.execution_options.preserve_order = True
    for row in dataset.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, EquihandError):
            raise DataError(str(result))
        yield result


def _pickled(work: Callable[[Shard], Result], shard: Shard) -> bytes:
    try:
        return pickle.dumps(work(shard))
    except EquihandError as error:
        return pickle.dumps(DataError(str(error)))
