"""The entry of the measurements, and their table."""

import subprocess
import sys

import pytest

from jobs.bench import NAMES, main
from jobs.bench_table import markdown, row


def test_names(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["vews"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: unknown measurement 'vews'; there are: {', '.join(NAMES)}\n"
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "python -m jobs.bench data" in capsys.readouterr().out


def test_bad_settings_get_one_line():
    found = subprocess.run(
        [sys.executable, "-m", "jobs.bench", "contrast", "--thread", "2"], capture_output=True, text=True, timeout=250
    )
    assert (found.returncode, found.stderr) == (2, "error: unknown setting 'thread'; did you mean --threads?\n")


def test_table():
    rows = [
        row("ours", 12345.6, "frames/core-s", "OpenCV", 6.123, ">= 6"),
        row("theirs", None, "frames/core-s", "not installed"),
        row("small", 0.01234, "s"),
    ]
    assert markdown(rows).splitlines() == [
        "| | measured | | against | ratio | target |",
        "| --- | ---: | --- | --- | ---: | --- |",
        "| ours | 12,346 | frames/core-s | OpenCV | 6.12 | >= 6 |",
        "| theirs | n/a | frames/core-s | not installed |  |  |",
        "| small | 0.0123 | s |  |  |  |",
    ]
