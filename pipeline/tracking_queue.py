"""What MLflow shall have of a run, on this machine's disk until MLflow has it.

    FOLDER/queue.jsonl     records, one JSON object a line, in order; emptied when MLflow has them all
    FOLDER/delivered       how many bytes of it MLflow has
    FOLDER/refused.jsonl   records that MLflow refused, each with the reason as "refused"; they are tried again later
    FOLDER/lost            one byte for each record that found the queue full
    FOLDER/tracking.json   where to: the TrackingSettings
    FOLDER/lock            locked by who delivers just now

Every process of this machine may put records, and none waits for MLflow. Any may deliver, one at a time (`Courier`). A record
that is delivered twice, after a crash, changes nothing: it brings its own time (see `pipeline/tracking.py`).
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.errors import EquihandError, StorageError, one_line

Record = dict[str, Any]
"""{"do": "open" | "link" | "dataset" | "metrics" | "text" | "file" | "folder" | "finish", "run": [kind, run id], "time": milliseconds since 1970, ...}"""

MAX_BYTES = 256 << 20
"""Of records that wait: about a million times that metrics were logged. Metrics that come then are lost, and counted."""
_READ_BYTES = 1 << 20
_BATCH = 1000  # metric values; MLflow takes no more in one request
_LEAST_BATCH = 50
_POLL_S = 1.0
_MAX_REST_S = 60.0
_KEEP_EVERY_S = 60.0


class Refused(EquihandError):
    """MLflow answers, and does not take this record."""


class Queue:
    """The records of a run; see above."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._records, self._delivered = self.folder / "queue.jsonl", self.folder / "delivered"
        self._refused, self._lost = self.folder / "refused.jsonl", self.folder / "lost"

    def put(self, *records: Record) -> None:
        """Append records. Metrics are counted as lost where the queue is full. Raises OSError where the disk does not take them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._records, "ab+") as file:
            size = file.seek(0, os.SEEK_END)
            is_full = size - self._offset() > MAX_BYTES
            kept = [record for record in records if not is_full or record["do"] != "metrics"]
            if size:  # a process that was killed may have left half a line
                file.seek(-1, os.SEEK_END)
            broken = size > 0 and file.read(1) != b"\n"
            file.write(b"\n" * broken + b"".join(map(_line, kept)))
        if len(kept) < len(records):
            with open(self._lost, "ab") as lost:
                lost.write(b"." * (len(records) - len(kept)))

    def waiting(self) -> list[tuple[Record, int]]:
        """Some of the next records that MLflow does not have, each with where it ends in the file."""
        if not self._records.exists():
            return []
        end = self._offset()
        with open(self._records, "rb") as file:
            file.seek(end)
            lines = file.readlines(_READ_BYTES)
        found = []
        for line in lines:
            if not line.endswith(b"\n"):  # somebody is writing it
                break
            end += len(line)
            found.append((_record(line), end))
        return found

    def mark(self, num_bytes: int) -> None:
        """Note that MLflow has the file up to there."""
        with _locked(self._records, "ab+") as file:
            is_all = num_bytes >= file.seek(0, os.SEEK_END)
            # In this order: killed in between, all is delivered once more.
            _write(self._delivered, b"0" if is_all else b"%d" % num_bytes)
            if is_all:
                file.truncate(0)

    def refuse(self, *records: Record) -> None:
        """Set records aside that MLflow refused."""
        with open(self._refused, "ab") as file:
            file.write(b"".join(map(_line, records)))

    def refused(self) -> list[Record]:
        """Those set aside."""
        return [_record(line) for line in self._refused.read_bytes().splitlines()] if self._refused.exists() else []

    def set_refused(self, records: Sequence[Record]) -> None:
        """Set aside these, and no others."""
        _write(self._refused, b"".join(map(_line, records)))

    def num_waiting(self) -> int:
        """Records that MLflow does not have, without those set aside."""
        return sum(1 for line in self._left().splitlines() if line)

    def num_lost(self) -> int:
        """Metrics records that found the queue full."""
        return self._lost.stat().st_size if self._lost.exists() else 0

    def has_left(self) -> bool:
        """Whether MLflow does not have everything."""
        size = self._records.stat().st_size if self._records.exists() else 0
        return size > self._offset() or bool(self.refused())

    def left(self) -> dict[str, bytes]:
        """The files of a queue that holds only what MLflow does not have."""
        files = {"queue.jsonl": self._left(), "tracking.json": (self.folder / "tracking.json").read_bytes()}
        return files | {path.name: path.read_bytes() for path in (self._refused, self._lost) if path.exists()}

    def set_target(self, settings: Record) -> None:
        """Note where the records go, for `jobs.sync`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "tracking.json", json.dumps(settings).encode())

    def target(self) -> Record:
        """What was noted."""
        found: Record = json.loads((self.folder / "tracking.json").read_bytes())
        return found

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """Only one process at a time is in here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock", "ab"):
            yield

    def remove(self) -> None:
        """Remove the folder, whose records MLflow has or nobody wants."""
        for name in ("queue.jsonl", "delivered", "refused.jsonl", "lost", "tracking.json", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _offset(self) -> int:
        try:
            return int(self._delivered.read_bytes() or 0)
        except (FileNotFoundError, ValueError):
            return 0

    def _left(self) -> bytes:
        if not self._records.exists():
            return b""
        with _locked(self._records, "rb") as file:
            file.seek(self._offset())
            return file.read()


class Courier:
    """Delivers a queue: in a thread (`start`), or at once (`deliver`)."""

    def __init__(
        self,
        queue: Queue,
        send: Callable[[Sequence[Record]], None],
        say: Callable[[str], None],
        keep: Callable[[], object] = lambda: None,
    ) -> None:
        """send: gives records to MLflow, several at a time only of the metrics of one run; raises Refused for what MLflow does
        not take, and anything else where it cannot be reached. say: receives when MLflow went away and came back. keep: called
        every minute while it is away."""
        self._queue, self._send, self._say, self._keep = queue, send, say, keep
        self.num_delivered = 0
        self._most = _BATCH
        self.problem = ""
        """Why MLflow does not have everything; empty where it has."""
        self._stop, self._wake, self._drained = threading.Event(), threading.Event(), threading.Event()
        self._is_last, self._num_lost, self._num_before = False, 0, 0
        self._thread: threading.Thread | None = None

    def deliver(self, strict: bool = False, again: bool = False) -> Exception | None:
        """Deliver what waits, in order; why it could not be, or None. Records that are refused are set aside.

        strict: stop at the opening of a run that is refused. again: also try those that were refused before.
        """
        queue = self._queue
        with queue.delivering():
            if again:
                error = self._deliver_refused()
                if error is not None:
                    return error
            while not self._stop.is_set() and (waiting := queue.waiting()):
                for batch in _batches(waiting, self._most):
                    error = None if self._stop.is_set() else self._deliver_batch(batch, strict)
                    if error is not None:  # perhaps it is more than MLflow can take in the time that a request has
                        self._most = max(_LEAST_BATCH, self._most // 4)
                        return error
                    self._most = min(_BATCH, self._most + 1)
        return None

    def start(self) -> None:
        """Deliver from now on, in a thread."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="tracking")
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Deliver what is left, but wait no longer than that, and not for an MLflow that does not answer."""
        self._is_last = True
        self._wake.set()
        if self._thread is not None:
            self._drained.wait(seconds)
        self._stop.set()

    def _run(self) -> None:
        rest, kept_at = 1.0, time.monotonic()
        while not self._drained.is_set():
            is_last = self._is_last  # before the attempt: only what begins after `finish` counts as the last
            self._wake.clear()
            error = self._attempt(is_last)
            self._note(error, is_last)
            if is_last or self._stop.is_set():
                self._drained.set()
            elif error is None:
                rest = 1.0
                self._pause(_POLL_S)
            else:
                if time.monotonic() - kept_at > _KEEP_EVERY_S:
                    kept_at = time.monotonic()
                    self._keep()
                self._pause(rest)
                rest = min(2 * rest, _MAX_REST_S)

    def _pause(self, seconds: float) -> None:
        if not self._is_last:
            self._wake.wait(seconds)

    def _attempt(self, is_last: bool) -> Exception | None:
        try:
            return self.deliver(again=is_last) if self._queue.has_left() else None
        except Exception as error:  # the disk
            return error

    def _note(self, error: Exception | None, is_last: bool) -> None:
        """Say what is new: once that MLflow is away (at the end its caller does), once that it is back."""
        now = time.strftime("%H:%M:%S")
        if error is not None and self.problem:
            self.problem = one_line(error)
        elif error is not None:
            self.problem, self._num_before = one_line(error), self.num_delivered
            if not is_last:
                self._say(f"{now}: {self.problem}; the work goes on, and its records wait in {self._queue.folder}")
        elif error is None and self.problem:
            self.problem = ""
            self._say(
                f"{now}: MLflow is back; {self.num_delivered - self._num_before} records delivered that had waited"
            )
        num_lost = self._queue.num_lost()
        if num_lost and not self._num_lost:
            self._say(
                f"{now}: {MAX_BYTES >> 20} MiB of records wait in {self._queue.folder}: metrics that come now are lost, until "
                "MLflow takes some"
            )
        self._num_lost = num_lost

    def _deliver_batch(self, batch: Sequence[tuple[Record, int]], strict: bool) -> Exception | None:
        records = [record for record, _ in batch]
        try:
            if "damaged" in records[0]:
                raise Refused("half a record, of a process that was killed")
            self._send(records)
            self.num_delivered += len(batch)
        except Refused as error:
            if strict and records[0]["do"] in ("open", "text"):
                return error
            if len(batch) > 1:  # one of them
                return next((e for each in batch if (e := self._deliver_batch([each], strict)) is not None), None)
            self._set_aside(records[0], error)
        except Exception as error:  # its client, its database and its artifact store raise what they like
            return error
        self._queue.mark(batch[-1][1])
        return None

    def _set_aside(self, record: Record, error: Refused) -> None:
        self._queue.refuse({**record, "refused": one_line(error)})
        self._say(f"{one_line(error)}; what it refuses is kept in {self._queue.folder / 'refused.jsonl'}")

    def _deliver_refused(self) -> Exception | None:
        records = self._queue.refused()
        for position, record in enumerate(records):
            if "damaged" in record:
                continue
            try:
                self._send([{name: value for name, value in record.items() if name != "refused"}])
                records[position] = {}
                self.num_delivered += 1
            except Refused as error:
                record["refused"] = one_line(error)
            except Exception as error:
                return error
            finally:
                self._queue.set_refused([each for each in records if each])
        return None


def _batches(waiting: Sequence[tuple[Record, int]], most: int) -> Iterator[list[tuple[Record, int]]]:
    """In order; metrics of one run together, not more than `most` values."""
    batch: list[tuple[Record, int]] = []
    num_values = 0
    for record, end in waiting:
        num = len(record.get("values", ()))
        is_like = bool(batch) and record["do"] == batch[0][0]["do"] == "metrics" and record["run"] == batch[0][0]["run"]
        if batch and not (is_like and num_values + num <= most):
            yield batch
            batch, num_values = [], 0
        batch.append((record, end))
        num_values += num
    if batch:
        yield batch


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _record(line: bytes) -> Record:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"do": "nothing", "damaged": line.decode(errors="replace")}


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


@contextmanager
def _locked(path: Path, mode: str) -> Iterator[IO[bytes]]:
    with open(path, mode) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, or the process
        except OSError as error:
            reason = f"this file system has no locks ({error.strerror}); give another as run.storage"
            raise StorageError(f"{path}: {reason}") from error
        yield file
