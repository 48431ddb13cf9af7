"""A search campaign: trials of fine-tuning run by Ray Tune, Optuna's proposals and early stopping, the best model kept.

A trial is a single process inside Tune's own actor (trial.py), with the frames shared through Ray's object store: no nested Ray Train,
so that a trial starts in a second or two.

    <storage>/<run_id>/trials/0000/     a trial: what it tries, how it ended (records.py), its checkpoints (see models/kept.py)
    <storage>/<run_id>/pretrainings/    where trials pretrain: each pretraining once
    <storage>/<run_id>/best/            checkpoint of the best trial at its best epoch
    <storage>/<run_id>/result.json

A search whose driver was killed goes on from its trials' folders: those that are over stay as they are, those that ran go on from
their checkpoints.
"""

import time
from typing import Any

from pipeline.config import flatten
from pipeline.errors import SettingsError, TrainingError, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSelection
from pipeline.frames.mixing import uris_of
from pipeline.lease import lease
from pipeline.models.kept import read_best
from pipeline.models.origin import origin_of
from pipeline.models.shipped import model_uri
from pipeline.progress import SILENT, Progress
from pipeline.ray_cluster import check_is_in_cluster, choose_gpus, said_when_lost, wait_for_node
from pipeline.run_log import log, run_log
from pipeline.runs import new_run_id, open_run, saved_settings, started_with
from pipeline.search.monitor import SearchMonitor, search_monitor
from pipeline.search.population import Population
from pipeline.search.proposals import Proposals
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
from pipeline.search.settings import SearchSettings, check_population
from pipeline.search.space import check_space, first_guess
from pipeline.search.trial import Plan, trial
from pipeline.search.tuning import NOT_YET, NUMBER, run_trials
from pipeline.storage import absolute, copy_tree, delete, exists, join, preflight, write_json
from pipeline.tracked import Origin, tracked
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import check_settings, with_epochs, with_head
from pipeline.training.pretrain_recipe import check_recipe


def run_search(settings: SearchSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run or go on with a search (needs a running Ray); the result is also in <storage>/<run_id>/result.json.

    Raises TrainingError when no trial gave a model.
    """
    check_is_in_cluster()
    base = settings.finetune
    preflight(base.frame_set, *([model_uri(base.init)] if base.init else []))
    check_space(settings.space, base, settings.pretrain, settings.scheduler == "pbt")
    if settings.pretrain is not None:
        preflight(*uris_of(settings.pretrain.frame_set))
        check_recipe(settings.pretrain, workers=1)
    earlier = _earlier(settings)
    frame_set, selection = check_settings(base)
    run_id = settings.run.run_id or new_run_id("search")
    check_population(settings, started_with(settings.run))
    folder, finished = open_run(settings, settings.run, run_id)
    given = settings
    # What a budget cut short is gone on with by a larger one.
    num_finished = sum(row["state"] != RUNNING for row in finished["trials"]) if finished is not None else 0
    settings = settings.model_copy(update={"num_trials": settings.wanted(num_finished)})
    # Trials differ in batch size, but not in their number of epochs, by which the scheduler compares them.
    base = with_epochs(with_head(base), selection.num_frames, 1)
    settings = settings.model_copy(update={"finetune": base})
    if finished is not None and num_finished >= _num_trials(settings):
        return finished
    started = time.monotonic()
    _quiet_optuna()
    with (
        lease(folder, run_id),
        tracked(
            settings.tracking, folder, run_id, "search", given, frame_set.describe(), _origin(settings)
        ) as tracking,
        run_log(folder, "driver", warn),
        search_monitor(run_id, tracking.run, settings, progress, _epochs_of_trial(settings)) as monitor,
    ):
        tracking.opened()
        progress.start("search", _num_trials(settings) * _epochs_of_trial(settings), "epochs")
        log("settings", settings=flatten(settings), **frame_set.describe(), num_earlier_trials=len(earlier))
        records = _run_trials(settings, folder, frame_set, selection, monitor, earlier)
        result = {
            "run_id": run_id,
            "kind": "search",
            "mlflow_run_id": tracking.mlflow_run_id,
            **_outcome(records, folder, settings),
            "num_labels": selection.num_frames,
            **frame_set.describe(),
            "wall_s": round(time.monotonic() - started, 1),
            "trial_s": round(sum(record.seconds for record in records), 1),
            "add_trials": given.add_trials,
        }
        write_json(join(folder, "result.json"), result)
        best = {f"best_{name}": value for name, value in result["metrics"].items()}
        tracking.run.log_metrics(best, step=0)
    progress.finish()
    return result | tracking.untracked()


def _origin(settings: SearchSettings) -> Origin:
    """The runs from which its trials may start. Trials have no links of their own, which would be hundreds on one pretraining."""
    varied = settings.space.get("init")
    return origin_of(settings.finetune.init, *(() if varied is None else varied.examples()))


def _num_trials(settings: SearchSettings) -> int:
    """Of a population, its members in all generations."""
    if settings.scheduler != "pbt":
        return settings.num_trials
    return settings.num_trials * -(-settings.finetune.epochs // _perturb_epochs(settings))


def _epochs_of_trial(settings: SearchSettings) -> int:
    """With all its seeds, where it is not ended early."""
    if settings.scheduler == "pbt":
        return _perturb_epochs(settings)
    return settings.finetune.epochs * settings.seeds_per_trial


def _perturb_epochs(settings: SearchSettings) -> int:
    """A member is told of at its validations, so a generation is so many of those."""
    every = settings.finetune.validate_every or 1
    wanted = settings.perturb_epochs or max(1, settings.finetune.epochs // 8)
    return min(settings.finetune.epochs, every * -(-wanted // every))


def _earlier(settings: SearchSettings) -> list[TrialRecord]:
    """Trials of the searches to learn from. Raises SettingsError where one is no search."""
    found: list[TrialRecord] = []
    for uri in settings.warm_start:
        preflight(uri)
        records = read_records(uri)
        if not records:
            there = "has no trials" if exists(join(uri, "settings.yaml")) else "is no folder of a search"
            raise SettingsError(f"setting 'warm_start': {absolute(uri)} {there}")
        then, now = (saved_settings(uri) or {}).get("finetune", {}).get("best_by"), settings.finetune.best_by
        if then != now:
            raise SettingsError(
                f"setting 'warm_start': {absolute(uri)} judged its trials by {then or 'the default'}, this search by "
                f"{now or 'the default'} (finetune.best_by); their scores cannot be compared"
            )
        found += [record for record in records if record.state == COMPLETED]
    return found


def _quiet_optuna() -> None:
    """The progress bar and MLflow show the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Campaign:
    """What Tune asks and tells (tuning.Trials), written down as it comes."""

    def __init__(
        self,
        settings: SearchSettings,
        folder: str,
        records: list[TrialRecord],
        monitor: SearchMonitor,
        earlier: list[TrialRecord],
        gpus: float,
    ) -> None:
        self._folder, self._monitor, self._num_trials = folder, monitor, _num_trials(settings)
        self._deadline = time.monotonic() + (settings.time_budget_s or float("inf"))
        self._budget_s = 3600 * (settings.budget_hours or float("inf")) / (gpus * settings.trial_workers or 1)
        self.records = {record.number: record for record in records}
        self._waiting = [record for record in records if record.state == RUNNING]
        self._judged: set[int] = set()
        self._ends_themselves = settings.trial_workers > 1  # see trial.py
        self._proposals = _proposals(settings, records, earlier)

    @property
    def num_left(self) -> int:
        """Trials still to be run."""
        return len(self._waiting) + max(0, self._num_trials - len(self.records))

    def _is_spent(self) -> bool:
        spent = sum(record.seconds for record in self.records.values())
        return time.monotonic() > self._deadline or spent > self._budget_s

    def next(self) -> dict[str, Any] | None:
        """First those that an earlier driver left."""
        if self._is_spent():
            return None
        if self._waiting:
            record = self._waiting.pop(0)
        elif len(self.records) < self._num_trials:
            number = max(self.records, default=-1) + 1
            start = self._proposals.propose(number)
            if start is None:
                return NOT_YET
            record = TrialRecord(number, start.values, parent=start.parent)
            write_record(self._folder, record)
            self.records[number] = record
        else:
            return None
        until = self._proposals.until(record.number)
        return {NUMBER: record.number, "values": record.values, "parent": record.parent, "until": until}

    def reported(self, given: dict[str, Any], metrics: dict[str, Any]) -> bool:
        record = self.records[given[NUMBER]]
        self._monitor.said(metrics)
        if "ended" in metrics:
            record.seed_scores, record.objectives = metrics["seed_scores"], dict(metrics["objectives"])
            return False
        is_hopeless = self._is_spent()
        is_first_seed = "score" in metrics and "of_seed" not in metrics
        if is_first_seed:
            # A trial that started again tells anew what it has reached.
            before = [known for known in record.history if known["step"] < metrics["step"]]
            record.history = [*before, {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}]
            self._monitor.result(record, metrics)
            is_hopeless |= self._proposals.is_hopeless(record.number, metrics)
        elif "of_seed" in metrics:
            record.other_seconds[f"seed-{metrics['of_seed']}"] = float(metrics.get("wall_s", 0.0))
            self._monitor.other_seed(record, metrics)
        elif "pretraining" in metrics:
            record.other_seconds["pretraining"] = float(metrics.get("wall_s", 0.0))
        is_last = is_first_seed and metrics["epoch"] >= self._proposals.until(record.number)
        if is_hopeless and not is_last and record.number not in self._judged:
            self._judged.add(record.number)
            if self._ends_themselves:
                record.state = STOPPED
                write_record(self._folder, record)
        return record.number in self._judged and not self._ends_themselves

    def ended(self, given: dict[str, Any], error: str) -> None:
        record = self.records[given[NUMBER]]
        record.state = FAILED if error else STOPPED if record.number in self._judged else COMPLETED
        record.error = error
        if error:
            warn(f"trial {record.name} failed: {error}")
        write_record(self._folder, record)
        self._proposals.ended(record)
        self._monitor.ended(record)


def _proposals(
    settings: SearchSettings, records: list[TrialRecord], earlier: list[TrialRecord]
) -> Proposals | Population:
    epochs = settings.finetune.epochs
    first = first_guess(settings.space, settings.finetune, settings.pretrain)
    if settings.scheduler == "pbt":
        return Population(
            settings.space,
            records,
            size=settings.num_trials,
            epochs=epochs,
            perturb_epochs=_perturb_epochs(settings),
            seed=settings.seed,
            first=first,
        )
    return Proposals(
        settings.space,
        records,
        searcher=settings.searcher,
        scheduler=settings.scheduler,
        seed=settings.seed,
        first=first,
        epochs=epochs,
        grace_epochs=min(settings.grace_epochs or max(1, epochs // 4), epochs),
        reduction_factor=settings.reduction_factor,
        objectives=settings.objectives,
        earlier=earlier,
    )


def _run_trials(
    settings: SearchSettings,
    folder: str,
    frame_set: FrameSet,
    selection: LabelSelection,
    monitor: SearchMonitor,
    earlier: list[TrialRecord],
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
    gpus = settings.gpus_per_trial
    if gpus is None:
        gpus = float(choose_gpus(None, 1, "gpus_per_trial"))
    campaign = _Campaign(settings, folder, records, monitor, earlier, gpus)
    if not campaign.num_left:
        return records
    base = settings.finetune
    plan = Plan(
        folder=folder,
        base=base.model_dump_json(),
        pretrain=settings.pretrain.model_dump_json() if settings.pretrain is not None else None,
        num_seeds=settings.seeds_per_trial,
        objectives=settings.objectives,
        cpus=settings.cpus_per_trial,
        use_gpu=gpus > 0,
        num_workers=settings.trial_workers,
        labels=settings.trial_labels,
    )
    data = SharedFrames.load(base, frame_set, selection, settings.trial_workers)
    resources = {"CPU": float(settings.cpus_per_trial), "GPU": gpus}
    wait_for_node(resources, settings.trial_labels, settings.start_timeout_s)
    at_a_time = settings.num_trials if settings.scheduler == "pbt" else campaign.num_left
    concurrent = min(settings.max_concurrent or at_a_time, at_a_time)
    own = resources
    if settings.trial_workers > 1:  # which have a place of their own, beside the trial's
        own = {"CPU": 1.0}
        concurrent = min(concurrent, settings.max_concurrent or _room(resources, settings.trial_workers))
    with said_when_lost(resources, settings.trial_labels):
        run_trials(
            monitor.run_id,
            campaign,
            trial,
            {"plan": plan, "data": data},
            campaign.num_left,
            concurrent,
            own,
            {} if own is not resources else settings.trial_labels,
            reuse=settings.trial_workers == 1,
        )
    return list(campaign.records.values())


def _room(resources: dict[str, float], workers: int) -> int:
    """Trials of several workers for which the cluster has room now, at least one: too many would hold each other's place for ever."""
    import ray

    there = ray.cluster_resources()
    needed = {
        "CPU": 2 + workers * resources["CPU"],
        "GPU": workers * resources["GPU"],
    }  # one CPU for itself, one to read
    return max(1, min(int(there.get(name, 0) // need) for name, need in needed.items() if need))


def _outcome(records: list[TrialRecord], folder: str, settings: SearchSettings) -> dict[str, Any]:
    """The trials' table, and the best one's model, copied to `best/`."""
    done = [record for record in records if record.value is not None]
    if not done:
        reasons = {record.error for record in records if record.error}
        raise TrainingError(f"no trial gave a model: {'; '.join(sorted(reasons)) or 'none reported a metric'}")
    # One seed may have been lucky: a mean of several counts more.
    most_seeds = max(len(record.seed_scores) for record in done)
    best = min(
        (record for record in done if len(record.seed_scores) == most_seeds),
        key=lambda record: (record.value, record.number),
    )
    source, _, meta = read_best(folder_of(folder, best.number))
    target = join(folder, "best")
    delete(target)
    copy_tree(source, target)
    rows = [_row(record) for record in records]
    return {
        "best_checkpoint": target,
        "best_trial": best.name,
        "best_values": best.values,
        **({"best_seed_scores": best.seed_scores} if best.seed_scores else {}),
        "metrics": {n: value for n, value in meta["metrics"].items() if n == "score" or n.startswith("val_")},
        **({"pareto": [record.name for record in pareto_front(done)]} if settings.objectives else {}),
        "trials": sorted(rows, key=lambda row: (row["value"] is None, row["value"])),
    }


def pareto_front(records: list[TrialRecord]) -> list[TrialRecord]:
    """Those than which none is better in one of score and objectives and as good in the others, by score."""
    kept = [record for record in records if record.value is not None and record.objectives]
    points = [(record.value or 0.0, *record.objectives.values()) for record in kept]

    def is_beaten(point: tuple[float, ...]) -> bool:
        return any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)

    front = [record for record, point in zip(kept, points, strict=True) if not is_beaten(point)]
    return sorted(front, key=lambda record: (record.value or 0.0, record.number))


def _row(record: TrialRecord) -> dict[str, Any]:
    """One trial as plain JSON, in the form of reports.report_data.Trial; value: what it is judged by."""
    return {
        "name": record.name,
        "config": record.values,
        "value": record.value,
        "state": record.state,
        "rungs": [[metrics["epoch"], metrics["score"]] for metrics in record.history],
        "seconds": record.seconds if record.history else None,
        **({"seed_scores": record.seed_scores} if record.seed_scores else {}),
        **({"objectives": record.objectives} if record.objectives else {}),
        **({"parent": f"{record.parent:04d}"} if record.parent is not None else {}),
    }
