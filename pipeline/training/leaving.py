"""Leaving in time: all workers write a checkpoint after the same step, and go.

Who hears of it (SIGTERM at the driver, a node that will be taken away) hears at another moment than the others, who are in the
middle of their collectives. So they ask each other before a step, about once a second: a small collective.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from pipeline.training.distributed import gather_values

STAYS, MOVES, ENDS = 0, 1, 2
"""What a worker asks for: to train on; to go on elsewhere, as its node will be taken away; to end the run."""

_PERIOD_S = 1.0


class Left(Exception):
    """The workers have written a checkpoint, and go."""


class Agreement:
    """What the workers of a process group ask for; they agree on the one of them that goes furthest."""

    def __init__(
        self, asked: Callable[[], int], device: torch.device, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """asked: what this worker asks for; called on all workers before the same steps."""
        self._asked, self._device, self._clock = asked, device, clock
        self._every, self._steps = 1, 0  # the first step is asked about, then about one a second
        self._asked_at = clock()
        self.agreed = STAYS

    def __call__(self) -> bool:
        """Whether to leave after the step that comes. Every worker calls it before every step."""
        self._steps += 1
        if self._steps >= self._every:
            now = self._clock()
            pace = self._every * _PERIOD_S / max(now - self._asked_at, 1e-6)
            every = max(1, min(round(pace), 2 * self._every))
            # The first worker's pace counts for all: they must ask before the same steps.
            told = gather_values(torch.tensor([float(self._asked()), float(every)], device=self._device))
            self.agreed, self._every, self._steps = int(told[:, 0].max()), int(told[0, 1]), 0
            self._asked_at = now
        return self.agreed != STAYS


@contextmanager
def on_sigterm(react: Callable[[], bool]) -> Iterator[None]:
    """While the block runs, a first SIGTERM calls `react`, on the main thread; where that returns False, and at a second one, what
    was set before happens. In another thread the block just runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        if not react():
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
