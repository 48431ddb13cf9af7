"""One trial of a search, in its own process: a pretraining where there is one, fine-tuning with one or several seeds, its costs.

It tells Tune what it reaches: {"score", "epoch", "step", ...} at each validation of the first seed, {"of_seed": 1, ...} of the others,
{"pretraining": epochs}, and at its end {"ended": True, "seed_scores", "objectives"}.
"""

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DataError, LeftError, SettingsError, TrainingError
from pipeline.frames.labelled import select_labels
from pipeline.lease import HeldError, lease
from pipeline.models.checkpoints import SaveCheckpoint
from pipeline.models.cost import latency_ms, model_mb
from pipeline.models.kept import Kept, read_best, read_history
from pipeline.models.weights import load_pose_model
from pipeline.run_log import log, run_log
from pipeline.runs import read_result
from pipeline.search.records import folder_of, is_ended
from pipeline.search.space import trial_pretraining, trial_settings
from pipeline.search.tuning import NUMBER
from pipeline.storage import delete, join, write_json
from pipeline.training import pretrain
from pipeline.training.background import BackgroundCall
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.finetune_run import on_workers, run_finetune
from pipeline.training.pretrain_recipe import PretrainRecipe, check_recipe
from pipeline.training.worker import Worker, prepare_process

_LOOK_S = 2.0
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What all trials do."""

    folder: str
    """URI of the search."""
    base: str
    """Fine-tuning settings as JSON, with their number of epochs."""
    pretrain: str | None
    num_seeds: int
    objectives: tuple[str, ...]
    cpus: int
    """Logical CPUs of a process that trains, and its torch threads."""
    use_gpu: bool
    num_workers: int
    """Processes that train; several are workers of Ray Train."""
    labels: dict[str, str]
    """Of the nodes for them."""


class _Over(Exception):
    """The training has gone on for its epochs."""


class _Ended(Exception):
    """The search has ended the trial."""


def trial(given: dict[str, Any], plan: Plan, data: SharedFrames) -> None:
    """given: {NUMBER: ..., "values": what the search varies, "parent": trial to go on from, "until": epoch at which it is over}."""
    from ray import tune

    device = prepare_process(plan.cpus, plan.use_gpu)
    folder, warnings = folder_of(plan.folder, given[NUMBER]), list[str]()

    def tell(metrics: dict[str, Any]) -> None:
        tune.report({**metrics, **({"warnings": [*warnings]} if warnings else {})})
        warnings.clear()

    with (
        tempfile.TemporaryDirectory() as directory,
        run_log(plan.folder, f"trial-{given[NUMBER]:04d}"),
        suppress(_Ended),
    ):
        log("settings", settings=given["values"])
        base = FinetuneSettings.model_validate_json(plan.base)
        settings = trial_settings(base, given["values"])
        if plan.pretrain is not None:
            recipe = trial_pretraining(PretrainRecipe.model_validate_json(plan.pretrain), given["values"])
            settings = settings.model_copy(
                update={"init": pretrained(recipe, plan.folder, device, tell, warnings.append)}
            )
        prepared, frames = _prepared(settings, base, data)
        start = None
        if given["parent"] is not None:
            start = Kept(folder_of(plan.folder, given["parent"])).resume(Path(directory, "parent"), warnings.append)
        first = _Seed(given[NUMBER], 0, folder, prepared, base.epochs, given["until"])
        if plan.num_workers == 1:
            first.train(frames, device, Path(directory, "own"), tell, warnings, start)
        else:
            first.train_on_workers(plan, tell)
        others = [
            _Seed(given[NUMBER], number, join(folder, f"seed-{number}"), prepared, base.epochs, given["until"])
            for number in range(1, plan.num_seeds)
        ]
        for each in others:
            if plan.num_workers == 1:
                each.train(frames, device, Path(directory, str(each.number)), tell, warnings)
            else:
                each.train_on_workers(plan, tell)
        objectives = _costs(folder, device) if plan.objectives else {}
        tell(
            {
                "ended": True,
                "seed_scores": [first.best, *(each.best for each in others)] if others else [],
                "objectives": [[name, objectives[name]] for name in plan.objectives],  # Tune would flatten a mapping
            }
        )
        for each in others:  # their scores are known now
            delete(each.folder)


def _prepared(
    settings: FinetuneSettings, base: FinetuneSettings, data: SharedFrames
) -> tuple[FinetuneSettings, SharedFrames]:
    """Where a trial has other labels, they and as many epochs as make the same number of frames."""
    if settings.labels == base.labels:
        return settings, data
    selection = select_labels(data.frame_set, settings.split, settings.labels)
    if not selection.clips <= data.selection.clips:
        raise SettingsError(
            f"setting 'labels': a trial's {selection.num_frames} labels are not among the {data.selection.num_frames} of the "
            "search; give the search more (finetune.labels)"
        )
    ratio = data.selection.num_frames / selection.num_frames
    every, epochs = (max(1, round(number * ratio)) for number in (base.validate_every or 1, base.epochs))
    return settings.model_copy(update={"validate_every": every, "epochs": epochs}), data.of(selection)


class _Seed:
    """One training of a trial."""

    def __init__(
        self, trial: int, number: int, folder: str, settings: FinetuneSettings, epochs: int, until: int
    ) -> None:
        """trial: its number. settings: their `seed` is the first one's. epochs: of the search, by which trials are compared; until:
        those of them after which the training is over."""
        self.trial, self.number, self.folder, self.until = trial, number, folder, until
        self.settings = settings.model_copy(update={"seed": settings.seed + number})
        self._compared = epochs / settings.epochs
        self.best = float("inf")

    def train(
        self,
        frames: SharedFrames,
        device: torch.device,
        directory: Path,
        tell: Tell,
        warnings: list[str],
        start: Path | None = None,
    ) -> None:
        """Go on from the newest checkpoint of its own, else from `start`."""
        directory.mkdir()
        kept = Kept(self.folder)
        try:
            resume = kept.resume(directory, warnings.append)
        except DataError as error:  # one trial less would be worse than this one once more
            warnings.append(f"{error}; the trial starts anew")
            resume = None

        def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
            if save is not None:
                compared = {"epoch": round(metrics["epoch"] * self._compared, 3)}
                kept.keep(save, {**metrics, **compared, "wall_s": kept.wall_s, "reported_at": time.time()})
                self._passed(kept.history[-1], tell)

        try:
            for metrics in [*kept.history]:
                self._passed(metrics, tell)
            finetune(self.settings, frames, Worker(device=device, resume=resume or start, report=report))
        except _Over:
            pass

    def train_on_workers(self, plan: Plan, tell: Tell) -> None:
        """The same as a run of Ray Train, whose folder is the trial's. Where the search ends the trial, it says so in its record: if
        Tune ended this process, the workers' place in the cluster would stay taken."""
        settings = on_workers(self.settings, self.folder, plan.num_workers, plan.cpus, plan.use_gpu, plan.labels)
        num_told, leave = 0, threading.Event()
        run = BackgroundCall(lambda: run_finetune(settings, leave=leave))
        with suppress(_Over):
            while True:
                goes_on = run.wait(_LOOK_S)
                history = [metrics for metrics in read_history(self.folder) if "score" in metrics]
                for metrics in history[num_told:]:
                    num_told += 1
                    self._passed(metrics, tell)
                if not goes_on:
                    break
                if is_ended(plan.folder, self.trial):
                    leave.set()
        try:
            run.result()
        except LeftError:
            raise _Ended from None
        delete(join(self.folder, "tracking"))  # the search records its trials itself

    def _passed(self, metrics: dict[str, Any], tell: Tell) -> None:
        self.best = min(self.best, metrics["score"])
        tell(metrics if self.number == 0 else {**metrics, "of_seed": self.number})
        if metrics["epoch"] >= self.until:
            raise _Over


def pretraining_folder(recipe: PretrainRecipe, search: str) -> str:
    """URI of the folder of a search's pretraining; result.json in it names the encoder, once that is there."""
    values = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return join(search, "pretrainings", hashlib.sha256(values.encode()).hexdigest()[:16])


def pretrained(
    recipe: PretrainRecipe, search: str, device: torch.device, tell: Tell, say: Callable[[str], None]
) -> str:
    """URI of the encoder, pretrained now, or before by this trial or another one. search: URI of its folder."""
    folder = pretraining_folder(recipe, search)
    name = folder.rpartition("/")[2]
    while True:
        result = read_result(folder)
        if result is not None:
            return str(result["encoder"])
        try:
            with lease(folder, f"pretraining {name}", say):
                encoder = _pretrain(recipe, folder, device, tell, say)
                write_json(
                    join(folder, "result.json"), {"encoder": encoder, "settings": recipe.model_dump(mode="json")}
                )
        except HeldError:
            time.sleep(_LOOK_S)  # another trial is at it


def _pretrain(recipe: PretrainRecipe, folder: str, device: torch.device, tell: Tell, say: Callable[[str], None]) -> str:
    kept = Kept(folder)

    def report(metrics: dict[str, Any], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, metrics)
            tell({"pretraining": metrics["epoch"], "wall_s": kept.wall_s})

    with tempfile.TemporaryDirectory() as directory:
        resume = kept.resume(directory, say)
        worker = Worker(device=device, folder=folder, resume=resume, report=report, reader_cpus=0, say=say)
        pretrain.run_epochs(recipe, check_recipe(recipe, workers=1), worker)
    if kept.newest is None:
        raise TrainingError(f"{folder}: the pretraining left no checkpoint")
    return kept.newest


def _costs(folder: str, device: torch.device) -> dict[str, float]:
    loaded = load_pose_model(read_best(folder)[0])
    model = loaded.model.to(device)
    return {"latency_ms": latency_ms(model, loaded.view_size), "model_mb": model_mb(model)}
