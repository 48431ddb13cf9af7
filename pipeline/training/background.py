"""A call beside the main thread, for what would take Ctrl-C away from it."""

import threading
from collections.abc import Callable
from typing import Any

THREAD = "ray-run"
"""Name of the thread."""


class BackgroundCall:
    """A call that runs in a thread: on the main thread, Ray Train and Tune replace Ctrl-C's handler by ones of their own.

    Train's exits with status 0. Here an interrupt leaves `result`, and the call ends with the Ray session.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._work, args=(function,), daemon=True, name=THREAD)
        self._thread.start()

    def _work(self, function: Callable[[], Any]) -> None:
        try:
            self._outcome["result"] = function()
        except BaseException as error:
            self._outcome["error"] = error

    def wait(self, seconds: float) -> bool:
        """Until the call has ended, but no longer than that; whether it goes on still."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def result(self) -> Any:
        """What the call returned or raised."""
        while self._thread.is_alive():
            self._thread.join(0.5)
        if "error" in self._outcome:
            raise self._outcome["error"]
        return self._outcome["result"]
