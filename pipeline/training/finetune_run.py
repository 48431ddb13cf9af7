"""Fine-tuning as a run on a cluster: Ray Train workers, MLflow, checkpoints in storage, resume by run id."""

import threading
from collections.abc import Mapping
from typing import Any

from pipeline.errors import SettingsError
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSelection
from pipeline.models.origin import origin_of
from pipeline.models.shipped import model_uri
from pipeline.progress import SILENT, Progress
from pipeline.runs import started_with
from pipeline.storage import preflight
from pipeline.training.finetune import run_epochs
from pipeline.training.finetune_data import worker_data
from pipeline.training.finetune_recipe import FinetuneSettings, batch_and_steps, check_settings, with_epochs
from pipeline.training.launch import train_on_workers
from pipeline.training.worker import Worker
from pipeline.training.workers import LaunchSettings


class FinetuneRunSettings(LaunchSettings, FinetuneSettings):
    """A fine-tuning run: what is trained, and where."""


def on_workers(
    recipe: FinetuneSettings, folder: str, num_workers: int, cpus: int, use_gpu: bool, labels: Mapping[str, str]
) -> FinetuneRunSettings:
    """A fine-tuning on several workers that is a part of something larger, which records it. folder: URI of its run. cpus: of each
    worker, on nodes with these labels."""
    storage, _, run_id = folder.rpartition("/")
    return FinetuneRunSettings.model_validate(
        {
            **recipe.model_dump(),
            "workers": {
                "num_workers": num_workers,
                "cpus_per_worker": cpus,
                "use_gpu": use_gpu,
                "labels": dict(labels),
                "threads": None if use_gpu else cpus,
            },
            "run": {"storage": storage, "run_id": run_id},
            "tracking": {"uri": None, "required": False},
        }
    )


def run_finetune(
    settings: FinetuneRunSettings, progress: Progress = SILENT, leave: threading.Event | None = None
) -> dict[str, Any]:
    """Fine-tune on a Ray cluster (needs a running Ray); the result is also in <storage>/<run_id>/result.json. leave: once it is set,
    the workers keep where they are and end (LeftError)."""
    preflight(settings.frame_set, *([model_uri(settings.init)] if settings.init else []))
    frame_set, selection = check_settings(settings)
    world_size = settings.workers.num_workers
    if not isinstance(world_size, int):
        raise SettingsError(
            f"setting 'workers.num_workers' = {list(world_size)}: fine-tuning takes one number; give one"
        )
    recipe = settings.model_copy(update={"batch_size": worker_batch(settings)})
    batch_size, steps = batch_and_steps(recipe, selection.num_frames, world_size)
    planned = with_epochs(recipe, selection.num_frames, world_size)
    return train_on_workers(
        finetune_worker,
        settings,
        (frame_set, selection, recipe.batch_size),
        kind="finetune",
        num_best=1,
        total=planned.epochs * steps * batch_size * world_size,
        progress=progress,
        tags=frame_set.describe(),
        made_from=origin_of(settings.init),
        leave=leave,
    )


def worker_batch(settings: FinetuneRunSettings) -> int:
    """Frames that each worker takes in one step: a run that goes on with another number of workers keeps its global batch.

    Raises SettingsError where that does not divide between them.
    """
    workers = settings.workers.num_workers
    before = started_with(settings.run).get("workers.num_workers", workers)
    if not isinstance(workers, int) or not isinstance(before, int):
        return settings.batch_size
    together = before * settings.batch_size
    if together % workers or together // workers < 2:
        raise SettingsError(
            f"setting 'workers.num_workers' = {workers}: run '{settings.run.run_id}' was started with {before} workers and {together} "
            f"frames in each step, which do not divide between {workers}; use another number"
        )
    return together // workers


def finetune_worker(
    settings: FinetuneRunSettings, data: tuple[FrameSet, LabelSelection, int], worker: Worker
) -> dict[str, Any]:
    """One worker's part of the run."""
    frame_set, selection, batch_size = data
    settings = settings.model_copy(update={"batch_size": batch_size})
    planned = with_epochs(settings, selection.num_frames, worker.world_size)
    share = worker_data(planned, frame_set, selection, worker.rank, worker.world_size)
    return {
        **run_epochs(planned, share, worker),
        "num_labels": selection.num_frames,
        "num_clips": len(selection.clips),
        "num_unlabelled": selection.num_unlabelled,
        "num_2d_only": selection.num_2d_only,
        **frame_set.describe(),
        "world_size": worker.world_size,
    }
