"""One function over a few items that need CPUs and GPUs of their own: Ray tasks, as many at a time as the cluster holds."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import EquihandError, TrainingError, causes, one_line
from pipeline.ray_cluster import START_TIMEOUT_S, said_when_lost, wait_for_node

MAX_RETRIES = 2
"""Of a task whose process or node is lost."""
_LOOK_S = 1.0

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class TaskNeeds:
    """What one task takes."""

    cpus: int
    gpus: float = 0.0
    labels: tuple[tuple[str, str], ...] = ()
    """Of the nodes that it may run on."""
    most: int | None = None
    """Tasks at a time; none: as many as find a place."""
    start_timeout_s: float = START_TIMEOUT_S
    """For which the first one is waited for."""


def run_tasks(
    work: Callable[..., Result], items: Sequence[Item], needs: TaskNeeds, *shared: Any
) -> Generator[tuple[Item, Result | EquihandError], None, None]:
    """(item, work(item, *shared)) as they come; an EquihandError in place of the result of one that failed, so that the others go on.

    Needs a running Ray, where there are items. shared: goes to every node once. Where the caller stops asking, those that run are ended
    by force. Raises SettingsError where no node can ever hold one, TrainingError where none comes in time.
    """
    if not items:
        return
    import ray

    resources, labels = {"CPU": float(needs.cpus), "GPU": needs.gpus}, dict(needs.labels)
    wait_for_node(resources, labels, needs.start_timeout_s)
    options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "max_retries": MAX_RETRIES, "label_selector": labels}
    remote: Any = ray.remote(**options)(work)  # type: ignore[call-overload]
    references = [ray.put(each) for each in shared]
    waiting, running = list(items), dict[Any, Item]()
    try:
        with said_when_lost(resources, labels):
            while waiting or running:
                while waiting and len(running) < (needs.most or len(items)):
                    item = waiting.pop(0)
                    running[remote.remote(item, *references)] = item
                for reference in ray.wait(list(running), timeout=_LOOK_S)[0]:
                    yield running.pop(reference), _outcome(reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _outcome(reference: Any) -> Any:
    """What a task returned, or why it failed."""
    import ray

    try:
        return value_of(reference)
    except EquihandError as error:
        return error
    except ray.exceptions.RayError as error:
        innermost = [*causes(error)][-1]
        failure = TrainingError(f"{type(innermost).__name__}: {one_line(innermost)}")
        failure.__cause__ = error  # whoever raises it shows in the log where it happened
        return failure


def value_of(reference: Any) -> Any:
    """What a task returned; one of our own errors as it was raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, EquihandError):
            raise error.cause from None
        raise
