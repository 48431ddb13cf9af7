"""The winner of a search: its settings and the default ones, each trained anew with several seeds, tested on frames that the search
never saw, compared, and the model handed to MLflow's registry.

    <search>/winner/winner/seed-105/    a training with the best trial's settings (see retraining.py)
    <search>/winner/default/seed-105/   one with the search's own
    <search>/winner/result.json         what came of it; the folder is a model like a run's

Like a search it goes on after any death. What is trained stays, unless another trial is the best by then.
"""

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Container, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import Field, model_validator

from pipeline.campaign.held_out import HeldOut, HeldOutSplit, ModelErrors
from pipeline.campaign.outcome import outcome_of
from pipeline.campaign.registration import CHECKPOINT, register
from pipeline.campaign.retraining import DEFAULT, WINNER, Means, Recipe, Retrained, Retraining, measured
from pipeline.campaign.trainings import train_all
from pipeline.config import Settings, flatten, flatten_values
from pipeline.errors import EquihandError, SettingsError, warn
from pipeline.evaluation.metrics import Protocol
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSelection
from pipeline.lease import lease
from pipeline.progress import SILENT, Progress
from pipeline.provenance import git
from pipeline.ray_cluster import choose_gpus
from pipeline.ray_tasks import TaskNeeds, run_tasks
from pipeline.registry import NAME, Version, download
from pipeline.run_log import log, run_log
from pipeline.runs import read_result
from pipeline.search.settings import SearchSettings
from pipeline.search.space import trial_pretraining, trial_settings
from pipeline.storage import copy_from_local, delete, join, preflight, read_json, write_json
from pipeline.tracked import Run, tracked
from pipeline.tracking import stored_run
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import check_settings, with_epochs, with_head

_SEEDS = 3
_FIRST_SEED = 100
"""From the fine-tuning's own seed on: far from those with which a search tries a trial again."""


class WinnerSettings(Settings):
    """What becomes of the best settings of a search."""

    seeds: int | None = Field(default=None, ge=0, le=50)
    """Seeds with which the best trial's settings and the default ones are trained anew. 0: nothing is trained anew. none: 3, and a
    warning where the frame set has no split to test on."""
    split: str = "test"
    """Split of the frame set on which they are tested, which the search never reads."""
    protocol: Protocol = "freihand"
    """By which errors are measured: that of the official FreiHAND scorer, or of PeCLR's code."""
    epochs: int | None = Field(default=None, ge=1)
    """Epochs of each training. none: as many as a trial of the search has that is not ended early."""
    frames: int | None = Field(default=None, ge=1)
    """Frames to train on in all, counting repeats, in place of epochs."""
    register_as: str | None = Field(default=None, pattern=NAME)
    """Name of a registered model of MLflow. The winner becomes a version of it: the champion, if it is surely better than the one before on
    the same frames. none registers nothing."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "WinnerSettings":
        if self.epochs is not None and self.frames is not None:
            raise ValueError("setting 'frames': 'epochs' says the same; give one of them")
        if self.register_as is not None and not self.num_seeds:
            raise ValueError(
                "setting 'register_as': only what is trained anew and tested is registered; give 'seeds' of 1 or more"
            )
        return self

    @property
    def num_seeds(self) -> int:
        """As many as there are where there is a split to test on."""
        return _SEEDS if self.seeds is None else self.seeds


def where_it_can_be_tested(settings: WinnerSettings, frame_set: FrameSet) -> WinnerSettings:
    """The settings, without seeds where none are asked for and there is no split to test on, which is said."""
    if settings.seeds is not None or settings.register_as is not None or frame_set.manifest.rows_in(settings.split):
        return settings
    warn(
        f"{frame_set.uri}: no split '{settings.split}' to test on ({frame_set.manifest.counts_text()}), so the search ends without training "
        "its best settings anew (winner.split names another one)"
    )
    return settings.model_copy(update={"seeds": 0})


def check_winner(settings: WinnerSettings, search: SearchSettings) -> HeldOutSplit | None:
    """Find out before the search whether its winner can be tested and registered; on what. Raises SettingsError, in one line."""
    if not settings.num_seeds:
        return None
    finetune = search.finetune
    for name in ("split", "validation_split"):
        if settings.split == getattr(finetune, name):
            raise SettingsError(
                f"setting 'winner.split' = '{settings.split}': it is the search's finetune.{name}; give one that the search does not read, "
                "or --winner.seeds 0"
            )
    if settings.register_as is not None and search.tracking.uri is None:
        raise SettingsError(
            "setting 'winner.register_as': tracking.uri is none, and models are registered in MLflow; give one of the two"
        )
    preflight(finetune.frame_set)
    return HeldOutSplit.of(FrameSet.open(finetune.frame_set), settings.split, settings.protocol)


def crown(
    settings: WinnerSettings,
    search: SearchSettings,
    folder: str,
    result: Mapping[str, Any],
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train, test, compare and register the winner of a finished search, or what is left of that (needs a running Ray).

    search: the settings, and result: what came of it ("run_id", "best_trial", "best_values"). folder: its URI. The result is plain JSON,
    also in <search>/winner/result.json: {"run_id", "kind", "mlflow_run_id", "best_trial", "best_values", "test": HeldOutSplit,
    "arms": {"winner", "default": {"settings", "seeds": [{"seed", "uri", "score", "wall_s", "metrics"}], "mean", "deviation"}},
    "verdict": Judgement, "beats_default", "beats_constant", "conclusions": sentences, "chosen": {"seed", "uri", "why"},
    "best_checkpoint", "registration": see registration.register, or None, "wall_s"}. There is no arm "default" where the best trial has
    the default settings. Raises TrainingError where a training failed.
    """
    about = check_winner(settings, search)
    assert about is not None, "without seeds there is no winner to crown"
    campaign = _Campaign(settings, search, folder, result, about)
    known = campaign.known()
    if known is not None and campaign.is_registered(known):
        return known
    with lease(folder, result["run_id"]), run_log(campaign.folder, "driver", warn):
        untracked: dict[str, Any] = {}
        if known is None:
            known, untracked = campaign.train(progress)
        if not campaign.is_registered(known):
            known = known | {"registration": campaign.register(known, progress)}
            write_json(join(campaign.folder, "result.json"), known)
        log("crowned", conclusions=known["conclusions"], registration=known["registration"])
    return known | untracked


def recipes(
    settings: WinnerSettings, search: SearchSettings, values: Mapping[str, Any], num_labels: int
) -> dict[str, Recipe]:
    """The best trial's settings, which have these values, and the search's own; both on all labels of the search, with a number of
    epochs, and the same seed. No DEFAULT where the two are the same."""
    finetune, budget = search.finetune, dict[str, Any]()
    if settings.frames is not None or settings.epochs is not None:
        budget = {"frames": settings.frames, "epochs": settings.epochs or finetune.epochs}
    default = with_epochs(finetune.model_copy(update=budget), num_labels, 1)
    same = {"labels": default.labels, "frames": None, "epochs": default.epochs, "seed": default.seed}
    winner = with_epochs(trial_settings(default, values).model_copy(update=same), num_labels, 1)
    pretrain = search.pretrain
    found = {
        WINNER: Recipe(winner, None if pretrain is None else trial_pretraining(pretrain, values)),
        DEFAULT: Recipe(default, pretrain),
    }
    if found[WINNER] == found[DEFAULT]:
        del found[DEFAULT]
    return found


def _is_like(identity: Any, other: dict[str, Any]) -> bool:
    """Whether they are of the same trainings and tests. A setting that only one of them has came with a version of the code."""
    if not isinstance(identity, dict):
        return False
    if any(identity.get(name, {}).keys() != other[name].keys() for name in ("arms", "pretrainings")):
        return False
    one, two = flatten_values(identity), flatten_values(other)
    return all(one[name] == two[name] for name in one.keys() & two.keys())


def choose_seeds(num: int, own: int, taken: Container[int]) -> list[int]:
    """Seeds of the trainings. own: that of the search's trials; taken: others that the best trial may have tried out."""
    return [*itertools.islice((seed for seed in itertools.count(own + _FIRST_SEED) if seed not in taken), num)]


class _Campaign:
    """A search whose winner is crowned."""

    def __init__(
        self,
        settings: WinnerSettings,
        search: SearchSettings,
        folder: str,
        result: Mapping[str, Any],
        about: HeldOutSplit,
    ) -> None:
        search = search.model_copy(update={"finetune": with_head(search.finetune)})
        self.settings, self.search, self.about, self.result = settings, search, about, result
        self.search_folder, self.folder = folder, join(folder, "winner")
        self.run_id = f"{result['run_id']}-winner"
        self.frame_set: FrameSet
        self.selection: LabelSelection
        self.frame_set, self.selection = check_settings(search.finetune)
        values = result["best_values"]
        self.recipes = recipes(settings, search, values, self.selection.num_frames)
        self.seeds = choose_seeds(settings.num_seeds, search.finetune.seed, {values.get("seed")})
        self.identity = {
            "arms": {arm: recipe.finetune.model_dump(mode="json") for arm, recipe in self.recipes.items()},
            "pretrainings": {
                arm: recipe.pretrain.model_dump(mode="json") for arm, recipe in self.recipes.items() if recipe.pretrain
            },
            "seeds": self.seeds,
            "workers": search.trial_workers,
            "test": asdict(about),
            **self.frame_set.describe(),
        }

    def known(self) -> dict[str, Any] | None:
        """What came of it, where nothing is left to be trained and tested."""
        known = read_result(self.folder)
        return known if known is not None and _is_like(known.get("identity"), self.identity) else None

    def is_registered(self, known: Mapping[str, Any]) -> bool:
        """Whether the model is where it shall be."""
        name, registration = self.settings.register_as, known["registration"]
        return name is None or (
            registration is not None and registration.get("name") == name and "version" in registration
        )

    def train(self, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train and compare what is left; the result, and what MLflow does not have of it."""
        started = time.monotonic()
        tags = {**self.frame_set.describe(), "equihand.search": str(self.result["run_id"])}
        parent = ("search", str(self.result["run_id"]))
        with tracked(
            self.search.tracking, self.folder, self.run_id, "winner", self.settings, tags, parent=parent
        ) as tracking:
            tracking.opened()
            log("settings", settings=flatten(self.settings), **self.frame_set.describe())
            arms = self._trained(tracking.run, progress)
            outcome = {
                "run_id": self.run_id,
                "kind": "winner",
                "mlflow_run_id": tracking.mlflow_run_id,
                "best_trial": self.result["best_trial"],
                "best_values": self.result["best_values"],
                "test": asdict(self.about),
                **outcome_of(arms, self.search.finetune.best_by),
                "registration": None,
                "wall_s": round(time.monotonic() - started, 1),
                "identity": self.identity,
            }
            write_json(join(self.folder, "result.json"), outcome)
            tracking.run.log_file("result.json")
            means = {
                f"{arm}_test_{name}": each for arm, of in outcome["arms"].items() for name, each in of["mean"].items()
            }
            tracking.run.log_metrics(means, step=0)
        return outcome, tracking.untracked()

    def _needs(self) -> TaskNeeds:
        """Of a training in one process: what a trial has."""
        search, gpus = self.search, self.search.gpus_per_trial
        if gpus is None:
            gpus = float(choose_gpus(None, 1, "gpus_per_trial"))
        labels = tuple(search.trial_labels.items())
        return TaskNeeds(search.cpus_per_trial, gpus, labels, search.max_concurrent, search.start_timeout_s)

    def _means(self, needs: TaskNeeds) -> Means:
        return Means(needs.cpus, needs.gpus > 0, self.search.trial_workers, needs.labels)

    def _trained(self, parent: Run, progress: Progress) -> dict[str, list[Retrained]]:
        """The trainings of each arm, by seed."""
        needs, base = self._needs(), self.search.finetune
        means = self._means(needs)
        jobs = [
            Retraining(arm, recipe.seeded(seed), self.search_folder, self.about, self.frame_set.describe(), means)
            for seed in self.seeds  # so that both arms have something to show early
            for arm, recipe in self.recipes.items()
        ]

        def load() -> SharedFrames:
            return SharedFrames.load(base, self.frame_set, self.selection, means.num_workers)

        done = train_all(jobs, self.selection.num_frames, load, self._held_out, needs, parent, progress)
        return {arm: [each for each in done if each.job.arm == arm] for arm in self.recipes}

    def _held_out(self) -> HeldOut:
        return HeldOut.load(self.frame_set, self.about, self.selection.constant_2d)

    def register(self, known: Mapping[str, Any], progress: Progress) -> dict[str, Any] | None:
        """Give the chosen model to MLflow's registry. Where it does not answer, a warning says so, and all else is there."""
        name, chosen = self.settings.register_as, known["chosen"]
        if name is None:
            return None
        progress.start("register", 1, "models")
        tested = ModelErrors.from_json(read_json(join(chosen["uri"], "test.json")))
        code = git()
        tags = {
            "equihand.search": str(self.result["run_id"]),
            "equihand.trial": str(known["best_trial"]),
            "equihand.seed": str(chosen["seed"]),
            "equihand.checkpoint": str(known["best_checkpoint"]),
            "equihand.frame_set_digest": self.frame_set.manifest.digest,
            "equihand.git_commit": code.commit,
            "equihand.git_dirty": str(code.is_dirty).lower() if code.commit else "",
        }
        try:
            run = stored_run(self.search.tracking, known)
            registration = register(
                name,
                self.search.tracking,
                run,
                key=f"{chosen['uri']} {self._digest()}",
                candidate=tested,
                error=known["verdict"]["error"],
                tags={key: value for key, value in tags.items() if value},
                measure=self._measured,
            )
        except EquihandError as error:
            progress.finish()
            warn(f"the winner is not registered: {error}; the same command tries it again")
            return {"name": name, "problem": str(error)}
        progress.finish(version=registration["version"], alias=registration["alias"])
        return registration

    def _digest(self) -> str:
        """Of all that decides what is trained."""
        return hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=8).hexdigest()

    def _measured(self, version: Version) -> ModelErrors:
        """The errors of a registered model on this campaign's test split."""
        uri, needs = join(self.folder, "champion"), self._needs()
        try:
            with tempfile.TemporaryDirectory() as directory:
                copy_from_local(download(self.search.tracking, version, CHECKPOINT, directory), uri)
            ((_, found),) = run_tasks(measured, [(uri, self._means(needs))], needs, self._held_out())
        finally:
            delete(uri)
        if isinstance(found, EquihandError):
            raise found
        return found
