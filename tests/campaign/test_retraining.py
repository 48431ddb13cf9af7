"""A training of a campaign: what is done stays, what was cut off goes on, what was meant otherwise is done anew."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.campaign.held_out import HeldOut, HeldOutSplit, measure
from pipeline.campaign.retraining import Means, Recipe, Retraining, examine, finished, read_trained, train
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSettings, load_labelled, select_labels
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.kept import checkpoints_in
from pipeline.models.weights import load_pose_model
from pipeline.search.trial import pretraining_folder
from pipeline.storage import delete, read_json, write_json
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.finetune_run import FinetuneRunSettings
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.training.worker import Worker
from tests.tiny_sets import write_tiny_set
from tests.training.damage import damage


class Board:
    """Hears what a training says; ends it, as kill -9 would, once that many frames were seen."""

    def __init__(self, most: float = float("inf")) -> None:
        self.most, self.warnings, self.frames = most, list[str](), list[int]()

    def post(self, key: str, frames: int) -> None:
        self.frames.append(frames)
        if frames >= self.most:
            raise KeyboardInterrupt

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Campaign:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames = FrameSet.open(str(folder / "set"))
        self.selection = select_labels(self.frames, "train", LabelSettings())
        self.about = HeldOutSplit.of(self.frames, "test", "freihand")
        self.held_out = HeldOut.load(self.frames, self.about, self.selection.constant_2d)
        train, validation = (load_labelled(self.frames, split) for split in ("train", "val"))
        self.data = SharedFrames(self.frames, self.selection, train, validation)

    def recipe(self, **changes) -> FinetuneSettings:
        values = {"encoder": {"width": 8}, "views": {"size": 32}, "epochs": 3, "batch_size": 16, "validate_every": 1}
        return FinetuneSettings.model_validate(
            {"frame_set": str(self.folder / "set"), "precision": "float32", "seed": 105, **values, **changes}
        )

    def job(self, split: str = "test", **changes) -> Retraining:
        about = HeldOutSplit.of(self.frames, split, "freihand")
        recipe, search = Recipe(self.recipe(**changes)), str(self.folder / "s")
        return Retraining("winner", recipe, search, about, self.frames.describe(), Means(cpus=1, use_gpu=False))

    def retrain(self, job: Retraining, board: Board):
        """What of it is left, as trainings.train_all does it."""
        if read_trained(job) is None:
            train(job, self.data, board)  # type: ignore[arg-type]
        return examine(job, HeldOut.load(self.frames, job.about, self.selection.constant_2d))


@pytest.fixture
def campaign(tmp_path) -> Campaign:
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32, "val": 8, "test": 24}, wobble=0.01)
    return Campaign(tmp_path)


def test_it_is_a_fine_tuning_like_any_other(campaign):
    """The same loop alone, without a folder, gives the same weights and score; the folder is a model, tested on the test split."""
    job = campaign.job()
    assert finished(job) is None
    found = campaign.retrain(job, Board())
    scores = []
    expected = finetune(
        job.recipe.finetune,
        campaign.data,
        worker=Worker(report=lambda metrics, save: scores.append(metrics["score"]) if save is not None else None),
    )
    assert found.score == expected["score"] == min(scores)
    assert [metrics["score"] for metrics in found.history] == scores
    result = read_json(f"{job.folder}/result.json")
    assert (result["kind"], result["num_labels"], result["epoch"]) == ("finetune", 32, 3)
    assert result["frame_set_digest"] == campaign.frames.manifest.digest
    assert load_pose_model(job.folder).meta["settings"]["seed"] == 105
    again = measure(job.folder, campaign.held_out, torch.device("cpu"))
    assert found.errors == again
    assert found.errors.about.num_frames == 24


def test_what_is_done_stays_and_another_test_split_only_tests_anew(campaign):
    campaign.retrain(campaign.job(), Board())
    board = Board(most=0)  # it would end at its first step
    found = finished(campaign.job())
    assert found == campaign.retrain(campaign.job(), board)
    other = campaign.job(split="val")
    assert finished(other) is None
    assert campaign.retrain(other, board).errors.about.split == "val"
    assert board.frames == []
    delete(f"{campaign.job().folder}/test.json")
    assert campaign.retrain(campaign.job(), board) == found


def test_one_that_was_killed_goes_on_with_the_same_result(campaign, tmp_path):
    job = campaign.job()
    straight = campaign.retrain(job, Board())
    delete(job.folder)
    with pytest.raises(KeyboardInterrupt):
        campaign.retrain(job, Board(most=80))  # in the third epoch of 32 frames
    assert finished(job) is None
    assert len(checkpoints_in(job.folder)) == 2
    board = Board()
    resumed = campaign.retrain(job, board)
    assert board.frames[0] == 80
    assert resumed.score == straight.score
    assert resumed.errors == straight.errors
    assert [each["loss"] for each in resumed.history] == [each["loss"] for each in straight.history]


def test_other_settings_or_frames_begin_anew(campaign, tmp_path):
    first = campaign.retrain(campaign.job(), Board())
    other = campaign.job(batch_size=8)
    assert finished(other) is None
    assert other.run_id != campaign.job().run_id == campaign.job(split="val").run_id
    board = Board()
    assert campaign.retrain(other, board).score != first.score
    assert board.frames[0] == 8
    assert load_pose_model(other.folder).meta["settings"]["batch_size"] == 8
    # The frames under the same name are others.
    delete(str(tmp_path / "set"))
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32, "val": 8, "test": 24}, wobble=0.02, seed=3)
    changed = Campaign(tmp_path)
    assert finished(changed.job(batch_size=8)) is None
    board = Board()
    changed.retrain(changed.job(batch_size=8), board)
    assert board.frames[0] == 8


def test_damaged_checkpoints_cost_time_but_no_campaign(campaign):
    job = campaign.job()
    with pytest.raises(KeyboardInterrupt):
        campaign.retrain(job, Board(most=80))
    for uri in checkpoints_in(job.folder):
        damage(f"{uri}/trainer.pt", "one byte changed")
    board = Board()
    campaign.retrain(job, board)
    assert board.frames[0] == 16
    assert "it starts anew" in " ".join(board.warnings)


def test_frames_that_memory_does_not_hold_are_read_by_the_worker(campaign):
    """With the same numbers."""
    expected = campaign.retrain(campaign.job(), Board())
    delete(campaign.job().folder)
    campaign.data = replace(campaign.data, train=None)
    assert campaign.retrain(campaign.job(), Board()).score == expected.score


def test_a_pretraining_of_the_search_is_where_it_starts(campaign, tmp_path):
    pretraining = PretrainRecipe.model_validate({"frame_set": str(tmp_path / "set"), "encoder": {"width": 8}})
    job = replace(campaign.job(), recipe=Recipe(campaign.recipe(), pretraining))
    assert job.settings() is None
    assert finished(job) is None
    folder = pretraining_folder(pretraining, job.search)
    torch.manual_seed(1)
    encoder = build_encoder(EncoderSettings(width=8))
    weights = torch.nn.ModuleDict({"encoder": encoder})
    save_checkpoint(tmp_path / "encoder", weights, {}, {"kind": "pretrain", "settings": {}, "step": 1, "epoch": 1})
    write_json(f"{folder}/result.json", {"encoder": str(tmp_path / "encoder")})
    settings = job.settings()
    assert settings is not None
    assert settings.init == str(tmp_path / "encoder")
    found = campaign.retrain(job, Board())
    assert found == finished(job)
    assert load_pose_model(job.folder).meta["settings"]["init"] == str(tmp_path / "encoder")
    assert found.score != campaign.retrain(campaign.job(), Board()).score
    assert finished(job) is None  # it was of another start
    assert job.run_id != campaign.job().run_id


def test_several_workers_are_a_run_with_the_settings_of_its_folder(campaign):
    job = replace(campaign.job(), means=Means(cpus=2, use_gpu=True, num_workers=3, labels=(("pool", "a"),)))
    settings = job.settings()
    assert isinstance(settings, FinetuneRunSettings)
    assert f"{settings.run.storage}/{settings.run.run_id}" == job.folder
    assert (settings.workers.num_workers, settings.workers.cpus_per_worker, settings.workers.use_gpu) == (3, 2, True)
    assert settings.workers.labels == {"pool": "a"}
    assert settings.tracking.uri is None
    assert (settings.epochs, settings.seed) == (3, 105)
