"""A whole study on a tiny frame set: order, sharing, time limit, going on, failures, tracking."""

import json
import shutil
import time
from functools import partial
from pathlib import Path

import mlflow
import pytest

from pipeline.errors import DataError, SettingsError, TrainingError, UnfinishedError
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM
from pipeline.frames.manifest import read_manifest
from pipeline.study.plan import works_of
from pipeline.study.results import Results
from pipeline.study.run import Study, run_study
from pipeline.study.settings import StudySettings
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("sets") / "set")
    write_tiny_set(uri, splits={"train": 64, "val": 16, "test": 24}, wobble=0.01)
    return uri


def study(frame_set: str, folder: Path, **changes) -> StudySettings:
    grid = {"name": "a", "axis": "methods", "frames": [64], "labels": [0.5], "seeds": [0]}
    values = {
        "run": {"storage": str(folder), "run_id": "s"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "methods": {"peclr": {}, "simclr": {"objective": {"name": "simclr"}}},
        "encoders": {"tiny": {"width": 8}},
        "grids": [
            {**grid, "methods": ["scratch", "peclr"]},
            {**grid, "name": "b", "axis": "unlabelled", "methods": ["peclr"], "unlabelled": [0.5, 1.0]},
        ],
        "findings": {"claims": False},
        "pretrain": {
            "frame_set": frame_set,
            "batch_size": 16,
            "num_readers": 1,
            "precision": "float32",
            "views": {"size": 32},
            "projection": {"hidden": 32, "outputs": 16},
        },
        "finetune": {
            "frame_set": frame_set,
            "frames": 64,
            "batch_size": 16,
            "precision": "float32",
            "views": {"size": 32},
        },
        "validations": 2,
        **changes,
    }
    return StudySettings.model_validate(values)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_is_done_once_and_goes_on(frame_set, tmp_path):
    settings = study(frame_set, tmp_path)
    folder = tmp_path / "s"
    with pytest.raises(UnfinishedError, match=r"5 of 5 cells are left.*next is fine-tuning: scratch") as caught:
        run_study(settings, deadline=time.time() - 1)
    assert caught.value.exit_code == 3
    assert (folder / "report.html").exists()

    lines: list[str] = []
    result = run_study(settings, say=lines.append)
    assert (result["num_cells"], len(lines)) == (5, 5)
    assert lines[0].startswith(("fine-tuning: scratch", "pretraining: peclr, 100 %"))
    files = {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert sorted(name.split("-")[0] for name in files) == ["finetune"] * 3 + ["pretrain"] * 2
    (subset,) = (folder / "subsets").iterdir()
    assert read_manifest(str(subset)).num_rows == 32

    table = Results.read(str(folder / "results.parquet"))
    assert [row.method for row in table.rows] == ["scratch", "peclr", "peclr", CONSTANT, RANDOM]
    assert [row.unlabelled_frames for row in table.rows] == [0, 64, 32, 0, 0]
    assert [row.grids for row in table.rows] == [["a"], ["a", "b"], ["b"], ["a", "b"], ["a", "b"]]
    assert all(row.frames_seen == 64 for row in table.rows[:3])
    # The same labels, so the same constant, and the skills that follow from it.
    assert len({row.constant_pa_epe_mm for row in table.rows}) == 1
    for row in table.rows:
        assert row.pa_skill == pytest.approx(1 - row.pa_epe_mm / row.constant_pa_epe_mm)
    assert table.rows[3].pa_skill == 0

    again: list[str] = []
    run_study(settings, say=again.append)
    wider = {**settings.grids[0].model_dump(), "name": "c", "methods": ["scratch"], "labels": [1.0]}
    run_study(
        study(frame_set, tmp_path, grids=[*(grid.model_dump() for grid in settings.grids), wider]), say=again.append
    )
    assert [line.split(",")[:2] for line in again] == [["fine-tuning: scratch", " 100 % of the labels"]]
    assert files.items() <= {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}.items()

    # The table alone is enough to go on; a pretraining is run again where other cells start from it.
    shutil.rmtree(folder / "cells")
    shutil.rmtree(folder / "work")
    before = Results.read(str(folder / "results.parquet")).rows
    alone: list[str] = []
    study_of = partial(study, frame_set, tmp_path, tracking={"uri": None})
    grids = [*(grid.model_dump() for grid in settings.grids), wider]
    run_study(study_of(grids=grids), say=alone.append)
    assert alone == []
    assert Results.read(str(folder / "results.parquet")).rows == before
    peclr = {**wider, "name": "d", "methods": ["scratch", "peclr"]}
    run_study(study_of(grids=[*grids, peclr]), say=alone.append)
    assert [line.split(",")[0] for line in alone] == ["pretraining: peclr", "fine-tuning: peclr"]
    after = Results.read(str(folder / "results.parquet"))
    assert [(row.method, row.labels) for row in after.rows if row.encoder] == [
        ("scratch", 0.5), ("peclr", 0.5), ("peclr", 0.5), ("scratch", 1.0), ("peclr", 1.0),
    ]  # fmt: skip
    assert (after.about.clips, after.rows[0]) == (table.about.clips, before[0])
    # What nobody asks for any more is set aside, not lost.
    run_study(study_of(grids=[peclr]))
    (aside,) = folder.glob("aside/*.parquet")
    assert Results.read(str(aside)).rows == after.rows
    assert {row.labels for row in Results.read(str(folder / "results.parquet")).rows} == {1.0}
    shutil.rmtree(folder / "cells")
    alone.clear()
    run_study(study_of(grids=[*grids, peclr]), say=alone.append)
    assert alone == []
    assert Results.read(str(folder / "results.parquet")).rows == after.rows
    run_study(study_of(grids=[peclr]))
    assert [*folder.glob("aside/*.parquet")] == [aside]  # what lies there is not put there again

    mlflow.set_tracking_uri(str(settings.tracking.uri))
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (parent,) = [run for run in runs if run.data.tags["equihand.kind"] == "study"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 6 == len(runs) - 1
    assert {run.info.status for run in children} == {"FINISHED"}
    (scratch,) = [
        run
        for run in children
        if (run.data.tags["method"], run.data.params.get("labels.fraction")) == ("scratch", "0.5")
    ]
    assert scratch.data.metrics["pa_epe_mm"] == pytest.approx(table.rows[0].pa_epe_mm)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_a_cell_that_fails_is_named_and_the_others_are_run(frame_set, tmp_path):
    """PeCLR's loss is no number; what starts from it cannot be run, the rest is."""
    settings = study(
        frame_set,
        tmp_path,
        methods={"peclr": {"objective": {"temperature": 1e-40}}, "simclr": {}},
        grids=[
            {
                "name": "a",
                "axis": "methods",
                "methods": ["peclr", "simclr", "scratch"],
                "frames": [64],
                "labels": [0.5],
                "seeds": [0],
            }
        ],
    )
    lines: list[str] = []
    with pytest.raises(
        TrainingError, match=r"1 of 5 cells failed, such as pretrain-peclr.*the loss is .* tries them again"
    ):
        run_study(settings, say=lines.append)
    assert sum(line.startswith("failed: pretraining: peclr") for line in lines) == 1
    table = Results.read(str(tmp_path / "s/results.parquet"))
    assert [row.method for row in table.rows] == ["simclr", "scratch", CONSTANT, RANDOM]


def test_what_does_not_fit_shows_before_any_work(frame_set, tmp_path):
    with pytest.raises(SettingsError, match=r"'finetune\.frame_set' is required"):
        Study(study(frame_set, tmp_path, finetune={}), "s")
    bare, unlabelled = str(tmp_path / "bare"), str(tmp_path / "unlabelled")
    write_tiny_set(bare, splits={"train": 64, "val": 16})
    with pytest.raises(DataError, match="split 'test' is empty; the set has 64 train"):
        Study(study(bare, tmp_path), "s")
    write_tiny_set(unlabelled, splits={"train": 64, "val": 16, "test": 16}, labelled=False)
    with pytest.raises(DataError, match="no labelled clip in split 'train'"):
        Study(study(unlabelled, tmp_path), "s")


@pytest.mark.usefixtures("ray_cluster")
def test_budgets_that_no_epochs_make_are_refused_before_any_cell(frame_set, tmp_path):
    settings = study(frame_set, tmp_path)
    odd = settings.model_copy(update={"grids": (settings.grids[0].model_copy(update={"frames": (100,)}),)})
    with pytest.raises(SettingsError, match=r"'grids\.frames' = 100: 2 epochs of .* are 128 frames"):
        run_study(odd)
    large = study(frame_set, tmp_path, methods={"peclr": {"batch_size": 128}, "simclr": {}})
    with pytest.raises(SettingsError, match="'batch_size' = 128: 1 workers need 128 frames"):
        run_study(large)
    assert not list((tmp_path / "s/cells").glob("*"))


def test_frames_that_were_rendered_elsewhere_keep_the_names_of_their_cells(frame_set, tmp_path):
    settings = study(frame_set, tmp_path)
    alone = settings.model_copy(update={"pretrain": settings.pretrain.model_copy(update={"frame_set": ""})})
    ours, own = Study(alone, "s", known_as="cd" * 16), Study(alone, "s")
    assert [work.key for work in ours.works] == [work.key for work in works_of(alone, "cd" * 16, "cd" * 16)]
    assert not {work.key for work in ours.works} & {work.key for work in own.works}
    # Other unlabelled frames are not rendered by the study, so they stand for themselves.
    other = {work.key for work in Study(settings, "s", known_as="cd" * 16).works if work.cell is None}
    assert other == {work.key for work in Study(settings, "s").works if work.cell is None}


def test_a_damaged_cell_file_is_named(frame_set, tmp_path):
    settings = study(frame_set, tmp_path)
    key = Study(settings, "s").works[0].key
    (tmp_path / "s/cells").mkdir(parents=True)
    (tmp_path / f"s/cells/{key}.json").write_text("{")
    with pytest.raises(Exception, match=f"{key}.json: not valid JSON"):
        Study(settings, "s")
    (tmp_path / f"s/cells/{key}.json").write_text(json.dumps({"key": key}))
    assert Study(settings, "s").left()[0].key != key
