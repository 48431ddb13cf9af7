"""What every job shares: reading settings, a Ray session, and turning errors into one line and an exit code."""

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from pydantic import Field, create_model

from jobs.ray_errors import lost_in_ray, ray_start_error
from pipeline.config import Settings, load, to_yaml
from pipeline.cores import usable_cores
from pipeline.errors import EquihandError, LeftError, SettingsError, StorageError, UntrackedError, causes, one_line
from pipeline.masking import masked
from pipeline.ray_cluster import START_TIMEOUT_S, set_data_labels, set_fixed, set_start_timeout
from pipeline.run_log import log
from pipeline.storage import DISK_TROUBLE
from pipeline.training.background import is_any_left

if TYPE_CHECKING:
    from rich.console import Console

EXIT_INTERRUPTED = 130
_QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives its session must not start another Ray
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


class RaySettings(Settings):
    """Which Ray cluster the job uses."""

    address: str | None = None
    """Address of a running cluster; "auto" finds one on this machine. none uses RAY_ADDRESS, or else starts a local
    Ray."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local Ray. none takes the cores that this process may use but at least 4, so that a laptop can do
    several things at once."""
    data_labels: dict[str, str] = {}
    """Labels of the cluster's nodes that do data work, such as {ray-subcluster: data}; {} takes any. Readers of a training have
    workers.reader_labels."""
    start_timeout_s: float = Field(default=START_TIMEOUT_S, gt=0)
    """Seconds for which data work (ingest, rendering, prediction) waits for a first node of a cluster before it ends with one line.
    Trainings have workers.start_timeout_s."""
    object_store_mb: int | None = Field(default=None, ge=80)
    """Memory of the object store of a local Ray, in MiB. none leaves it to Ray (30 % of the memory)."""


SettingsT = TypeVar("SettingsT", bound=Settings)

_ANY_RAY = RaySettings()

Session = Callable[[], AbstractContextManager[None]]
"""Opens the job's Ray session, once there is something to do in it."""


@dataclass(frozen=True)
class Job(Generic[SettingsT]):
    """A job as `run_job` and `submit` know it: each module `jobs.NAME` has one, called JOB."""

    name: str
    settings: type[SettingsT]
    run: Callable[..., Any]
    """run(settings, progress), and where the job uses Ray run(settings, progress, session)."""
    doc: str | None
    """The head of `--help`."""
    ray: RaySettings | None = _ANY_RAY
    """Defaults of its `ray.*` settings; None: it does not use Ray."""
    chatter_to: Callable[[SettingsT], Path] | None = None
    """Log file that receives all that libraries print; None makes one for errors in the folder for temporary files."""

    @cached_property
    def command_line(self) -> type[SettingsT]:
        """What can be given: the settings, and `ray.*`."""
        if self.ray is None:
            return self.settings
        return create_model(self.settings.__name__, __base__=self.settings, ray=(RaySettings, self.ray))

    def load(self, argv: Sequence[str] | None) -> SettingsT:
        """All that was given, as `command_line`. Raises SettingsError."""
        return load(self.command_line, argv, prog=f"jobs.{self.name}", description=self.doc or "")

    def own(self, given: SettingsT) -> SettingsT:
        """The settings alone, without `ray.*`: what a run is, not where it runs."""
        names = self.settings.model_fields
        return self.settings.model_construct(
            given.model_fields_set & names.keys(), **{name: getattr(given, name) for name in names}
        )


@dataclass(frozen=True)
class RunsJob(Job[SettingsT]):
    """A job whose setting `runs`, a list, may stand first, before all other settings."""

    def load(self, argv: Sequence[str] | None) -> SettingsT:
        given = list(sys.argv[1:] if argv is None else argv)
        num_first = next((i for i, text in enumerate(given) if text.startswith("-")), len(given))
        runs = [f"--runs={json.dumps(given[:num_first])}"] if num_first else []
        return super().load([*runs, *given[num_first:]])


@contextmanager
def ray_session(settings: RaySettings = _ANY_RAY) -> Iterator[None]:
    """A connection to Ray. Inside another session of this process it joins that one and leaves it open."""
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address, "setting 'ray.address'" if settings.address else "RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options["num_cpus"] = settings.num_cpus or max(usable_cores(), 4)
        options["include_dashboard"] = False
        if settings.object_store_mb:
            options["object_store_memory"] = settings.object_store_mb * 2**20
    runtime_env: dict[str, Any] = {"env_vars": {**_QUIET_ENVIRONMENT, **_python_path()}}
    # Workers of a Ray that is there already are in its folder: a relative path is to mean to them what it means to this process.
    # (A client, ray://, has other files than they have.)
    if address != "local" and not address.startswith("ray://"):
        runtime_env["worker_process_setup_hook"] = _into(os.getcwd())
    try:
        ray.init(
            **options, logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, runtime_env=runtime_env
        )
    except Exception as error:  # Ray raises whatever comes, Exception itself among it
        raise ray_start_error(address, error) from error
    quiet_libraries()
    _keep_raylet_quiet()
    set_fixed(address == "local")
    set_start_timeout(settings.start_timeout_s)
    if settings.data_labels:
        set_data_labels(settings.data_labels)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # ray.init put its own handler there, which ends without clean-up
    try:
        yield
    finally:
        if not is_any_left():  # it would crash under such a call; run_job ends the process, and Ray's processes follow
            ray.shutdown()
        set_fixed(False)


def _into(folder: str) -> Callable[[], None]:
    """Changes to a folder, where it is there. A closure, which goes to the workers as a whole: they may not have this module."""

    def change() -> None:
        if os.path.isdir(folder):
            os.chdir(folder)

    return change


def _keep_raylet_quiet() -> None:
    """Ray prints what its nodes say of lost nodes and calls that are repeated, whatever log_to_driver is. To the run's log with it: jobs
    say in words of their own what is lost, and what they do."""
    from ray._private import worker

    def keep(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        log("ray", of=str(data.get("pid")), text=" ".join(map(str, data.get("lines", []))))

    worker.print_to_stdstream = keep


def _check_address(address: str, name: str) -> None:
    """Whether a Ray may be there. Ray itself goes on trying for many minutes. "local" and "auto" it resolves by itself.

    name: the setting or variable that the address comes from.
    """
    if address in ("local", "auto"):
        return
    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"{name} = '{address}' is the address of a job server, which jobs.submit takes (--address); a job itself needs "
            "HOST:6379, ray://HOST:10001, 'auto', or none for a Ray of its own"
        )
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        if "://" in address:
            return  # of a package that extends Ray
        raise SettingsError(f"{name} = '{address}' is an invalid address; write HOST:PORT (6379 by default), or 'auto'")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
            speaks_http = _speaks_http(connection)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EquihandError(
            f"Ray at '{address}' cannot be reached: {reason}; is the cluster up, and is this its address? "
            f"({name}; none starts a Ray for this job)"
        ) from error
    if speaks_http:
        raise SettingsError(
            f"{name} = '{address}': a web server answers there, not Ray; use the port of the cluster itself (6379 by "
            "default), not that of its job server or dashboard (8265)"
        )


def _speaks_http(connection: socket.socket) -> bool:
    """Ray's own ports speak gRPC, which answers this question in another way, or not at all."""
    connection.settimeout(2)
    try:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(8).startswith(b"HTTP/1.")
    except OSError:
        return False


def _python_path() -> dict[str, str]:
    """Let workers import the project from where the driver did, also when it is not installed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if "site-packages" in root or os.environ.get("RAY_JOB_ID"):
        return {}  # installed, or a submitted job, whose runtime environment brings the code
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def quiet_libraries() -> None:
    """Keep the libraries' chatter out of the terminal; warnings and errors still go to their log files."""
    import ray.data  # sets its own log levels when it is imported, so before ours
    import ray.train
    import ray.tune

    warnings.filterwarnings("ignore", module=r"(ray|mlflow|torch|optuna|pydantic|pandas)\b.*")
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "mlflow", "alembic", "optuna", "botocore", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def run_job(job: Job[SettingsT], argv: Sequence[str] | None = None) -> NoReturn:
    """Command-line entry of a job; ends the process.

    What libraries print as errors, and the traceback of an error that has one to show, go to a log file of the run; an error
    names it. EQUIHAND_DEBUG=1 shows tracebacks in the terminal.
    argv: arguments without the program's name; None takes the process's own.
    Exit codes: 0 done, 1 failed, 2 bad settings, 3 not finished in the time given, 4 done but MLflow will never have all of it
    (from jobs.sync: does not have all of it yet), 130 interrupted, 143 a training that was asked to end (SIGTERM) and has kept where
    it is.
    """
    from jobs.terminal import TerminalProgress

    signal.signal(signal.SIGTERM, _interrupt)
    code, log_file = 0, None
    try:
        given = job.load(argv)
        print(f"# jobs.{job.name}: settings\n{to_yaml(given)}", flush=True)
        settings = job.own(given)
        session = [] if job.ray is None else [partial(ray_session, given.ray)]  # type: ignore[attr-defined]
        log_file = job.chatter_to(settings) if job.chatter_to else _new_log(job.name)
        with (
            _own_terminal(log_file, errors_only=job.chatter_to is None) as console,
            TerminalProgress(console) as progress,
            _warnings_to(progress.warning),
        ):
            result = job.run(settings, progress, *session)
        if isinstance(result, dict) and result.get("num_lost"):
            raise UntrackedError(f"done, and its results are written, but {result['untracked']}")
    except (Exception, KeyboardInterrupt) as error:
        code = _say(error, log_file)
    if job.chatter_to is None and log_file is not None and log_file.exists() and not log_file.stat().st_size:
        log_file.unlink()
    sys.stdout.flush()
    sys.stderr.flush()
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if is_any_left() or any(not thread.daemon for thread in others):
        # A library's thread must not keep an ended job alive, nor may one that was left in a call to Ray wake up in an interpreter
        # that is going down: it would crash.
        os._exit(code)
    sys.exit(code)


def _say(error: BaseException, log_file: Path | None) -> int:
    """Tell the user of an error that has ended the job; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, LeftError):
        print(error, file=sys.stderr)
        return error.exit_code
    own, debug = _own_error(error), bool(os.environ.get("EQUIHAND_DEBUG"))
    trace, where = "", ""
    if debug or own is None or own.__cause__ is not None:
        trace = masked(
            "".join(traceback.format_exception(own if own is not None and own.__cause__ is not None else error))
        )
        with suppress(OSError):  # such as a full disk, which may be what there is to tell
            if log_file is not None:
                with log_file.open("a", encoding="utf-8") as log:
                    log.write(trace)
                where = f" (details: {log_file})"
    # What a submitted job prints is its log, while the file lies on a node of the cluster.
    if debug or (own is None and (not where or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ)):
        print(trace, end="", file=sys.stderr)
    if own is None:
        first = list(causes(error))[-1]
        place = next(reversed(traceback.extract_tb(first.__traceback__)), None)
        at = f" in {Path(place.filename).name}, line {place.lineno}" if place else ""
        print(
            f"error: unexpected {type(first).__name__}{at}: {one_line(first)}; this may be a fault of Equihand{where}",
            file=sys.stderr,
        )
        return 1
    *lines, last = str(own).splitlines() or [type(own).__name__]
    for line in [*lines, f"{last}{where}"]:
        print(f"error: {line}", file=sys.stderr)
    return own.exit_code


def _own_error(error: BaseException) -> EquihandError | None:
    """The error that is meant for people: this one, one on a worker, or what is known of the machine's and Ray's troubles."""
    for cause in causes(error):
        if isinstance(cause, EquihandError):
            return cause
    for cause in causes(error):
        trouble = "this machine's memory ran out" if isinstance(cause, MemoryError) else None
        if isinstance(cause, OSError) and cause.errno in DISK_TROUBLE:
            trouble = f"{cause.filename or one_line(cause)}: {DISK_TROUBLE[cause.errno]}"
        if trouble := trouble or lost_in_ray(cause):
            found = EquihandError(trouble)
            found.__cause__ = error
            return found
    return None


def _new_log(name: str) -> Path | None:
    """A log file of its own for each run; None where no folder for temporary files can be written."""
    try:
        started = time.strftime("%Y%m%d-%H%M%S")
        handle, path = tempfile.mkstemp(".log", f"equihand-{name}-{started}-")
    except OSError:
        return None
    os.close(handle)
    return Path(path)


@contextmanager
def _warnings_to(show: Callable[[str], None]) -> Iterator[None]:
    """The project's warnings (`pipeline.errors.warn`) go to `show` instead of stderr."""

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    logger, handler = logging.getLogger("equihand"), Shown(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _own_terminal(log_file: Path | None, errors_only: bool) -> Iterator["Console | None"]:
    """A console on the real terminal while everything else that is printed, by any process, goes to a file.

    errors_only: only what is printed to stderr does, and the console is stdout's own (None).
    """
    if log_file is None:
        yield None
        return
    from rich.console import Console

    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log = open(log_file, "ab")  # noqa: SIM115
    except OSError as error:
        raise StorageError(f"{log_file}: {error.strerror}; the log cannot be written there") from error
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, errors = os.dup(1), os.dup(2)
    with log, os.fdopen(os.dup(terminal), "w", encoding=sys.stdout.encoding) as screen:
        if not errors_only:
            os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            if errors_only:
                yield None
            else:
                yield Console(file=screen) if screen.isatty() else Console(file=screen, width=120)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(terminal, 1)
            os.dup2(errors, 2)
            os.close(terminal)
            os.close(errors)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
