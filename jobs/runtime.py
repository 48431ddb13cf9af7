"""What every job shares: reading settings, a Ray session, and turning errors into one line and an exit code."""

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import Field

from pipeline.config import Settings, load, to_yaml
from pipeline.errors import EquihandError

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
    """Address of a running cluster ("auto" finds one on this machine); none uses RAY_ADDRESS, else starts a local Ray."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Logical CPUs of a local Ray; none takes the larger of the machine's cores and 4, so that a laptop can overlap work."""
    object_store_mb: int | None = Field(default=None, ge=80)
    """Memory of a local Ray's object store, in MiB; none leaves it to Ray (30 % of memory)."""


SettingsT = TypeVar("SettingsT", bound=Settings)


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """A connection to Ray. Inside another session of this process it joins that one and leaves it open."""
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_somebody_listens(address)
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options["num_cpus"] = settings.num_cpus or max(os.cpu_count() or 1, 4)
        options["include_dashboard"] = False
        if settings.object_store_mb:
            options["object_store_memory"] = settings.object_store_mb * 2**20
    try:
        ray.init(
            **options,
            logging_level=logging.ERROR,
            log_to_driver=False,
            configure_logging=True,
            runtime_env={"env_vars": {**_QUIET_ENVIRONMENT, **_python_path()}},
        )
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise EquihandError(f"Ray at '{address}' cannot be reached: {' '.join(str(error).split())[:200]}") from None
    quiet_libraries()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # ray.init put its own handler there, which ends without clean-up
    try:
        yield
    finally:
        ray.shutdown()


def _check_somebody_listens(address: str) -> None:
    """Ray itself goes on trying for many minutes. Names such as "local" and "auto" it resolves by itself."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EquihandError(
            f"Ray at '{address}' cannot be reached: {reason}; is the cluster up, and is this its address?"
        ) from None


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


def available_cpus() -> float:
    """Logical CPUs of the whole cluster."""
    import ray

    return float(ray.cluster_resources().get("CPU", 0))


def run_job(
    settings_type: type[SettingsT],
    run: Callable[[SettingsT, Any], Any],
    prog: str,
    description: str | None,
    chatter_to: Callable[[SettingsT], Path] | None = None,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Command-line entry of a job; ends the process.

    chatter_to: log file that receives all that libraries print, so that only the job's own words reach the terminal.
    argv: arguments without the program's name; None takes the process's own.
    Exit codes: 0 done, 1 failed, 2 bad settings, 3 not finished in the time given, 130 interrupted.
    """
    from jobs.terminal import TerminalProgress

    signal.signal(signal.SIGTERM, _interrupt)
    quiet = not os.environ.get("EQUIHAND_DEBUG")
    code = 0
    try:
        settings = load(settings_type, argv, prog=prog, description=description or "")
        print(f"# {prog}: settings\n{to_yaml(settings)}", flush=True)
        log_file = chatter_to(settings) if chatter_to else None
        with _own_terminal(log_file) as console, TerminalProgress(console) as progress:
            run(settings, progress)
    except EquihandError as error:
        if not quiet:
            raise
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    if any(not t.daemon and t is not threading.main_thread() for t in threading.enumerate()):
        os._exit(code)  # a library's thread must not keep an ended job alive
    sys.exit(code)


@contextmanager
def _own_terminal(log_file: Path | None) -> Iterator["Console | None"]:
    """A console on the real terminal while everything else that is printed, by any process, goes to a file."""
    if log_file is None:
        yield None
        return
    from rich.console import Console

    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal, errors = os.dup(1), os.dup(2)
    with open(log_file, "ab") as log, os.fdopen(os.dup(terminal), "w", encoding=sys.stdout.encoding) as screen:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
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
