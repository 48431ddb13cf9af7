"""A job as a process: what it prints, and its exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.runtime import RaySettings, ray_session
from pipeline.errors import EquihandError

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys, time
from pathlib import Path
from jobs.runtime import run_job
from pipeline.config import Settings
from pipeline.errors import DataError

class Job(Settings):
    how: str = "well"

def run(settings, progress):
    print("library chatter")
    progress.note("own words")
    if settings.how == "data":
        raise DataError("s3://a/b: row 3 is broken")
    if settings.how == "wait":
        time.sleep(60)

run_job(Job, run, "jobs.x", "Help.", chatter_to={chatter})
"""


def job(tmp_path, *arguments: str, chatter: str = "None") -> subprocess.Popen[str]:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.replace("{chatter}", chatter))
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 0, ""),
        (["--how", "data"], 1, "error: s3://a/b: row 3 is broken\n"),
        (["--hwo", "x"], 2, "error: unknown setting 'hwo'; did you mean --how?\n"),
    ],
)
def test_exit_codes_and_one_line_errors(tmp_path, arguments, code, message):
    process = job(tmp_path, *arguments)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, message)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, kind):
    process = job(tmp_path, "--how", "wait")
    assert process.stdout is not None
    while "own words" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "interrupted; run the same command again to go on\n"


def test_chatter_goes_to_its_file(tmp_path):
    process = job(tmp_path, chatter=f"lambda settings: Path({str(tmp_path / 'log')!r})")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "own words" in output
    assert "chatter" not in output
    assert (tmp_path / "log").read_text() == "library chatter\n"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("address", "reason"), [("127.0.0.1:1", "Connection refused"), ("nowhere", "nvalid address")])
def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch, address, reason):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's session
    said = pytest.raises(EquihandError, match=rf"^Ray at '{address}' cannot be reached: .*{reason}")
    with said, ray_session(RaySettings(address=address)):
        pass
