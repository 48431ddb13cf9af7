"""Checkpoints are written beside the training: it waits only until a copy of its state is in CPU memory.

A thread serialises, checksums, uploads and publishes the copy while the training goes on. There is one copy at a time: the next
checkpoint waits until the one before is there, and so does whoever ends the training. A process that is killed while it writes has
lost that checkpoint, not the one before.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from pipeline.errors import one_line
from pipeline.models.checkpoints import Snapshot
from pipeline.run_log import log

Keep = Callable[[Snapshot, dict[str, Any], list[dict[str, Any]]], None]
"""Writes a checkpoint with its metrics, and what was reported last."""


class Saving:
    """Writes one worker's checkpoints."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def save(self, snapshot: Snapshot, metrics: dict[str, Any], recent: Iterable[dict[str, Any]] = ()) -> float:
        """Begin to write a checkpoint of now; the seconds for which that held up the caller. recent: what was reported last. Raises what
        went wrong with the one before."""
        began = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - began
        self._last = self._thread.submit(self._keep, snapshot.copied(), dict(metrics), [*recent])
        pause = time.perf_counter() - began
        log("checkpoint begun", step=metrics.get("step"), pause_s=round(pause, 3), waited_s=round(waited, 3))
        return pause

    def check(self) -> None:
        """Raise what went wrong with the last checkpoint, where that is known by now."""
        if self._last is not None and self._last.done():
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is there. Raises what went wrong with it."""
        if self._last is not None:
            self._last.result()

    def settle(self) -> None:
        """Until the last checkpoint is there, or has failed."""
        with suppress(Exception):
            self.wait()


@contextmanager
def saving(keep: Keep, busy: Callable[[str], AbstractContextManager[Any]] = nullcontext) -> Iterator[Saving]:
    """The block's checkpoints are all there at its end, however it ends; where that fails after another error, it is logged.

    busy: surrounds the wait for the last one.
    """
    writer = Saving(keep)
    try:
        yield writer
    except BaseException:
        with busy("checkpoint"):
            try:
                writer.wait()
            except Exception as error:
                log("checkpoint failed", level="error", what=one_line(error))
        raise
    with busy("checkpoint"):
        writer.wait()
