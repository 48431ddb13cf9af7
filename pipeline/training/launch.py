"""Run a training loop on workers with Ray Train, and keep its run: identity, settings, MLflow, failures, result.

A run is named by its id. Same storage and same id: the run goes on from its last checkpoint, or, once finished, is simply
returned. Another id: another run.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml
from pydantic import Field

from pipeline.config import Settings, flatten, flatten_values, to_yaml
from pipeline.errors import DataError, EquihandError, SettingsError, TrainingError
from pipeline.progress import Progress
from pipeline.storage import absolute, exists, join, preflight, read_bytes, read_json, write_bytes, write_json
from pipeline.tracking import Run, TrackingSettings, ending, start_run
from pipeline.training.board import BoardHandle, progress_board


class WorkerSettings(Settings):
    """The workers of a training run."""

    num_workers: int = Field(default=1, ge=1)
    """Training processes: one per GPU, or per few CPU cores."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs that each worker reserves."""
    use_gpu: bool | None = None
    """Train on GPUs; none: if the cluster has one for each worker."""
    threads: int | None = Field(default=None, ge=1)
    """torch CPU threads per worker; none: the node's cores shared between its workers (1 with a GPU)."""
    max_failures: int = Field(default=3, ge=0)
    """How often a run restarts from its last checkpoint after a worker was lost, before it gives up."""


class RunSettings(Settings):
    """Where a run is kept and what it is called."""

    storage: str = "runs"
    """URI of the folder that holds the runs."""
    run_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}$")
    """The run's name. Use it again to go on with the same run; none makes a new one."""


# Ray Train's controller takes one report from the workers each time that it looks after them, and a worker that reports
# again before that waits. By default it looks every 2 s: ten quick steps, or an epoch of a small set, took 2 s each.
_POLL_S = "0.25"
_STOP_S = 30.0  # for workers that are just starting to end again

# What may differ when a run goes on: where and how fast it runs, not what it computes.
_MAY_CHANGE = ("run.", "workers.", "ray.", "tracking.", "num_readers", "window_mb")


def new_run_id(kind: str) -> str:
    """A fresh id such as pretrain-20260131-154501-a1b2."""
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def open_run(settings: Settings, run: RunSettings, run_id: str) -> tuple[str, dict[str, Any] | None]:
    """The run's folder, and its result where it has finished. Saves the settings; refuses other settings for an old id."""
    preflight(run.storage, write=True)
    folder = join(absolute(run.storage), run_id)
    settings_uri, result_uri = join(folder, "settings.yaml"), join(folder, "result.json")
    if exists(settings_uri):
        old = yaml.safe_load(read_bytes(settings_uri))
        flat = flatten(settings)
        previous = flatten_values(old)
        # A setting that is in only one of the two came or went with a version of the code.
        changed = [
            name
            for name in sorted(flat.keys() & previous.keys())
            if not name.startswith(_MAY_CHANGE) and flat[name] != previous[name]
        ]
        if changed:
            name = changed[0]
            raise SettingsError(
                f"run '{run_id}' in {run.storage} was started with {name} = {previous.get(name)!r}, now it is "
                f"{flat.get(name)!r}; use the same settings to go on with it, or another run.run_id"
            )
    else:
        write_bytes(settings_uri, to_yaml(settings).encode())
    return folder, read_json(result_uri) if exists(result_uri) else None


def train_on_workers(
    worker_loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    settings: Settings,
    run: RunSettings,
    run_id: str,
    kind: str,
    workers: WorkerSettings,
    tracking: TrackingSettings,
    num_to_keep: int,
    score: str,
    total: int,
    unit: str,
    progress: Progress,
    tags: dict[str, str],
) -> dict[str, Any]:
    """Run `worker_loop(config)` on every worker, and return the run's result (also written to result.json).

    config gets "board" (a BoardHandle), "folder" (the run's URI), "use_gpu" and "started_at" (seconds since 1970). The loop
    reports metrics and checkpoints through ray.train.report; its return value may hold "error", which ends the run as a TrainingError.
    score: metric of a checkpoint by which the best is kept (smaller is better).
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    folder = join(absolute(run.storage), run_id)
    use_gpu = check_resources(workers)
    started, started_at = time.monotonic(), time.time()
    with ExitStack() as stack:
        board = stack.enter_context(progress_board(progress, kind, total, unit))
        trainer = TorchTrainer(
            partial(_stopping, worker_loop),
            train_loop_config={
                **config,
                "board": board,
                "folder": folder,
                "use_gpu": use_gpu,
                "started_at": started_at,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=run_id,
                storage_path=absolute(run.storage),
                failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=num_to_keep, checkpoint_score_attribute=score, checkpoint_score_order="min"
                ),
                callbacks=[_mlflow_callback(board, folder)],
            ),
        )
        fit = BackgroundCall(trainer.fit)
        # MLflow takes seconds to open its run, and so do the workers to start: both at the same time.
        try:
            mlflow_run = start_run(tracking, run_id, kind, settings, tags)
        except EquihandError as error:
            board.stop(str(error))
            fit.wait(_STOP_S)
            raise
        stack.enter_context(ending(mlflow_run.finish))
        board.track(mlflow_run)
        outcome = _outcome(fit)
        returned = outcome.return_value or {}
        if "error" in returned:
            raise TrainingError(f"run '{run_id}': {returned['error']}")
        best = outcome.get_best_checkpoint(score, "min") or outcome.checkpoint
        result = {
            "run_id": run_id,
            "kind": kind,
            "mlflow_run_id": mlflow_run.mlflow_run_id,
            "best_checkpoint": _checkpoint_uri(folder, best),
            "last_checkpoint": _checkpoint_uri(folder, outcome.checkpoint),
            "wall_s": round(time.monotonic() - started, 1),
            **returned,
        }
        write_json(join(folder, "result.json"), result)
    return result


def _stopping(worker_loop: Callable[[dict[str, Any]], Any], config: dict[str, Any]) -> Any:
    """The loop of one worker, which is not repeated after an error that a repetition would meet again.

    Ray Train restarts all workers after any exception; those of a restart end at once where the reason was such an error.
    """
    board: BoardHandle = config["board"]
    reason = board.stopped()
    if reason:
        return {"error": reason}
    try:
        return worker_loop(config)
    except (DataError, SettingsError, TrainingError) as error:
        board.stop(str(error))
        raise


def check_resources(workers: WorkerSettings) -> bool:
    """Whether to use GPUs. Raises SettingsError when the cluster can never hold the workers and a reader beside them."""
    import ray

    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0), int(total.get("GPU", 0))
    use_gpu = gpus >= workers.num_workers if workers.use_gpu is None else workers.use_gpu
    if use_gpu and gpus < workers.num_workers:
        raise SettingsError(
            f"setting 'workers.num_workers' = {workers.num_workers}: the cluster has {gpus} GPUs; use fewer workers or "
            "workers.use_gpu false"
        )
    needed = workers.num_workers * workers.cpus_per_worker + 1
    if cpus < needed:
        raise SettingsError(
            f"setting 'workers.num_workers' = {workers.num_workers}: {needed:g} logical CPUs are needed (one of them to "
            f"read data), the cluster has {cpus:g}; use fewer workers, or a larger ray.num_cpus"
        )
    return use_gpu


def _outcome(fit: "BackgroundCall") -> Any:
    from ray.train import ControllerError, TrainingFailedError

    try:
        return fit.result()
    except (ControllerError, TrainingFailedError) as error:
        raise TrainingError(_reason(error)) from error


class BackgroundCall:
    """A call that runs in a thread: on the main thread, Ray Train and Tune replace Ctrl-C's handler by ones of their own.

    Train's exits with status 0. Here an interrupt leaves `result`, and the call ends with the Ray session.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._outcome: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._work, args=(function,), daemon=True, name="ray-run")
        self._thread.start()

    def _work(self, function: Callable[[], Any]) -> None:
        try:
            self._outcome["result"] = function()
        except BaseException as error:
            self._outcome["error"] = error

    def wait(self, seconds: float) -> None:
        """Until the call has ended, but no longer than that."""
        self._thread.join(seconds)

    def result(self) -> Any:
        """What the call returned or raised."""
        while self._thread.is_alive():
            self._thread.join(0.5)
        if "error" in self._outcome:
            raise self._outcome["error"]
        return self._outcome["result"]


def _reason(error: BaseException) -> str:
    """The innermost cause of Ray Train's error, in one line, preferring one of our own errors."""
    failures = getattr(error, "worker_failures", None) or {}
    causes: list[BaseException] = [*failures.values()] or [error]
    for number, cause in enumerate(causes):
        while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
            cause = inner
        causes[number] = cause
    own = next((cause for cause in causes if isinstance(cause, EquihandError)), causes[0])
    rank = next((rank for rank, _ in failures.items()), None)
    at = f"worker {rank}: " if rank is not None else ""
    lines = [line for line in str(own).strip().splitlines() if line.strip()]
    text = str(own) if isinstance(own, EquihandError) else f"{type(own).__name__}: {lines[-1] if lines else ''}"
    return f"training failed, {at}{text}"


def _mlflow_callback(board: BoardHandle, folder: str) -> Any:
    """Logs what the workers report, from the controller, which runs on the driver's node."""
    from ray.train import UserCallback

    class LogToMlflow(UserCallback):
        mlflow_run: Run | None = None

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if self.mlflow_run is None:
                self.mlflow_run = board.tracked()
            first = metrics[0]
            numbers = {k: float(v) for k, v in first.items() if isinstance(v, int | float) and k != "step"}
            self.mlflow_run.log_metrics(numbers, step=int(first.get("step", 0)))
            for name in first.get("pictures", []):
                self.mlflow_run.log_bytes(f"pictures/{name}", read_bytes(join(folder, "pictures", name)))

    return LogToMlflow()


def _checkpoint_uri(folder: str, checkpoint: Any) -> str | None:
    return None if checkpoint is None else join(folder, str(checkpoint.path).rstrip("/").rsplit("/", 1)[-1])
