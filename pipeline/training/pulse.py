"""A worker's signs of life: what it is doing and for how long, told once a second; and an end where nothing moves any more.

A worker whose step does not end waits most often for another one, so nobody judges by itself: a worker ends its process once it
and all others that are heard of have been in one step for longer than is allowed. What may take long (data, a probe, the first step,
which compiles) is no step. A process that is stopped as a whole cannot say anything: the others do not count it, and
Ray Train, which asks every process now and then, finds it where there are none.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

_EVERY_S = 1.0
_SILENT_S = 30.0


class Sign(NamedTuple):
    """What is known of a worker."""

    doing: str
    """"start" until the first step is done, "step", or what `Pulse.busy` was given."""
    seconds: float
    """For how long."""
    steps: int
    """Steps that its process has done."""
    silent: float = 0.0
    """Seconds since it was heard of."""


Tell = Callable[[int, Sign], tuple[bool, Mapping[int, Sign]]]
"""Tells a worker's sign; returns whether the run is to end, and the signs of all workers."""


class Pulse:
    """The signs of life of the worker in this process."""

    def __init__(self, rank: int, tell: Tell, hang_timeout_s: float, give_up: Callable[[str], None]) -> None:
        """give_up: ends this process, for the reason given."""
        self._rank, self._tell, self._limit, self._give_up = rank, tell, hang_timeout_s, give_up
        self._state = ("start", time.monotonic(), 0)
        self._over = threading.Event()
        self.leaving = False
        """Whether the driver has asked the workers to leave."""
        self.waited_s = 0.0
        """Seconds for which this process has waited for data so far."""

    def step(self) -> None:
        """A step is done."""
        self._state = ("step", time.monotonic(), self._state[2] + 1)

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """The block may take long."""
        before, _, steps = self._state
        self._state = (doing, began := time.monotonic(), steps)
        try:
            yield
        finally:
            self._state = (before, ended := time.monotonic(), steps)
            if doing == "data":
                self.waited_s += ended - began

    def look(self) -> None:
        """Tell how it is here, and end where nothing moves any more."""
        doing, since, steps = self._state
        self.leaving, signs = self._tell(self._rank, Sign(doing, time.monotonic() - since, steps))
        reason = stuck(signs, self._limit)
        if reason and self._state[:2] == (doing, since):
            self._give_up(reason)

    def _work(self) -> None:
        while not self._over.wait(_EVERY_S):
            with suppress(Exception):  # who is told may be starting again; without the others' signs nobody is judged
                self.look()

    @contextmanager
    def beating(self) -> Iterator["Pulse"]:
        """Looks every second while the block runs."""
        threading.Thread(target=self._work, daemon=True, name="pulse").start()
        try:
            yield self
        finally:
            self._over.set()


def stuck(signs: Mapping[int, Sign], limit_s: float) -> str:
    """Why these workers will not get on by themselves; empty where they may."""
    heard = {rank: sign for rank, sign in signs.items() if sign.silent < min(_SILENT_S, limit_s)}
    if not heard or any(sign.doing != "step" or sign.seconds <= limit_s for sign in heard.values()):
        return ""
    lost = sorted(signs.keys() - heard.keys())
    who = f"worker {', '.join(map(str, lost))} is not heard of" if lost else "all workers are alive"
    return f"no step was done for more than {limit_s:g} s (workers.hang_timeout_s), and {who}"
