"""A search campaign: trials of fine-tuning run by Ray Tune, Optuna's proposals and early stopping, the best model kept.

A trial is the single-process `finetune` inside Tune's own actor, with the frames shared through Ray's object store: no
nested Ray Train, so that a trial starts in a second or two.

    <storage>/<run_id>/trials/0000/     a trial: what it tries, how it ended (records.py), its checkpoints (see models/kept.py)
    <storage>/<run_id>/best/            checkpoint of the best trial at its best epoch
    <storage>/<run_id>/result.json

A search whose driver was killed goes on from its trials' folders: those that are over stay as they are, those that ran go on from
their checkpoints.
"""

import tempfile
import time
from typing import Any

from pydantic import Field

from pipeline.config import Settings, flatten
from pipeline.errors import DataError, SettingsError, TrainingError, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSelection, load_labelled
from pipeline.lease import lease
from pipeline.models.checkpoints import SaveCheckpoint
from pipeline.models.kept import Kept, read_best
from pipeline.models.shipped import model_uri
from pipeline.progress import SILENT, Progress
from pipeline.ray_cluster import START_TIMEOUT_S, choose_gpus, said_when_lost, wait_for_node
from pipeline.run_log import log, run_log
from pipeline.runs import RunSettings, new_run_id, open_run
from pipeline.search.monitor import SearchMonitor, search_monitor
from pipeline.search.proposals import Proposals, Scheduler, Searcher
from pipeline.search.records import (
    COMPLETED,
    FAILED,
    RUNNING,
    STOPPED,
    TrialRecord,
    folder_of,
    read_records,
    write_record,
)
from pipeline.search.space import DEFAULT_SPACE, Space, check_space, first_guess, grid, trial_settings
from pipeline.search.tuning import NUMBER, run_trials
from pipeline.storage import copy_tree, delete, join, preflight, write_json
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import in_memory, load_validation
from pipeline.training.finetune_recipe import FinetuneSettings, check_settings, with_epochs
from pipeline.training.worker import Worker


class SearchSettings(Settings):
    """A search over fine-tuning settings."""

    finetune: FinetuneSettings
    """Settings of every trial, apart from what the space varies."""
    space: Space = DEFAULT_SPACE
    """What varies: {name of a fine-tuning setting: {uniform: [smallest, largest]}}, or log_uniform, integer, log_integer, choice,
    fixed, each with `when: {other setting: value}` where it means something only then. `augmentation` is the strength of the
    random views."""
    searcher: Searcher = "tpe"
    """What proposes values: tpe learns from the trials before, random does not, grid tries all combinations of choices."""
    scheduler: Scheduler = "asha"
    """What ends trials early: asha and hyperband those that are not among the best at one of their rungs (hyperband with tpe is what
    BOHB is), median those that are worse than half of the others were by then, none none."""
    num_trials: int = Field(default=16, ge=1)
    """Number of trials in all. A search of which more are asked for goes on."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Largest number of trials at a time. none: as many as the CPUs and GPUs of the cluster hold, also those that come later."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """Logical CPUs, and torch threads, of one trial."""
    gpus_per_trial: float | None = Field(default=None, ge=0)
    """GPUs of one trial; fractions are possible. none: 1 where the cluster has GPUs, else 0, and refused where an autoscaler starts
    nodes."""
    trial_labels: dict[str, str] = {}
    """Labels of the cluster's nodes that run trials, such as {ray-subcluster: training}; {} takes any."""
    start_timeout_s: float = Field(default=START_TIMEOUT_S, gt=0)
    """Seconds for which the search waits for a node that holds a trial."""
    grace_epochs: int | None = Field(default=None, ge=1)
    """Epochs before a trial may be stopped. none: a quarter of all epochs."""
    reduction_factor: int = Field(default=3, ge=2)
    """At each of its rungs ASHA continues only the best trials: one in this many."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """Seconds after which no further trial begins, and those that are under way end at their next validation. Counted from each start
    of the search. none: without an end."""
    seed: int = Field(default=5, ge=0)
    """Seed of what proposes values."""
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def run_search(settings: SearchSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run or go on with a search (needs a running Ray); the result is also in <storage>/<run_id>/result.json.

    Raises TrainingError when no trial gave a model.
    """
    base = settings.finetune
    preflight(base.frame_set, *([model_uri(base.init)] if base.init else []))
    check_space(settings.space, base)
    frame_set, selection = check_settings(base)
    if not in_memory(base, frame_set, selection):
        raise SettingsError(
            f"a search holds its frames in memory, but {selection.num_frames} frames exceed finetune.memory_limit_mb = "
            f"{base.memory_limit_mb}; raise it, or search on fewer labels (finetune.labels.num)"
        )
    run_id = settings.run.run_id or new_run_id("search")
    folder, finished = open_run(settings, settings.run, run_id)
    given = settings
    if settings.searcher == "grid":
        num_trials = min(settings.num_trials, len(grid(settings.space)))
        settings = settings.model_copy(update={"num_trials": num_trials})
    if finished is not None and len(finished["trials"]) >= settings.num_trials:
        return finished
    # Trials differ in batch size, but not in their number of epochs, by which the scheduler compares them.
    base = with_epochs(base, selection.num_frames, 1)
    settings = settings.model_copy(update={"finetune": base})
    started = time.monotonic()
    _quiet_optuna()
    with (
        lease(folder, run_id),
        run_log(folder, "driver", warn),
        tracked(settings.tracking, folder, run_id, "search", given, frame_set.describe()) as tracking,
        search_monitor(run_id, tracking.run, base, progress) as monitor,
    ):
        tracking.opened()
        progress.start("search", settings.num_trials * base.epochs, "epochs")
        log("settings", settings=flatten(settings), **frame_set.describe())
        records = _run_trials(settings, folder, frame_set, selection, monitor)
        result = {
            "run_id": run_id,
            "kind": "search",
            "mlflow_run_id": tracking.mlflow_run_id,
            **_outcome(records, folder),
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
    given: dict[str, Any],
    base: str,
    data: dict[str, Any],
    folder: str,
    threads: int,
    use_gpu: bool,
) -> None:
    """One trial, in its own process. given: its number, and what the search varies; base: the fine-tuning settings as JSON; folder:
    URI of the search."""
    import torch
    from ray import tune

    torch.set_num_threads(threads)
    number, values = given[NUMBER], {name: value for name, value in given.items() if name != NUMBER}
    settings = trial_settings(FinetuneSettings.model_validate_json(base), values)
    kept = Kept(folder_of(folder, number))
    warnings: list[str] = []

    def tell(metrics: dict[str, Any]) -> None:
        tune.report({**metrics, **({"warnings": [*warnings]} if warnings else {})})
        warnings.clear()

    def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, {**metrics, "wall_s": kept.wall_s, "reported_at": time.time()})
            tell(kept.history[-1])

    with tempfile.TemporaryDirectory() as directory, run_log(folder, f"trial-{number:04d}"):
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


def _quiet_optuna() -> None:
    """The progress bar and MLflow show the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Campaign:
    """What Tune asks and tells (tuning.Trials), written down as it comes."""

    def __init__(
        self, settings: SearchSettings, folder: str, records: list[TrialRecord], monitor: SearchMonitor
    ) -> None:
        self._folder, self._monitor, self._num_trials = folder, monitor, settings.num_trials
        self._deadline = time.monotonic() + (settings.time_budget_s or float("inf"))
        self.records = {record.number: record for record in records}
        self._waiting = [record for record in records if record.state == RUNNING]
        self._judged: set[int] = set()
        base = settings.finetune
        self._epochs = base.epochs
        self._proposals = Proposals(
            settings.space,
            records,
            searcher=settings.searcher,
            scheduler=settings.scheduler,
            seed=settings.seed,
            first=first_guess(settings.space, base),
            epochs=base.epochs,
            grace_epochs=min(settings.grace_epochs or max(1, base.epochs // 4), base.epochs),
            reduction_factor=settings.reduction_factor,
        )

    @property
    def num_left(self) -> int:
        """Trials still to be run."""
        return len(self._waiting) + max(0, self._num_trials - len(self.records))

    def next(self) -> dict[str, Any] | None:
        """First those that an earlier driver left."""
        if time.monotonic() > self._deadline:
            return None
        if self._waiting:
            record = self._waiting.pop(0)
        elif len(self.records) < self._num_trials:
            number = max(self.records, default=-1) + 1
            record = TrialRecord(number, self._proposals.propose(number))
            write_record(self._folder, record)
            self.records[number] = record
        else:
            return None
        return {NUMBER: record.number, **record.values}

    def reported(self, given: dict[str, Any], metrics: dict[str, Any]) -> bool:
        record = self.records[given[NUMBER]]
        # A trial that started again tells anew what it has reached.
        before = [known for known in record.history if known["step"] < metrics["step"]]
        record.history = [*before, {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}]
        self._monitor.result(record, metrics)
        is_hopeless = self._proposals.is_hopeless(record.number, metrics) or time.monotonic() > self._deadline
        if is_hopeless and metrics["epoch"] < self._epochs:
            self._judged.add(record.number)
        return record.number in self._judged

    def ended(self, given: dict[str, Any], error: str) -> None:
        record = self.records[given[NUMBER]]
        record.state = FAILED if error else STOPPED if record.number in self._judged else COMPLETED
        record.error = error
        if error:
            warn(f"trial {record.name} failed: {error}")
        write_record(self._folder, record)
        self._proposals.ended(record)
        self._monitor.ended(record)


def _run_trials(
    settings: SearchSettings, folder: str, frame_set: FrameSet, selection: LabelSelection, monitor: SearchMonitor
) -> list[TrialRecord]:
    """Run the trials, or what is left of them."""
    records = read_records(folder)
    for record in records:
        if record.state == FAILED:  # what made it fail may have been mended
            record.state = RUNNING
        elif record.state != RUNNING:
            monitor.known(record)
    if records:
        going_on = sum(record.state == RUNNING for record in records)
        log("resumed", ended=len(records) - going_on, going_on=going_on)
    campaign = _Campaign(settings, folder, records, monitor)
    if not campaign.num_left:
        return records
    gpus = settings.gpus_per_trial
    if gpus is None:
        gpus = float(choose_gpus(None, 1, "gpus_per_trial"))
    base = settings.finetune
    data = {
        "train": load_labelled(frame_set, base.split, clips=selection.clips),
        "validation": load_validation(base, frame_set),
        "mean_bone_length": selection.mean_bone_length,
        "constant": selection.constant,
        "constant_2d": selection.constant_2d,
        "frame_set_digest": frame_set.manifest.digest,
    }
    given = {
        "base": base.model_dump_json(),
        "data": data,
        "folder": folder,
        "threads": settings.cpus_per_trial,
        "use_gpu": gpus > 0,
    }
    resources = {"CPU": float(settings.cpus_per_trial), "GPU": gpus}
    wait_for_node(resources, settings.trial_labels, settings.start_timeout_s)
    with said_when_lost(resources, settings.trial_labels):
        concurrent = min(settings.max_concurrent or campaign.num_left, campaign.num_left)
        run_trials(
            monitor.run_id, campaign, trial, given, campaign.num_left, concurrent, resources, settings.trial_labels
        )
    return list(campaign.records.values())


def _outcome(records: list[TrialRecord], folder: str) -> dict[str, Any]:
    """The trials' table, and the best one's model, copied to `best/`."""
    done = [record for record in records if record.best is not None]
    if not done:
        reasons = {record.error for record in records if record.error}
        raise TrainingError(f"no trial gave a model: {'; '.join(sorted(reasons)) or 'none reported a metric'}")
    best = min(done, key=lambda record: (record.best, record.number))
    source, _, meta = read_best(folder_of(folder, best.number))
    target = join(folder, "best")
    delete(target)
    copy_tree(source, target)
    rows = [_row(record) for record in records]
    return {
        "best_checkpoint": target,
        "best_trial": best.name,
        "best_values": best.values,
        "metrics": {n: value for n, value in meta["metrics"].items() if n == "score" or n.startswith("val_")},
        "trials": sorted(rows, key=lambda row: (row["value"] is None, row["value"])),
    }


def _row(record: TrialRecord) -> dict[str, Any]:
    """One trial as plain JSON, in the form of reports.report_data.Trial; value: the best score of all its rungs."""
    return {
        "name": record.name,
        "config": record.values,
        "value": record.best,
        "state": record.state,
        "rungs": [[metrics["epoch"], metrics["score"]] for metrics in record.history],
        "seconds": record.history[-1].get("wall_s") if record.history else None,
    }
