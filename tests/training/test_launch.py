"""How a run on workers ends: errors that would come again are not tried again, and MLflow knows what happened."""

import _thread
import itertools
import json
import multiprocessing
import os
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray
from torch import nn

from pipeline.errors import DataError, EquihandError, StorageError, TrainingError
from pipeline.models.checkpoints import Snapshot, read_trainer_state
from pipeline.models.kept import Kept
from pipeline.progress import SILENT
from pipeline.run_log import run_log
from pipeline.runs import RunSettings
from pipeline.storage import read_json
from pipeline.tracked import Delivered, Run, deliver_left
from pipeline.tracking import Sender, StoredRun, TrackingSettings
from pipeline.training import launch, worker_run
from pipeline.training.background import is_any_left
from pipeline.training.board import progress_board
from pipeline.training.launch import train_on_workers
from pipeline.training.leaving import ENDS, MOVES
from pipeline.training.pulse import Pulse, Sign
from pipeline.training.saving import saving
from pipeline.training.workers import LaunchSettings
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


def test_an_interrupted_driver_leaves_no_call_behind(ray_cluster, tmp_path):
    """Ray crashes where it is shut down under one. The workers are where the driver is, so that they understand relative paths."""

    def loop(settings, data, worker):
        Path(worker.folder, "ran").write_text(os.getcwd())
        time.sleep(600)

    def interrupt():
        wait_for((tmp_path / "runs/broken/ran").exists)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        train(loop, tmp_path, TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert not is_any_left()
    assert (tmp_path / "runs/broken/ran").read_text() == os.getcwd()
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


@pytest.mark.slow
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
    return Snapshot(nn.Linear(2, 2).state_dict(), {"step": step}, {"metrics": {"step": step, "score": -step}})


class FakeBoard:
    """What a worker's process tells, in this process."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.signs: list[Sign] = []
        self.machines: list[tuple[int, dict[str, float]]] = []

    def stopped(self) -> str:
        return ""

    def warn(self, text: str) -> None:
        self.said.append(text)

    def post(self, key: str, done: int, **figures: float) -> None:
        self.done = done

    def machine(self, node_rank: int, metrics: dict[str, float]) -> None:
        self.machines.append((node_rank, metrics))

    def pulse(self, rank: int, sign: Sign):
        self.signs.append(sign)
        return sign.steps >= 3, {rank: sign, 1: sign}


@pytest.fixture
def alone(monkeypatch):
    """A worker's process without Ray: what it reported."""
    reported: list[dict] = []
    ranks, sizes = ("world_rank", "local_rank", "node_rank"), ("world_size", "local_world_size")
    numbers = dict.fromkeys(ranks, 0) | dict.fromkeys(sizes, 1)
    context = SimpleNamespace(**{f"get_{name}": partial(int, number) for name, number in numbers.items()})
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.report", reported.append)
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: None)
    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", lambda value: value)
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "here")
    return reported


def work(loop, tmp_path, board, **tracking):
    settings = LaunchSettings(
        run=RunSettings(storage=str(tmp_path), run_id="run"), tracking=TrackingSettings(**tracking)
    )
    return worker_run.run_worker(loop, settings, None, board, "pretrain", str(tmp_path / "run"), 1, False, time.time())


def test_a_worker_leaves_with_the_checkpoint_of_its_last_step(alone, tmp_path):
    """The driver asks for it while the worker trains; the checkpoint is there before the worker goes."""
    begun = []

    def loop(settings, data, worker):
        begun.append(worker.resume and read_trainer_state(worker.resume)["step"])
        for step in itertools.count(1):
            leaving = worker.leaving()
            worker.notice(step, {})
            if leaving:
                worker.report({"step": step, "epoch": step / 8}, save_step(step))
            time.sleep(0.01)

    board = FakeBoard()
    left = work(loop, tmp_path, board)
    checkpoint = str(tmp_path / "run/checkpoint_000001")
    step = board.done
    assert left == {"left": ENDS, "step": step, "epoch": step / 8, "checkpoint": checkpoint}
    assert read_trainer_state(checkpoint)["step"] == step >= 3
    (metrics,) = alone
    assert metrics["step"] == step
    assert metrics["checkpoint_pause_s"] >= 0
    assert work(loop, tmp_path, board)["checkpoint"] == str(tmp_path / "run/checkpoint_000002")
    assert begun == [None, step]


@pytest.mark.parametrize(("every_s", "local_rank"), [(0.01, 0), (0, 0), (0.01, 1)])
def test_one_worker_of_a_node_tells_how_busy_it_is(every_s, local_rank, alone, tmp_path, monkeypatch):
    tells = every_s > 0 and local_rank == 0
    board = FakeBoard()
    context = ray.train.get_context()
    monkeypatch.setattr(context, "get_local_rank", lambda: local_rank)
    monkeypatch.setattr(context, "get_node_rank", lambda: 3)

    def loop(settings, data, worker):
        if tells:
            wait_for(lambda: len(board.machines) > 1)
        else:
            time.sleep(0.2)
        return {}

    assert work(loop, tmp_path, board, system_metrics_s=every_s) == {}
    assert {node for node, _ in board.machines} == ({3} if tells else set())
    assert all(metrics["system_memory_usage_megabytes"] > 0 for _, metrics in board.machines)


def test_a_worker_hears_that_a_node_goes(alone, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: "a node")

    def loop(settings, data, worker):
        assert worker.leaving()  # before its first step already
        worker.report({"step": 1, "epoch": 0.1}, save_step(1))

    left = work(loop, tmp_path, FakeBoard())
    assert (left["left"], left["step"]) == (MOVES, 1)


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_the_worker(alone, tmp_path, monkeypatch):
    def refuse(directory, uri):
        raise StorageError("s3://a/b: no answer")

    def loop(settings, data, worker):
        worker.report({"step": 1, "epoch": 0.5}, save_step(1))
        return {}

    monkeypatch.setattr("pipeline.models.kept._upload", refuse)
    monkeypatch.setattr("pipeline.models.kept.with_patience", lambda call: call())
    with pytest.raises(StorageError, match="no answer"):
        work(loop, tmp_path, FakeBoard())


def hang(folder: str) -> None:
    """A worker's process whose step does not end."""
    kept, written = Kept(folder), threading.Event()

    def keep(snapshot, metrics, recent):
        assert written.wait(300)
        kept.keep(snapshot, metrics)

    def give_up(reason: str) -> None:
        written.set()
        worker_run._give_up(FakeBoard(), writer, reason)  # type: ignore[arg-type]

    with run_log(folder, "worker-0"), saving(keep) as writer:
        writer.save(save_step(1), {"step": 1})
        pulse = Pulse(0, lambda rank, sign: (False, {rank: sign._replace(seconds=1e6)}), 60, give_up)
        pulse.step()
        with pulse.beating():
            threading.Event().wait()


def test_a_worker_that_hangs_ends_its_process_after_its_checkpoint(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=hang, args=(str(tmp_path),))
    process.start()
    process.join(300)
    assert process.exitcode == 1
    assert read_trainer_state(tmp_path / "checkpoint_000001")["step"] == 1
    (log,) = (tmp_path / "logs").iterdir()
    assert "no step was done for more than 60 s (workers.hang_timeout_s)" in log.read_text()


def going_on(settings, data, worker):
    assert worker.resume is not None
    step = read_trainer_state(worker.resume)["step"]
    worker.report({"step": step + 1, "score": -step - 1.0}, save_step(step + 1))
    return {"began_at": step}


def test_a_damaged_run_goes_on_from_what_is_whole(ray_cluster, tmp_path, caplog, monkeypatch):
    """The newest checkpoint is damaged, and so is the list that Ray Train kept of them. MLflow fails on the way."""
    folder = tmp_path / "runs/broken"
    kept = Kept(str(folder))
    lost = {"step": 1, "epoch": 0.5, "score": -1.5, "loss": 0.25}  # reported before the second one, and not arrived
    for step in (1, 2, 3):
        metrics = {"step": step, "score": -step}
        kept.keep(save_step(step), metrics, recent=[lost, metrics] if step == 2 else [])
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
    lines = [json.loads(line) for line in logs["worker-0.jsonl"].splitlines()]
    placed, kept_one = (next(line for line in lines if line["message"] == what) for what in ("placed", "checkpoint"))
    assert placed["going_on_from"] == str(folder / "checkpoint_000002")
    assert kept_one["metrics"]["step"] == 3
    assert "1 records wait" in result["untracked"]
    assert f"database is locked); `python -m jobs.sync {folder}` delivers what is there" in result["untracked"]
    assert "untracked" not in read_json(str(folder / "result.json"))
    monkeypatch.setattr("pipeline.tracking.Sender._give", given)
    assert deliver_left(str(folder)) == Delivered(1, "")
    history = StoredRun(str(tracking.uri), result["mlflow_run_id"]).history()
    assert history["score"] == [(1, -1.5), (2, -2.0), (3, -3.0)]
    assert history["loss"] == [(1, 0.25)]


@pytest.mark.slow
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
