import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jobs import packing, submit
from pipeline.errors import EquihandError, SettingsError

PRETRAIN = ["--frame_set", "s3://b/frames", "--run.storage", "s3://b/runs", "--tracking.uri", "http://mlflow:5000"]


@pytest.fixture(autouse=True)
def _no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


class FakeCluster:
    """The part of Ray's job client that submit uses."""

    def __init__(self, jobs: dict[str, str]) -> None:
        self.jobs = dict(jobs)
        self.submitted: dict[str, Any] = {}
        self.packed: list[str] = []
        self.log = ["one\n", "two\n", "three\n"]
        self.breaks_after = [2, 3]
        self.exit_code: int | None = None

    def list_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]

    def submit_job(self, **request: Any) -> str:
        assert request["submission_id"] not in self.jobs, "Ray refuses an id that it has seen"
        self.submitted = request
        with zipfile.ZipFile(request["runtime_env"]["working_dir"]) as archive:
            self.packed = archive.namelist()
        self.jobs[request["submission_id"]] = "RUNNING"
        return str(request["submission_id"])

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        return SimpleNamespace(status=self.jobs[submission_id], message="it ended", driver_exit_code=self.exit_code)

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        lines = self.breaks_after.pop(0) if self.breaks_after else len(self.log)
        for line in self.log[:lines]:
            yield line
        if lines < len(self.log):
            raise RuntimeError("WebSocket connection closed unexpectedly")


def sent(submission: submit.Submission) -> Any:
    return yaml.safe_load(submission.settings)


def test_what_is_sent_is_what_was_given_and_the_run_id() -> None:
    given = submit.prepare("pretrain", [*PRETRAIN, "--run.run_id", "old", "--epochs=7"], "mine")
    assert given.run_id == "mine"
    assert given.command == ["python", "-m", "jobs.pretrain", "--config=submitted/settings.yaml"]
    assert list(sent(given)) == ["frame_set", "epochs", "run", "tracking"]
    assert (sent(given)["frame_set"], sent(given)["epochs"]) == ("s3://b/frames", 7)
    assert sent(given)["run"] == {"storage": "s3://b/runs", "run_id": "mine"}
    assert submit.prepare("pretrain", [*PRETRAIN, "--run.run_id=own"]).run_id == "own"
    assert submit.prepare("pretrain", PRETRAIN).run_id.startswith("pretrain-2")


def test_what_is_sent_is_read_as_it_was_given(tmp_path: Path) -> None:
    arguments = [
        *PRETRAIN,
        "--workers.num_workers=[2, 4]",
        "--views.size=64",
        "--ray.data_labels={a: b}",
        "--run.run_id=r",
    ]
    (tmp_path / "settings.yaml").write_text(submit.prepare("pretrain", arguments).settings)
    definition = submit.job_called("pretrain")
    assert definition.load([f"--config={tmp_path}/settings.yaml"]) == definition.load(arguments)


def test_what_a_worker_needs_is_told_from_the_settings() -> None:
    def needs(job: str, *arguments: str) -> dict[str, float]:
        return submit.prepare(job, [*arguments]).worker

    assert needs("pretrain", *PRETRAIN, "--workers.cpus_per_worker=3", "--workers.use_gpu=true") == {"CPU": 3, "GPU": 1}
    search = ["--finetune.frame_set=s3://b/l", "--run.storage=s3://b/runs", "--gpus_per_trial=0.5"]
    assert needs("search", *search) == {"CPU": 1, "GPU": 0.5}
    predict = ["--model=equihand-small", "--input=s3://b/video.mp4", "--output=s3://b/out"]
    assert needs("predict", *predict) == {"CPU": 1, "GPU": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs"),
        (["--epoch", "5"], "did you mean --epochs"),
        (["--frame_set", "data/frames"], "'frame_set' = 'data/frames' is a path below this folder"),
        (
            ["--frame_set", "[{uri: s3://b/a}, {uri: data/b}]"],
            "'frame_set.1.uri' = 'data/b' is a path below this folder",
        ),
        (["--tracking.uri", "sqlite:///mlflow.db"], "'tracking.uri'"),
        (["--run.storage", "runs"], "'run.storage'"),
        (
            ["--tracking.uri", "https://me:secret@mlflow"],
            "'tracking.uri' = 'https://me:[*]{3}@mlflow': holds a password",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(arguments: list[str], message: str) -> None:
    kept = [*PRETRAIN]
    if arguments[0] in kept:
        del kept[kept.index(arguments[0]) : kept.index(arguments[0]) + 2]
    with pytest.raises(SettingsError, match=message) as error:
        submit.prepare("pretrain", [*kept, *arguments])
    assert "me:secret" not in str(error.value)


def test_a_model_that_comes_with_the_package_is_no_path() -> None:
    arguments = ["--model", "equihand-small", "--input", "s3://b/video.mp4", "--output", "s3://b/out"]
    assert submit.prepare("predict", arguments).job == "predict"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("head:8265", "http://head:8265"),
        ("head", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example/team", "https://ray.example/team"),
        ("ray.example/team", "http://ray.example/team"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_what_is_missing_of_an_address_is_added(given: str, url: str) -> None:
    assert submit.job_server(given) == url


@pytest.mark.parametrize("given", ["ray://head:10001", "auto", "http://", "head:port", "head:99999", ""])
def test_an_address_of_something_else_is_refused(given: str) -> None:
    with pytest.raises(SettingsError, match="write http://HOST:8265"):
        submit.job_server(given)


def test_unknown_job_and_odd_run_id() -> None:
    for name in ("nope", "runtime", "submit", "demo", "../pretrain"):
        with pytest.raises(SettingsError, match=r"unknown job.*pretrain"):
            submit.prepare(name, [])
    with pytest.raises(SettingsError, match="letters, digits"):
        submit.prepare("pretrain", PRETRAIN, "a/b")


def test_tracking_server_of_the_environment_is_used_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uri(*arguments: str) -> str | None:
        return sent(submit.prepare("pretrain", [*PRETRAIN[:4], *arguments]))["tracking"]["uri"]

    (tmp_path / "other.yaml").write_text("tracking: {experiment: hands}\n")
    assert (
        uri() is uri("--tracking.experiment=hands") is uri(f"--config={tmp_path}/other.yaml") is None
    )  # kept with the run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert uri() == uri("--tracking.experiment=hands") == "http://other:5000"
    assert (
        uri("--tracking.uri", "http://mlflow:5000") == uri("--tracking.uri=http://mlflow:5000") == "http://mlflow:5000"
    )
    (tmp_path / "own.yaml").write_text("tracking: {uri: http://own:5000}\n")
    assert uri("--config", f"{tmp_path}/own.yaml") == "http://own:5000"


def test_settings_of_a_config_file_are_sent_and_others_win_over_them(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("frame_set: s3://b/frames\nepochs: 3\nrun: {storage: s3://b/runs, run_id: from-file}\n")
    prepared = submit.prepare("pretrain", ["--config", str(config), "--tracking.uri=http://m", "--epochs=4"])
    assert prepared.run_id == "from-file"
    assert sent(prepared)["epochs"] == 4
    assert sent(prepared)["run"] == {"storage": "s3://b/runs", "run_id": "from-file"}


def test_a_job_without_a_run_gets_no_run_id() -> None:
    source = ["--source.kind", "labelled_video", "--source.uri", "s3://b/clips"]
    prepared = submit.prepare("ingest", [*source, "--output", "s3://b/frames"], "mine")
    assert prepared.run_id == "mine"
    assert sent(prepared) == {"source": {"kind": "labelled_video", "uri": "s3://b/clips"}, "output": "s3://b/frames"}
    with pytest.raises(SettingsError, match=r"'source.uri' = 'clips'"):
        submit.prepare("ingest", [*source[:3], "clips", "--output", "s3://b/frames"])


def test_first_attempt_further_attempt_and_attaching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    config = tmp_path / "run.yaml"
    config.write_text("epochs: 3\n")
    prepared = submit.prepare("pretrain", ["--config", str(config), *PRETRAIN], "run")
    cluster: Any = FakeCluster({"run2": "RUNNING", "other-run": "RUNNING"})
    assert submit.submit(cluster, "http://head:8265", prepared) == "run"
    request = cluster.submitted
    assert request["entrypoint"] == "python -m jobs.pretrain --config=submitted/settings.yaml"
    assert request["metadata"] == {"job": "pretrain", "run_id": "run"}
    assert request["runtime_env"]["env_vars"]["AWS_ENDPOINT_URL"] == "http://minio:9000"
    assert "secret" not in json.dumps(request)
    assert {"pipeline/config.py", "jobs/pretrain.py", "submitted/settings.yaml"} <= set(cluster.packed)

    assert submit.submit(cluster, "http://head:8265", prepared) == "run"  # still going
    assert list(cluster.jobs) == ["run2", "other-run", "run"]
    cluster.jobs["run"] = "FAILED"
    assert submit.submit(cluster, "http://head:8265", prepared) == "run-attempt2"
    assert submit.submit(cluster, "http://head:8265", prepared) == "run-attempt2"
    cluster.jobs["run-attempt2"] = "STOPPED"
    assert submit.submit(cluster, "http://head:8265", prepared) == "run-attempt3"
    assert submit._latest(cluster, "run") == "run-attempt3"
    cluster.jobs = {"run-attempt9": "SUCCEEDED"}  # the earlier ones are forgotten
    assert submit.submit(cluster, "http://head:8265", prepared) == "run-attempt10"


def test_a_loopback_endpoint_goes_only_to_a_cluster_on_this_machine() -> None:
    environment = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_ENDPOINT_URL_S3": "http://user:pass@minio:9000",
    }
    local = submit.forwarded_environment("http://127.0.0.1:8265", environment)
    assert local == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_REGION": "eu-west-1"}
    assert submit.forwarded_environment("http://head:8265", environment) == {"AWS_REGION": "eu-west-1"}


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", -2, 1)],
)
def test_log_is_printed_once_over_broken_connections_and_the_exit_code_is_the_jobs(
    status: str,
    exit_code: int | None,
    expected: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    cluster: Any = FakeCluster({"run": status})
    cluster.exit_code = exit_code
    assert submit.follow(cluster, "run") == expected
    assert capsys.readouterr().out.replace("run: done\n", "") == "one\ntwo\nthree\n"


def test_following_gives_up_when_the_cluster_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    cluster: Any = FakeCluster({"run": "RUNNING"})
    cluster.breaks_after = [0] * 10
    with pytest.raises(EquihandError, match="connection to the cluster is lost"):
        submit.follow(cluster, "run")


NODES = [{"raylet": {"state": "ALIVE", "resourcesTotal": {"CPU": 8.0, "GPU": 1.0}}}, {"raylet": {"state": "DEAD"}}]


class JobServer(BaseHTTPRequestHandler):
    """A job server that wants the token "right"."""

    python = "3.11.7"

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        code = 200 if sent == "Bearer right" else 403 if sent else 401
        self.send_response(code)
        self.end_headers()
        if code == 200:
            answer: Any = {"ray_version": "2.59.0", "version": "4", "ray_commit": ""}
            if "metadata" in self.path:
                answer = {"data": {"pythonVersion": self.python}}
            elif "nodes" in self.path:
                answer = {"data": {"summary": NODES}}
            self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def job_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), JobServer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_token_is_sent_where_it_is_asked_for(
    job_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(EquihandError, match="asks for a token"):
        submit.connect(job_server)
    (tmp_path / "token").write_text("wrong\n")
    with pytest.raises(EquihandError, match="refuses your token"):
        submit.connect(job_server)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert submit.connect(job_server).get_address() == job_server
    assert "the cluster runs Ray 2.59.0" in capsys.readouterr().err
    monkeypatch.setattr(JobServer, "python", "3.10.14")
    with pytest.raises(EquihandError, match=r"^the cluster's Python is 3.10.14; jobs need 3.11 or newer on its nodes"):
        submit.connect(job_server)


def test_a_worker_that_no_node_holds_is_told(job_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    assert submit.check_fit(job_server, {"CPU": 8.0, "GPU": 1.0}) == ""
    assert submit.check_fit(job_server, {}) == ""
    expected = "no node of the cluster holds (4 CPU, 2 GPU) now; there: 8 CPU, 1 GPU. The job waits until one comes"
    assert submit.check_fit(job_server, {"CPU": 4.0, "GPU": 2.0}).startswith(expected)
    assert submit.check_fit("http://127.0.0.1:9", {"CPU": 4.0}) == ""  # it is not known


def test_no_cluster_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--address", "http://127.0.0.1:9", "--list"]) == 1
    assert capsys.readouterr().err.startswith("error: no Ray job server answers at http://127.0.0.1:9")
    assert submit.main(["--address", "http://127.0.0.1:9", "pretrain", "--epochs", "x"]) == 2


def test_package_holds_code_only_and_is_the_same_for_the_same_code(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    for name in ("pipeline/a.py", "pipeline/data/hand.npz", "jobs/b.py", "jobs/configs/c.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for junk in (".env", "runs/x", "tests/t.py", "pipeline/.DS_Store", "pipeline/__pycache__/a.pyc", "jobs/.cache/x"):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_text(junk)
    packing.pack(root, tmp_path / "one.zip")
    (root / "pipeline" / "a.py").touch()
    packing.pack(root, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["jobs/b.py", "jobs/configs/c.yaml", "pipeline/a.py", "pipeline/data/hand.npz"]
    with (root / "jobs" / "weights.pt").open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(EquihandError, match=r"60 MB to pack.*jobs/weights.pt \(60.0 MB\)"):
        packing.pack(root, tmp_path / "three.zip")
    assert not (tmp_path / "three.zip").exists()
