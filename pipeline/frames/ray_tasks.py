"""Run the pieces of an ingest's work on a Ray cluster."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.errors import DataError, EquihandError

MAX_RETRIES = 2
"""Of a task whose worker died. Without a limit, a file that crashes the decoder would keep the job busy for ever."""

Work = Callable[..., dict[str, Any]]


def run_in_ray(
    work: Work,
    arguments: dict[str, Any],
    items: Iterable[dict[str, Any]],
    num_workers: int | None,
    lasting: bool = False,
) -> Iterator[dict[str, Any]]:
    """work(item, **arguments) for every item, by Ray Data on one CPU each; results as they come, in any order.

    lasting: by actors, one a worker, which keep what they have loaded (a detector) from item to item.
    Raises DataError with the message of a worker's EquihandError, or where a worker dies on the same item again and again.
    """
    rows = [{"item": json.dumps(item)} for item in items]
    if not rows:
        return
    import ray

    size = max(1, min(len(rows), num_workers or int(ray.cluster_resources().get("CPU", 1))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of passing max_retries; there is no other way in Ray 2.60
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        del rows  # they may be large: a unit of images lists all of them
        if lasting:
            results = dataset.map_batches(
                _Worker,
                fn_constructor_args=(work, arguments),
                compute=ray.data.ActorPoolStrategy(
                    size=size, max_tasks_in_flight_per_actor=1
                ),  # else the first takes two
                batch_size=1,
                num_cpus=1,
                max_restarts=MAX_RETRIES,
                max_task_retries=MAX_RETRIES,
            )
        else:
            results = dataset.map_batches(
                _Worker(work, arguments).__call__,
                compute=ray.data.TaskPoolStrategy(size=size),
                batch_size=1,
                num_cpus=1,
                max_retries=MAX_RETRIES,
            )
    try:
        for row in results.iter_rows():
            value = json.loads(row["result"])
            if "error" in value:
                raise DataError(value["error"])
            yield value
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.RayActorError):
        raise DataError(
            f"an ingest worker died {MAX_RETRIES + 1} times over the same input: out of memory (lower num_workers), or a file "
            "that crashes the decoder; Ray's logs say which. What is finished is kept, the same command goes on from there"
        ) from None


class _Worker:
    """Ray Data wants a class for actors."""

    def __init__(self, work: Work, arguments: dict[str, Any]) -> None:
        self._work = work
        self._arguments = arguments

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": [run_item(self._work, item, self._arguments) for item in batch["item"]]}


def run_item(work: Work, item: str, arguments: dict[str, Any]) -> str:
    """The result for one item, or {"error": message}; JSON in and out."""
    try:
        return json.dumps(work(json.loads(item), **arguments))
    except EquihandError as error:
        return json.dumps({"error": str(error)})
