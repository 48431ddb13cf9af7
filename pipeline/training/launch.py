"""Run a training loop on workers with Ray Train, and keep its run: MLflow, failures, result. Its identity is in runs.py.

Checkpoints are kept by kept.py, from the first worker, and not through Ray Train: it would go on from its newest one only,
whole or not, and only where its own list of them is whole too.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from pipeline.config import flatten
from pipeline.errors import DamagedError, EquihandError, LeftError, TrainingError, causes, warn
from pipeline.gauges import teller
from pipeline.models.kept import checkpoints_in, read_best
from pipeline.progress import Progress
from pipeline.ray_cluster import check_is_in_cluster, keep_working_directory
from pipeline.run_log import log, run_log
from pipeline.runs import new_run_id, open_run
from pipeline.storage import absolute, delete, exists, join, read_json, write_json
from pipeline.tracked import Origin, Run, tracked
from pipeline.training.background import BackgroundCall
from pipeline.training.board import BoardHandle, progress_board
from pipeline.training.leaving import ENDS, on_sigterm
from pipeline.training.waiting import Watch
from pipeline.training.worker import Worker
from pipeline.training.worker_run import run_worker
from pipeline.training.workers import LaunchSettings, check_resources

SettingsT = TypeVar("SettingsT", bound=LaunchSettings)
DataT = TypeVar("DataT")

# Ray Train's controller takes one report from the workers each time that it looks after them, and a worker that reports
# again before that waits. By default it looks every 2 s: ten quick steps, or an epoch of a small set, took 2 s each.
_POLL_S = "0.25"
_PREEMPTION_GRACE_S = 60.0  # for a checkpoint of the first worker, where its node stays and another one is gone already
_FRESH_S = 30.0  # a worker that was heard of not longer ago is there, or has just ended
_LOOK_S = 0.5
_END_S = 20.0  # for Ray Train's controller to be there and end


def train_on_workers(
    loop: Callable[[SettingsT, DataT, Worker], dict[str, Any]],
    settings: SettingsT,
    data: DataT,
    *,
    kind: str,
    num_best: int,
    total: int,
    progress: Progress,
    tags: dict[str, str],
    made_from: Origin | None = None,
    leave: threading.Event | None = None,
) -> dict[str, Any]:
    """Run `loop(settings, data, worker)` on every worker, and return the run's result: what the loop of the first worker
    returned, and where the run is (also written to result.json). Where MLflow does not have all of it, "untracked" says why.
    A run of this id that has finished is not run again: its result is returned.

    num_best: checkpoints that are kept besides the newest two. total: frames that all workers see together. made_from: what it begins
    with. A TrainingError of the loop, which must be the same on all workers, ends the run; so does a DataError or SettingsError of
    any. leave: once it is set, the workers leave as after a SIGTERM.

    Raises LeftError after a SIGTERM, once all workers have kept where they are; TrainingError also where nodes, workers or data
    do not come in time.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    check_is_in_cluster()
    run, workers = settings.run, settings.workers
    keep_working_directory()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(workers.hang_timeout_s)
    run_id = run.run_id or new_run_id(kind)
    folder, finished = open_run(settings, run, run_id)
    if finished is not None:
        return finished
    use_gpu = check_resources(workers)
    _forget_ray_snapshot(folder)
    started, started_at = time.monotonic(), time.time()
    resources = {"CPU": workers.cpus_per_worker, **({"GPU": 1.0} if use_gpu else {})}
    with ExitStack() as stack:
        tracking = stack.enter_context(tracked(settings.tracking, folder, run_id, kind, settings, tags, made_from))
        stack.enter_context(run_log(folder, "driver", warn))
        log("settings", settings=flatten(settings), tags=tags)
        board = stack.enter_context(progress_board(progress, kind, total, "frames", tracking.log_machine))

        def start() -> BackgroundCall:
            trainer = TorchTrainer(
                partial(run_worker, loop, settings, data, board, kind, folder, num_best, use_gpu, started_at),  # type: ignore[arg-type]
                # A collective may wait for a worker that waits for data; what hangs is found before, by pulse.py.
                torch_config=TorchConfig(timeout_s=int(workers.start_timeout_s + workers.hang_timeout_s)),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers.num_workers,  # type: ignore[arg-type]
                    use_gpu=use_gpu,
                    resources_per_worker=resources,
                    label_selector=workers.labels or None,  # type: ignore[call-arg]
                ),
                run_config=ray.train.RunConfig(
                    name=run_id,
                    storage_path=absolute(run.storage),
                    failure_config=ray.train.FailureConfig(
                        max_failures=workers.max_failures,
                        preemption_grace_s=_PREEMPTION_GRACE_S,  # type: ignore[call-arg]
                    ),
                    callbacks=[_mlflow_callback(tracking.run, board), _controller_callback(board)],
                ),
            )
            return BackgroundCall(trainer.fit)

        # From the first step on: the workers may be under way before MLflow has opened its run.
        stack.enter_context(on_sigterm(partial(_leave, board)))
        fit = start()
        stack.callback(lambda: _end(fit, board))
        # MLflow takes seconds to open its run, and so do the workers to start: both at the same time.
        tracking.opened()
        log("tracked", mlflow_run_id=tracking.mlflow_run_id)
        while True:
            watch = Watch(workers.least, resources, workers.start_timeout_s, warn, tell=teller(run_id, kind, "driver"))
            returned = _outcome(fit, board, watch, leave).return_value or {}
            if "error" in returned:
                raise TrainingError(f"run '{run_id}': {returned['error']}")
            if "left" not in returned:
                break
            place = f"run '{run_id}' left at step {returned['step']}, epoch {returned['epoch']:.2f}"
            if returned["left"] == ENDS:
                raise LeftError(
                    f"{place}, with checkpoint {returned['checkpoint']}; no step is lost, and the same command goes on "
                    f"(--run.run_id {run_id})"
                )
            warn(
                f"{place}, because a node will be taken away, with checkpoint {returned['checkpoint']}; no step is lost, and the "
                "run goes on from there on the other nodes"
            )
            fit = start()
        checkpoints = checkpoints_in(folder)
        result = {
            "run_id": run_id,
            "kind": kind,
            "mlflow_run_id": tracking.mlflow_run_id,
            "best_checkpoint": read_best(folder)[0] if checkpoints else None,
            "last_checkpoint": checkpoints[-1] if checkpoints else None,
            "wall_s": round(time.monotonic() - started, 1),
            **returned,
        }
        write_json(join(folder, "result.json"), result)
        log("finished", result=result)
    return result | tracking.untracked()


def _leave(board: BoardHandle) -> bool:
    """Ask the workers to leave, at SIGTERM; False where they have nothing to lose."""
    if not _trains(board):
        return False
    board.leaving = True
    warn("asked to end (SIGTERM): the workers write a checkpoint after the next step; a second SIGTERM ends at once")
    return True


def _trains(board: BoardHandle) -> bool:
    """Whether there are workers that have done a step."""
    return any(sign.steps for sign in board.signs.values() if sign.silent < _FRESH_S)


def _forget_ray_snapshot(folder: str) -> None:
    """Remove Ray Train's own list of checkpoints, of runs that kept theirs through it: Ray would start from nothing else than
    what it names, and not at all where it is damaged. The checkpoints themselves are enough."""
    uri = join(folder, "checkpoint_manager_snapshot.json")
    if not exists(uri):
        return
    try:
        read_json(uri)
    except DamagedError as error:
        warn(f"{error}; it is not needed: the run goes on from the checkpoints that are there")
    delete(uri)


def _outcome(fit: BackgroundCall, board: BoardHandle, watch: Watch, leave: threading.Event | None) -> Any:
    """What the workers returned, waited for. Raises TrainingError, also where they wait for too long."""
    from ray.train import ControllerError, TrainingFailedError

    try:
        while fit.wait(_LOOK_S):
            if leave is not None and leave.is_set() and _trains(board):
                board.leaving = True
            if board.leaving and not _trains(board):  # the workers were lost before they could leave
                raise KeyboardInterrupt
            watch.look(board.signs)
        return fit.result()
    except (ControllerError, TrainingFailedError) as error:
        raise TrainingError(_reason(error)) from error


def _end(fit: BackgroundCall, board: BoardHandle) -> None:
    """Of a call that the driver leaves, as after Ctrl-C or a deadline: end Ray Train's controller, and wait for the call to fail."""
    deadline = time.monotonic() + _END_S
    while fit.wait(_LOOK_S) and time.monotonic() < deadline:
        try:
            board.end("the driver has left")
        except Exception:  # the cluster is lost too
            return


def _reason(error: BaseException) -> str:
    """The innermost cause of Ray Train's error, in one line, preferring one of our own errors."""
    failures = getattr(error, "worker_failures", None) or {}
    innermost = [[*causes(each)][-1] for each in failures.values() or [error]]
    own = next((cause for cause in innermost if isinstance(cause, EquihandError)), innermost[0])
    rank = next((rank for rank, _ in failures.items()), None)
    at = f"worker {rank}: " if rank is not None else ""
    lines = [line for line in str(own).strip().splitlines() if line.strip()]
    text = str(own) if isinstance(own, EquihandError) else f"{type(own).__name__}: {lines[-1] if lines else ''}"
    return f"training failed, {at}{text}"


def _mlflow_callback(run: Run, board: BoardHandle) -> Any:
    """Records what the workers report, from the controller, which runs on the driver's node. The driver delivers it."""
    from ray.train import UserCallback

    class Record(UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            first = metrics[0]
            numbers = {k: float(v) for k, v in first.items() if isinstance(v, int | float) and k != "step"}
            try:
                run.log_metrics(numbers, step=int(first.get("step", 0)))
                for name in first.get("pictures", []):
                    run.log_file(f"pictures/{name}")
            except OSError as error:  # a full disk must not end the training
                board.warn(f"{run.queue}: {error.strerror}; metrics of some steps are lost for MLflow")

    return Record()


def _controller_callback(board: BoardHandle) -> Any:
    """Tells the board which actor is Ray Train's controller; nothing else of Ray Train does."""
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Tell(ControllerCallback):
        def after_controller_start(self, train_run_context: Any) -> None:
            board.control()

    return Tell()
