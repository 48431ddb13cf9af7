"""One driver at a time for what a run's folder holds, also where the storage knows no locks.

    <run>/lease.json    who has it, and when they last said so; gone when they have ended

A driver that was killed leaves its lease behind. On its own machine that shows at once; elsewhere it is waited for until it is too old.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from pipeline.errors import DamagedError, MissingError, SettingsError, StorageError, warn
from pipeline.storage import delete, is_local, join, read_json, write_json


class HeldError(SettingsError):
    """Another process holds the run."""


_FILE = "lease.json"
_SAY_EVERY_S = 20.0
_TOO_OLD_S = 60.0  # clocks of machines may differ by less
_LOOK_S = 2.0
_AGAIN_S = 0.1
# Whoever has read that nobody holds it has written its own by then.
_SETTLE_LOCAL_S, _SETTLE_S = 0.2, 1.5


@contextmanager
def lease(folder: str, run_id: str, say: Callable[[str], None] = warn) -> Iterator[None]:
    """Hold the run while the block runs; waits for a lease that nobody renews. folder: URI.

    Raises HeldError where another process holds it.
    """
    uri, own = join(folder, _FILE), uuid.uuid4().hex
    _wait_for(uri, run_id, say)
    _write(uri, own)
    time.sleep(_SETTLE_LOCAL_S if is_local(uri) else _SETTLE_S)
    held = _read(uri)
    if held is not None and held["owner"] != own:  # another one came at the same moment, and was later
        raise HeldError(_taken(run_id, held))
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(uri, own, ended), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(StorageError):
            held = _read(uri)
            if held is None or held["owner"] == own:
                delete(uri)


def _wait_for(uri: str, run_id: str, say: Callable[[str], None]) -> None:
    first = held = _read(uri)
    while held is not None and not _is_dead(held) and time.time() - held["at"] < _TOO_OLD_S:
        if first is None or held["owner"] != first["owner"] or held["at"] != first["at"]:
            raise HeldError(_taken(run_id, held))
        if held is first:
            say(f"{_taken(run_id, held)}; waiting {_TOO_OLD_S:.0f} s for a sign of life")
        time.sleep(_LOOK_S)
        held = _read(uri)


def _taken(run_id: str, held: dict[str, Any]) -> str:
    return f"run '{run_id}' is held by process {held['pid']} of {held['host']}; it cannot run twice at once"


def _is_dead(held: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine and is gone."""
    if held["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(held["pid"]).create_time() - held["started"]) > 1
    except psutil.Error:
        return True


def _renew(uri: str, own: str, ended: threading.Event) -> None:
    while not ended.wait(_SAY_EVERY_S):
        with suppress(StorageError):  # it is tried again
            held = _read(uri)
            if held is None or held["owner"] == own:
                _write(uri, own)


def _write(uri: str, own: str) -> None:
    process = psutil.Process()
    who = {"host": socket.gethostname(), "pid": os.getpid(), "started": process.create_time()}
    write_json(uri, {"owner": own, "at": time.time(), **who})


def _read(uri: str) -> dict[str, Any] | None:
    """None where there is none. A file that is being written anew may be away or half there for a moment: it is looked at twice."""
    found = _look(uri)
    if found is None:
        time.sleep(_AGAIN_S)
        found = _look(uri)
    return found


def _look(uri: str) -> dict[str, Any] | None:
    try:
        found = read_json(uri)
    except (MissingError, DamagedError):
        return None
    return found if isinstance(found, dict) and {"owner", "at", "host", "pid", "started"} <= found.keys() else None
