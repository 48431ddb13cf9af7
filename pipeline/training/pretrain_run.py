"""Pretraining as a run on a cluster: Ray Train workers, MLflow, checkpoints in storage, resume by run id."""

from typing import Any

from pipeline.frames.mixing import uris_of
from pipeline.progress import SILENT, Progress
from pipeline.storage import preflight
from pipeline.training.launch import LaunchSettings, train_on_workers
from pipeline.training.pretrain import run_epochs
from pipeline.training.pretrain_recipe import PretrainRecipe, check_recipe, probed_set, steps_of_epoch


class PretrainSettings(LaunchSettings, PretrainRecipe):
    """A pretraining run: what is pretrained, and where."""


def run_pretrain(settings: PretrainSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run pretraining on a Ray cluster (needs a running Ray); the result is also in <storage>/<run_id>/result.json."""
    world_size = settings.workers.num_workers
    preflight(*uris_of(settings.frame_set))
    mixture = check_recipe(settings, world_size)
    return train_on_workers(
        run_epochs,
        settings,
        mixture,
        kind="pretrain",
        num_best=settings.checkpoint.keep,
        total=settings.epochs * steps_of_epoch(settings, mixture, world_size) * settings.batch_size * world_size,
        progress=progress,
        tags={
            "frame_set": ", ".join(mixture.uris),
            "frame_set_digest": mixture.digest,
            **probed_set(settings, mixture),
        },
    )
