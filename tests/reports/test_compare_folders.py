"""What the folders of runs of every kind say of themselves, finished or not; and what is no run's folder."""

from pathlib import Path

import pytest

from pipeline.config import to_yaml
from pipeline.errors import SettingsError
from pipeline.frames.frame_set import FrameSet
from pipeline.models.weights import load_pose_model
from pipeline.reports.compare_folders import FRAMES, names_of, read_runs
from pipeline.reports.evaluate import EvaluateSettings, evaluate
from pipeline.search.records import STOPPED, TrialRecord, folder_of, write_record
from pipeline.search.settings import SearchSettings
from pipeline.storage import copy_tree, join, read_json
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe
from tests.tiny_runs import finetune_run, written_run
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    write_tiny_set(uri, splits={"train": 32, "val": 12, "test": 24}, image_size=48, wobble=0.01)
    return uri


@pytest.fixture(scope="module")
def finished(frame_set, tmp_path_factory) -> str:
    return finetune_run(tmp_path_factory.mktemp("runs"), "first", frame_set, commit="0123abc", seed=3)


def search_settings(frame_set: str) -> SearchSettings:
    space = {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-1]}, "augmentation": {"uniform": [0.0, 1.0]}}
    return SearchSettings(
        finetune=FinetuneSettings(frame_set=frame_set, epochs=2),
        space=space,  # type: ignore[arg-type]
        num_trials=5,
    )


def test_a_finished_fine_tuning(finished, frame_set):
    (run,) = read_runs([finished])
    result = read_json(join(finished, "result.json"))
    assert (run.name, run.kind, run.model, run.note) == ("first", "finetune", finished, "")
    assert run.settings["seed"] == 3
    assert run.settings["optimiser.learning_rate"] == 1e-3
    assert not any(name.startswith(("run.", "tracking.")) for name in run.settings)
    assert run.origin == {
        FRAMES: FrameSet.open(frame_set).manifest.digest,
        "git commit": "0123abc",
        "command": "jobs.finetune first",
    }
    assert run.metrics["score"] == result["score"]
    assert run.metrics["val_pa_epe_mm"] == result["metrics"]["val_pa_epe_mm"]
    assert run.metrics["wall_s"] == 1.5
    assert [each["epoch"] for each in run.history] == [1, 2]
    assert run.history[-1]["loss"] == result["metrics"]["loss"]


def test_an_unfinished_one_tells_what_is_there(frame_set, tmp_path):
    folder = finetune_run(tmp_path, "under-way", frame_set, finished=False)
    (run,) = read_runs([folder])
    assert run.kind == "finetune"
    assert run.note == "has not finished (no result.json): its metrics are those of step 4"
    assert run.metrics == run.history[-1]
    assert run.origin[FRAMES] == FrameSet.open(frame_set).manifest.digest  # from its log
    assert run.model is not None
    assert load_pose_model(run.model).meta["kind"] == "pose"


def test_one_that_has_hardly_begun(frame_set, tmp_path):
    folder = written_run(tmp_path / "begun", FinetuneSettings(frame_set=frame_set), None)
    (run,) = read_runs([folder])
    assert run.note == "has not finished (no result.json): it has no checkpoint yet"
    assert (run.kind, run.metrics, run.model) == ("finetune", {}, None)


def test_a_run_that_went_on_with_other_code_names_both(finished, frame_set, tmp_path):
    copy_tree(finished, str(tmp_path / "first"))
    (log,) = Path(tmp_path, "first/logs").glob("*-driver.jsonl")
    later = log.with_name(log.name.replace(log.name[:8], "29990101"))
    later.write_text(log.read_text().replace("0123abc", "4567def") + '{"message": "provenance", "mlfl')
    (run,) = read_runs([str(tmp_path / "first")])
    assert run.origin["git commit"] == "0123abc, then 4567def"


def test_an_evaluation_is_a_run_for_each_of_its_models(finished, frame_set, tmp_path):
    settings = EvaluateSettings(
        models={"a": finished, "b": finished},
        frame_set=frame_set,
        baseline="a",
        output=str(tmp_path / "out"),
        track=False,
        probe={"enabled": False},  # type: ignore[arg-type]
    )
    outcome = evaluate(settings)
    runs = read_runs([str(tmp_path / "out")])
    assert [run.name for run in runs] == ["out/a", "out/b"]
    for run, model in zip(runs, ("a", "b"), strict=True):
        assert (run.kind, run.model, run.settings["model"]) == ("evaluate", finished, finished)
        assert run.settings["split"] == "test"
        assert run.metrics["pa_epe_mm"] == outcome["models"][model]["metrics"]["pa_epe_mm"]
        assert run.origin == {FRAMES: outcome["frame_set_digest"]}
    Path(tmp_path, "out/metrics.json").unlink()
    assert read_runs([str(tmp_path / "out")])[0].note == "has not finished (no metrics.json)"


def test_a_search_has_the_settings_of_its_best_trial(frame_set, tmp_path):
    result = {
        "kind": "search",
        "best_checkpoint": "gone",
        "best_values": {"optimiser.learning_rate": 0.02, "augmentation": 0.5},
        "metrics": {"score": 11.0, "val_pa_epe_mm": 11.0},
    }
    folder = written_run(tmp_path / "search", search_settings(frame_set), result)
    (run,) = read_runs([folder])
    assert (run.kind, run.model, run.metrics) == ("search", folder, {"score": 11.0, "val_pa_epe_mm": 11.0})
    assert run.settings["optimiser.learning_rate"] == 0.02
    assert run.settings["views.rotation_deg"] == FinetuneSettings(frame_set=frame_set).views.rotation_deg / 2
    assert run.settings["frame_set"] == frame_set
    assert run.settings["search.num_trials"] == 5
    assert run.settings["search.space.optimiser.learning_rate.log_uniform"] == [1e-4, 1e-1]
    assert not any(name.endswith(".uniform") and "learning_rate" in name for name in run.settings)
    assert not any(name.startswith(("finetune.", "search.run", "search.tracking")) for name in run.settings)


def test_a_search_with_pretrainings_has_those_of_its_best_trial_too(frame_set, tmp_path):
    settings = SearchSettings(
        finetune=FinetuneSettings(frame_set=frame_set),
        pretrain=PretrainRecipe(frame_set=frame_set, epochs=3),
        space={"pretrain.objective.temperature": {"log_uniform": [0.1, 1.0]}},  # type: ignore[dict-item]
    )
    result = {"kind": "search", "best_values": {"pretrain.objective.temperature": 0.2}, "metrics": {}}
    (run,) = read_runs([written_run(tmp_path / "search", settings, result)])
    assert run.kind == "search"
    assert run.settings["pretrain.objective.temperature"] == 0.2
    assert run.settings["pretrain.epochs"] == 3
    assert run.settings["epochs"] == FinetuneSettings(frame_set=frame_set).epochs
    assert not any(name.startswith("search.pretrain") for name in run.settings)


def test_a_search_under_way_has_its_best_trial_so_far(finished, frame_set, tmp_path):
    folder = written_run(tmp_path / "search", search_settings(frame_set), None)
    write_record(folder, TrialRecord(0, {"optimiser.learning_rate": 0.01}, STOPPED))
    copy_tree(finished, folder_of(folder, 0))
    (run,) = read_runs([folder])
    assert run.settings["optimiser.learning_rate"] == 0.01
    assert run.metrics["score"] > 0
    assert run.model is not None
    assert run.model.startswith(folder_of(folder, 0))
    # A trial alone, which has no settings.yaml, tells its settings in its checkpoints.
    Path(folder_of(folder, 0), "settings.yaml").unlink()
    Path(folder_of(folder, 0), "result.json").unlink()
    (trial,) = read_runs([folder_of(folder, 0)])
    assert (trial.name, trial.kind, trial.settings["seed"]) == ("0000", "finetune", 3)
    assert trial.note == "a study's cell or a search's trial: its metrics are those of step 4"


def test_a_study_has_only_settings_to_compare(tmp_path):
    folder = written_run(tmp_path / "study", "grids: []\ntest_split: test\n", None)
    (run,) = read_runs([folder])
    assert (run.kind, run.settings["test_split"]) == ("study", "test")
    assert "its own report" in run.note


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"^\S+/run: not the folder of a run: it has no settings.yaml$"),
        ("a: [", "settings.yaml: damaged"),
        ("just text", "holds no settings"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(text, words, tmp_path):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run/settings.yaml").write_text(text)
    with pytest.raises(SettingsError, match=words) as refused:
        read_runs([str(tmp_path / "run")])
    assert "\n" not in str(refused.value)


def test_names_have_as_much_of_the_path_as_tells_them_apart():
    assert names_of(["/a/runs/x", "/a/runs/y"]) == {"/a/runs/x": "x", "/a/runs/y": "y"}
    assert names_of(["s3://one/runs/x", "s3://two/runs/x", "/y"]) == {
        "s3://one/runs/x": "one/runs/x",
        "s3://two/runs/x": "two/runs/x",
        "/y": "y",
    }
    with pytest.raises(SettingsError, match="/a is given twice"):
        names_of(["/a", "/b", "/a"])


def test_settings_of_another_version_of_the_code_are_compared_as_they_are(frame_set, tmp_path):
    text = to_yaml(search_settings(frame_set)).replace("  epochs: 2\n", "  epochs: 2\n  gone: 7\n", 1)
    result = {
        "kind": "search",
        "best_checkpoint": None,
        "best_values": {"optimiser.learning_rate": 0.02},
        "metrics": {},
    }
    (run,) = read_runs([written_run(tmp_path / "old", text, result)])
    assert run.settings["gone"] == 7
    assert run.settings["optimiser.learning_rate"] == 0.02
    assert run.model is None
