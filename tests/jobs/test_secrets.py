"""Secrets of the environment, and such as a user may write into a URI, are in nothing that is written, shown or sent."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import submit
from pipeline.errors import SettingsError
from pipeline.storage import copy_to_local, list_files
from tests.conftest import ROOT
from tests.jobs.test_submit import FakeCluster

SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID0001",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+access=key0002",
    "AWS_SESSION_TOKEN": "planted-session-token-0003==",
    "MLFLOW_TRACKING_USERNAME": "planted-user-0004",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-0005",
    "MLFLOW_TRACKING_TOKEN": "planted-tracking-token-0006",
    "DATABRICKS_TOKEN": "dapi-planted-0007",
    "HF_TOKEN": "hf_planted0008",
    "RAY_AUTH_TOKEN": "planted-ray-token-0009",
}


def forms(secret: str) -> set[bytes]:
    """How a secret may be written."""
    encoded = base64.b64encode(secret.encode()).rstrip(b"=")[:-1]
    return {secret.encode(), urllib.parse.quote(secret, safe="").encode(), encoded}


def found_in(data: bytes, secrets: dict[str, str] = SECRETS) -> list[str]:
    return [name for name, secret in secrets.items() if any(form in data for form in forms(secret))]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, and what is packed in it."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    yield from ((f"{path}:{name}", archive.read(name)) for name in archive.namelist())


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a short name, as Ray's sockets need it."""
    path = Path(tempfile.mkdtemp(prefix="eh"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_pipeline_writes_no_secret(folder, s3):
    places = {"RAY_TMPDIR": str(folder / "ray"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)}
    for name in ("ray", "tmp"):
        (folder / name).mkdir()
    environment = {**os.environ, **SECRETS, **places}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.jobs.secret_run", str(folder), s3],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    copy_to_local(s3, folder / "bucket")
    written = dict(files(folder))
    for part in ("ray/", "mlflow.db", "mlartifacts/", "bucket/runs/pretrain/logs/", "bucket/evaluation/report.html"):
        assert any(name.startswith(f"{folder}/{part}") for name in written), part
    assert len(list_files(f"{s3}/runs", ".jsonl")) >= 5
    assert b"environment" in b"".join(data for name, data in written.items() if name.endswith(".jsonl"))
    assert b"secret_run" in written[f"{folder}/ray_jobs.txt"]
    leaks = {name: found for name, data in written.items() if (found := found_in(data))}
    assert leaks == {}
    assert found_in(done.stdout + done.stderr) == []


def test_submit_sends_no_secret(monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRETS['HF_TOKEN']}@minio:9000")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sent: list[bytes] = []

    class Cluster(FakeCluster):
        def submit_job(self, **request):
            package = Path(request["runtime_env"]["working_dir"])
            sent.append(str(request).encode())
            sent.extend(data for _, data in files(package.parent))
            return super().submit_job(**request)

    arguments = ["--frame_set", "s3://b/frames", "--run.storage", "s3://b/runs", "--tracking.uri", "http://mlflow:5000"]
    submit.submit(Cluster({}), "http://head:8265", submit.prepare("pretrain", arguments, "a"))  # type: ignore[arg-type]
    # This file, where the secrets are made up, does not go along.
    assert len(sent) > 50
    assert [found for data in sent if (found := found_in(data))] == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-0010@mlflow:5000")
    with pytest.raises(SettingsError, match="holds a password") as raised:
        submit.prepare("pretrain", arguments[:4])
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "uri"),
    [
        ("tracking.uri", "http://me:planted-0011@127.0.0.1:5000"),
        ("tracking.uri", "postgresql://me:planted-0011@127.0.0.1/mlflow"),
        ("run.storage", "s3://KEY:planted-0011@bucket/runs?region=x"),
        ("frame_set", "s3://bucket/frames?X-Amz-Credential=planted-0011&X-Amz-Signature=planted-0011"),
        ("frame_set", "https://bucket.example/frames?sig=planted-0011"),
    ],
)
def test_a_secret_in_a_uri_ends_the_job_without_showing_it(setting, uri, tmp_path):
    given = [] if setting == "frame_set" else ["--frame_set=frames"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.pretrain", *given, f"--{setting}={uri}"],
        cwd=tmp_path,
        env={**os.environ, "EQUIHAND_DEBUG": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 2
    assert f"error: setting '{setting}" in shown
    assert "planted" not in shown
    assert list(tmp_path.iterdir()) == []
