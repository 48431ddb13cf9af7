"""Cells that are stopped at every checkpoint end as those that were never stopped."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import merged
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import load_labelled, select_labels
from pipeline.study.cells import Place, finetune_cell, pretrain_cell
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain import PretrainRecipe
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("sets") / "set")
    write_tiny_set(uri, splits={"train": 64, "val": 16, "test": 24}, wobble=0.01)
    return uri


def recipe(frame_set: str, **changes) -> PretrainRecipe:
    values = {
        "frame_set": frame_set,
        "epochs": 2,
        "batch_size": 16,
        "num_readers": 1,
        "precision": "float32",
        "views": {"size": 32},
        "encoder": {"width": 8},
        "projection": {"hidden": 32, "outputs": 16},
        "checkpoint": {"every_steps": 3},
    }
    return PretrainRecipe.model_validate(merged(values, changes))


def finetuning(frame_set: str, **changes) -> FinetuneSettings:
    values = {
        "frame_set": frame_set,
        "batch_size": 16,
        "precision": "float32",
        "views": {"size": 32},
        "encoder": {"width": 8},
        "labels": {"fraction": 0.5},
    }
    return FinetuneSettings.model_validate(merged(values, changes))


def place(folder: Path, key: str = "a", deadline: float | None = None) -> Place:
    return Place(key, str(folder), deadline, threads=1, use_gpu=False)


def in_pieces(run, limit: int = 20) -> tuple[dict, int]:
    """The result of a cell that is stopped at each of its checkpoints, and how often it was."""
    for stops in range(limit):
        result = run(time.time() - 1)
        if "stopped" not in result:
            return result, stops
    raise AssertionError("the cell never ends")


@pytest.mark.usefixtures("ray_cluster")
def test_pretraining_in_pieces_equals_pretraining_at_once(frame_set, tmp_path):
    seen: list[int] = []
    whole = pretrain_cell(place(tmp_path / "whole"), recipe(frame_set), seen.append)
    assert seen == [16 * step for step in range(1, 9)]

    def run(deadline: float) -> dict:
        return pretrain_cell(place(tmp_path / "pieces", deadline=deadline), recipe(frame_set), lambda _: None)

    pieces, stops = in_pieces(run)
    assert stops == 3  # after steps 3, 4 and 6; the last checkpoint is the end
    assert [entry["step"] for entry in pieces["history"]] == [3, 4, 6, 8]
    first, second = (load_file(Path(result["encoder"]) / "model.safetensors") for result in (whole, pieces))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole["frames"], whole["unlabelled_frames"]) == (128, 64)
    assert json.loads((tmp_path / "whole/cells/a.json").read_text()) == whole
    # Only the newest two and the best are kept.
    kept = {path.name for path in (tmp_path / "pieces/work/a").glob("checkpoint_*")}
    assert len(kept) <= 3
    assert {"checkpoint_000003", "checkpoint_000004"} <= kept


@pytest.mark.usefixtures("ray_cluster")
def test_a_pretraining_killed_after_its_last_checkpoint_trains_no_further(frame_set, tmp_path):
    first = pretrain_cell(place(tmp_path), recipe(frame_set), lambda _: None)
    (tmp_path / "cells/a.json").unlink()
    seen: list[int] = []
    again = pretrain_cell(place(tmp_path), recipe(frame_set), seen.append)
    assert seen == []
    assert {**again, "wall_s": 0} == {**first, "wall_s": 0}


def test_finetuning_in_pieces_equals_finetuning_at_once(frame_set, tmp_path):
    def run(folder: str, deadline: float | None) -> dict:
        return finetune_cell(
            place(tmp_path / folder, deadline=deadline),
            finetuning(frame_set, frames=160),
            5,
            "test",
            20,
            lambda _: None,
        )

    whole = run("whole", None)
    pieces, stops = in_pieces(lambda deadline: run("pieces", deadline))
    assert stops == 4
    assert {**pieces, "wall_s": 0} == {**whole, "wall_s": 0}
    assert whole["frames"] == 160
    assert not (tmp_path / "whole/work/a").exists()  # a finished fine-tuning leaves its file only


def test_what_a_finetuning_measures(frame_set, tmp_path):
    settings = finetuning(frame_set, frames=64)
    result = finetune_cell(place(tmp_path), settings, 1, "test", 20, lambda _: None)
    test = load_labelled(FrameSet.open(frame_set), "test")
    assert result["clips"] == sorted({name.rsplit("/", 1)[0] for name in test.frame_ids})
    assert result["clip_frames"] == [4] * 6
    assert result["labelled_frames"] == 32
    true = torch.from_numpy(test.joints_3d)
    constant = select_labels(FrameSet.open(frame_set), "train", settings.labels).constant
    assert constant is not None
    expected = constant.errors_mm(true)
    assert sum(result["constant"]["pa_epe"]) / 24 == pytest.approx(expected["constant_pa_epe_mm"], rel=1e-4)
    assert sum(result["constant"]["root_relative_epe"]) / 24 == pytest.approx(expected["constant_mpjpe_mm"], rel=1e-4)
    # Blind guesses are worse than the constant, which is made to be the best one.
    assert sum(result["random"]["pa_epe"]) > sum(result["constant"]["pa_epe"])
    assert all(
        len(result[name][error]) == 6 for name in ("model", "probe") for error in ("pa_epe", "root_relative_epe")
    )


@pytest.mark.usefixtures("ray_cluster")
def test_the_probe_is_of_what_finetuning_starts_from(frame_set, tmp_path):
    """The same encoder gives the same probe, whatever fine-tuning makes of it; another encoder another one."""
    encoder = pretrain_cell(place(tmp_path, "pre"), recipe(frame_set), lambda _: None)["encoder"]

    def probe(key: str, frames: int, init: str | None) -> list[float]:
        settings = finetuning(frame_set, init=init, frames=frames)
        return finetune_cell(place(tmp_path, key), settings, 1, "test", 32, lambda _: None)["probe"]["pa_epe"]

    assert probe("a", 32, encoder) == probe("b", 96, encoder)
    assert probe("c", 32, None) == probe("d", 96, None) != probe("e", 32, encoder)
