"""What Ray raises when it starts and when it loses something, in one line."""

import os
import subprocess
import sys
from pathlib import Path

from jobs.ray_errors import lost_in_ray, proxy_hint, ray_start_error

ROOT = Path(__file__).resolve().parents[2]


def test_the_innermost_reason_is_said():
    try:
        try:
            raise RuntimeError("Failed to connect to GCS. Last connection error: UNAVAILABLE\n at 10.0.0.1")
        except RuntimeError as inner:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from inner
    except ConnectionError as error:
        line = str(ray_start_error("10.0.0.1:6379", error))
    assert line.startswith(
        "Ray at '10.0.0.1:6379' cannot be reached: Failed to connect to GCS. Last connection error: "
    )
    assert "UNAVAILABLE at 10.0.0.1; is the cluster up" in line


def test_a_proxy_is_named_where_there_is_one(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    assert proxy_hint("10.0.0.1") == ""
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert "add 10.0.0.1 to NO_PROXY" in proxy_hint("10.0.0.1")
    monkeypatch.setenv("no_proxy", "10.0.0.1")
    assert proxy_hint("10.0.0.1") == ""


def test_what_ray_loses_is_told_from_faults():
    import ray.exceptions

    assert "memory ran out" in str(lost_in_ray(ray.exceptions.OutOfMemoryError("killed")))
    assert "disk is full" in str(lost_in_ray(ray.exceptions.OutOfDiskError("x")))
    assert lost_in_ray(KeyError("x")) is None
    assert lost_in_ray(ray.exceptions.RayTaskError("f", "Traceback ...", ValueError("x"))) is None


def test_a_job_in_a_folder_too_deep_for_rays_sockets(tmp_path):
    """The whole command."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    without = {name: value for name, value in os.environ.items() if name not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    process = subprocess.run(
        [sys.executable, "-m", "jobs.synthesize", "--out", str(tmp_path / "clips"), "--num_clips", "1"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**without, "PYTHONPATH": str(ROOT), "TMPDIR": str(deep)},
    )
    (line,) = process.stderr.splitlines()
    assert process.returncode == 1
    assert line.startswith("error: Ray does not start: ")
    assert "AF_UNIX path length cannot exceed 107 bytes" in line
    assert "set RAY_TMPDIR to a short path" in line
    (log,) = deep.glob("equihand-synthesize-*.log")
    assert line.endswith(f"(details: {log})")
    assert "Traceback" in log.read_text()
