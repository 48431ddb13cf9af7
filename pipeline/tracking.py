"""MLflow: runs, settings, metrics, pictures and models. With registry.py, the only file of the project that imports it.

What work has to record goes through a queue (`tracked.py`, `tracking_queue.py`), whose records `Sender` gives to MLflow. Each
brings its own time, and runs are found by a tag: so MLflow takes one that it has already as the same. All goes through the client
API (the fluent API keeps global state and is not safe across threads and processes). Links between runs are in tracking_links.py.
"""

import json
import logging
import os
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import Field, field_validator

from pipeline.config import Settings, Uri
from pipeline.errors import EquihandError, SettingsError, StorageError, one_line
from pipeline.storage import absolute, as_local_file, as_local_folder, is_local, join, preflight
from pipeline.tracking_links import KIND_TAG, RUN_ID_TAG, Source, find_run, link, link_users
from pipeline.tracking_queue import Record, Refused

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

# MLflow reads these when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for each trial of a search
# And these at every request. By itself it waits 120 s for an answer and tries 8 times, for minutes; the queue tries again.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")

_PARENT_TAG = "mlflow.parentRunId"
_SYSTEM = "system/"  # metrics of the machine, as MLflow's pages know them
_MAX_PARAM_LENGTH = 500
_MAX_PARAMS_AT_ONCE, _MAX_METRICS_AT_ONCE = 100, 1000  # MLflow refuses more in one request
_CONNECT_TIMEOUT_S = 4
_MAX_DIGEST = 36  # characters that MLflow takes
NOWHERE = "no MLflow is given (tracking.uri none)"
_MAY_PASS = (401, 403, 408, 429)  # of 400 to 499, which otherwise mean that the request itself is at fault
_NOT_IN_NAMES = re.compile(r"[^\w./ -]", re.ASCII)


class TrackingSettings(Settings):
    """Where runs are recorded."""

    uri: Uri | None = "sqlite:///mlflow.db"
    """Where MLflow records runs: sqlite:///FILE, or the http(s):// address of a tracking server (credentials come from
    MLFLOW_TRACKING_*). none: nowhere yet; what there is to be recorded is kept in RUN/tracking, and `jobs.sync` delivers it."""
    experiment: str = Field(default="equihand", min_length=1)
    """MLflow experiment that the run belongs to."""
    artifacts: Uri | None = None
    """URI below which a new experiment keeps its artifacts. none leaves it to MLflow (./mlruns, or the server)."""
    required: bool = True
    """Whether work begins only when MLflow answers. false: it begins in any case, and `jobs.sync` delivers later what MLflow did
    not get. Once work has begun, it never waits for MLflow."""
    system_metrics_s: float = Field(default=30, ge=0)
    """Seconds between two looks at processors, memory, disk, network and GPUs of the machines that a run is on (MLflow's system
    metrics). 0: none."""
    log_model: bool = False
    """Whether MLflow also gets the model of a pretraining, a fine-tuning or a search: its best checkpoint, as an MLflow model with
    signature and input example, also in RUN/model."""

    @field_validator("uri")
    @classmethod
    def _no_slip(cls, uri: str | None) -> str | None:
        """Slips that MLflow takes for folders. Other schemes are its own to judge: packages may bring more."""
        if uri is None:
            return None
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


class Sender:
    """Gives a queue's records to MLflow."""

    def __init__(self, settings: TrackingSettings, folder: str) -> None:
        """folder: URI of the run's folder, which holds the files that records name."""
        self._settings, self._folder = settings, folder
        self._ids: dict[tuple[str, str], str] = {}
        self._is_open = False

    def __call__(self, records: Sequence[Record]) -> None:
        """Give one record, or several of the metrics of one run. Raises Refused where MLflow does not take them, EquihandError
        where it cannot be reached."""
        try:
            if self._settings.uri is None:
                raise EquihandError(NOWHERE)
            with opened(self._settings.uri, check=not self._is_open) as (_, client):
                self._give(client, records)
        except Refused:
            raise
        except Exception:
            self._is_open = False
            raise
        self._is_open = True

    def mlflow_run_id(self, kind: str, run_id: str) -> str | None:
        """MLflow's own id of a run; None as long as it does not have it."""
        return self._ids.get((kind, run_id))

    def _give(self, client: "MlflowClient", records: Sequence[Record]) -> None:
        from mlflow.exceptions import MlflowException

        record = records[0]
        is_artifact = record["do"] in ("text", "file", "folder")
        try:
            self._give_one_kind(client, records)
        except MlflowException as error:
            status = error.get_http_status_code()
            # A link writes to a run of somebody else's, too: that may be forbidden for good.
            is_forbidden = status == 403 and record["do"] == "link"
            if is_forbidden or (400 <= status < 500 and status not in _MAY_PASS):
                raise Refused(_reason(error)) from error
            raise
        except EquihandError as error:
            if is_artifact:
                raise Refused(str(error)) from error
            raise
        except Exception as error:
            # The store of the artifacts is another one than that of the metrics, which must not wait for it.
            if is_artifact:
                raise Refused(f"artifact '{record['name']}': {_reason(error)}") from error
            raise

    def _give_one_kind(self, client: "MlflowClient", records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        record = records[0]
        mlflow_run_id = self._found_or_created(client, record)
        if record["do"] == "open":
            self._complete(client, mlflow_run_id, record)
        elif record["do"] == "link":
            kind, run_id = record["run"]
            link(client, mlflow_run_id, kind, run_id, [Source(*each) for each in record["sources"]])
        elif record["do"] == "metrics":
            rows = [
                Metric(_allowed(name), value, each["time"], each["step"])
                for each in records
                for name, value in each["values"].items()
            ]
            for start in range(0, len(rows), _MAX_METRICS_AT_ONCE):
                client.log_batch(mlflow_run_id, metrics=rows[start : start + _MAX_METRICS_AT_ONCE])
        elif record["do"] == "text":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, Path(record["name"]).name)
                path.write_text(record["text"], encoding="utf-8")
                _log_file(client, mlflow_run_id, str(path), record["name"])
        elif record["do"] == "file":
            with as_local_file(join(self._folder, record["name"])) as local, _end_of(local, record.get("last")) as end:
                _log_file(client, mlflow_run_id, end, record["name"])
        elif record["do"] == "folder":
            with as_local_folder(join(self._folder, record["name"])) as local:
                client.log_artifacts(mlflow_run_id, local, record["name"])
        elif record["do"] == "dataset":
            client.log_inputs(mlflow_run_id, [_dataset(record["source"], record["digest"])])
        elif record["do"] == "finish":
            client.set_terminated(mlflow_run_id, record["status"], record["time"])

    def _found_or_created(self, client: "MlflowClient", record: Record) -> str:
        """MLflow's id of the record's run. One that it does not have (any more) is made, for the record to be kept."""
        kind, run_id = key = (record["run"][0], record["run"][1])
        if key not in self._ids:
            experiment_id = _experiment(client, self._settings)
            found = find_run(client, [experiment_id], kind, run_id)
            if found is None:
                tags = {RUN_ID_TAG: run_id, KIND_TAG: kind}
                found = client.create_run(experiment_id, record["time"], tags, run_name=run_id).info.run_id
            self._ids[key] = found
        return self._ids[key]

    def _complete(self, client: "MlflowClient", mlflow_run_id: str, record: Record) -> None:
        """What a run is. What MLflow has already stays, such as of a run that goes on."""
        from mlflow.entities import Param, RunTag

        stored = client.get_run(mlflow_run_id).data
        tags = dict(record["tags"])
        if record["parent"] is not None:
            tags[_PARENT_TAG] = self._found_or_created(client, {**record, "run": record["parent"]})
        params = {_allowed(name): text[:_MAX_PARAM_LENGTH] for name, text in record["params"].items()}
        missing = [Param(name, text) for name, text in params.items() if name not in stored.params]
        client.log_batch(mlflow_run_id, tags=[RunTag(k, v) for k, v in tags.items() if k not in stored.tags])
        for start in range(0, len(missing), _MAX_PARAMS_AT_ONCE):
            client.log_batch(mlflow_run_id, params=missing[start : start + _MAX_PARAMS_AT_ONCE])
        client.update_run(mlflow_run_id, status="RUNNING")
        if record["parent"] is None:
            _link_users(client, mlflow_run_id, *record["run"])


@dataclass(frozen=True)
class StoredRun:
    """A run that MLflow has."""

    tracking_uri: str
    mlflow_run_id: str

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every metric of the run as (step, value) pairs, in order of step; without those of the machines that it ran on."""
        client = _client(self.tracking_uri)
        names = [name for name in client.get_run(self.mlflow_run_id).data.metrics if not name.startswith(_SYSTEM)]
        series = {name: client.get_metric_history(self.mlflow_run_id, name) for name in names}
        # A resumed run logs some steps twice: the later entry counts.
        return {
            name: sorted({m.step: m.value for m in sorted(points, key=lambda m: m.timestamp)}.items())
            for name, points in series.items()
        }

    def log_folder(self, path: str | Path, folder: str) -> None:
        """Store a local folder as artifacts, below `folder`."""
        _client(self.tracking_uri).log_artifacts(self.mlflow_run_id, str(path), folder)


def stored_run(settings: TrackingSettings, result: Mapping[str, Any]) -> StoredRun:
    """The run that a result is of: {"mlflow_run_id", or "kind" and "run_id"}.

    Raises EquihandError where MLflow does not have it, or does not answer.
    """
    if settings.uri is None:
        raise EquihandError(f"run '{result['run_id']}' was not recorded in MLflow (tracking.uri none)")
    with opened(settings.uri) as (uri, client):
        mlflow_run_id = result.get("mlflow_run_id")
        if mlflow_run_id is None:  # it was away when the run ended
            mlflow_run_id = find_run(client, [_experiment(client, settings)], result["kind"], result["run_id"])
        if mlflow_run_id is None:
            raise EquihandError(
                f"it has no run '{result['run_id']}'; `python -m jobs.sync RUN` delivers what is missing"
            )
        return StoredRun(uri, client.get_run(mlflow_run_id).info.run_id)


def placed(settings: TrackingSettings) -> TrackingSettings:
    """The same for a process in another working directory."""
    artifacts = absolute(settings.artifacts) if settings.artifacts else None
    uri = None if settings.uri is None else _prepared_uri(settings.uri, check=False)
    return settings.model_copy(update={"uri": uri, "artifacts": artifacts})


def check_reachable(settings: TrackingSettings) -> None:
    """Raises EquihandError, within ten seconds, where nobody answers at the address of the tracking server."""
    if settings.uri is None or not settings.uri.startswith(("http://", "https://")):
        return
    try:
        _check_somebody_listens(settings.uri)
    except OSError as error:
        raise EquihandError(f"MLflow at {one_line(settings.uri)}: {_reason(error)}") from error


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


def _link_users(client: "MlflowClient", mlflow_run_id: str, kind: str, run_id: str) -> None:
    """What is delivered late may be what others began with. Where MLflow forbids to write to them, they stay without a link."""
    from mlflow.exceptions import MlflowException

    try:
        link_users(client, mlflow_run_id, kind, run_id)
    except MlflowException as error:
        if not 400 <= error.get_http_status_code() < 500:
            raise


def _dataset(source: str, digest: str) -> Any:
    """A frame set as MLflow's input of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name = source.rstrip("/").rsplit("/", 1)[-1] or "frames"
    found = Dataset(name, digest[:_MAX_DIGEST], "equihand frame set", json.dumps({"uri": source, "digest": digest}))
    return DatasetInput(found, [InputTag("mlflow.data.context", "read")])


@contextmanager
def _end_of(path: str, last: int | None) -> Iterator[str]:
    """The file, or where it is larger than `last` bytes a file of the same name with the whole lines among its last bytes."""
    if last is None or os.path.getsize(path) <= last:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, open(path, "rb") as file:
        file.seek(-last - 1, os.SEEK_END)
        file.readline()
        shortened = Path(folder, Path(path).name)
        shortened.write_bytes(file.read())
        yield str(shortened)


def _log_file(client: "MlflowClient", mlflow_run_id: str, path: str, name: str) -> None:
    """Store a local file as the artifact `name`, which ends like it; one of this name is replaced."""
    folder = str(Path(name).parent)
    client.log_artifact(mlflow_run_id, path, None if folder == "." else folder)


def _experiment(client: "MlflowClient", settings: TrackingSettings) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        location = absolute(settings.artifacts) if settings.artifacts else _artifacts_beside(settings.uri or "")
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
            f"{one_line(settings.uri or '')} mlflow experiments restore --experiment-id {number}`, or give another tracking.experiment"
        )
    return experiment.experiment_id


@contextmanager
def opened(uri: str, check: bool = True) -> Iterator[tuple[str, "MlflowClient"]]:
    """The URI for every folder, and a client. Raises EquihandError that names the URI for what MLflow says in the block.

    check: first see, in seconds, whether anybody is there.
    """
    from alembic.util import CommandError
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    of_database = (SQLAlchemyError, sqlite3.Error, CommandError, ModuleNotFoundError)
    of_artifacts = (Boto3Error, BotoCoreError, ClientError)
    try:
        prepared = _prepared_uri(uri, check)
        if check and prepared.startswith(("http://", "https://")):
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


def _prepared_uri(uri: str, check: bool) -> str:
    """SQLite files get an absolute path and their folder."""
    path = _database_path(uri)
    if path is not None:
        if check:
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
    session.mount(uri, requests.adapters.HTTPAdapter(max_retries=Retry(total=1, backoff_factor=0.5)))
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

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        _CLIENTS[key] = MlflowClient(tracking_uri=uri)
    return _CLIENTS[key]
