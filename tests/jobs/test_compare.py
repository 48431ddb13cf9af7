"""The job: any runs in one table and on one page, from the command line; and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jobs.compare import JOB, run
from jobs.terminal import TerminalProgress
from pipeline.errors import MissingError, SettingsError
from pipeline.reports.evaluate import EvaluateSettings, evaluate
from pipeline.run_log import log, run_log
from pipeline.storage import read_json
from pipeline.training.pretrain_run import PretrainSettings
from tests.reports.test_report import Page
from tests.tiny_runs import finetune_run, written_run
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_tiny_set(str(folder / "set"), splits={"train": 32, "val": 12, "test": 24}, image_size=48, wobble=0.01)
    for name, changes in {
        "one": {"seed": 1, "commit": "0123abc"},
        "two": {"seed": 2, "commit": "0123abc"},
        "fast": {"seed": 1, "optimiser": {"learning_rate": 1e-2}, "commit": "4567def"},
        "half": {"seed": 1, "finished": False},
    }.items():
        finetune_run(folder, name, str(folder / "set"), **changes)  # type: ignore[arg-type]
    for number, name in enumerate(("pre-1", "pre-2")):
        settings = PretrainSettings(frame_set=str(folder / "set"), batch_size=8, shares=1, epochs=3 + number)
        metrics = {
            "step": 8,
            "epoch": 2.0,
            "loss": 2.0 - number,
            "probe_pa_epe_mm": 12.0,
            "probe_constant_pa_epe_mm": 11.0,
        }
        with run_log(str(folder / name), "worker-0"):
            log("epoch", metrics={"step": 4, "epoch": 1.0, "loss": 3.0})
            log("epoch", metrics=metrics)
        written_run(folder / name, settings, {"kind": "pretrain", "metrics": metrics, "wall_s": 1.0})
    return folder


def job(*arguments: str):
    return JOB.own(JOB.load(arguments))


def test_fine_tunings_are_compared_on_the_same_frames(storage, tmp_path):
    output = tmp_path / "out"
    console = Console(record=True, width=180)
    settings = job(
        str(storage / "one"), "two", "fast", "--storage", str(storage), "--output", str(output), "--num_cases=2"
    )
    outcome = run(settings, TerminalProgress(console))

    assert [each["letter"] for each in outcome["runs"]] == ["A", "B", "C"]
    assert outcome["settings"] == {
        "seed": {"one": 1, "two": 2, "fast": 1},
        "optimiser.learning_rate": {"one": 1e-3, "two": 1e-3, "fast": 1e-2},
    }
    assert outcome["origin"]["git commit"] == {"one": "0123abc", "two": "0123abc", "fast": "4567def"}
    assert outcome["recorded"]["val_pa_epe_mm"].keys() == {"one", "two", "fast"}
    measured = outcome["measured"]
    assert (measured["split"], measured["num_frames"]) == ("test", 24)
    assert {*measured["errors"]} == {"pa_epe_mm", "root_relative_epe_mm", "epe_mm", "epe_2d"}
    assert measured["errors"]["pa_epe_mm"]["two"]["p_adjusted"] is not None
    assert outcome["groups"][0]["runs"] == ["one", "two"]
    assert outcome["groups"][0]["seeds"] == [1, 2]
    assert "p-values are corrected for the 2 comparisons" in outcome["notes"][0]
    # Each value is that of the run: measured alone, a model has the same error.
    alone = run(job(str(storage / "fast"), str(storage / "pre-1")))
    assert alone["measured"]["errors"]["pa_epe_mm"]["fast"]["value"] == measured["errors"]["pa_epe_mm"]["fast"]["value"]

    text = console.export_text()
    for words in ("A  one", "optimiser.learning_rate", "PA-EPE (mm)", "one, two differ in their seed only: PA-EPE"):
        assert words in text, words
    assert outcome["answer"][0]["text"].replace("\u00a0", " ") in text.replace("\u00a0", " ")
    assert read_json(str(output / "compare.json")) == outcome
    page = Page((output / "compare.html").read_text())
    assert "Frames on which the models differ most" in page.text
    assert sorted(path.name for path in (output / "pictures").iterdir()) == [
        "frames_on_which_the_models_differ_most.png",
        "good_frames_of_a.png",
        "median_frames_of_a.png",
        "worst_frames_of_a.png",
    ]


def test_kinds_may_be_mixed_and_runs_unfinished(storage, tmp_path):
    evaluation = tmp_path / "evaluation"
    evaluate(
        EvaluateSettings(
            models={"a": str(storage / "one")},
            frame_set=str(storage / "set"),
            output=str(evaluation),
            track=False,
            probe={"enabled": False},  # type: ignore[arg-type]
        )
    )
    outcome = run(job("pre-1", "half", str(evaluation), "pre-2", "--storage", str(storage)))
    assert [each["kind"] for each in outcome["runs"]] == ["pretrain", "finetune", "evaluate", "pretrain"]
    assert "has not finished" in outcome["runs"][1]["note"]
    assert outcome["measured"]["errors"]["pa_epe_mm"].keys() == {"half", "evaluation"}
    # The evaluated model is the same one as before, on the same frames.
    known = read_json(str(evaluation / "metrics.json"))["models"]["a"]["metrics"]["pa_epe_mm"]
    assert outcome["measured"]["errors"]["pa_epe_mm"]["evaluation"]["value"] == pytest.approx(known, rel=1e-5)
    assert outcome["settings"]["objective.temperature"] == {"pre-1": 0.5, "pre-2": 0.5}
    assert outcome["recorded"]["probe_pa_epe_mm"] == {"pre-1": 12.0, "pre-2": 12.0}
    curve = next(each for each in outcome["curves"] if (each["metric"], each["kind"]) == ("loss", "pretrain"))
    assert curve["points"] == {"pre-1": [[4, 3.0], [8, 2.0]], "pre-2": [[4, 3.0], [8, 1.0]]}
    assert outcome["answer"][-1]["text"].endswith("pre-1 and pre-2: no better than always answering one fixed hand.")


def test_pretrainings_alone_need_no_frames(storage):
    outcome = run(job("pre-1", "pre-2", "--storage", str(storage)))
    assert outcome["measured"] is None
    assert outcome["settings"] == {"epochs": {"pre-1": 3, "pre-2": 4}}
    assert outcome["notes"] == []
    asked = run(job("pre-1", "pre-2", "--storage", str(storage), "--split", "test"))
    assert asked["notes"] == ["no run has a pose model that can be measured: runs are compared by what they recorded"]


def test_what_is_wrong_is_said_in_one_line(storage, tmp_path):
    with pytest.raises(SettingsError, match=r"^setting 'runs': give two runs or more"):
        job("one")
    with pytest.raises(SettingsError, match="'runs' is required"):
        job("--storage", str(storage))
    with pytest.raises(MissingError, match=rf"^{storage}/none: no such run; give its folder"):
        run(job("one", "none", "--storage", str(storage)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"/empty: not the folder of a run: it has no settings.yaml"):
        run(job(str(storage / "one"), str(tmp_path / "empty")))
    with pytest.raises(SettingsError, match="is given twice"):
        run(job("one", "one", "--storage", str(storage)))


def test_one_run_ends_the_job_with_exit_code_2():
    command = [sys.executable, "-m", "jobs.compare", "runs/one"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: setting 'runs': give two runs or more, to compare the others with the first\n"
