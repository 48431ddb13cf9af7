"""Run a training loop on workers with Ray Train, and keep its run: MLflow, failures, result. Its identity is in runs.py.

Checkpoints are kept by kept.py, from the first worker, and not through Ray Train: it would go on from its newest one only,
whole or not, and only where its own list of them is whole too.
"""

import itertools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from pydantic import Field, field_validator

from pipeline.config import Settings, flatten
from pipeline.errors import (
    DamagedError,
    DataError,
    EquihandError,
    FullError,
    LeftError,
    SettingsError,
    TrainingError,
    causes,
    warn,
)
from pipeline.models.checkpoints import Snapshot
from pipeline.models.kept import Kept, checkpoints_in, fetch, read_best
from pipeline.progress import Progress
from pipeline.run_log import log, run_log
from pipeline.runs import RunSettings, new_run_id, open_run
from pipeline.storage import absolute, delete, exists, join, read_json, write_json
from pipeline.tracked import Run, tracked
from pipeline.tracking import TrackingSettings
from pipeline.training.background import BackgroundCall
from pipeline.training.board import BoardHandle, progress_board
from pipeline.training.leaving import ENDS, MOVES, STAYS, Agreement, Left, on_sigterm
from pipeline.training.pulse import Pulse, Sign
from pipeline.training.saving import Saving, saving
from pipeline.training.supply import Startup
from pipeline.training.waiting import Watch, cluster_in_words
from pipeline.training.worker import Worker, use_threads


class WorkerSettings(Settings):
    """The workers of a training run."""

    num_workers: int | tuple[int, int] = 1
    """Number of training processes: one for each GPU, or for every few CPU cores. [least, most] takes what the cluster has, and
    goes on with fewer or more when nodes go or come (pretraining only)."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs that each worker reserves."""
    use_gpu: bool | None = None
    """Whether to train on GPUs. none uses them if the cluster has one for each worker."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch in each worker. none divides the cores of a node between its workers (1 thread with a
    GPU)."""
    max_failures: int = Field(default=3, ge=0)
    """How often a run restarts from its last checkpoint after losing a worker, before it gives up. Nodes that are taken
    away after a notice do not count."""
    start_timeout_s: float = Field(default=1800, gt=0)
    """Seconds for which a run waits for nodes, workers, a first step or data, at the start and later, before it ends with
    a line that names what is missing. What it waits for is said from ten seconds on."""
    hang_timeout_s: float = Field(default=600, ge=5)
    """Seconds without a step or an answer after which workers count as hanging: they are ended, and restart from the last
    checkpoint, within `max_failures`. It must be longer than the longest step; waiting for data, the first step,
    probes and validations do not count."""

    @field_validator("num_workers", mode="before")
    @classmethod
    def _one_number_or_two(cls, value: Any) -> Any:
        try:
            numbers = [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) not in (1, 2) or numbers[0] < 1 or numbers[0] > numbers[-1]:
            raise ValueError("must be a number of at least 1, or two of them, [least, most]")
        return numbers[0] if len(numbers) == 1 else tuple(numbers)

    @property
    def least(self) -> int:
        """Workers without which a run does not train."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most(self) -> int:
        """Workers that a run has where the cluster has room for them."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


class LaunchSettings(Settings):
    """Where a run trains, is kept and is tracked."""

    workers: WorkerSettings = WorkerSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


SettingsT = TypeVar("SettingsT", bound=LaunchSettings)
DataT = TypeVar("DataT")

# Ray Train's controller takes one report from the workers each time that it looks after them, and a worker that reports
# again before that waits. By default it looks every 2 s: ten quick steps, or an epoch of a small set, took 2 s each.
_POLL_S = "0.25"
_STOP_S = 30.0  # for workers that are just starting to end again
_PREEMPTION_GRACE_S = 60.0  # for a checkpoint of the first worker, where its node stays and another one is gone already
_LAST_WORDS_S = 60.0  # for a worker that ends itself: its checkpoint, its log
_FRESH_S = 30.0  # a worker that was heard of not longer ago is there, or has just ended
_PREEMPTION_EVERY = 5
_LOOK_S = 0.5


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
) -> dict[str, Any]:
    """Run `loop(settings, data, worker)` on every worker, and return the run's result: what the loop of the first worker
    returned, and where the run is (also written to result.json). Where MLflow does not have all of it, "untracked" says why.
    A run of this id that has finished is not run again: its result is returned.

    num_best: checkpoints that are kept besides the newest two. total: frames that all workers see together. A TrainingError of
    the loop, which must be the same on all workers, ends the run; so does a DataError or SettingsError of any.

    Raises LeftError after a SIGTERM, once all workers have kept where they are; TrainingError also where nodes, workers or data
    do not come in time.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    run, workers = settings.run, settings.workers
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
        stack.enter_context(run_log(folder, "driver", warn))
        log("settings", settings=flatten(settings), tags=tags)
        board = stack.enter_context(progress_board(progress, kind, total, "frames"))
        tracking = stack.enter_context(tracked(settings.tracking, folder, run_id, kind, settings, tags))

        def start() -> BackgroundCall:
            trainer = TorchTrainer(
                partial(_run_worker, loop, settings, data, board, folder, num_best, use_gpu, started_at),  # type: ignore[arg-type]
                # A collective may wait for a worker that waits for data; what hangs is found before, by pulse.py.
                torch_config=TorchConfig(timeout_s=int(workers.start_timeout_s + workers.hang_timeout_s)),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=workers.num_workers,  # type: ignore[arg-type]
                    use_gpu=use_gpu,
                    resources_per_worker=resources,
                ),
                run_config=ray.train.RunConfig(
                    name=run_id,
                    storage_path=absolute(run.storage),
                    failure_config=ray.train.FailureConfig(
                        max_failures=workers.max_failures,
                        preemption_grace_s=_PREEMPTION_GRACE_S,  # type: ignore[call-arg]
                    ),
                    callbacks=[_mlflow_callback(tracking.run, board)],
                ),
            )
            return BackgroundCall(trainer.fit)

        fit = start()
        # MLflow takes seconds to open its run, and so do the workers to start: both at the same time.
        try:
            tracking.opened()
        except EquihandError as error:
            board.stop(str(error))
            fit.wait(_STOP_S)
            raise
        log("tracked", mlflow_run_id=tracking.mlflow_run_id)
        stack.enter_context(on_sigterm(partial(_leave, board)))
        there = partial(_cluster_in_words, resources)
        while True:
            watch = Watch(workers.least, resources, workers.start_timeout_s, warn, there)
            returned = _outcome(fit, board, watch).return_value or {}
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


def _cluster_in_words(worker: dict[str, float]) -> str:
    import ray

    return cluster_in_words(ray.nodes(), ray.available_resources(), worker)


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


def _run_worker(
    loop: Callable[[SettingsT, DataT, Worker], dict[str, Any]],
    settings: SettingsT,
    data: DataT,
    board: BoardHandle,
    folder: str,
    num_best: int,
    use_gpu: bool,
    started_at: float,
) -> dict[str, Any]:
    """One worker's process. It returns {"error": text} where a restart would meet the same error again: Ray Train restarts all
    workers after any exception."""
    import ray.train
    import ray.train.torch
    from ray.train.collective import broadcast_from_rank_zero

    reason = board.stopped()
    if reason:
        return {"error": reason}
    context = ray.train.get_context()
    rank = context.get_world_rank()
    startup = Startup(started_at, folder, rank)
    device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
    use_threads(settings.workers.threads, device, context.get_local_world_size())
    kept = Kept(folder, num_best)
    place: dict[str, Any] = {}

    def report(metrics: dict[str, Any], snapshot: Snapshot | None) -> None:
        with pulse.busy("report"):
            writer.check()
            if snapshot is not None and rank == 0:
                metrics = {**metrics, "checkpoint_pause_s": writer.save(snapshot, metrics)}
            elif float(metrics["epoch"]).is_integer():
                log("epoch", metrics=metrics)
            ray.train.report(metrics)
        if snapshot is not None and agreement.agreed != STAYS:
            place.update(step=metrics["step"], epoch=metrics["epoch"])
            raise Left

    def notice(num_frames: int, figures: dict[str, float]) -> None:
        pulse.step()
        if rank == 0:
            board.post("train", num_frames, **figures)

    numbers = itertools.count()

    def asked() -> int:
        # Ray hears of a preemption every 5 s only, and its question goes through an actor on another node.
        notified = next(numbers) % _PREEMPTION_EVERY == 0 and ray.train.get_preemption_info() is not None
        return ENDS if pulse.leaving else MOVES if notified else STAYS

    def tell(rank: int, sign: Sign) -> tuple[bool, dict[int, Sign]]:
        leaving, signs = board.pulse(rank, sign)
        # Before, there may have been more workers.
        return leaving, {each: sign for each, sign in signs.items() if each < context.get_world_size()}

    def give_up(reason: str) -> None:
        _give_up(board, writer, reason)

    agreement = Agreement(asked, device)
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            run_log(folder, f"worker-{rank}", board.warn),
            Pulse(rank, tell, settings.workers.hang_timeout_s, give_up).beating() as pulse,
            saving(kept.keep, pulse.busy) as writer,
        ):
            # The first worker chooses, for all: what is damaged for one might be whole for another.
            resume = kept.resume(directory, board.warn) if rank == 0 else None
            chosen, metrics = broadcast_from_rank_zero((kept.newest, kept.history[-1:]))
            if rank > 0 and chosen is not None:
                resume = fetch(chosen, directory)
            for each in metrics:  # a worker that is lost after it has saved a checkpoint has not reported its metrics
                ray.train.report(each)
            size = context.get_world_size()
            node = {"node": ray.util.get_node_ip_address(), "device": str(device), "threads": torch.get_num_threads()}
            log("placed", rank=rank, world_size=size, **node, going_on_from=chosen)
            worker = Worker(
                rank=rank,
                world_size=size,
                device=device,
                folder=folder,
                reader_cpus=reader_cpus(settings.workers, use_gpu),
                resume=resume,
                report=report,
                notice=notice,
                say=board.warn,
                mark=startup.mark,
                leaving=agreement,
                busy=pulse.busy,
            )
            try:
                return loop(settings, data, worker)
            except Left:
                with pulse.busy("checkpoint"):
                    writer.wait()
                return {"left": agreement.agreed, **place, "checkpoint": kept.newest}
    except TrainingError as error:
        return {"error": str(error)}
    except (DataError, SettingsError, FullError) as error:  # the other workers may wait for this one
        board.stop(str(error))
        raise


def _give_up(board: BoardHandle, writer: Saving, reason: str) -> None:
    """End this process, so that Ray Train starts the workers again; after its last checkpoint, where that is being written."""
    end = threading.Timer(_LAST_WORDS_S, os._exit, (1,))
    end.daemon = True
    end.start()
    text = f"{reason}: the workers end, and start again from the last checkpoint"
    log("hangs", level="error", what=text)
    board.warn(text)
    writer.settle()
    for handler in logging.getLogger("equihand").handlers:
        handler.flush()
    os._exit(1)


def reader_cpus(workers: WorkerSettings, use_gpu: bool) -> int:
    """Logical CPUs that a task which reads frames reserves. Where the number of workers is open, they take all that there are."""
    return 1 if use_gpu or workers.least == workers.most else 0


def check_resources(workers: WorkerSettings) -> bool:
    """Whether to use GPUs. Raises SettingsError when the cluster can never hold the workers and a reader beside them."""
    import ray

    total, least = ray.cluster_resources(), workers.least
    cpus, gpus = total.get("CPU", 0), int(total.get("GPU", 0))
    use_gpu = gpus >= least if workers.use_gpu is None else workers.use_gpu
    if use_gpu and gpus < least:
        raise SettingsError(
            f"setting 'workers.num_workers' = {least}: the cluster has {gpus} GPUs; use fewer workers or "
            "workers.use_gpu false"
        )
    reserved = reader_cpus(workers, use_gpu)
    needed = least * workers.cpus_per_worker + reserved
    if cpus < needed:
        to_read = " (one of them to read data)" if reserved else ""
        raise SettingsError(
            f"setting 'workers.num_workers' = {least}: {needed:g} logical CPUs are needed{to_read}, the cluster has {cpus:g}; use fewer workers, or a larger ray.num_cpus"
        )
    return use_gpu


def _outcome(fit: BackgroundCall, board: BoardHandle, watch: Watch) -> Any:
    """What the workers returned, waited for. Raises TrainingError, also where they wait for too long: Ray Train's own call is left
    then, as after Ctrl-C, and ends with the Ray session."""
    from ray.train import ControllerError, TrainingFailedError

    try:
        while fit.wait(_LOOK_S):
            if board.leaving and not _trains(board):  # the workers were lost before they could leave
                raise KeyboardInterrupt
            watch.look(board.signs)
        return fit.result()
    except (ControllerError, TrainingFailedError) as error:
        raise TrainingError(_reason(error)) from error
    except TrainingError as error:
        board.stop(str(error))
        raise


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
