"""A call beside the main thread, for what would take Ctrl-C away from it."""

import threading
from collections.abc import Callable
from typing import Any

_going: set["BackgroundCall"] = set()


def is_any_left() -> bool:
    """Whether a call goes on in this process."""
    return bool(_going)


class BackgroundCall:
    """A call that runs in a thread: on the main thread, Ray Train and Tune replace Ctrl-C's handler by ones of their own.

    Train's exits with status 0. Here an interrupt leaves `result`. Whoever leaves it ends the call: where Ray is shut down under a thread
    that waits in it, the process may crash (https://github.com/ray-project/ray/issues/31145).
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._outcome: dict[str, Any] = {}
        # Not the thread's own join: Ctrl-C in it lets Python 3.11 take the thread for one that has ended.
        self._ended = threading.Event()
        _going.add(self)
        threading.Thread(target=self._work, args=(function,), daemon=True, name="ray-run").start()

    def _work(self, function: Callable[[], Any]) -> None:
        try:
            self._outcome["result"] = function()
        except BaseException as error:
            self._outcome["error"] = error
        finally:
            _going.discard(self)
            self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Until the call has ended, but no longer than that; whether it goes on still."""
        return not self._ended.wait(seconds)

    def result(self) -> Any:
        """What the call returned or raised."""
        while self.wait(0.5):
            pass
        if "error" in self._outcome:
            raise self._outcome["error"]
        return self._outcome["result"]
