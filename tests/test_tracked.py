"""Work goes on whatever becomes of MLflow, and nothing of it is lost: here with a real server, which is really killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import sync
from jobs.sync import SyncSettings
from pipeline.config import Settings
from pipeline.errors import EquihandError, MissingError, SettingsError, UntrackedError
from pipeline.provenance import provenance
from pipeline.run_log import run_log
from pipeline.storage import exists, join, list_files, write_bytes
from pipeline.tracked import Delivered, deliver_left, tracked
from pipeline.tracking import Sender, TrackingSettings, stored_run


class Example(Settings):
    epochs: int = 3


class Server:
    """`mlflow server` on a port of its own, which starts again there."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--artifacts-destination", str(self.folder / "artifacts")],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self.answers)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """With the processes that it has started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def wait_until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it took 300 seconds")


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_without_mlflow_what_there_is_to_be_recorded_is_kept_with_the_run(storage, tmp_path, request, caplog):
    runs = str(tmp_path / "runs") if storage == "local" else join(request.getfixturevalue("s3"), "runs")
    folder = join(runs, "run")
    write_bytes(join(folder, "note.png"), b"picture")
    with tracked(TrackingSettings(uri=None), folder, "run", "pretrain", Example()) as tracking:
        tracking.opened()
        for step in range(5):
            tracking.run.log_metrics({"loss": 5.0 - step}, step)
        tracking.run.log_file("note.png")
    assert tracking.mlflow_run_id is None
    assert tracking.untracked() == {}  # as it was asked for
    assert caplog.text == ""
    assert exists(join(folder, "tracking", "queue.jsonl"))
    asked = SyncSettings(runs=("run",), storage=runs)
    with pytest.raises(UntrackedError, match=r"9 records wait \(no MLflow is given .*; give it as --tracking_uri\)"):
        sync.run(asked)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert sync.run(asked.model_copy(update={"tracking_uri": uri}))["delivered"] == {"run": 9}
    stored = stored_run(TrackingSettings(uri=uri), {"kind": "pretrain", "run_id": "run"})
    assert stored.history()["loss"] == [(step, 5.0 - step) for step in range(5)]
    with pytest.raises(EquihandError, match=r"^run 'run' was not recorded in MLflow"):
        stored_run(TrackingSettings(uri=None), {"kind": "pretrain", "run_id": "run"})


def test_a_server_that_is_killed_and_comes_back(tmp_path, free_port, caplog):
    """One run sees it come back, one ends before that, one begins and ends in between."""
    server = Server(tmp_path, free_port)
    uri = f"http://127.0.0.1:{free_port}"
    settings, without = TrackingSettings(uri=uri), TrackingSettings(uri=uri, required=False)
    folders = [str(tmp_path / f"runs/run-{number}") for number in range(3)]

    def said(folder: str) -> list[str]:
        texts = (record.getMessage() for record in caplog.records if record.name == "equihand")
        return [text for text in texts if f"{folder}/tracking" in text or "is back" in text]

    with ExitStack() as servers, ExitStack() as stack:
        servers.callback(server.kill)
        server.start()
        goes_on = stack.enter_context(tracked(settings, folders[0], "run-0", "pretrain", Example()))
        goes_on.opened()
        with tracked(settings, folders[1], "run-1", "pretrain", Example()) as ends:
            ends.opened()
            for tracking in (goes_on, ends):
                for step in range(10):
                    tracking.run.log_metrics({"loss": 30.0 - step, "rate": 0.5}, step)
            server.kill()
            for step in range(10, 20):
                goes_on.run.log_metrics({"loss": 30.0 - step, "rate": 0.5}, step)
                ends.run.log_metrics({"loss": 30.0 - step, "rate": 0.5}, step)
            ends.run.log_text("note.txt", "written while nobody was there")
            wait_until(lambda: said(folders[0]) and said(folders[1]))
        assert "records wait" in ends.untracked()["untracked"]
        assert ends.untracked()["untracked"].endswith(f"`python -m jobs.sync {folders[1]}` delivers what is there")

        with (
            pytest.raises(EquihandError, match=rf"^MLflow at {uri}: nobody answers"),
            tracked(settings, folders[2], "run-2", "finetune", Example()),
        ):
            pytest.fail("the work began")
        assert not Path(folders[2]).exists()
        with tracked(without, folders[2], "run-2", "finetune", Example(), {"frame_set": "s3://a"}) as offline:
            offline.opened()
            offline.run.log_metrics({"loss": 1.0}, 0)
        assert offline.mlflow_run_id is None
        assert offline.untracked()
        with pytest.raises(
            UntrackedError, match=r"run-2: MLflow does not have all of the run: 4 records wait \(MLflow at"
        ):
            sync.run(SyncSettings(runs=("run-2",), storage=str(tmp_path / "runs")))

        server.start()
        for step in range(20, 30):
            goes_on.run.log_metrics({"loss": 30.0 - step, "rate": 0.5}, step)
        wait_until(lambda: any("is back" in text for text in said(folders[0])))
        stack.close()
        assert goes_on.untracked() == {}
        delivered = sync.run(SyncSettings(runs=(folders[1], "run-2"), storage=str(tmp_path / "runs")))["delivered"]
        assert delivered["run-2"] == 4
        assert delivered[folders[1]] > 0
        again = sync.run(SyncSettings(runs=(folders[1], "run-2"), storage=str(tmp_path / "runs")))["delivered"]
        assert set(again.values()) == {0}

        from mlflow import MlflowClient

        client = MlflowClient(uri)
        for tracking, num_steps in ((goes_on, 30), (ends, 20)):
            assert tracking.mlflow_run_id is not None
            for name in ("loss", "rate"):
                points = client.get_metric_history(tracking.mlflow_run_id, name)
                assert [point.step for point in points] == list(range(num_steps))
                assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
        assert ends.mlflow_run_id is not None
        assert {item.path for item in client.list_artifacts(ends.mlflow_run_id)} == {"settings.yaml", "note.txt"}
        assert client.get_run(ends.mlflow_run_id).info.status == "FINISHED"
        stored = client.get_run(stored_run(settings, {"kind": "finetune", "run_id": "run-2"}).mlflow_run_id)
        assert (stored.info.status, stored.data.metrics) == ("FINISHED", {"loss": 1.0})
        assert (stored.data.params, stored.data.tags["frame_set"]) == ({"epochs": "3"}, "s3://a")
        assert len([text for text in said(folders[0]) if "the work goes on" in text and folders[0] in text]) == 1


KILLED = """
import os, signal, sys
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings
with tracked(TrackingSettings(uri=sys.argv[1]), sys.argv[2], "run-1", "pretrain", TrackingSettings()) as tracking:
    for step in range(3):
        tracking.run.log_metrics({"loss": 9.0 - step}, step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_goes_on_delivers_first_what_a_killed_process_left(tmp_path):
    settings, folder = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"), str(tmp_path / "runs/run-1")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(settings.uri), folder], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    with tracked(settings, folder, "run-1", "pretrain", TrackingSettings()) as tracking:
        tracking.opened()
        tracking.run.log_metrics({"loss": 6.0}, 3)
    assert tracking.untracked() == {}
    assert stored_run(settings, {"mlflow_run_id": tracking.mlflow_run_id}).history() == {
        "loss": [(0, 9.0), (1, 8.0), (2, 7.0), (3, 6.0)]
    }


def test_what_is_left_of_a_run_on_object_storage_lies_beside_it(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db", required=False)
    folder = join(s3, "runs", "run-1")
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "__call__", away)
        with tracked(settings, folder, "run-1", "pretrain", Example()) as tracking:
            tracking.opened()
            tracking.run.log_metrics({"loss": 2.0}, 1)
        assert tracking.untracked()["untracked"].startswith(
            "MLflow does not have all of the run: 4 records wait (no answer)"
        )
        assert not list((tmp_path / "tmp").rglob("*.jsonl"))
        assert {uri.rsplit("/", 1)[1] for uri in list_files(join(folder, "tracking"))} == {
            "queue.jsonl",
            "tracking.json",
        }
        # On another machine, to which MLflow does not answer either.
        with tracked(settings, folder, "run-1", "pretrain", Example()) as tracking:
            tracking.opened()
            tracking.run.log_metrics({"loss": 1.0}, 2)
        assert " 8 records wait" in tracking.untracked()["untracked"]
    assert deliver_left(folder) == Delivered(8, "")
    assert not exists(join(folder, "tracking"))
    assert deliver_left(folder) == Delivered(0, "")
    history = stored_run(settings, {"kind": "pretrain", "run_id": "run-1"}).history()
    assert history == {"loss": [(1, 2.0), (2, 1.0)]}
    assert not list((tmp_path / "tmp").rglob("*.jsonl"))


def away(sender, records):
    raise EquihandError("no answer")


def test_a_run_without_a_folder_names_where_its_records_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db", required=False)
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "__call__", away)
        with tracked(settings, None, "evaluate-1", "evaluate", Example()) as tracking:
            tracking.opened()
    folder = tracking.untracked()["untracked"].split("jobs.sync ")[1].split("`")[0]
    assert folder.endswith("/evaluate-1")
    assert sync.run(SyncSettings(runs=(folder,)))["delivered"] == {folder: 3}
    with tracked(settings, None, "evaluate-2", "evaluate", Example()) as tracking:
        tracking.opened()
    assert tracking.untracked() == {}
    assert not (Path(folder).parent / "evaluate-2").exists()


def test_runs_are_named_first_or_by_a_setting(tmp_path):
    assert sync.JOB.load(["a", "s3://b/c", "--storage", "x"]) == SyncSettings(runs=("a", "s3://b/c"), storage="x")
    assert sync.JOB.load(["--runs", "[a]"]).runs == ("a",)
    with pytest.raises(SettingsError, match="'runs'"):
        sync.JOB.load([])
    with pytest.raises(MissingError, match=r"none: no such run; give its folder, or its id and where it is"):
        sync.run(SyncSettings(runs=("none",), storage=str(tmp_path)))


def test_what_ran_is_in_the_log_of_the_run_too(tmp_path):
    folder = str(tmp_path / "run")
    with run_log(folder, "driver"), tracked(TrackingSettings(uri=None), folder, "run", "pretrain", Example()):
        pass
    (path,) = (tmp_path / "run/logs").iterdir()
    found = next(line for line in map(json.loads, path.read_text().splitlines()) if line["message"] == "provenance")
    assert {name: found[name] for name in provenance()} == provenance()
    assert found["mlflow.source.git.commit"]
