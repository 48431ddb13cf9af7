import importlib
import subprocess
import sys

import pytest

from jobs import main
from jobs.submit import job_called


def test_every_job_of_the_table_can_be_run():
    for name in set(main.JOBS) - {"demo", "sync"}:  # which are not submitted
        assert job_called(name).name == name
    for name in main._OTHERS:
        assert hasattr(importlib.import_module(f"jobs.{name}"), "main"), name


def test_the_command_runs_a_job():
    command = [sys.executable, "-c", "from jobs.main import main; main()", "export", "--modle", "x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown setting 'modle'")


@pytest.mark.parametrize(
    ("arguments", "code", "said"), [([], 0, "pretrain"), (["pretrian"], 2, "unknown job 'pretrian'")]
)
def test_it_names_the_jobs(arguments, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["equihand", *arguments])
    with pytest.raises(SystemExit) as exit:
        main.main()
    shown = capsys.readouterr()
    assert (exit.value.code, said in shown.out + shown.err) == (code, True)
