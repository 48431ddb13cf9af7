"""The demo's bookkeeping; its stages are tested where they live, and the whole of it by `make demo`."""

import json

import pytest
from rich.console import Console

from jobs.demo import LOG_NAME, STATE_NAME, DemoJob, _clear, _identity, _Stages
from jobs.terminal import TerminalProgress
from pipeline.errors import SettingsError


@pytest.fixture
def progress():
    return TerminalProgress(Console(record=True, width=120))


def test_finished_stages_are_not_run_again(tmp_path, progress):
    ran = []

    def stage(name):
        def action(results):
            ran.append((name, sorted(results)))
            return {"from": name}

        return action

    stages = _Stages(tmp_path / STATE_NAME, "x", progress)
    stages.run("a", stage("a"))
    with pytest.raises(KeyboardInterrupt):
        stages.run("b", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))

    again = _Stages(tmp_path / STATE_NAME, "x", progress)
    again.run("a", stage("a"))
    again.run("b", stage("b"))
    assert ran == [("a", []), ("b", ["a"])]
    assert again.results == {"a": {"from": "a"}, "b": {"from": "b"}}
    assert json.loads((tmp_path / STATE_NAME).read_text())["stages"]["b"]["seconds"] >= 0
    assert "skipped: done in an earlier run" in progress.console.export_text()


def test_a_stage_is_done_only_when_its_output_is_kept(tmp_path, progress):
    stages = _Stages(tmp_path / STATE_NAME, "x", progress)
    with pytest.raises(OSError, match="disk full"):
        stages.run("a", lambda _: {}, lambda: (_ for _ in ()).throw(OSError("disk full")))
    assert _Stages(tmp_path / STATE_NAME, "x", progress).results == {}


def test_other_settings_need_fresh(tmp_path, progress):
    first, second = DemoJob(), DemoJob(num_clips=80)
    _Stages(tmp_path / STATE_NAME, _identity(first), progress)
    _Stages(tmp_path / STATE_NAME, _identity(DemoJob(fresh=True, folder="elsewhere")), progress)
    with pytest.raises(SettingsError, match="other settings; use --fresh"):
        _Stages(tmp_path / STATE_NAME, _identity(second), progress)


def test_fresh_deletes_a_demo_and_nothing_else(tmp_path, progress):
    (tmp_path / "thesis").mkdir()
    with pytest.raises(SettingsError, match="not a demo's"):
        _clear(tmp_path)
    assert (tmp_path / "thesis").exists()
    (tmp_path / STATE_NAME).write_text("{}")
    (tmp_path / LOG_NAME).write_text("log")
    _clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOG_NAME]
    _clear(tmp_path / "never-there")
