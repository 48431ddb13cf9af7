"""A log file of every process of a run, beside its checkpoints: <run>/logs/<start>-<process>.jsonl.

One JSON object a line: time, level, run, process and message, then what the message is about; in a training worker's also worker
(its rank) and step (the run's last one that was done, or the one that the line is about). The project's warnings
(`errors.warn`) are among them. Written whole every few seconds and at the end, so that it may lie in object storage; what a
killed process wrote last may be missing. A storage that refuses it never disturbs the run.
"""

import importlib.metadata
import json
import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pipeline.cores import usable_cores
from pipeline.errors import EquihandError, one_line
from pipeline.masking import masked
from pipeline.storage import join, write_bytes

_EVERY_S = 10.0
_LOGGER = "equihand"
_step = [0]
_FIRST_LINES = 2  # that it started, and with which settings
_PACKAGES = ("equihand", "torch", "torchvision", "ray", "pyarrow", "mlflow")


def log(message: str, **fields: Any) -> None:
    """Note an event in the log of this process's run; outside `run_log` nowhere. fields: plain values."""
    logging.getLogger(_LOGGER).info(message, extra={"fields": fields})


def at_step(number: int) -> None:
    """The lines of this process that come now are written after this step of the run."""
    _step[0] = number


@contextmanager
def run_log(
    folder: str, process: str, say: Callable[[str], None] | None = None, worker: int | None = None
) -> Iterator[None]:
    """Keep the log of this process while the block runs, how it ended too.

    folder: URI of the run, named by its id. process: such as "worker-0". say: receives, at the end, why the log could not be written.
    worker: rank of a training worker, whose lines name it and the step.
    """
    at_step(0)
    logger, handler = logging.getLogger(_LOGGER), _StoredLines(folder, process, worker)
    level, started = logger.level, time.monotonic()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        log("started", host=socket.gethostname(), pid=os.getpid(), versions=_versions(), cores=usable_cores())
        yield
        log("ended", seconds=round(time.monotonic() - started, 1))
    except BaseException as error:
        # Not as an error: the terminal shows it in words of its own.
        log("failed", level="error", error=type(error).__name__, what=one_line(error))
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        problem = handler.write()
        if problem and say is not None:
            say(f"{handler.uri}: the log could not be written ({problem})")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # the project itself, where it runs from its folder
            continue
    return found


class _StoredLines(logging.Handler):
    def __init__(self, folder: str, process: str, worker: int | None) -> None:
        super().__init__()
        # Processes of one start would overwrite each other's only with the same name, and those of another start earlier ones.
        self.uri = join(folder, "logs", f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{process}.jsonl")
        self._about: dict[str, Any] = {"run": folder.rstrip("/").rsplit("/", 1)[-1], "process": process}
        self._worker = worker
        self._lines: list[str] = []
        self._num_written, self._written_at = 0, time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        place = {} if self._worker is None else {"worker": self._worker, "step": _step[0]}
        line = {"time": when, "level": record.levelname.lower(), **self._about, **place, "message": record.getMessage()}
        self._lines.append(masked(json.dumps(line | getattr(record, "fields", {}), default=str)))
        is_first = self._worker is None and len(self._lines) <= _FIRST_LINES  # also of one that is killed soon after
        if is_first or time.monotonic() - self._written_at > _EVERY_S:
            self.write()

    def flush(self) -> None:
        self.write()

    def write(self) -> str:
        """Bring the file up to date; returns what was wrong."""
        self._written_at = time.monotonic()
        if self._num_written == len(self._lines):
            return ""
        try:
            write_bytes(self.uri, "".join(f"{line}\n" for line in self._lines).encode())
        except (EquihandError, OSError) as error:
            return one_line(error)
        self._num_written = len(self._lines)
        return ""
