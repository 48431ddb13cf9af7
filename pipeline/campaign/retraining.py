"""One model trained anew, and tested: what is done already, and what is left of it.

<search>/winner/winner/seed-105/    the best trial's settings with one seed; <search>/winner/default/seed-105/ those of the search
    settings.yaml                   its fine-tuning settings
    checkpoint_*                    see models/kept.py
    result.json                     it is trained; the folder is now a run of fine-tuning like any other
    test.json                       and tested: ModelErrors
"""

import hashlib
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.campaign.held_out import HeldOut, HeldOutSplit, ModelErrors, measure
from pipeline.config import to_yaml
from pipeline.errors import DamagedError, DataError, MissingError
from pipeline.models.checkpoints import META, SaveCheckpoint, read_part
from pipeline.models.kept import Kept, checkpoints_in, read_best, read_history
from pipeline.progress import Progress
from pipeline.run_log import log, run_log
from pipeline.runs import changes, read_result, saved_settings
from pipeline.search.trial import pretrained, pretraining_folder
from pipeline.storage import delete, join, read_json, write_bytes, write_json
from pipeline.training.board import BoardHandle
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.finetune_run import FinetuneRunSettings, on_workers, run_finetune
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.training.worker import Worker, prepare_process

WINNER, DEFAULT = "winner", "default"
"""Whose settings: the best trial's, or those that the search began with."""


@dataclass(frozen=True)
class Recipe:
    """How a model is made."""

    finetune: FinetuneSettings
    """With the number of epochs."""
    pretrain: PretrainRecipe | None = None
    """The pretraining before it; one that the search has done is not done again."""

    def seeded(self, seed: int) -> "Recipe":
        """With another seed of fine-tuning."""
        return Recipe(self.finetune.model_copy(update={"seed": seed}), self.pretrain)


@dataclass(frozen=True)
class Means:
    """With what it is made."""

    cpus: int
    """Torch threads of a process."""
    use_gpu: bool
    num_workers: int = 1
    """Processes that train; several are workers of Ray Train."""
    labels: tuple[tuple[str, str], ...] = ()
    """Of the nodes for them."""

    def device(self) -> torch.device:
        """Prepares this process."""
        return prepare_process(self.cpus, self.use_gpu)


@dataclass(frozen=True)
class Retraining:
    """What is to be done."""

    arm: str
    recipe: Recipe
    search: str
    """URI of the search."""
    about: HeldOutSplit
    """On what it is tested."""
    frame_set: dict[str, str]
    """On what it is trained, as FrameSet.describe tells it."""
    means: Means

    @property
    def folder(self) -> str:
        """URI."""
        return join(self.search, "winner", self.arm, f"seed-{self.recipe.finetune.seed}")

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm} with seed {self.recipe.finetune.seed}"

    @property
    def run_id(self) -> str:
        """For MLflow, where a training with other settings, such as of a later best trial, is another run."""
        parts = [to_yaml(each) for each in (self.recipe.finetune, self.recipe.pretrain) if each is not None]
        what = "".join([*parts, self.frame_set["frame_set_digest"]])
        digest = hashlib.blake2b(what.encode(), digest_size=3).hexdigest()
        return f"{self.search.rpartition('/')[2]}-{self.arm}-seed-{self.recipe.finetune.seed}-{digest}"

    def settings(self) -> FinetuneSettings | None:
        """Of its fine-tuning; None as long as there is no encoder to start from."""
        recipe, means = self.recipe.finetune, self.means
        if self.recipe.pretrain is not None:
            known = read_result(pretraining_folder(self.recipe.pretrain, self.search))
            if known is None:
                return None
            recipe = recipe.model_copy(update={"init": known["encoder"]})
        if means.num_workers == 1:
            return recipe
        return on_workers(recipe, self.folder, means.num_workers, means.cpus, means.use_gpu, dict(means.labels))


@dataclass(frozen=True)
class Retrained:
    """What came of it."""

    job: Retraining
    score: float
    """Of its best checkpoint on the validation split; smaller is better."""
    wall_s: float
    history: list[dict[str, float]]
    """Metrics at each of its checkpoints."""
    errors: ModelErrors


def finished(job: Retraining) -> Retrained | None:
    """What there is of it, where it is trained and tested already, with these settings on these frames."""
    result = read_trained(job)
    if result is None:
        return None
    try:
        errors = ModelErrors.from_json(read_json(join(job.folder, "test.json")))
    except (MissingError, DamagedError, KeyError, TypeError):
        return None
    if not job.about.is_like(vars(errors.about)):
        return None
    return Retrained(job, result["score"], result["wall_s"], read_history(job.folder), errors)


def read_trained(job: Retraining) -> dict[str, Any] | None:
    """The result of its training, where that is done."""
    return read_result(job.folder) if _is_same(job) else None


def _is_same(job: Retraining) -> bool:
    """Whether what lies in its folder is of these settings and frames."""
    settings = job.settings()
    try:
        saved = saved_settings(job.folder, say=lambda _: None)  # damaged ones are written anew
        if settings is None or saved is None or changes(saved, settings):
            return False
        digests = {read_part(uri, META).get("frame_set_digest") for uri in checkpoints_in(job.folder)[-1:]}
    except MissingError:
        return False
    except DamagedError:  # `Kept` sees to it
        return True
    return digests <= {job.frame_set["frame_set_digest"]}


def pretrain(item: tuple[PretrainRecipe, str, Means], board: BoardHandle) -> str:
    """The encoder of a pretraining; a task on the cluster. item: the recipe, and the URI of the search."""
    recipe, search, means = item
    with run_log(pretraining_folder(recipe, search), "worker-0", board.warn):
        return pretrained(recipe, search, means.device(), lambda metrics: None, board.warn)


def train(job: Retraining, data: SharedFrames, board: BoardHandle) -> None:
    """Train it, from its last checkpoint on; a task on the cluster."""
    if not _is_same(job):  # of other settings or frames, such as of the trial that was the best before
        delete(job.folder)
    settings = job.settings()
    assert settings is not None, "the pretraining comes first"
    if isinstance(settings, FinetuneRunSettings):
        run_finetune(settings, _Posts(job, board))
        delete(join(job.folder, "tracking"))
        return
    write_bytes(join(job.folder, "settings.yaml"), to_yaml(settings).encode())
    with run_log(job.folder, "worker-0", board.warn):
        log("settings", settings=settings.model_dump(mode="json"))
        _train_alone(job, settings, data, board)


class _Posts(Progress):
    """Progress of several workers, for the board of the campaign."""

    def __init__(self, job: Retraining, board: BoardHandle) -> None:
        self._job, self._board = job, board

    def update(self, done: int, **figures: float | str) -> None:
        self._board.post(self._job.name, done)


def _train_alone(job: Retraining, settings: FinetuneSettings, data: SharedFrames, board: BoardHandle) -> None:
    kept, selection = Kept(job.folder), data.selection

    def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, {**metrics, "wall_s": kept.wall_s, "reported_at": time.time()})

    with tempfile.TemporaryDirectory() as directory:
        try:
            resume = kept.resume(directory, board.warn)
        except DataError as error:  # once more costs less than a campaign that does not end
            board.warn(f"{error}; it starts anew")
            resume = None
        worker = Worker(
            device=job.means.device(),
            folder=job.folder,
            resume=resume,
            report=report,
            notice=lambda frames, figures: board.post(job.name, frames),
            say=board.warn,
        )
        returned = finetune(settings, data, worker)
    result = {
        "run_id": job.run_id,
        "kind": "finetune",
        "best_checkpoint": read_best(job.folder)[0],
        "last_checkpoint": kept.newest,
        "wall_s": round(kept.wall_s, 1),
        **returned,
        "num_labels": selection.num_frames,
        **job.frame_set,
        "world_size": 1,
    }
    write_json(join(job.folder, "result.json"), result)


def examine(job: Retraining, held_out: HeldOut) -> Retrained:
    """Test what is trained; a task on the cluster."""
    errors = measured((job.folder, job.means), held_out)
    write_json(join(job.folder, "test.json"), errors.to_json())
    found = finished(job)
    assert found is not None
    return found


def measured(item: tuple[str, Means], held_out: HeldOut) -> ModelErrors:
    """Test a model; a task on the cluster. item: its URI."""
    uri, means = item
    return measure(uri, held_out, means.device())
