"""Work goes on whatever becomes of MLflow, and nothing of it is lost: here with a real server, which is really killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from jobs import sync
from jobs.sync import SyncSettings
from pipeline.config import Settings
from pipeline.errors import EquihandError, MissingError, SettingsError, UntrackedError
from pipeline.provenance import provenance
from pipeline.run_log import run_log
from pipeline.storage import exists, join, list_files, write_bytes
from pipeline.tracked import Delivered, deliver_left, tracked, tracked_again
from pipeline.tracking import Sender, TrackingSettings, stored_run


class Example(Settings):
    epochs: int = 3


class Server:
    """`mlflow server` on a port of its own, which starts again there."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        """options: where it keeps artifacts; by default it keeps them itself, in the folder."""
        self.folder, self.port = folder, port
        self.options = options or ("--artifacts-destination", str(folder / "artifacts"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options],
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


@pytest.mark.slow
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


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_the_logs_of_a_run_are_artifacts_also_of_one_that_failed(storage, tmp_path, request, monkeypatch):
    """With their last lines, the newest of them, and of a long one the end."""
    runs = str(tmp_path / "runs") if storage == "local" else join(request.getfixturevalue("s3"), "runs")
    folder, settings = join(runs, "run"), TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("pipeline.tracked._MOST_LOGS", 2)
    monkeypatch.setattr("pipeline.tracked._MAX_LOG_BYTES", 1000)
    write_bytes(join(folder, "logs/20200101T000000-driver.jsonl"), b"{}\n")
    long = b"".join(b'{"line": %d}\n' % number for number in range(1000))
    write_bytes(join(folder, "logs/20200102T000000-worker-0.jsonl"), long)
    write_bytes(join(folder, "result.json"), b"{}")  # an old one, of which this start knows nothing
    with (
        suppress(LookupError),
        tracked(settings, folder, "run", "pretrain", Example()) as tracking,
        run_log(folder, "driver"),
    ):
        tracking.opened()
        raise LookupError("no such clip")
    assert tracking.untracked() == {}

    from mlflow import MlflowClient

    client = MlflowClient(settings.uri)
    assert tracking.mlflow_run_id is not None
    client.download_artifacts(tracking.mlflow_run_id, "logs", str(tmp_path))
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert (len(logs), logs[0], logs[-1]) == (3, "20200102T000000-worker-0.jsonl", "older.txt")
    assert (tmp_path / "logs/older.txt").read_text() == f"1 older logs are in {folder}/logs only\n"
    assert (tmp_path / "logs" / logs[0]).read_bytes() == b"".join(long.splitlines(True)[-71:])
    last = json.loads((tmp_path / "logs" / logs[1]).read_text().splitlines()[-1])
    assert (last["message"], last["what"]) == ("failed", "no such clip")
    assert {item.path for item in client.list_artifacts(tracking.mlflow_run_id)} == {"logs", "settings.yaml"}


def test_something_more_of_a_run_that_has_ended(s3, tmp_path):
    """A folder, and a result; also of a run that MLflow has not got yet."""
    settings, folder = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"), join(s3, "runs/run")
    with tracked(settings.model_copy(update={"uri": None}), folder, "run", "pretrain", Example()) as tracking:
        tracking.opened()
        write_bytes(join(folder, "result.json"), b'{"a": 1}')
    write_bytes(join(folder, "model/code/program.py"), b"pass")
    for _ in range(2):
        with tracked_again(settings, folder, "run", "pretrain") as again:
            again.run.log_folder("model")
        assert again.untracked() == {}
    assert not exists(join(folder, "tracking"))

    from mlflow import MlflowClient

    client = MlflowClient(settings.uri)
    assert again.mlflow_run_id is not None
    assert client.get_run(again.mlflow_run_id).info.status == "FINISHED"
    client.download_artifacts(again.mlflow_run_id, "", str(tmp_path / "all"))
    found = {str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*") if path.is_file()}
    assert found == {"settings.yaml", "result.json", "model/code/program.py"}


def test_how_busy_the_machines_are(tmp_path):
    """This one's, by itself, and what others say; the curves of a run are without them."""
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db", system_metrics_s=0.05)
    folder = tmp_path / "run"
    with tracked(settings, str(folder), "run", "pretrain", Example()) as tracking:
        tracking.log_machine({"cpu_utilization_percentage": 50.0}, "node_1")
        tracking.run.log_metrics({"loss": 1.0}, step=1)
        wait_until(lambda: (folder / "tracking/queue.jsonl").read_text().count("system/cpu") >= 3)
        tracking.opened()
    assert tracking.untracked() == {}

    from mlflow import MlflowClient

    assert tracking.mlflow_run_id is not None
    metrics = MlflowClient(settings.uri).get_run(tracking.mlflow_run_id).data.metrics
    assert metrics["system/node_1/cpu_utilization_percentage"] == 50
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100
    assert len(MlflowClient(settings.uri).get_metric_history(tracking.mlflow_run_id, "system/disk_usage_megabytes")) > 2
    assert stored_run(settings, {"mlflow_run_id": tracking.mlflow_run_id}).history() == {"loss": [(1, 1.0)]}


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
