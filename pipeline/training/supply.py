"""What lies between the stream and a training loop: one batch ahead, what was wrong with the data, how long the start took."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from pipeline.frames.batches import Batch
from pipeline.frames.read_items import BadFrame
from pipeline.storage import join, write_json

_MOST_LISTED = 10_000


@contextmanager
def one_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Iterator[Batch]]:
    """The batches, the next one put together (and, for a GPU, pinned) in a thread while the current one is trained on.

    The thread begins at once, so the first batch is made while the block prepares for it, and ends with the block.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(1)
    ended = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=1)
                return

    def work() -> None:
        try:
            if device.type == "cuda":
                # Pinning comes before the network is there, and would begin on the first GPU.
                torch.cuda.set_device(device)
            for batch in batches:
                put(_pinned(batch) if device.type == "cuda" else batch)
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def taken() -> Iterator[Batch]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    threading.Thread(target=work, daemon=True, name="one-ahead").start()
    try:
        yield taken()
    finally:
        ended.set()


def _pinned(batch: Batch) -> Batch:
    partners = None if batch.partners is None else batch.partners.pin_memory()
    return replace(batch, frames=batch.frames.pin_memory(), partners=partners)


class BadFrames:
    """A worker's unusable rows: each is counted and listed once, however many epochs meet it."""

    def __init__(self, folder: str, rank: int) -> None:
        self._uri = join(folder, "bad_frames", f"worker-{rank}.json")
        self._known: set[BadFrame] = set()
        self._written = 0

    @property
    def num(self) -> int:
        """Different rows so far."""
        return len(self._known)

    def add(self, problems: Sequence[BadFrame]) -> None:
        """Take note of a batch's."""
        self._known.update(problems)

    def write(self) -> None:
        """Bring the run's list of them up to date."""
        if self.num > self._written:
            listed = [bad._asdict() for bad in sorted(self._known)[:_MOST_LISTED]]
            write_json(self._uri, {"num": self.num, "frames": listed})
            self._written = self.num


class Startup:
    """Seconds from the driver's start of the run until each part of the start was done, by wall clock.

    They are kept in the run's folder, in startup.json, once the first step is done.
    """

    def __init__(self, started_at: float, folder: str, rank: int) -> None:
        self._started_at, self._folder, self._rank = started_at, folder, rank
        self.seconds: dict[str, float] = {}
        self.mark("workers")

    def mark(self, name: str) -> None:
        """`name` is done; later calls change nothing."""
        if name in self.seconds:
            return
        self.seconds[name] = round(time.time() - self._started_at, 3)
        if name == "first_step" and self._rank == 0:
            write_json(join(self._folder, "startup.json"), {"started_at": self._started_at, "seconds": self.seconds})
