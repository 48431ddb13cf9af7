"""MLflow: runs, settings, metrics, pictures and models. The only file of the project that imports it.

A run is created in the driver. Its handle (`Run`) is small and picklable, so that workers and callbacks can log to it
through the client API (the fluent API keeps global state and is not safe across processes).
"""

import logging
import math
import os
import re
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import Field, field_validator

from pipeline.config import Settings, Uri, flatten, to_yaml
from pipeline.errors import EquihandError, SettingsError, StorageError, one_line
from pipeline.storage import absolute, is_local, preflight

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

_RUN_ID_TAG = "equihand.run_id"
_MAX_PARAM_LENGTH = 500
_MAX_PARAMS_AT_ONCE = 100  # MLflow refuses more in one request
_CONNECT_TIMEOUT_S = 5
_NOT_IN_NAMES = re.compile(r"[^\w./ -]", re.ASCII)


class TrackingSettings(Settings):
    """Where runs are recorded."""

    uri: Uri = "sqlite:///mlflow.db"
    """Where MLflow records runs: sqlite:///FILE, or the http(s):// address of a tracking server (credentials come from
    MLFLOW_TRACKING_*)."""
    experiment: str = Field(default="equihand", min_length=1)
    """MLflow experiment that the run belongs to."""
    artifacts: Uri | None = None
    """URI below which a new experiment keeps its artifacts. none leaves it to MLflow (./mlruns, or the server)."""

    @field_validator("uri")
    @classmethod
    def _no_slip(cls, uri: str) -> str:
        """Slips that MLflow takes for folders. Other schemes are its own to judge: packages may bring more."""
        if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
            raise ValueError(f"write http://{uri}")
        if re.fullmatch(r"https?:/*", uri):
            raise ValueError("names no host; write http://HOST:PORT")
        if re.match(r"sqlite:(?!///[^/?]|////[^/?])", uri):
            raise ValueError("names no file; write sqlite:///FILE (with four slashes where FILE is absolute)")
        if _is_folder(uri) and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
            raise ValueError(
                "a folder, in which MLflow no longer keeps runs; write sqlite:///FILE (`mlflow migrate-filestore` moves old "
                "runs there), or http://HOST:PORT of a tracking server"
            )
        return uri


@dataclass(frozen=True)
class Run:
    """A handle on one MLflow run; every method may be called from any process that reaches the tracking URI."""

    tracking_uri: str
    mlflow_run_id: str
    experiment_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log finite numbers at an optimiser step; what is not finite is left out (MLflow stores refuse it)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [
            Metric(_allowed(name), float(value), now, step) for name, value in metrics.items() if math.isfinite(value)
        ]
        _client(self.tracking_uri).log_batch(self.mlflow_run_id, metrics=rows)

    def log_bytes(self, name: str, data: bytes) -> None:
        """Store bytes as the artifact `name` (for example "pictures/views.png")."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            self.log_file(path, str(Path(name).parent))

    def log_text(self, name: str, text: str) -> None:
        """Store text as the artifact `name`."""
        self.log_bytes(name, text.encode())

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Store a local file as an artifact, below `folder`."""
        _client(self.tracking_uri).log_artifact(self.mlflow_run_id, str(path), folder if folder != "." else None)

    def log_folder(self, path: str | Path, folder: str) -> None:
        """Store a local folder as artifacts, below `folder`."""
        _client(self.tracking_uri).log_artifacts(self.mlflow_run_id, str(path), folder)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every metric of the run as (step, value) pairs, in order of step."""
        client = _client(self.tracking_uri)
        names = client.get_run(self.mlflow_run_id).data.metrics
        series = {name: client.get_metric_history(self.mlflow_run_id, name) for name in names}
        # A resumed run logs some steps twice: the later entry counts.
        return {
            name: sorted({m.step: m.value for m in sorted(points, key=lambda m: m.timestamp)}.items())
            for name, points in series.items()
        }

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        _client(self.tracking_uri).set_terminated(self.mlflow_run_id, status)


def start_run(
    settings: TrackingSettings,
    run_id: str,
    kind: str,
    resolved_settings: Settings,
    tags: Mapping[str, str] | None = None,
    parent: Run | None = None,
) -> Run:
    """Open the MLflow run of our run `run_id`; one that exists already (a resumed job) goes on.

    kind: what the run does ("pretrain", "finetune", ...). The resolved settings become parameters and an artifact.
    Raises EquihandError when the tracking server does not answer.
    """
    from mlflow.entities import Param

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    with _opened(settings.uri) as (uri, client):
        experiment_id = _experiment(client, settings)
        found = client.search_runs(
            [experiment_id], f"tags.`{_RUN_ID_TAG}` = '{run_id}' and tags.`equihand.kind` = '{kind}'", max_results=1
        )
        if found:
            handle = Run(uri, found[0].info.run_id, experiment_id)
            client.update_run(handle.mlflow_run_id, status="RUNNING")
            return handle
        all_tags = {_RUN_ID_TAG: run_id, "equihand.kind": kind, **(tags or {})}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent.mlflow_run_id
        created = client.create_run(experiment_id, run_name=run_id, tags=all_tags)
        handle = Run(uri, created.info.run_id, experiment_id)
        params = [
            Param(_allowed(key), str(value)[:_MAX_PARAM_LENGTH]) for key, value in flatten(resolved_settings).items()
        ]
        for start in range(0, len(params), _MAX_PARAMS_AT_ONCE):
            client.log_batch(handle.mlflow_run_id, params=params[start : start + _MAX_PARAMS_AT_ONCE])
        handle.log_text("settings.yaml", to_yaml(resolved_settings))
        return handle


def existing_run(settings: TrackingSettings, mlflow_run_id: str) -> Run:
    """The handle of a run by MLflow's own id. Raises EquihandError where the tracking server does not know it."""
    with _opened(settings.uri) as (uri, client):
        return Run(uri, mlflow_run_id, client.get_run(mlflow_run_id).info.experiment_id)


def save_model(
    path: str | Path,
    code: str | Path,
    program: str | Path,
    inputs: Mapping[str, "np.ndarray"],
    outputs: Mapping[str, "np.ndarray"],
    requirements: Sequence[str],
) -> None:
    """Write an MLflow model (python_function flavour, signature, input example) into a local folder.

    code: Python file that the model runs (see export/mlflow_program.py). program: file that it loads. inputs, outputs: an
    example batch by name; their first axis becomes the batch. requirements: pip packages, with versions.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(arrays: Mapping[str, "np.ndarray"]) -> Schema:
        return Schema([TensorSpec(a.dtype, (-1, *a.shape[1:]), name) for name, a in arrays.items()])

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # MLflow's advice on type hints, which arrays by name cannot have, passes filters: it sets its own.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            str(path),
            python_model=str(code),
            artifacts={"program": str(program)},
            signature=ModelSignature(schema(inputs), schema(outputs)),
            input_example=dict(inputs),
            model_config={"inputs": list(inputs), "outputs": list(outputs)},
            pip_requirements=[f"mlflow=={mlflow.__version__}", *requirements],
        )


def _experiment(client: "MlflowClient", settings: TrackingSettings) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        location = absolute(settings.artifacts) if settings.artifacts else _artifacts_beside(settings.uri)
        try:
            return client.create_experiment(settings.experiment, artifact_location=location)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(settings.experiment)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        number = experiment.experiment_id
        raise EquihandError(
            f"the experiment '{settings.experiment}' (id {number}) has been deleted; bring it back with `MLFLOW_TRACKING_URI="
            f"{one_line(settings.uri)} mlflow experiments restore --experiment-id {number}`, or give another tracking.experiment"
        )
    return experiment.experiment_id


@contextmanager
def _opened(uri: str) -> Iterator[tuple[str, "MlflowClient"]]:
    """The URI as workers need it, and a client. Raises EquihandError that names the URI for what MLflow says in the block."""
    from alembic.util import CommandError
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    of_database = (SQLAlchemyError, sqlite3.Error, CommandError, ModuleNotFoundError)
    of_artifacts = (Boto3Error, BotoCoreError, ClientError)
    try:
        prepared = _prepared_uri(uri)
        if prepared.startswith(("http://", "https://")):
            _check_somebody_listens(prepared)
        yield prepared, _client(prepared)
    except EquihandError as error:
        raise type(error)(f"MLflow at {one_line(uri)}: {error}") from error.__cause__
    except of_artifacts as error:
        reason = f"its artifacts cannot be written ({one_line(error)}); check AWS_ACCESS_KEY_ID and the rest of AWS_*"
        raise EquihandError(f"MLflow at {one_line(uri)}: {reason}") from error
    except (MlflowException, OSError, *of_database) as error:
        kind = SettingsError if type(error).__name__.startswith("Unsupported") else EquihandError
        raise kind(f"MLflow at {one_line(uri)}: {_reason(error)}") from error


def _prepared_uri(uri: str) -> str:
    """SQLite files get an absolute path and their folder, because workers run in other directories."""
    path = _database_path(uri)
    if path is not None:
        preflight(str(path.parent), write=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_database(path)
        _, question, options = uri.partition("?")
        return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}{question}{options}"
    return absolute(uri) if _is_folder(uri) else uri


def _is_folder(uri: str) -> bool:
    return is_local(uri) and not uri.startswith(("databricks", "uc:", "arn:", "sqlite:"))


def _database_path(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).expanduser().absolute()


def _check_database(path: Path) -> None:
    """MLflow itself tries for minutes to open what cannot be opened."""
    try:
        with closing(sqlite3.connect(path, timeout=_CONNECT_TIMEOUT_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("PRAGMA schema_version")
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" in str(error):
            return  # another process writes just now; MLflow waits for it
        raise StorageError(
            f"{one_line(error)}; give a file that does not exist yet, or a database of MLflow that may be written"
        ) from error


def _check_somebody_listens(uri: str) -> None:
    """MLflow itself tries for minutes to reach a server that is not there."""
    import requests
    from urllib3.util import Retry

    environment = os.environ
    session = requests.Session()
    session.mount(uri, requests.adapters.HTTPAdapter(max_retries=Retry(total=2, backoff_factor=1)))
    insecure = environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify: bool | str = environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    certificate = environment.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    with session:  # any answer will do: whether it is an MLflow server's, MLflow will find out
        session.get(uri, timeout=_CONNECT_TIMEOUT_S, allow_redirects=False, verify=verify, cert=certificate)


def _reason(error: Exception) -> str:
    """What an error that MLflow gave means, and what to do."""
    import requests

    text = one_line(error)
    if isinstance(error, requests.exceptions.ProxyError):
        return (
            "the proxy of HTTP_PROXY or HTTPS_PROXY does not answer; correct it, or add the server's host to NO_PROXY"
        )
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"no secure connection ({text[-120:]}); does the server speak http:// only? The certificate of an authority of "
            "your own is named by MLFLOW_TRACKING_SERVER_CERT_PATH"
        )
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.Timeout):
        if "NameResolution" in text or "getaddrinfo" in text:
            return "there is no host of this name; correct setting 'tracking.uri'"
        return "nobody answers; is the server up (`mlflow server`), and is this its host and port?"
    if isinstance(error, requests.exceptions.InvalidURL):
        return "not a valid address; correct setting 'tracking.uri'"
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}; if that is where the experiment keeps its artifacts, give a new "
            "tracking.experiment, and as tracking.artifacts a place that this machine can write"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"the package '{error.name}' is missing, without which MLflow does not reach this kind of database; install it"
    if type(error).__name__.startswith("Unsupported"):
        return "unknown kind of tracking URI; use sqlite:///FILE, or http(s):// of a tracking server"
    if "Databricks" in text:
        return (
            "no Databricks credentials; set DATABRICKS_HOST and DATABRICKS_TOKEN, or name a profile of ~/.databrickscfg "
            "(databricks://PROFILE; needs the package databricks-sdk), or give another tracking.uri"
        )
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else None
    if status in (401, 403):
        return (
            f"it lets nobody in without credentials, or not with these ({text[:150]}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; a server that refuses its own host name wants "
            "`mlflow server --allowed-hosts`"
        )
    if "Response body" in text:
        return f"something answers, but not as an MLflow server does ({text[:150]}); is this its port?"
    if "Can't locate revision" in text:
        return f"the database is of a newer MLflow than this one ({text}); install that one, or give another file"
    return text


def _artifacts_beside(uri: str) -> str | None:
    """A local database keeps its artifacts in the folder beside it."""
    path = _database_path(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


def _allowed(name: str) -> str:
    """MLflow allows few signs in names; others, which the name that a user gave a model may hold, become "_"."""
    return _NOT_IN_NAMES.sub("_", name)


_CLIENTS: dict[tuple[int, str], Any] = {}


def _client(uri: str) -> "MlflowClient":
    # One client per process: a client opened before a fork must not be shared.
    key = (os.getpid(), uri)
    if key not in _CLIENTS:
        from mlflow import MlflowClient

        _CLIENTS[key] = MlflowClient(tracking_uri=uri)
    return _CLIENTS[key]
