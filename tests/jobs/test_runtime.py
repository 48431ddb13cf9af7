"""A job as a process: what it prints, and its exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.run_log import run_log

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import errno, os, sys, time
from pathlib import Path
from jobs.runtime import Job, run_job
from pipeline.config import Settings
from pipeline.errors import DataError, StorageError, warn

class Hows(Settings):
    how: str = "well"

def run(settings, progress):
    print("library chatter")
    progress.note("own words")
    if settings.how == "data":
        raise DataError("s3://a/b: row 3 is broken")
    if settings.how in ("untracked", "lost"):
        warn("s3://a/b: cut off")
        return {"untracked": "2 records wait"} | ({"num_lost": 1} if settings.how == "lost" else {})
    if settings.how == "wait":
        time.sleep(60)
    if settings.how == "native":
        os.write(2, b"[core_worker.cc] Actor ... has constructor arguments in the object store\\n")
    if settings.how == "fault":
        {}["no such key"]
    if settings.how == "library":
        try:
            open("/nowhere/at/all")
        except OSError as error:
            raise StorageError("s3://a: no answer; check the network") from error
    if settings.how == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/data/spill")

run_job(Job("x", Hows, run, "Help.", ray=None, chatter_to={chatter}))
"""
FAULT_LINE = SCRIPT[: SCRIPT.index("no such key")].count("\n") + 1


def job(tmp_path, *arguments: str, chatter: str = "None", **environment: str) -> subprocess.Popen[str]:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT.replace("{chatter}", chatter))
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), **environment},
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
    _, errors = process.communicate(timeout=250)
    assert (process.returncode, errors) == (code, message)
    assert not list(tmp_path.glob("*.log"))


@pytest.mark.parametrize(
    ("how", "line", "in_log"),
    [
        ("library", "error: s3://a: no answer; check the network", "FileNotFoundError"),
        ("full", "error: /data/spill: no space left on the disk; free some, or choose another place", "OSError"),
        (
            "fault",
            f"error: unexpected KeyError in job.py, line {FAULT_LINE}: 'no such key'; this may be a fault of Equihand",
            "in run",
        ),
    ],
)
def test_one_line_in_the_terminal_and_the_traceback_in_the_log(tmp_path, how, line, in_log):
    process = job(tmp_path, "--how", how)
    _, errors = process.communicate(timeout=250)
    (log,) = tmp_path.glob("equihand-x-*.log")
    assert (process.returncode, errors) == (1, f"{line} (details: {log})\n")
    assert "Traceback" in log.read_text()
    assert in_log in log.read_text()


def test_the_terminal_shows_the_traceback_where_it_is_asked_for(tmp_path):
    _, errors = job(tmp_path, "--how", "data", EQUIHAND_DEBUG="1").communicate(timeout=250)
    assert errors.startswith("Traceback")
    assert errors.splitlines()[-1].startswith("error: s3://a/b: row 3 is broken (details: ")


def test_what_native_code_writes_to_stderr_goes_to_the_log(tmp_path):
    output, errors = job(tmp_path, "--how", "native").communicate(timeout=250)
    assert errors == ""
    assert "own words" in output
    (log,) = tmp_path.glob("equihand-x-*.log")
    assert "has constructor arguments" in log.read_text()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, kind):
    process = job(tmp_path, "--how", "wait")
    assert process.stdout is not None
    while "own words" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=250)
    assert process.returncode == 130
    assert errors == "interrupted; run the same command again to go on\n"


@pytest.mark.parametrize(
    ("how", "said", "code"),
    [("untracked", "", 0), ("lost", "error: done, and its results are written, but 2 records wait\n", 4)],
)
def test_warnings_are_shown_and_what_is_lost_for_mlflow_has_its_exit_code(tmp_path, how, said, code):
    process = job(tmp_path, "--how", how)
    output, errors = process.communicate(timeout=250)
    assert "warning: s3://a/b: cut off\n" in output
    assert errors == said
    assert process.returncode == code


def test_chatter_goes_to_its_file(tmp_path):
    process = job(tmp_path, chatter=f"lambda settings: Path({str(tmp_path / 'log')!r})")
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0
    assert "own words" in output
    assert "chatter" not in output
    assert (tmp_path / "log").read_text() == "library chatter\n"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    log = tmp_path / "job.py" / "demo" / "log"
    process = job(tmp_path, chatter=f"lambda settings: Path({str(log)!r})")
    _, errors = process.communicate(timeout=250)
    assert (process.returncode, errors) == (1, f"error: {log}: Not a directory; the log cannot be written there\n")


def test_what_ray_prints_of_lost_nodes_goes_to_the_log_only(monkeypatch, capfd, tmp_path):
    from ray._private import worker

    from jobs import runtime

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # puts it back
    runtime._keep_raylet_quiet()
    with run_log(str(tmp_path), "driver"):
        data = {"lines": ["Task other failed."], "pid": "raylet", "is_err": False}
        worker.print_to_stdstream(data, ignore_prefix=False)
    assert capfd.readouterr() == ("", "")
    assert "Task other failed." in next((tmp_path / "logs").iterdir()).read_text()
