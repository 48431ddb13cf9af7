"""Pretraining as a run on a cluster: Ray Train workers, MLflow, checkpoints in storage, resume by run id."""

from typing import Any

from pipeline.frames.mixing import uris_of
from pipeline.models.origin import origin_of
from pipeline.progress import SILENT, Progress
from pipeline.runs import started_with
from pipeline.storage import preflight
from pipeline.training.launch import train_on_workers
from pipeline.training.pretrain import run_epochs
from pipeline.training.pretrain_recipe import PretrainRecipe, check_recipe, global_batch, probed_set, steps_of_epoch
from pipeline.training.workers import LaunchSettings


class PretrainSettings(LaunchSettings, PretrainRecipe):
    """A pretraining run: what is pretrained, and where."""


def run_pretrain(settings: PretrainSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run pretraining on a Ray cluster (needs a running Ray); the result is also in <storage>/<run_id>/result.json."""
    preflight(*uris_of(settings.frame_set))
    settings, most = with_shares(settings), settings.workers.most
    mixture = check_recipe(settings, most)
    return train_on_workers(
        run_epochs,
        settings,
        mixture,
        kind="pretrain",
        num_best=settings.checkpoint.keep,
        total=settings.epochs * steps_of_epoch(settings, mixture, most) * global_batch(settings, most),
        progress=progress,
        tags={
            "frame_set": ", ".join(mixture.uris),
            "frame_set_digest": mixture.digest,
            **probed_set(settings, mixture),
        },
        made_from=origin_of(settings.init),
    )


def with_shares(settings: PretrainSettings) -> PretrainSettings:
    """The settings with `shares` as a number: as many as the run has had from its start."""
    if settings.shares is not None:
        return settings
    before = started_with(settings.run)
    shares = before.get("shares") or before.get("workers.num_workers") or settings.workers.most
    return settings.model_copy(update={"shares": max(shares) if isinstance(shares, list) else int(shares)})
