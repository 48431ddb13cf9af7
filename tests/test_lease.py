import os
import socket
import subprocess
import sys
import time

import pytest

from pipeline import lease as leases
from pipeline.errors import SettingsError
from pipeline.lease import lease
from pipeline.storage import exists, join, write_json


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "local" else join(request.getfixturevalue("s3"), "run")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_LOOK_S", 0.02)
    monkeypatch.setattr(leases, "_SAY_EVERY_S", 0.05)
    monkeypatch.setattr(leases, "_TOO_OLD_S", 1.0)


def elsewhere(folder: str, at: float) -> None:
    who = {"owner": "another", "at": at, "host": "another-machine", "pid": 1, "started": 0.0}
    write_json(join(folder, "lease.json"), who)


def test_a_run_is_held_once_and_given_back(folder, quick):
    with lease(folder, "r"):
        assert exists(join(folder, "lease.json"))
        with (
            pytest.raises(SettingsError, match=rf"^run 'r' is held by process {os.getpid()} of ") as refused,
            lease(folder, "r"),
        ):
            pytest.fail("held twice")
        assert refused.value.exit_code == 2
    assert not exists(join(folder, "lease.json"))
    with lease(folder, "r"):
        pass


def test_one_that_is_still_renewed_is_not_taken(folder, quick):
    """From another machine, of whose processes nothing is known here."""
    elsewhere(folder, time.time())
    said: list[str] = []

    def renew(text: str) -> None:
        said.append(text)
        elsewhere(folder, time.time())

    with pytest.raises(SettingsError, match="process 1 of another-machine"), lease(folder, "r", renew):
        pytest.fail("taken")
    assert len(said) == 1


def test_one_that_nobody_renews_is_waited_for(folder, quick):
    elsewhere(folder, time.time())
    began = time.monotonic()
    said: list[str] = []
    with lease(folder, "r", said.append):
        assert 0.5 < time.monotonic() - began < 30
    assert said == [
        "run 'r' is held by process 1 of another-machine; it cannot run twice at once; waiting 1 s for a sign of life"
    ]


def test_that_of_a_killed_process_of_this_machine_is_taken_at_once(folder):
    code = "import sys, psutil; print(psutil.Process().create_time(), flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    who = {"host": socket.gethostname(), "pid": holder.pid, "started": float(holder.stdout.readline())}
    holder.kill()
    holder.communicate()
    write_json(join(folder, "lease.json"), {"owner": "dead", "at": time.time(), **who})
    with lease(folder, "r", pytest.fail):
        pass


@pytest.mark.usefixtures("quick")
def test_what_is_no_lease_holds_nothing(tmp_path):
    for text in ("", "[]", "{}", '{"owner": "a"}'):
        (tmp_path / "lease.json").write_text(text)
        with lease(str(tmp_path), "r", pytest.fail):
            pass
