"""What a worker's process of a training run does around the training loop: checkpoints, a pulse, leaving, and what ends all."""

import itertools
import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from pipeline.errors import DataError, FullError, SettingsError, TrainingError
from pipeline.gauges import WorkerGauges, teller
from pipeline.models.checkpoints import Snapshot
from pipeline.models.kept import Kept, fetch
from pipeline.ray_cluster import set_data_labels
from pipeline.run_log import log, run_log
from pipeline.system_metrics import sampled
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.board import BoardHandle
from pipeline.training.leaving import ENDS, MOVES, STAYS, Agreement, Left
from pipeline.training.pulse import Pulse, Sign
from pipeline.training.saving import Saving, saving
from pipeline.training.supply import Startup
from pipeline.training.worker import Worker, use_threads
from pipeline.training.workers import LaunchSettings, reader_cpus

SettingsT = TypeVar("SettingsT", bound=LaunchSettings)
DataT = TypeVar("DataT")

_LAST_WORDS_S = 60.0  # for a worker that ends itself: its checkpoint, its log
_PREEMPTION_EVERY = 5
_IN_FLIGHT = 4


def run_worker(
    loop: Callable[[SettingsT, DataT, Worker], dict[str, Any]],
    settings: SettingsT,
    data: DataT,
    board: BoardHandle,
    kind: str,
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
    keep_freed_memory(device)
    if settings.workers.reader_labels:
        set_data_labels(settings.workers.reader_labels)
    kept = Kept(folder, num_best)
    place: dict[str, Any] = {}
    gauges = WorkerGauges(teller(folder.rstrip("/").rsplit("/", 1)[-1], kind, str(rank)), rank)
    frames_seen, shown = 0, dict[str, float]()
    # Ray Train holds a report until its controller takes it. One that is lost with its worker is made again from the checkpoint.
    recent: deque[dict[str, Any]] = deque(maxlen=_IN_FLIGHT)

    def tell_progress() -> None:
        if rank == 0:
            board.post("train", frames_seen, **shown)

    def report(metrics: dict[str, Any], snapshot: Snapshot | None) -> None:
        tell_progress()
        gauges.logged(metrics, frames_seen, pulse.waited_s)
        with pulse.busy("report"):
            writer.check()
            recent.append(metrics)
            if snapshot is not None and rank == 0:
                metrics = {**metrics, "checkpoint_pause_s": writer.save(snapshot, metrics, recent)}
            elif float(metrics["epoch"]).is_integer():
                log("epoch", metrics=metrics)
            ray.train.report(metrics)
        if snapshot is not None and agreement.agreed != STAYS:
            place.update(step=metrics["step"], epoch=metrics["epoch"])
            raise Left

    def keep(snapshot: Snapshot, metrics: dict[str, Any], recent: list[dict[str, Any]]) -> None:
        kept.keep(snapshot, {**metrics, "wall_s": round(kept.wall_s, 1), "reported_at": time.time()}, recent)
        gauges.checkpoint_is_there()

    def notice(num_frames: int, figures: dict[str, float]) -> None:
        nonlocal frames_seen, shown
        frames_seen, shown = num_frames, figures
        pulse.step()

    numbers = itertools.count()

    def asked() -> int:
        # Ray hears of a preemption every 5 s only, and its question goes through an actor on another node.
        notified = next(numbers) % _PREEMPTION_EVERY == 0 and ray.train.get_preemption_info() is not None
        return ENDS if pulse.leaving else MOVES if notified else STAYS

    def tell(rank: int, sign: Sign) -> tuple[bool, dict[int, Sign]]:
        gauges.repeat()
        tell_progress()
        leaving, signs = board.pulse(rank, sign)
        # Before, there may have been more workers.
        return leaving, {each: sign for each, sign in signs.items() if each < context.get_world_size()}

    def give_up(reason: str) -> None:
        _give_up(board, writer, reason)

    agreement = Agreement(asked, device)
    # One worker of each node tells how busy it is.
    look_s = settings.tracking.system_metrics_s if context.get_local_rank() == 0 else 0.0
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            run_log(folder, f"worker-{rank}", board.warn, worker=rank),
            Pulse(rank, tell, settings.workers.hang_timeout_s, give_up).beating() as pulse,
            saving(keep, pulse.busy) as writer,
            sampled(look_s, partial(board.machine, context.get_node_rank())),
        ):
            # The first worker chooses, for all: what is damaged for one might be whole for another.
            resume = kept.resume(directory, board.warn) if rank == 0 else None
            chosen, reported = broadcast_from_rank_zero((kept.newest, kept.recent))
            if rank > 0 and chosen is not None:
                resume = fetch(chosen, directory)
            for each in reported:
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
