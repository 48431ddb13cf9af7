"""The way into Ray for finite work: one function over many items, on every CPU that the cluster has or gets; or one call, beside
what its caller does."""

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.errors import DataError, EquihandError
from pipeline.ray_cluster import data_labels, said_when_lost, wait_for_node

MAX_RETRIES = 2
"""Of an item whose worker died. Without a limit, a file that crashes the decoder would keep the job busy for ever."""
MAX_ITEMS = 16_384
"""About; Ray Data needs 20 ms for each, and more the more there are."""

_ONE_CPU = {"CPU": 1.0}

Item = TypeVar("Item")
Result = TypeVar("Result")


def ray_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ordered: bool = False,
    lasting: bool = False,
    num_workers: int | None = None,
) -> Iterator[Result]:
    """work(item) for every item, by Ray Data on one CPU each; results as they come, or `ordered` like the items.

    Needs a running Ray, where there are items; waits for a first node where there is none yet (TrainingError where none comes). Work, items and results travel pickled. Progress is the caller's, who counts
    results as they come; the work ends where the caller stops asking.

    lasting: workers are processes of their own, each with one copy of `work` for all its items, so what that loads and keeps
    (a detector) is loaded once. num_workers: so many at a time; none takes all CPUs, also those of nodes that come later.

    Raises an EquihandError of `work` as it is, DataError where workers die over the same item again and again, any other
    error as the cause of Ray's.
    """
    rows = [{"item": pickle.dumps(item)} for item in items]
    if not rows:
        return
    import ray

    wait_for_node(_ONE_CPU, data_labels())
    num_items = len(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of passing max_retries; there is no other way in Ray 2.60
        dataset = ray.data.from_items(rows, override_num_blocks=num_items)
        del rows  # they may be large: a unit of images lists all of them
        if lasting:
            most = min(num_items, num_workers or num_items)
            results = dataset.map(
                _Worker,  # type: ignore[arg-type]
                fn_constructor_args=(work,),
                # One item at a time: else the first that is ready takes two.
                compute=ray.data.ActorPoolStrategy(
                    min_size=most if num_workers else 1, max_size=most, max_tasks_in_flight_per_actor=1
                ),
                num_cpus=1,
                # Of the process, without a limit: one that is not started again keeps its place in the pool, idle.
                max_restarts=-1,
                max_task_retries=MAX_RETRIES,
            )
            # The load from which Ray Data adds workers, as far as there are CPUs. By default 1.75 items a worker, which is never
            # reached with one item at a time.
            results.context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.01
        else:
            results = dataset.map(
                _Worker(work).__call__,
                compute=ray.data.TaskPoolStrategy(num_workers),
                num_cpus=1,
                max_retries=MAX_RETRIES,
            )
    results.context.execution_options.preserve_order = ordered
    results.context.raise_original_map_exception = True  # else it comes as "UDF failed", without what failed
    try:
        with said_when_lost(_ONE_CPU, data_labels()):
            # Nothing is fetched ahead: a result would come only with the one after it.
            block: Any
            for block in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for result in map(pickle.loads, block["result"].to_pylist()):
                    if isinstance(result, EquihandError):
                        raise result
                    yield result
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.RayActorError):
        raise DataError(
            f"a worker died {MAX_RETRIES + 1} times over the same input: out of memory (have fewer workers: num_workers, or "
            "ray.num_cpus), or a file that crashes the decoder; Ray's logs say which. The same command goes on from what is "
            "finished"
        ) from None


def _attempt(work: Callable[[Item], Result], item: Item) -> Result | EquihandError:
    """An error of ours comes as a result: Ray would log its traceback, and wrap it."""
    try:
        return work(item)
    except EquihandError as error:
        return error


class _Worker:
    """Ray Data's face of `work`; a class, because it wants one for lasting workers."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        item = pickle.loads(row["item"])  # noqa: S301 - from our own driver, through Ray; never from storage
        return {"result": pickle.dumps(_attempt(self._work, item))}


@contextmanager
def beside(work: Callable[[Item], Result], item: Item) -> Iterator[Callable[[], Result]]:
    """work(item) in a process of its own, while the block runs; calling what the block gets waits for the result. Where the block
    ends without it, the work is ended.

    Needs a running Ray. It takes no CPU by itself: what it starts on the cluster does. Raises an EquihandError of `work` as it is, any
    other error as the cause of Ray's.
    """
    import ray

    remote: Any = ray.remote(num_cpus=0, max_retries=0)(_attempt)
    task = remote.remote(work, item)

    def result() -> Result:
        returned: Result | EquihandError = ray.get(task)
        if isinstance(returned, EquihandError):
            raise returned
        return returned

    try:
        yield result
    finally:
        if not ray.wait([task], timeout=0)[0]:
            ray.cancel(task)
