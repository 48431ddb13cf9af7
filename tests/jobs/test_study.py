"""The job as people run it: presets, plan, the smoke study killed by force and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jobs.study import JOB, StudyJob, known_as
from pipeline.errors import SettingsError
from pipeline.models.kept import read_history
from pipeline.study.grid import cells_of
from pipeline.study.plan import minutes, works_of
from pipeline.study.results import Results

ROOT = Path(__file__).resolve().parents[2]
PRESETS = sorted(StudyJob.presets)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_the_decisive_cells_come_first(name):
    settings = JOB.load(["--preset", name])
    text = StudyJob.presets[name].read_text()
    assert f"--preset {name}" in text
    judged = settings.findings
    first = settings.grids[0]
    assert first.axis == "methods"
    assert {"scratch", judged.ours, *judged.invariant} <= set(first.methods)
    assert judged.labels in first.labels
    over_frames = next(grid for grid in settings.grids if grid.axis == "unlabelled")
    assert len(over_frames.unlabelled) >= 3
    assert max(over_frames.unlabelled) == 1
    assert judged.labels in over_frames.labels
    cells = cells_of(settings)
    assert all(first.name in cell.grids for cell in cells[: len(first.methods) * len(first.seeds)])
    if name == "smoke":
        assert not judged.claims
    else:
        assert judged.claims
        assert len(first.seeds) >= 3
        assert len(over_frames.seeds) >= 3
        assert max(over_frames.unlabelled) / min(over_frames.unlabelled) >= 8
        every = {label for grid in settings.grids if grid.axis == "labels" for label in grid.labels}
        assert every == {0.01, 0.02, 0.05, 0.1, 0.25, 1.0}


@pytest.mark.parametrize(("name", "most"), [("laptop", 170), ("gpu", 24)])
def test_presets_keep_to_their_time_by_their_own_estimate(name, most):
    settings = JOB.load(["--preset", name])
    assert minutes(settings, works_of(settings, "", "")) <= most


def test_settings_win_over_files_and_files_over_presets(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {"preset": "smoke", "finetune": {"frames": 99}, "pretrain": {"batch_size": 8}, "methods": {"new": {}}}
        )
    )
    settings = JOB.load(["--config", str(path), "--finetune.frames", "55"])
    assert (settings.preset, settings.finetune.frames, settings.pretrain.batch_size) == ("smoke", 55, 8)
    assert settings.pretrain.views.size == 32  # of the preset
    assert {"new", "peclr"} <= set(settings.methods)
    assert JOB.load(["--config", str(path), "--preset", "laptop"]).pretrain.views.size == 64
    with pytest.raises(SettingsError, match="'preset' = 'lap': input should be 'smoke', 'laptop', 'gpu' or 'paper'"):
        JOB.load(["--preset", "lap", "--grids", "[]"])


def test_frames_rendered_anew_are_those_of_the_table_that_is_gone_on_from(tmp_path):
    """Another machine rounds otherwise, so the same settings give a frame set of another digest."""
    kept = ROOT / "docs/studies/laptop/results.parquet"
    (tmp_path / "study-laptop").mkdir()
    (tmp_path / "study-laptop/results.parquet").write_bytes(kept.read_bytes())
    preset = ["--preset", "laptop", "--run.storage", str(tmp_path)]
    assert known_as(JOB.load(preset)) == Results.read(str(kept)).about.frame_set_digest
    assert known_as(JOB.load([*preset, "--render.num_clips", "10"])) is None
    assert known_as(JOB.load([*preset, "--finetune.frame_set", "elsewhere"])) is None
    assert known_as(JOB.load([*preset, "--run.run_id", "new"])) is None


def run(folder: Path, *arguments: str) -> subprocess.Popen:
    """A small part of the smoke study: two pretrainings, one of them on half of the clips, one with mined pairs."""
    grid = {"frames": [1120], "labels": [0.5], "seeds": [0]}
    grids = [
        {**grid, "name": "Head to head", "axis": "methods", "methods": ["scratch", "peclr"]},
        {**grid, "name": "Unlabelled", "axis": "unlabelled", "methods": ["similar"], "unlabelled": [0.5]},
    ]
    command = [
        *(sys.executable, "-m", "jobs.study", "--preset", "smoke"),
        *("--render.num_clips", "40", "--grids", json.dumps(grids), "--pretrain.checkpoint.every_steps", "5"),
        *("--run.storage", str(folder), "--tracking.uri", f"sqlite:///{folder}/mlflow.db", *arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    log = open(folder / "log", "ab")  # noqa: SIM115 (the process keeps it)
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


def histories(folder: Path) -> dict[str, list[int]]:
    """Steps of the checkpoints so far, of the cells that have one and are not done, by key."""
    found = {}
    for path in (folder / "study-smoke/work").glob("*"):
        history = read_history(str(path))
        if history and not (folder / f"study-smoke/cells/{path.name}.json").exists():
            found[path.name] = [int(metrics["step"]) for metrics in history]
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_study_killed_by_force_goes_on_where_it_was(tmp_path):
    job = run(tmp_path)
    before: dict[str, list[int]] = {}
    while not any("pretrain" in key for key in before):
        assert job.poll() is None, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.05)
        before = histories(tmp_path)
    job.send_signal(signal.SIGKILL)
    job.wait(30)
    time.sleep(3)  # Ray's processes end with their driver
    before = histories(tmp_path)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study-smoke/cells").glob("*")}
    frames = (tmp_path / "study-smoke/frames/manifest.json").stat().st_mtime_ns

    job = run(tmp_path)
    assert job.wait(400) == 0, (tmp_path / "log").read_text()[-2000:]
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "study-smoke/cells").glob("*")}
    assert len(cells) == 5
    assert (
        done.items()
        <= {f"{k}.json": (tmp_path / f"study-smoke/cells/{k}.json").stat().st_mtime_ns for k in cells}.items()
    )
    assert (tmp_path / "study-smoke/frames/manifest.json").stat().st_mtime_ns == frames
    for key, steps in before.items():
        history = [entry["step"] for entry in cells[key]["history"]]
        assert history[: len(steps)] == steps  # what was done was not done again
        assert history == sorted(set(history))
    results = Results.read(str(tmp_path / "study-smoke/results.parquet"))
    assert [row.method for row in results.rows[:3]] == ["scratch", "peclr", "similar"]
    assert "No claim" in (tmp_path / "study-smoke/report.html").read_text()

    report = tmp_path / "study-smoke/report.html"
    report.unlink()
    assert run(tmp_path, "--report_only", "true").wait(120) == 0
    assert "No claim" in report.read_text()
