"""A search campaign: Ray Tune trials of fine-tuning, Optuna's proposals, ASHA's early stopping, the best model kept.

A trial is the single-process `finetune` inside Tune's own actor, with the frames shared through Ray's object store: no
nested Ray Train, so that a trial starts in a second or two.

    <storage>/<run_id>/tune/            Tune's state
    <storage>/<run_id>/trials/ID/       a trial's checkpoints (see models/kept.py), and its values
    <storage>/<run_id>/best/            checkpoint of the best trial at its best epoch
    <storage>/<run_id>/result.json

A trial that starts again tells Tune again what its checkpoints say it has reached. So Tune's state may be lost, or lag behind:
a search without it tries the same values first, and each trial that was there takes its place.
"""

import json
import os
import pickletools
import tempfile
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from pipeline.config import Settings, flatten
from pipeline.errors import DamagedError, DataError, MissingError, SettingsError, TrainingError, one_line, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSelection, load_labelled
from pipeline.models.checkpoints import SaveCheckpoint
from pipeline.models.kept import Kept, checkpoints_in, read_best, read_history
from pipeline.models.shipped import model_uri
from pipeline.progress import SILENT, Progress
from pipeline.run_log import log, run_log
from pipeline.runs import RunSettings, new_run_id, open_run
from pipeline.search.monitor import SearchMonitor, search_monitor
from pipeline.search.space import SearchSpace, first_guess, sampled, trial_settings
from pipeline.storage import (
    copy_tree,
    delete,
    exists,
    is_local,
    join,
    list_files,
    list_folders,
    preflight,
    read_bytes,
    read_json,
    write_json,
)
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings
from pipeline.training.background import BackgroundCall
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import in_memory, load_validation
from pipeline.training.finetune_recipe import FinetuneSettings, check_settings, with_epochs
from pipeline.training.worker import Worker

_VALUES = "values.json"
_TRIAL_RESTARTS = 1  # a lost worker is worth another try; a diverged trial then fails again, from its last checkpoint


class SearchSettings(Settings):
    """A search over fine-tuning settings."""

    finetune: FinetuneSettings
    """Settings of every trial, apart from what the space varies."""
    space: SearchSpace = SearchSpace()
    num_trials: int = Field(default=16, ge=1)
    """Number of trials in all."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Largest number of trials at a time. none: as many as the CPUs and GPUs of the cluster hold."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """Logical CPUs, and torch threads, of one trial."""
    gpus_per_trial: float | None = Field(default=None, ge=0)
    """GPUs of one trial; fractions are possible. none: 1 where the cluster has GPUs, else 0."""
    grace_epochs: int | None = Field(default=None, ge=1)
    """Epochs before a trial may be stopped. none: a quarter of all epochs."""
    reduction_factor: int = Field(default=3, ge=2)
    """At each of its rungs ASHA continues only the best trials: one in this many."""
    seed: int = Field(default=5, ge=0)
    """Seed of Optuna's sampler."""
    trust_state: bool = False
    """Whether to go on from Tune's own state where it lies in object storage. It is made of pickles, which can run any
    program when they are read; say true only if nobody else can write there."""
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def run_search(settings: SearchSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run or go on with a search (needs a running Ray); the result is also in <storage>/<run_id>/result.json.

    Raises TrainingError when no trial gave a model.
    """
    base = settings.finetune
    preflight(base.frame_set, *([model_uri(base.init)] if base.init else []))
    frame_set, selection = check_settings(base)
    if not in_memory(base, frame_set, selection):
        raise SettingsError(
            f"a search holds its frames in memory, but {selection.num_frames} frames exceed finetune.memory_limit_mb = "
            f"{base.memory_limit_mb}; raise it, or search on fewer labels (finetune.labels.num)"
        )
    run_id = settings.run.run_id or new_run_id("search")
    folder, finished = open_run(settings, settings.run, run_id)
    if finished is not None:
        return finished
    _check_trust(settings, folder)
    # Trials differ in batch size, but not in their number of epochs, by which the scheduler compares them.
    base = with_epochs(base, selection.num_frames, 1)
    given, settings = settings, settings.model_copy(update={"finetune": base})
    started = time.monotonic()
    _quiet_tune()
    with (
        run_log(folder, "driver", warn),
        tracked(settings.tracking, folder, run_id, "search", given, frame_set.describe()) as tracking,
        search_monitor(run_id, tracking.run, base, progress) as monitor,
    ):
        tracking.opened()
        progress.start("search", settings.num_trials * base.epochs, "epochs")
        log("settings", settings=flatten(settings), **frame_set.describe())
        grid = _run_trials(settings, folder, frame_set, selection, monitor)
        result = {
            "run_id": run_id,
            "kind": "search",
            "mlflow_run_id": tracking.mlflow_run_id,
            **_outcome(grid, base, folder),
            "num_labels": selection.num_frames,
            **frame_set.describe(),
            "wall_s": round(time.monotonic() - started, 1),
        }
        write_json(join(folder, "result.json"), result)
        best = {f"best_{name}": value for name, value in result["metrics"].items()}
        tracking.run.log_metrics(best, step=0)
    progress.finish()
    return result | tracking.untracked()


def trial(
    values: dict[str, Any],
    base: str,
    data: dict[str, Any],
    folder: str,
    earlier: dict[str, str],
    threads: int,
    use_gpu: bool,
) -> None:
    """One trial, in its own process. values: what the search varies; base: the fine-tuning settings as JSON; folder: URI of the
    search; earlier: {values as text: folder} of trials that Tune has forgotten."""
    import torch
    from ray import tune

    torch.set_num_threads(threads)
    settings = trial_settings(FinetuneSettings.model_validate_json(base), values)
    own = join(folder, "trials", tune.get_context().get_trial_id())
    if not checkpoints_in(own) and _text(values) in earlier:
        copy_tree(earlier[_text(values)], own)
    write_json(join(own, _VALUES), values)
    kept = Kept(own)
    warnings: list[str] = []

    def tell(metrics: dict[str, Any]) -> None:
        tune.report({**metrics, "wall_s": kept.wall_s, **({"warnings": [*warnings]} if warnings else {})})
        warnings.clear()

    def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, metrics)
            tell(metrics)

    with tempfile.TemporaryDirectory() as directory, run_log(folder, f"trial-{tune.get_context().get_trial_id()}"):
        log("settings", settings=values)
        try:
            resume = kept.resume(directory, warnings.append)
        except DataError as error:  # one trial less would be worse than this one once more
            warnings.append(f"{error}; the trial starts anew")
            resume = None
        for metrics in kept.history:
            tell(metrics)
        device = torch.device("cuda" if use_gpu else "cpu")
        finetune(settings, **data, worker=Worker(device=device, resume=resume, report=report))


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


def _run_trials(
    settings: SearchSettings, folder: str, frame_set: FrameSet, selection: LabelSelection, monitor: SearchMonitor
) -> Any:
    """Run the trials, or what is left of them; Tune's results."""
    state = join(folder, "tune")
    earlier = _earlier_trials(folder)
    trainable, concurrent = _trainable(settings, folder, frame_set, selection, earlier)
    problem = _damage(state)
    if problem is None and exists(state):
        from ray import tune

        try:
            return BackgroundCall(tune.Tuner.restore(state, trainable, resume_errored=True).fit).result()
        except Exception as error:  # what is in pickles may fail in any way
            problem = f"{state}: Tune cannot go on from its state ({type(error).__name__}: {one_line(error, 200)})"
    if problem is not None:
        warn(f"{problem}; the search goes on from the checkpoints of its trials")
        delete(state)
    return BackgroundCall(_new_tuner(settings, folder, monitor, trainable, concurrent, earlier).fit).result()


def _check_trust(settings: SearchSettings, folder: str) -> None:
    """Raises SettingsError where the search would read pickles from a place that others may write to."""
    state = join(folder, "tune")
    if not settings.trust_state and not is_local(state) and exists(state):
        raise SettingsError(
            f"{state}: Tune's own state is made of pickles, which can run any program when they are read; set trust_state true "
            "if nobody else can write there, or delete this folder: the search then goes on from its trials' checkpoints"
        )


def _damage(state: str) -> str | None:
    """Which file of Tune's state is cut off, if one is; they are JSON or pickles, whatever they are called."""
    for uri in list_files(state):
        if uri.removeprefix(f"{state}/").count("/") or not uri.endswith((".json", ".pkl")):
            continue
        data = read_bytes(uri)
        try:
            if data.startswith(b"{"):
                json.loads(data)
            else:
                for _ in pickletools.genops(data):  # reads it to its end without running it
                    pass
        except Exception as error:  # genops raises what it likes
            return f"{uri}: damaged ({'it is empty' if not data else one_line(error, 120)})"
    missing = exists(state) and not exists(join(state, "tuner.pkl"))
    return f"{state}/tuner.pkl: missing" if missing else None


def _earlier_trials(folder: str) -> dict[str, str]:
    """{values as text: folder} of the trials that have a checkpoint; of several with the same values, the one that got furthest."""
    found = []
    for uri in list_folders(join(folder, "trials")):
        checkpoints = checkpoints_in(uri)
        try:
            if checkpoints:
                found.append((checkpoints[-1].rsplit("/", 1)[-1], _text(read_json(join(uri, _VALUES))), uri))
        except (MissingError, DamagedError) as error:
            warn(f"{error}; this trial is left out where Tune has forgotten it")
    return {text: uri for _, text, uri in sorted(found)}


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _trainable(
    settings: SearchSettings, folder: str, frame_set: FrameSet, selection: LabelSelection, earlier: dict[str, str]
) -> tuple[Any, int]:
    """What Tune calls for each trial; and how many trials run at a time."""
    import ray
    from ray import tune

    base = settings.finetune
    concurrent, gpus = concurrent_trials(settings, ray.cluster_resources())
    data = {
        "train": load_labelled(frame_set, base.split, clips=selection.clips),
        "validation": load_validation(base, frame_set),
        "mean_bone_length": selection.mean_bone_length,
        "constant": selection.constant,
        "constant_2d": selection.constant_2d,
        "frame_set_digest": frame_set.manifest.digest,
    }

    parameters = tune.with_parameters(
        trial,
        base=base.model_dump_json(),
        data=data,
        folder=folder,
        earlier=earlier,
        threads=settings.cpus_per_trial,
        use_gpu=gpus > 0,
    )
    return tune.with_resources(parameters, {"cpu": settings.cpus_per_trial, "gpu": gpus}), concurrent


def _new_tuner(
    settings: SearchSettings,
    folder: str,
    monitor: SearchMonitor,
    trainable: Any,
    concurrent: int,
    earlier: dict[str, str],
) -> Any:
    """Tries the values of earlier trials first."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    base = settings.finetune
    guess = first_guess(settings.space, base)
    points = [json.loads(text) for text in earlier]
    if guess is not None and _text(guess) not in earlier:
        points.insert(0, guess)
    return tune.Tuner(
        trainable,
        param_space=sampled(settings.space),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min",
            num_samples=settings.num_trials,
            max_concurrent_trials=concurrent,
            # A sampler of the same seed would propose once more what the earlier trials got from it.
            search_alg=OptunaSearch(seed=settings.seed + len(earlier), points_to_evaluate=points or None),
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
            callbacks=[monitor.callback()],
            verbose=0,
        ),
    )


def _outcome(grid: Any, base: FinetuneSettings, folder: str) -> dict[str, Any]:
    """The trials' table, and the best one's model, copied to `best/`."""
    rows = [_trial_row(result, base, folder) for result in grid]
    done = [row for row in rows if row["value"] is not None]
    if not done:
        reasons = {str(result.error).strip().splitlines()[-1] for result in grid if result.error}
        raise TrainingError(f"no trial gave a model: {'; '.join(sorted(reasons)) or 'none reported a metric'}")
    best = min(done, key=lambda row: row["value"])
    source, _, meta = read_best(join(folder, "trials", best["name"]))
    target = join(folder, "best")
    delete(target)
    copy_tree(source, target)
    return {
        "best_checkpoint": target,
        "best_trial": best["name"],
        "best_values": best["config"],
        "metrics": {n: value for n, value in meta["metrics"].items() if n == "score" or n.startswith("val_")},
        "trials": sorted(rows, key=lambda row: (row["value"] is None, row["value"])),
    }


def _trial_row(result: Any, base: FinetuneSettings, folder: str) -> dict[str, Any]:
    """One trial as plain JSON, in the form of evaluation.report_data.Trial; value: the best score of all its rungs."""
    name = Path(result.path).name.removeprefix("trial_")
    history = read_history(join(folder, "trials", name))
    # A trial that started again may have told Tune twice what it had reached; its checkpoints know it once.
    rungs = [[float(metrics["epoch"]), float(metrics["score"])] for metrics in history]
    metrics = result.metrics or {}
    scores = [score for _, score in rungs]
    patience = base.patience
    exhausted = patience is not None and len(scores) - 1 - scores.index(min(scores)) >= patience if scores else False
    finished = bool(rungs) and (rungs[-1][0] >= base.epochs or exhausted)
    return {
        "name": name,
        "config": result.config,
        "value": min(scores, default=None),
        "state": "failed" if result.error else "completed" if finished else "stopped",
        "rungs": rungs,
        "seconds": metrics.get("wall_s"),
    }
