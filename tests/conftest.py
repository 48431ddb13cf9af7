"""Fixtures that several tests share: reference data, one Ray session, one S3 server."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import tracked

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("EQUIHAND_SHARED", ROOT.parent / "shared"))

# Small tensors: more threads only wait for each other, and for other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# What a run records of its code, whatever state the checkout is in.
os.environ.setdefault("EQUIHAND_GIT", "0123456789")

# Tests interrupt processes that they start. These would ignore it where this process does, as it does in the background
# of a shell script.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests look at what MLflow has after a run, on however busy a machine.
tracked._DRAIN_S = 300.0


def golden(name: str) -> dict[str, np.ndarray]:
    """Vectors of the reference implementation; the test is skipped where they are absent."""
    path = SHARED / "golden" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"reference vectors {path.name} are not here")
    with np.load(path) as data:
        return dict(data)


def real_data(name: str) -> Path:
    """A file or folder of real input; the test is skipped where it is absent."""
    path = SHARED / "real" / name
    if not path.exists():
        pytest.skip(f"real input {name} is not here")
    return path


@pytest.fixture(scope="session")
def ray_cluster(s3_endpoint: str) -> Iterator[None]:
    """One local Ray for all tests that need one: 4 logical CPUs; its workers reach the loopback S3 server."""
    from jobs.runtime import RaySettings, ray_session

    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        with ray_session(RaySettings(address="local", num_cpus=4, object_store_mb=512)):
            yield


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh bucket, with the environment set up for it."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    import boto3

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    client: Any = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """Environment variables under which the AWS SDKs use the loopback server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
