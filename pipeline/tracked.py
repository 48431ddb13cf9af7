"""Work that MLflow records and that never waits for it.

    with tracked(settings.tracking, folder, run_id, "search", settings) as tracking:
        tracking.opened()                                   # where MLflow is required: raises if it does not answer
        tracking.run.log_metrics({"loss": 1.0}, step=10)    # returns at once
    result | tracking.untracked()                           # what MLflow does not have, if anything

Records go to a queue on this machine's disk, and a thread of the process that runs this block delivers them. Any other process of the
machine may put records too (`Run` is picklable). Beside a run on local storage the queue is RUN/tracking; of one on object storage it
is in the folder for temporary files, and RUN/tracking there gets what MLflow does not have, every minute while it is away and at the
end. `deliver_left` (`jobs.sync`) delivers that later.
"""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import Settings, flatten, to_yaml
from pipeline.errors import EquihandError, LeftError, one_line, warn
from pipeline.provenance import git, provenance
from pipeline.run_log import log
from pipeline.storage import copy_to_local, delete, exists, is_local, join, list_files, local_path, write_bytes
from pipeline.system_metrics import sampled
from pipeline.tracking import Sender, TrackingSettings, check_reachable, placed
from pipeline.tracking_links import Source
from pipeline.tracking_queue import MAX_BYTES, Courier, Queue, Record

_FOLDER = "tracking"
_DRAIN_S = 15.0
_UPLOAD_S = 120.0  # for what somebody has asked to be stored, and waits for
_MAX_LOG_BYTES = 5 << 20
_MOST_LOGS = 64  # small files each; a search of a weekend writes hundreds, and the end of a run does not wait for them


class Origin(NamedTuple):
    """Where the weights come from that a run begins with, or looks at (see models/origin.py)."""

    runs: Sequence[Source] = ()
    """Runs of ours that made them."""
    tags: Mapping[str, str] = {}
    """What there is to be said of the others."""


@dataclass(frozen=True)
class Run:
    """A handle on one run of MLflow, for every process of this machine. Its methods return at once; they raise OSError where the disk
    takes nothing."""

    queue: str
    """Local folder of the queue."""
    kind: str
    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        """Log finite numbers at an optimiser step; what is not finite is left out (MLflow's stores refuse it). at: seconds since
        1970; the same numbers logged twice with the same time are there once."""
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._put(self._record("metrics", at, step=step, values=values))

    def log_text(self, name: str, text: str) -> None:
        """Store text as the artifact `name`."""
        self._put(self._record("text", name=name, text=text))

    def log_file(self, name: str, last: int | None = None) -> None:
        """Store a file of the run's folder as an artifact, both called `name` (for example "pictures/views.png"). last: of a larger
        file of lines, only the lines within so many bytes of its end."""
        self._put(self._record("file", name=name, **({} if last is None else {"last": last})))

    def log_folder(self, name: str) -> None:
        """The same of a folder of the run's folder, with all below it."""
        self._put(self._record("folder", name=name))

    def child(
        self,
        run_id: str,
        kind: str,
        settings: Settings,
        tags: Mapping[str, str] | None = None,
        made_from: Origin | None = None,
    ) -> "Run":
        """Open a run below this one; see `tracked`."""
        child = Run(self.queue, kind, run_id)
        child._open(settings, tags, made_from, parent=[self.kind, self.run_id])
        return child

    def finish(self, status: str = "FINISHED", at: float | None = None) -> None:
        """End the run: FINISHED, FAILED or KILLED. at: when it ended, in seconds since 1970; now, where not given."""
        self._put(self._record("finish", at, status=status))

    def _open(
        self,
        settings: Settings,
        tags: Mapping[str, str] | None,
        made_from: Origin | None,
        parent: list[str] | None = None,
    ) -> None:
        """The settings become parameters and an artifact."""
        origin = made_from or Origin()
        params = {name: str(value) for name, value in flatten(settings).items()}
        opened = self._record("open", params=params, tags={**(tags or {}), **origin.tags}, parent=parent)
        links = [self._record("link", sources=[[*source] for source in origin.runs])] if origin.runs else []
        self._put(opened, self._record("text", name="settings.yaml", text=to_yaml(settings)), *links)

    def _record_code_and_frames(self, tags: Mapping[str, str]) -> None:
        """The frames that the run reads, and what its code has that is not in git."""
        if digest := tags.get("frame_set_digest"):
            self._put(self._record("dataset", digest=digest, source=tags.get("frame_set", "")))
        if diff := git().diff:
            self.log_text("git.diff", diff)

    def _record(self, do: str, at: float | None = None, **fields: Any) -> Record:
        return {"do": do, "run": [self.kind, self.run_id], "time": int((at or time.time()) * 1000), **fields}

    def _put(self, *records: Record) -> None:
        Queue(self.queue).put(*records)


class Tracking:
    """A run that is under way; see `tracked`."""

    def __init__(self, settings: TrackingSettings, folder: str, kind: str, run_id: str) -> None:
        self._folder, self._is_offline = folder, settings.uri is None
        self._is_required = settings.required and not self._is_offline
        self._queue = Queue(_local_queue(folder))
        self._sender = Sender(settings, folder)
        # Without MLflow, too: it brings what there is to be recorded to the run's storage.
        self._courier = Courier(
            self._queue, self._sender, (lambda text: None) if self._is_offline else warn, self._keep
        )
        self.run = Run(str(self._queue.folder), kind, run_id)
        self._is_begun, self._has_failed = False, False
        self._started = time.monotonic()
        self._untracked: dict[str, Any] = {}
        _fetch(self._queue, folder)
        self._had_left = self._queue.has_left()
        self._queue.set_target(placed(settings).model_dump(mode="json"))

    def opened(self) -> None:
        """Begin to deliver. Where MLflow is required, the run is opened first: raises EquihandError where it cannot be."""
        if self._is_required:
            error = self._courier.deliver(strict=True)
            if error is not None:
                self._has_failed = True
                raise error
        self._is_begun = True
        self._courier.start()

    @property
    def mlflow_run_id(self) -> str | None:
        """MLflow's own id; None as long as it has not got the run."""
        return self._sender.mlflow_run_id(self.run.kind, self.run.run_id)

    def untracked(self) -> dict[str, Any]:
        """After the block, what to add to a result of which MLflow does not have all: {"untracked": why, and what to do}, and
        "num_lost": records that it will never have, where there are any."""
        return self._untracked

    def log_machine(self, metrics: Mapping[str, float], node: str = "") -> None:
        """Log how busy a machine is (see system_metrics.py): this one, or the named node of the cluster. Steps are seconds since this
        process began."""
        values = {f"system/{node}/{name}" if node else f"system/{name}": value for name, value in metrics.items()}
        with suppress(OSError):  # a full disk is said by those whose metrics matter more
            self.run.log_metrics(values, step=int(time.monotonic() - self._started))

    def _end(self, status: str) -> None:
        """Deliver what is left, as far as that takes seconds, and see to what is left then."""
        if self._has_failed and not self._had_left:  # nothing has begun
            self._queue.remove()
            return
        if not self._has_failed:
            self._record_files(is_done=status == "FINISHED")
        self.run.finish(status)
        if not self._has_failed:
            self._settle(_DRAIN_S)

    def _record_files(self, is_done: bool) -> None:
        """What the run has written: its result, and the newest logs of its processes."""
        try:
            if is_done and exists(join(self._folder, "result.json")):
                self.run.log_file("result.json")
            logs = sorted(uri.rsplit("/", 1)[1] for uri in list_files(join(self._folder, "logs"), ".jsonl"))
            for name in logs[-_MOST_LOGS:]:
                self.run.log_file(f"logs/{name}", last=_MAX_LOG_BYTES)
            if len(logs) > _MOST_LOGS:
                text = f"{len(logs) - _MOST_LOGS} older logs are in {join(self._folder, 'logs')} only\n"
                self.run.log_text("logs/older.txt", text)
        except (EquihandError, OSError) as error:
            warn(f"{one_line(error)}; MLflow does not get the run's logs")

    def _settle(self, seconds: float) -> None:
        """Deliver what is left within that time; what is left then stays with the run."""
        if not self._is_begun:
            self._courier.start()
        self._courier.finish(seconds)
        problem = self._courier.problem or f"it took longer than {seconds:.0f} s"
        untracked = _left(self._queue, problem, self._folder)
        if untracked and not self._is_offline:
            warn(untracked)
            num_lost = self._queue.num_lost()
            self._untracked = {"untracked": untracked} | ({"num_lost": num_lost} if num_lost else {})
        if self._keep() and not (untracked and is_local(self._folder)):
            self._queue.remove()

    def _keep(self) -> bool:
        try:
            _store(self._queue, self._folder)
            return True
        except (EquihandError, OSError) as error:
            warn(f"{one_line(error)}; what MLflow does not have yet stays in {self._queue.folder} of this machine")
            return False


@contextmanager
def tracked(
    settings: TrackingSettings,
    folder: str | None,
    run_id: str,
    kind: str,
    resolved_settings: Settings,
    tags: Mapping[str, str] | None = None,
    made_from: Origin | None = None,
    parent: tuple[str, str] | None = None,
) -> Iterator[Tracking]:
    """Record work as MLflow's run of our run `run_id`; one that exists already (a resumed job) goes on. It also gets what ran and on
    what (provenance.py), the frames read, where tags have "frame_set" and "frame_set_digest", how busy this machine is, and at the end
    the run's logs and result. Deliver first what an earlier process left. How the block ends is recorded too: FINISHED, FAILED, or
    KILLED by an interrupt, or where the work has left.

    folder: URI of the run's folder; None: it has none. kind: what the run does ("pretrain", "finetune", ...). The resolved settings
    become parameters and an artifact. made_from: the runs that it is linked with. parent: kind and id of the
    run below which it is shown. The block calls `opened`, and has the `run_log`
    of this process, if there is one, within it, for its last line to be recorded. Raises EquihandError, within ten seconds, where MLflow
    is required and nobody answers.
    """
    if settings.required:
        check_reachable(settings)
    log("provenance", **provenance())  # for those who have the run's folder, and not MLflow
    own = None if folder is not None else _temporary() / run_id
    tracking = Tracking(settings, folder if folder is not None else str(own), kind, run_id)
    tracking.run._open(resolved_settings, {**provenance(), **(tags or {})}, made_from, [*parent] if parent else None)
    tracking.run._record_code_and_frames(tags or {})
    status = "FAILED"
    try:
        with sampled(settings.system_metrics_s, tracking.log_machine):
            yield tracking
        status = "FINISHED"
    except (KeyboardInterrupt, LeftError):
        status = "KILLED"
        raise
    finally:
        tracking._end(status)
        if own is not None and not any(own.iterdir()):
            own.rmdir()


@contextmanager
def tracked_again(settings: TrackingSettings, folder: str, run_id: str, kind: str) -> Iterator[Tracking]:
    """Record something more of a run that has ended; it stays as it ended. Deliver it, and what was left before, within minutes.

    folder: URI of the run's folder.
    """
    tracking = Tracking(settings, folder, kind, run_id)
    try:
        yield tracking
    finally:
        tracking._settle(_UPLOAD_S)


class Delivered(NamedTuple):
    """What `deliver_left` did."""

    num_delivered: int
    untracked: str
    """What MLflow still does not have, and why; empty where it has everything."""


def deliver_left(folder: str, uri: str | None = None) -> Delivered:
    """Deliver what a run left, also one that still goes on. folder: the run's URI. uri: where to, instead of where the run was tracked."""
    queue = Queue(_local_queue(folder))
    is_fetched = _fetch(queue, folder)
    if not queue.has_left():
        return Delivered(0, "")
    settings = TrackingSettings.model_validate(queue.target() | ({"uri": uri} if uri else {}))
    courier = Courier(queue, Sender(settings, folder), warn)
    error = courier.deliver(again=True)
    remedy = "; give it as --tracking_uri" if settings.uri is None else ""
    untracked = _left(queue, f"{one_line(error or '')}{remedy}", folder)
    if is_fetched:
        _store(queue, folder)
        queue.remove()
    return Delivered(courier.num_delivered, untracked)


def _left(queue: Queue, problem: str, folder: str) -> str:
    """What MLflow does not have, and what to do; empty where it has everything."""
    num_waiting, refused, num_lost = queue.num_waiting(), queue.refused(), queue.num_lost()
    parts = []
    if num_waiting:
        parts.append(f"{num_waiting} records wait ({problem})")
    if refused:
        parts.append(f"{len(refused)} were refused ({refused[-1].get('refused')})")
    if num_lost:
        parts.append(f"{num_lost} were lost, as {MAX_BYTES >> 20} MiB waited already")
    if not parts:
        return ""
    remedy = f"; `python -m jobs.sync {folder}` delivers what is there" if num_waiting or refused else ""
    return f"MLflow does not have all of the run: {', '.join(parts)}{remedy}"


def _local_queue(folder: str) -> Path:
    if is_local(folder):
        return Path(local_path(folder), _FOLDER)
    return _temporary() / hashlib.sha256(folder.encode()).hexdigest()[:16]


def _temporary() -> Path:
    """This user's folder for what has no place beside a run on local storage."""
    return Path(tempfile.gettempdir(), f"equihand-tracking-{os.getuid()}")


def _fetch(queue: Queue, folder: str) -> bool:
    """Take what an earlier process left in a run on object storage, unless this machine has more of it; whether it was there."""
    if is_local(folder) or queue.has_left() or not exists(join(folder, _FOLDER)):
        return False
    copy_to_local(join(folder, _FOLDER), queue.folder)
    return True


def _store(queue: Queue, folder: str) -> None:
    """Bring RUN/tracking on object storage up to date."""
    if is_local(folder):
        return
    if not queue.has_left():
        delete(join(folder, _FOLDER))
        return
    for name, data in queue.left().items():
        write_bytes(join(folder, _FOLDER, name), data)
