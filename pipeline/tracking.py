"""MLflow: runs, settings, metrics, pictures and models. The only file of the project that imports it.

A run is created in the driver. Its handle (`Run`) is small and picklable, so that workers and callbacks can log to it
through the client API (the fluent API keeps global state and is not safe across processes).
"""

import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipeline.config import Settings, flatten, to_yaml
from pipeline.errors import EquihandError
from pipeline.storage import absolute, is_local

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
_NOT_IN_NAMES = re.compile(r"[^\w./ -]", re.ASCII)


class TrackingSettings(Settings):
    """Where runs are recorded."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI: sqlite:///FILE, or http(s):// of a tracking server (credentials from MLFLOW_TRACKING_*)."""
    experiment: str = Field(default="equihand", min_length=1)
    """MLflow experiment that the run belongs to."""
    artifacts: str | None = None
    """URI below which a new experiment keeps its artifacts; none leaves it to MLflow (./mlruns, or the server)."""


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

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        for name, value in tags.items():
            _client(self.tracking_uri).set_tag(self.mlflow_run_id, name, value)

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
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    uri = _prepared_uri(settings.uri)
    client = _client(uri)
    try:
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
    except (MlflowException, OSError) as error:
        raise EquihandError(f"MLflow at {settings.uri}: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def ending(*finish: Callable[[str], None]) -> Iterator[None]:
    """Call each `finish` (a `Run.finish`, say) with how the block ended: FINISHED, FAILED, or KILLED by an interrupt."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        for each in finish:
            each(status)


def existing_run(settings: TrackingSettings, mlflow_run_id: str) -> Run:
    """The handle of a run by MLflow's own id. Raises EquihandError where the tracking server does not know it."""
    from mlflow.exceptions import MlflowException

    uri = _prepared_uri(settings.uri)
    try:
        return Run(uri, mlflow_run_id, _client(uri).get_run(mlflow_run_id).info.experiment_id)
    except MlflowException as error:
        raise EquihandError(f"MLflow at {settings.uri}: {' '.join(str(error).split())[:300]}") from None


def save_model(
    path: str | Path,
    code: str | Path,
    program: str | Path,
    inputs: Mapping[str, "np.ndarray"],
    outputs: Mapping[str, "np.ndarray"],
    requirements: Sequence[str],
) -> None:
    """Write an MLflow model (python_function flavour, signature, input example) into a local folder.

    code: Python file that the model runs (see models/mlflow_program.py). program: file that it loads. inputs, outputs: an
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
    return experiment.experiment_id


def _prepared_uri(uri: str) -> str:
    """SQLite files get an absolute path and their folder, because workers run in other directories."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{path}"
    return absolute(uri) if is_local(uri) and uri != "databricks" else uri


def _artifacts_beside(uri: str) -> str | None:
    """A local database keeps its artifacts in the folder beside it."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
    return None


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
