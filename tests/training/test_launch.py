"""How a run on workers ends: errors that would come again are not tried again, and MLflow knows what happened."""

import json
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray
from torch import nn

from pipeline.errors import DataError, EquihandError, TrainingError
from pipeline.models.checkpoints import read_trainer_state, save_checkpoint
from pipeline.models.kept import Kept
from pipeline.progress import SILENT
from pipeline.runs import RunSettings
from pipeline.storage import read_json
from pipeline.tracked import Delivered, Run, deliver_left
from pipeline.tracking import Sender, StoredRun, TrackingSettings
from pipeline.training import launch
from pipeline.training.board import progress_board
from pipeline.training.launch import LaunchSettings, train_on_workers
from tests.training.damage import damage


def train(loop, tmp_path, tracking):
    Path(tmp_path, "runs", "broken").mkdir(parents=True, exist_ok=True)
    settings = LaunchSettings(run=RunSettings(storage=str(tmp_path / "runs"), run_id="broken"), tracking=tracking)
    return train_on_workers(
        loop,
        settings,
        None,
        kind="pretrain",
        num_best=1,
        total=1,
        progress=SILENT,
        tags={},
    )


def test_an_error_in_the_data_is_met_once(ray_cluster, tmp_path):
    def loop(settings, data, worker):
        tries = Path(worker.folder, "tries")
        with open(tries, "a") as file:
            file.write(f"{os.getpid()}\n")
        raise DataError("row 7 of the set is damaged")

    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrainingError, match="row 7 of the set is damaged"):
        train(loop, tmp_path, tracking)
    assert len((tmp_path / "runs/broken/tries").read_text().splitlines()) == 1

    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


def test_without_mlflow_nothing_is_trained(ray_cluster, tmp_path):
    def loop(settings, data, worker):
        Path(worker.folder, "ran").touch()

    with pytest.raises(EquihandError, match=r"^MLflow at http://127.0.0.1:1: "):
        train(loop, tmp_path, TrackingSettings(uri="http://127.0.0.1:1"))
    assert not (tmp_path / "runs/broken/ran").exists()
    assert not (tmp_path / "runs/broken/result.json").exists()


def test_training_that_cannot_go_on_is_not_tried_again(ray_cluster, tmp_path):
    def loop(settings, data, worker):
        with open(Path(worker.folder, "tries"), "a") as file:
            file.write("once\n")
        raise TrainingError("the loss is nan at step 7 on worker 0")

    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrainingError, match=r"^run 'broken': the loss is nan at step 7 on worker 0$"):
        train(loop, tmp_path, tracking)
    assert (tmp_path / "runs/broken/tries").read_text() == "once\n"


def test_a_run_outlives_its_board(ray_cluster, tmp_path, monkeypatch, caplog):
    """The actor that knows the progress dies, then a worker: the run starts again and goes on."""
    boards = []

    @contextmanager
    def seen(*arguments):
        with progress_board(*arguments) as board:
            boards.append(board)
            yield board

    def loop(settings, data, worker):
        worker.report({"step": 1, "epoch": 0.5}, None)
        begun = Path(worker.folder, "begun")
        if not begun.exists():
            begun.touch()
            wait_for(Path(worker.folder, "board-killed").exists)
            raise RuntimeError("lost")
        worker.notice(7, {"loss": 1.0})
        worker.say("still heard")
        return {"tries": 2}

    def kill():
        wait_for((tmp_path / "runs/broken/begun").exists)
        ray.kill(boards[0]._actor, no_restart=False)
        (tmp_path / "runs/broken/board-killed").touch()

    monkeypatch.setattr(launch, "progress_board", seen)
    killer = threading.Thread(target=kill)
    killer.start()
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    result = train(loop, tmp_path, tracking)
    killer.join()
    assert result["tries"] == 2
    assert "still heard" in caplog.text


def test_a_full_disk_does_not_end_the_training(tmp_path):
    (tmp_path / "file").touch()
    board = Mock()
    callback = launch._mlflow_callback(Run(f"{tmp_path}/file/tracking", "pretrain", "run-1"), board)
    callback.after_report(None, [{"step": 1, "loss": 2.0}], None)
    (said,) = board.warn.call_args.args
    assert said == f"{tmp_path}/file/tracking: Not a directory; metrics of some steps are lost for MLflow"


def wait_for(condition):
    while not condition():
        time.sleep(0.05)


def save_step(step):
    def save(directory):
        save_checkpoint(directory, nn.Linear(2, 2), {"step": step}, {"metrics": {"step": step, "score": -step}})

    return save


def going_on(settings, data, worker):
    assert worker.resume is not None
    step = read_trainer_state(worker.resume)["step"]
    worker.report({"step": step + 1, "score": -step - 1.0}, save_step(step + 1))
    return {"began_at": step}


def test_a_damaged_run_goes_on_from_what_is_whole(ray_cluster, tmp_path, caplog, monkeypatch):
    """The newest checkpoint is damaged, and so is the list that Ray Train kept of them. MLflow fails on the way."""
    folder = tmp_path / "runs/broken"
    kept = Kept(str(folder))
    for step in (1, 2, 3):
        kept.keep(save_step(step), {"step": step, "score": -step})
    damage(str(folder / "checkpoint_000003/model.safetensors"), "one byte changed")
    (folder / "checkpoint_manager_snapshot.json").write_bytes(b"")

    def give(sender, client, records):
        if records[0]["do"] == "finish":
            raise OSError("database is locked")
        return given(sender, client, records)

    given = Sender._give
    monkeypatch.setattr("pipeline.tracking.Sender._give", give)
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    result = train(going_on, tmp_path, tracking)
    assert result["began_at"] == 2
    assert result["best_checkpoint"] == result["last_checkpoint"] == str(folder / "checkpoint_000003")
    assert read_trainer_state(result["last_checkpoint"])["step"] == 3
    said = [record.getMessage() for record in caplog.records if record.name == "equihand"]
    assert any(text.startswith(f"{folder}/checkpoint_000003/model.safetensors: damaged") for text in said)
    assert any(text.startswith(f"{folder}/checkpoint_manager_snapshot.json: not valid JSON") for text in said)
    logs = {path.name.split("-", 1)[1]: path.read_text() for path in (folder / "logs").iterdir()}
    assert sorted(logs) == ["driver.jsonl", "worker-0.jsonl"]
    placed, kept_one = [json.loads(line) for line in logs["worker-0.jsonl"].splitlines()][-3:-1]
    assert (placed["message"], placed["going_on_from"]) == ("placed", str(folder / "checkpoint_000002"))
    assert (kept_one["message"], kept_one["metrics"]["step"]) == ("checkpoint", 3)
    assert "1 records wait" in result["untracked"]
    assert f"database is locked); `python -m jobs.sync {folder}` delivers what is there" in result["untracked"]
    assert "untracked" not in read_json(str(folder / "result.json"))
    monkeypatch.setattr("pipeline.tracking.Sender._give", given)
    assert deliver_left(str(folder)) == Delivered(1, "")
    assert StoredRun(tracking.uri, result["mlflow_run_id"]).history()["score"] == [(2, -2.0), (3, -3.0)]


def test_a_run_without_a_whole_checkpoint_says_so_in_one_line(ray_cluster, tmp_path):
    folder = tmp_path / "runs/broken"
    kept = Kept(str(folder))
    for step in (1, 2):
        kept.keep(save_step(step), {"step": step, "score": -step})
    damage(str(folder / "checkpoint_000001/trainer.pt"), "missing")
    damage(str(folder / "checkpoint_000002/meta.json"), "cut off")
    with pytest.raises(TrainingError) as caught:
        train(going_on, tmp_path, TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    message = str(caught.value)
    assert "\n" not in message
    assert "none of its checkpoints can be read" in message
    assert f"{folder}/checkpoint_000001/trainer.pt: missing" in message
    assert f"{folder}/checkpoint_000002/meta.json: damaged" in message
    assert caught.value.exit_code == 1
