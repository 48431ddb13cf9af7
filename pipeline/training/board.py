"""What a run's processes have to know of each other while it runs on a cluster.

Workers post their progress to a small actor; a thread of the driver reads it and feeds the driver's `Progress`. Posts are
not waited for. What they warn of, and how busy their machines are, reaches the driver the same way. The same actor holds the workers' signs of life, whether the
workers are to leave, and the reason why the run must stop, if there is one.

The actor lives on the driver's node where it can. Ray starts it again if it dies, empty; the driver tells it again that the workers
are to leave, and their next posts bring the rest back.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from pipeline.errors import warn
from pipeline.progress import Progress
from pipeline.training.pulse import Sign

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 20

Heard = Callable[[dict[str, float], str], None]
"""Receives how busy a machine is, and its name."""


class _Read(NamedTuple):
    posts: dict[str, tuple[int, dict[str, Any]]]
    warnings: list[str]
    signs: dict[int, Sign]
    machines: dict[str, tuple[float, dict[str, float]]]


class _Board:
    def __init__(self) -> None:
        self.posts: dict[str, tuple[int, dict[str, Any]]] = {}
        self.warnings: list[str] = []
        self.reason = ""
        self.signs: dict[int, tuple[Sign, float]] = {}
        self.leaving = False
        self.machines: dict[str, tuple[float, dict[str, float]]] = {}
        self.controller: Any = None

    def post(self, key: str, done: int, figures: dict[str, Any]) -> None:
        self.posts[key] = (done, figures)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def machine(self, name: str, metrics: dict[str, float]) -> None:
        self.machines[name] = time.monotonic(), metrics

    def read(self, leaving: bool) -> _Read:
        self.leaving = leaving
        return _Read(self.posts, self.warnings, self._signs(), self.machines)

    def pulse(self, rank: int, sign: Sign) -> tuple[bool, dict[int, Sign]]:
        self.signs[rank] = sign, time.monotonic()
        return self.leaving, self._signs()

    def _signs(self) -> dict[int, Sign]:
        """As old as they are now: whoever is silent was doing that for longer, too."""
        now = time.monotonic()
        return {
            rank: sign._replace(seconds=sign.seconds + now - at, silent=now - at)
            for rank, (sign, at) in self.signs.items()
        }

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason

    def stopped(self) -> str:
        return self.reason

    def control(self, controller: Any) -> None:
        self.controller = controller

    def controlled_by(self) -> Any:
        return self.controller


class BoardHandle:
    """What workers hold; picklable."""

    def __init__(self, actor: Any, node_id: str) -> None:
        """node_id: of the driver."""
        self._actor, self._node_id = actor, node_id
        self.leaving = False
        """Set by the driver: the workers are to write a checkpoint and end."""
        self.signs: Mapping[int, Sign] = {}
        """For the driver: the workers' signs of life, newest first heard half a second ago."""

    def post(self, key: str, done: int, **figures: Any) -> None:
        """Say how far `key` (a worker's or a trial's name) is, with figures worth showing."""
        self._actor.post.remote(key, done, figures)

    def machine(self, node_rank: int, metrics: dict[str, float]) -> None:
        """Say how busy this machine is, unless the driver is on it, too, and knows. For one worker of each node."""
        import ray

        if ray.get_runtime_context().get_node_id() != self._node_id:
            self._actor.machine.remote(f"node_{node_rank}", metrics)

    def pulse(self, rank: int, sign: Sign) -> tuple[bool, Mapping[int, Sign]]:
        """Tell a worker's sign of life; whether the workers are to leave, and the signs of all. Raises where there is no answer."""
        import ray

        answer: tuple[bool, Mapping[int, Sign]] = ray.get(self._actor.pulse.remote(rank, sign), timeout=_ANSWER_SECONDS)
        return answer

    def warn(self, text: str) -> None:
        """Warn the user, at the driver's terminal."""
        import ray

        ray.get(self._actor.warn.remote(text))

    def stop(self, reason: str) -> None:
        """Say that the work must not be tried again, and why; the first reason stays."""
        import ray

        ray.get(self._actor.stop.remote(reason))

    def stopped(self) -> str:
        """The reason given to `stop`; empty where there was none."""
        import ray

        reason: str = ray.get(self._actor.stopped.remote())
        return reason

    def control(self) -> None:
        """For the actor that controls the workers, and calls this: say which it is."""
        import ray

        ray.get(self._actor.control.remote(ray.get_runtime_context().current_actor))

    def end(self, reason: str) -> None:
        """For the driver: stop the work, also of workers that are just starting, by ending the actor that controls them."""
        import ray

        ray.get(self._actor.stop.remote(reason), timeout=_ANSWER_SECONDS)
        controller = ray.get(self._actor.controlled_by.remote(), timeout=_ANSWER_SECONDS)
        if controller is None:
            return
        try:
            # Not ray.kill alone: the workers' place in the cluster would stay taken.
            ray.get(controller.abort.remote(), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayActorError:  # that is how it ends
            return
        except ray.exceptions.GetTimeoutError:
            ray.kill(controller)


@contextmanager
def progress_board(
    progress: Progress, label: str, total: int | None, unit: str, heard: Heard = lambda metrics, name: None
) -> Iterator[BoardHandle]:
    """A board whose posts move `progress`: the sum over keys of what is done, with the newest figures. heard: gets how busy the
    machines of workers are, apart from the driver's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node_id = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node_id, soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    actor: Any = ray.remote(_Board).options(**options).remote()
    handle = BoardHandle(actor, node_id)
    stop = threading.Event()
    progress.start(label, total, unit)

    def follow() -> None:
        ended, num_shown = False, 0
        told: dict[str, float] = {}
        while not ended:
            ended = stop.wait(_POLL_SECONDS)  # and a last look, at what came just before the end
            try:
                read = actor.read.remote(handle.leaving)
                posts, warnings, handle.signs, machines = ray.get(read, timeout=_ANSWER_SECONDS)
            except Exception:
                # It is starting still, or again; or the cluster goes away, and the driver's main thread knows why.
                if not ray.is_initialized():
                    return
                continue
            for text in warnings[num_shown if num_shown <= len(warnings) else 0 :]:
                warn(text)
            num_shown = len(warnings)
            for name, (at, metrics) in machines.items():
                if told.get(name) != at:
                    told[name] = at
                    heard(metrics, name)
            if posts:
                figures = {k: v for _, each in posts.values() for k, v in each.items()}
                progress.update(sum(done for done, _ in posts.values()), **figures)

    follower = threading.Thread(target=follow, daemon=True, name="progress-board")
    follower.start()
    try:
        yield handle
    finally:
        stop.set()
        follower.join(timeout=_ANSWER_SECONDS + 1)
        if ray.is_initialized():  # else it has ended with Ray
            ray.kill(actor)
    progress.finish()
