"""A search campaign: Ray Tune trials of fine-tuning, Optuna's proposals, ASHA's early stopping, the best model kept.

A trial is the single-process `finetune` inside Tune's own actor, with the frames shared through Ray's object store: no
nested Ray Train, so that a trial starts in a second or two.

    <storage>/<run_id>/tune/     Tune's state and the trials' checkpoints
    <storage>/<run_id>/best/     checkpoint of the best trial at its best epoch
    <storage>/<run_id>/result.json
"""

import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Settings
from pipeline.errors import SettingsError, TrainingError
from pipeline.frames.manifest import Manifest
from pipeline.models.shipped import model_uri
from pipeline.progress import SILENT, Progress
from pipeline.search.monitor import SearchMonitor
from pipeline.search.space import SearchSpace, first_guess, sampled, trial_settings
from pipeline.storage import copy_tree, delete, join, preflight, write_json
from pipeline.tracking import TrackingSettings, ending, start_run
from pipeline.training.finetune import (
    FinetuneSettings,
    SaveCheckpoint,
    check_settings,
    finetune,
    in_memory,
    load_validation,
    with_epochs,
)
from pipeline.training.labelled import LabelledFrames, LabelSelection, load_labelled
from pipeline.training.launch import BackgroundCall, RunSettings, new_run_id, open_run

_TRIAL_RESTARTS = 1  # a lost worker is worth another try; a diverged trial then fails again, from its last checkpoint


class SearchSettings(Settings):
    """A search over fine-tuning settings."""

    finetune: FinetuneSettings
    """Settings of every trial, apart from what the space varies."""
    space: SearchSpace = SearchSpace()
    num_trials: int = Field(default=16, ge=1)
    """Trials in all."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; none: as many as the cluster's CPUs and GPUs hold."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """Logical CPUs, and torch threads, of a trial."""
    gpus_per_trial: float | None = Field(default=None, ge=0)
    """GPUs of a trial, also fractions; none: 1 where the cluster has GPUs, else 0."""
    grace_epochs: int | None = Field(default=None, ge=1)
    """Epochs before a trial may be stopped; none: a quarter of all."""
    reduction_factor: int = Field(default=3, ge=2)
    """ASHA goes on with the best 1 / reduction_factor of the trials at each rung."""
    seed: int = Field(default=5, ge=0)
    """Seed of Optuna's sampler."""
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def run_search(settings: SearchSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run or go on with a search (needs a running Ray); the result is also in <storage>/<run_id>/result.json.

    Raises TrainingError when no trial gave a model.
    """
    base = settings.finetune
    preflight(base.frame_set, *([model_uri(base.init)] if base.init else []))
    manifest, selection = check_settings(base)
    if not in_memory(base, manifest, selection):
        raise SettingsError(
            f"a search holds its frames in memory, but {selection.num_frames} frames exceed finetune.memory_limit_mb = "
            f"{base.memory_limit_mb}; raise it, or search on fewer labels (finetune.labels.num)"
        )
    run_id = settings.run.run_id or new_run_id("search")
    folder, finished = open_run(settings, settings.run, run_id)
    if finished is not None:
        return finished
    tags = {"frame_set": base.frame_set, "frame_set_digest": manifest.digest}
    parent = start_run(settings.tracking, run_id, "search", settings, tags)
    # Trials differ in batch size, but not in their number of epochs, by which the scheduler compares them.
    base = with_epochs(base, selection.num_frames, 1)
    settings = settings.model_copy(update={"finetune": base})
    monitor = SearchMonitor(run_id, parent, settings.tracking, base, progress)
    started = time.monotonic()
    _quiet_tune()
    progress.start("search", settings.num_trials * base.epochs, "epochs")
    with ending(monitor.close, parent.finish, lambda _: progress.finish()):
        tuner = _tuner(settings, folder, manifest, selection, monitor)
        grid = BackgroundCall(tuner.fit).result()
        result = {
            "run_id": run_id,
            "kind": "search",
            "mlflow_run_id": parent.mlflow_run_id,
            **_outcome(grid, base, folder),
            "num_labels": selection.num_frames,
            "frame_set": base.frame_set,
            "frame_set_digest": manifest.digest,
            "wall_s": round(time.monotonic() - started, 1),
        }
        parent.log_metrics({f"best_{name}": value for name, value in result["metrics"].items()}, step=0)
        write_json(join(folder, "result.json"), result)
    return result


def trial(values: dict[str, Any], base: str, data: dict[str, Any], threads: int, use_gpu: bool) -> None:
    """One trial, in its own process. values: what the search varies; base: the fine-tuning settings as JSON."""
    import torch
    from ray import tune

    torch.set_num_threads(threads)
    settings = trial_settings(FinetuneSettings.model_validate_json(base), values)

    def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
        if save is None:
            return
        with tempfile.TemporaryDirectory() as directory:
            save(Path(directory))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(directory))

    checkpoint = tune.get_checkpoint()
    with tempfile.TemporaryDirectory() as directory:
        finetune(
            settings,
            **data,
            report=report,
            resume=Path(checkpoint.to_directory(directory)) if checkpoint is not None else None,
            device=torch.device("cuda" if use_gpu else "cpu"),
        )


def concurrent_trials(settings: SearchSettings, resources: dict[str, float]) -> tuple[int, float]:
    """How many trials run at a time, and the GPUs of each. Raises SettingsError when not one fits the cluster."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpus_per_trial = settings.gpus_per_trial if settings.gpus_per_trial is not None else min(1.0, gpus)
    limits = [cpus // settings.cpus_per_trial]
    if gpus_per_trial:
        limits.append(gpus // gpus_per_trial)
    fitting = int(min(limits))
    if fitting < 1:
        raise SettingsError(
            f"a trial needs {settings.cpus_per_trial} CPUs and {gpus_per_trial:g} GPUs, the cluster has {cpus:g} and "
            f"{gpus:g}; lower cpus_per_trial or gpus_per_trial"
        )
    return min(fitting, settings.num_trials, settings.max_concurrent or fitting), gpus_per_trial


def _quiet_tune() -> None:
    """Keep Tune's tables, Optuna's notices and TensorBoard files away; the progress bar and MLflow show the trials."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _restored(uri: str, trainable: Any) -> Any | None:
    """The search whose state is at `uri`. One cut off while its first state was written has nothing yet: None."""
    from ray import tune

    if not tune.Tuner.can_restore(uri):
        return None
    try:
        return tune.Tuner.restore(uri, trainable, resume_errored=True)
    except (EOFError, pickle.UnpicklingError):
        delete(uri)
        return None


def _tuner(
    settings: SearchSettings, folder: str, manifest: Manifest, selection: LabelSelection, monitor: SearchMonitor
) -> Any:
    """A new Tuner, or the one whose state is in storage."""
    import ray
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    base = settings.finetune
    concurrent, gpus = concurrent_trials(settings, ray.cluster_resources())
    train: LabelledFrames = load_labelled(base.frame_set, base.split, manifest, clips=selection.clips)
    data = {
        "train": train,
        "validation": load_validation(base, manifest),
        "mean_bone_length": selection.mean_bone_length,
        "constant": selection.constant,
        "constant_2d": selection.constant_2d,
        "frame_set_digest": manifest.digest,
    }
    trainable = tune.with_resources(
        tune.with_parameters(
            trial, base=base.model_dump_json(), data=data, threads=settings.cpus_per_trial, use_gpu=gpus > 0
        ),
        {"cpu": settings.cpus_per_trial, "gpu": gpus},
    )
    restored = _restored(join(folder, "tune"), trainable)
    if restored is not None:
        return restored
    guess = first_guess(settings.space, base)
    return tune.Tuner(
        trainable,
        param_space=sampled(settings.space),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min",
            num_samples=settings.num_trials,
            max_concurrent_trials=concurrent,
            search_alg=OptunaSearch(seed=settings.seed, points_to_evaluate=[guess] if guess else None),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                max_t=base.epochs,
                grace_period=min(settings.grace_epochs or max(1, base.epochs // 4), base.epochs),
                reduction_factor=settings.reduction_factor,
            ),
            reuse_actors=True,
            trial_dirname_creator=lambda t: f"trial_{t.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=_TRIAL_RESTARTS),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="score", checkpoint_score_order="min"
            ),
            callbacks=[monitor.callback(), JsonLoggerCallback()],
            verbose=0,
        ),
    )


def _outcome(grid: Any, base: FinetuneSettings, folder: str) -> dict[str, Any]:
    """The trials' table, and the best one's model, copied to `best/`."""
    rows = [_trial_row(result, base) for result in grid]
    done = [(row, result) for row, result in zip(rows, grid, strict=True) if row["value"] is not None]
    if not done:
        reasons = {str(result.error).strip().splitlines()[-1] for result in grid if result.error}
        raise TrainingError(f"no trial gave a model: {'; '.join(sorted(reasons)) or 'none reported a metric'}")
    row, best = min(done, key=lambda pair: pair[0]["value"])
    checkpoint = best.get_best_checkpoint("score", "min")
    metrics = next(metrics for kept, metrics in best.best_checkpoints if kept == checkpoint)
    source = checkpoint.path if folder.startswith("/") else f"s3://{checkpoint.path}"
    target = join(folder, "best")
    delete(target)
    copy_tree(source, target)
    return {
        "best_checkpoint": target,
        "best_trial": row["name"],
        "best_values": row["config"],
        "metrics": {name: value for name, value in metrics.items() if name == "score" or name.startswith("val_")},
        "trials": sorted(rows, key=lambda row: (row["value"] is None, row["value"])),
    }


def _trial_row(result: Any, base: FinetuneSettings) -> dict[str, Any]:
    """One trial as plain JSON, in the form of evaluation.report_data.Trial; value: the best score of all its rungs."""
    history = result.metrics_dataframe
    rungs: list[list[float]] = []
    if history is not None and "score" in history:
        rungs = [[float(epoch), float(score)] for epoch, score in zip(history["epoch"], history["score"], strict=True)]
    metrics = result.metrics or {}
    scores = [score for _, score in rungs]
    patience = base.patience
    exhausted = patience is not None and len(scores) - 1 - scores.index(min(scores)) >= patience if scores else False
    finished = bool(rungs) and (rungs[-1][0] >= base.epochs or exhausted)
    return {
        "name": str(metrics.get("trial_id", Path(result.path).name.removeprefix("trial_"))),
        "config": result.config,
        "value": min(scores, default=None),
        "state": "failed" if result.error else "completed" if finished else "stopped",
        "rungs": rungs,
        "seconds": metrics.get("time_total_s"),
    }
