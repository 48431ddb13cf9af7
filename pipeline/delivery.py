"""MLflow never holds up work: calls to it that fail are made again with later ones, and what it did not take is said."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from pipeline.errors import LeftError, one_line, warn

_REST_S = 300.0  # after a call that failed, which its client had repeated for minutes


class Delivery:
    """Calls to MLflow that must not hold up the work: one that fails is tried once more, later, and all else after it."""

    def __init__(self, say: Callable[[str], None] = warn) -> None:
        """say: receives what went wrong."""
        self.problem = ""
        """Why MLflow does not have everything by now; empty where it has."""
        self._say = say
        self._waiting: deque[Callable[[], object]] = deque()
        self._lost = self._failed_once = False
        self._rest_until = 0.0

    def __call__(self, *calls: Callable[[], object]) -> None:
        """Make these calls after those that are still waiting, unless the last attempt has only just failed."""
        self._waiting.extend(calls)
        while self._waiting and time.monotonic() >= self._rest_until:
            if self.once(self._waiting[0], lost=self._failed_once):
                self._failed_once = False
            elif not self._failed_once:
                self._failed_once, self._rest_until = True, time.monotonic() + _REST_S
                return
            self._waiting.popleft()
        if not self._waiting and not self._lost:
            self.problem = ""

    def end(self, *calls: Callable[[], object]) -> None:
        """Make what is waiting and these calls now, for the last time."""
        self._rest_until = 0.0
        self()
        self._lost = self._lost or bool(self._waiting)
        for call in calls:
            self.once(call)

    def once(self, call: Callable[[], object], lost: bool = True) -> bool:
        """Make one call now; whether it went well. lost: it will not be tried again."""
        try:
            call()
            return True
        except Exception as error:  # its client, its database and its artifact store raise what they like
            self._lost = self._lost or lost
            self.problem = f"MLflow failed: {one_line(error, 300)}"
            self._say(f"{self.problem}; the work goes on without it")
            return False


def with_untracked(problem: str) -> dict[str, str]:
    """What to add to a result of which MLflow does not have all: {"untracked": why}."""
    return {"untracked": problem} if problem else {}


@contextmanager
def ending(*finish: Callable[[str], None], deliver: Delivery | None = None) -> Iterator[None]:
    """Call each `finish` (a `Run.finish`, say) with how the block ended: FINISHED, FAILED, or KILLED by an interrupt.

    deliver: makes the calls; where MLflow fails it says so, and not this block.
    """
    deliver = deliver or Delivery()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, LeftError):
        status = "KILLED"
        raise
    finally:
        deliver.end(*(partial(each, status) for each in finish))
