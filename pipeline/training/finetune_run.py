"""Fine-tuning as a run on a cluster: Ray Train workers, MLflow, checkpoints in storage, resume by run id."""

import os
from typing import Any

import torch

from pipeline.errors import TrainingError
from pipeline.frames.labelled import LabelSelection
from pipeline.frames.manifest import Manifest
from pipeline.models.shipped import model_uri
from pipeline.progress import SILENT, Progress
from pipeline.runs import RunSettings, new_run_id, open_run
from pipeline.storage import preflight
from pipeline.tracking import TrackingSettings
from pipeline.training.finetune import (
    FinetuneSettings,
    batch_and_steps,
    check_settings,
    run_epochs,
    with_epochs,
    worker_data,
)
from pipeline.training.launch import WorkerSettings, train_on_workers, worker_checkpoints

_BEST_KEPT = 1  # checkpoints, besides the newest two


class FinetuneRunSettings(FinetuneSettings):
    """A fine-tuning run: what is trained, and where."""

    workers: WorkerSettings = WorkerSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def run_finetune(settings: FinetuneRunSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Fine-tune on a Ray cluster (needs a running Ray); the result is also in <storage>/<run_id>/result.json."""
    preflight(settings.frame_set, *([model_uri(settings.init)] if settings.init else []))
    manifest, selection = check_settings(settings)
    world_size = settings.workers.num_workers
    batch_size, steps = batch_and_steps(settings, selection.num_frames, world_size)
    run_id = settings.run.run_id or new_run_id("finetune")
    _, finished = open_run(settings, settings.run, run_id)
    if finished is not None:
        return finished
    planned = with_epochs(settings, selection.num_frames, world_size)
    return train_on_workers(
        finetune_worker,
        {
            "settings": planned.model_dump(mode="json", include=set(FinetuneRunSettings.model_fields)),
            "manifest": manifest.model_dump_json(),
            "selection": selection,
        },
        settings=settings,
        run=settings.run,
        run_id=run_id,
        kind="finetune",
        workers=settings.workers,
        tracking=settings.tracking,
        total=planned.epochs * steps * batch_size * world_size,
        unit="frames",
        progress=progress,
        tags={"frame_set": settings.frame_set, "frame_set_digest": manifest.digest},
    )


def finetune_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of one Ray Train worker. Returns {"error": text} where training cannot go on, the same on all workers."""
    import ray.train
    import ray.train.torch

    settings = FinetuneRunSettings.model_validate(config["settings"])
    manifest = Manifest.model_validate_json(config["manifest"])
    selection: LabelSelection = config["selection"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device() if config["use_gpu"] else torch.device("cpu")
    cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    torch.set_num_threads(settings.workers.threads or (1 if device.type == "cuda" else cores))

    def notice(num_frames: int, figures: dict[str, float]) -> None:
        if rank == 0:
            config["board"].post("train", num_frames * world_size, **figures)

    with worker_checkpoints(config, _BEST_KEPT, rank) as (resume, report):
        data = worker_data(settings, manifest, selection, rank, world_size)
        try:
            outcome = run_epochs(
                settings,
                data,
                device,
                report,
                rank=rank,
                world_size=world_size,
                resume=resume,
                notice=notice,
            )
        except TrainingError as error:
            return {"error": str(error)}
    return {
        **outcome,
        "num_labels": selection.num_frames,
        "num_clips": len(selection.clips),
        "num_unlabelled": selection.num_unlabelled,
        "num_2d_only": selection.num_2d_only,
        "frame_set": settings.frame_set,
        "frame_set_digest": manifest.digest,
        "world_size": world_size,
    }
