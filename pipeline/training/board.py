"""Progress of work that runs on a cluster, shown in the driver.

Workers post to a small actor; a thread of the driver reads it and feeds the driver's `Progress`. Posts are not waited for.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.progress import Progress

_POLL_SECONDS = 0.5


class _Board:
    def __init__(self) -> None:
        self.posts: dict[str, tuple[int, int | None, dict[str, Any]]] = {}
        self.reason = ""

    def post(self, key: str, done: int, total: int | None, figures: dict[str, Any]) -> None:
        self.posts[key] = (done, total, figures)

    def read(self) -> dict[str, tuple[int, int | None, dict[str, Any]]]:
        return self.posts

    def stop(self, reason: str) -> None:
        self.reason = self.reason or reason

    def stopped(self) -> str:
        return self.reason


class BoardHandle:
    """What workers hold; picklable."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def post(self, key: str, done: int, total: int | None = None, **figures: Any) -> None:
        """Say how far `key` (a worker's or a trial's name) is, with figures worth showing."""
        self._actor.post.remote(key, done, total, figures)

    def stop(self, reason: str) -> None:
        """Say that the work must not be tried again, and why; the first reason stays."""
        import ray

        ray.get(self._actor.stop.remote(reason))

    def stopped(self) -> str:
        """The reason given to `stop`; empty where there was none."""
        import ray

        reason: str = ray.get(self._actor.stopped.remote())
        return reason


@contextmanager
def progress_board(progress: Progress, label: str, total: int | None, unit: str) -> Iterator[BoardHandle]:
    """A board whose posts move `progress`: the sum over keys of what is done, with the newest figures."""
    import ray

    actor: Any = ray.remote(_Board).options(num_cpus=0).remote()
    stop = threading.Event()
    progress.start(label, total, unit)

    def follow() -> None:
        while not stop.wait(_POLL_SECONDS):
            try:
                posts: dict[str, Any] = ray.get(actor.read.remote(), timeout=5)
            except Exception:  # the cluster is going away; the driver's main thread knows why
                return
            if posts:
                figures = {k: v for _, _, each in posts.values() for k, v in each.items()}
                progress.update(sum(done for done, _, _ in posts.values()), **figures)

    follower = threading.Thread(target=follow, daemon=True, name="progress-board")
    follower.start()
    try:
        yield BoardHandle(actor)
    finally:
        stop.set()
        follower.join(timeout=6)
        ray.kill(actor)
    progress.finish()
