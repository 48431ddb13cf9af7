import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from pipeline import lease as leases
from pipeline.errors import MissingError, SettingsError
from pipeline.lease import HeldError, lease
from pipeline.storage import exists, join, read_json, write_json


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "local" else join(request.getfixturevalue("s3"), "run")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "_LOOK_S", 0.02)
    monkeypatch.setattr(leases, "_SAY_EVERY_S", 0.05)
    monkeypatch.setattr(leases, "_SETTLE_LOCAL_S", 0.0)
    monkeypatch.setattr(leases, "_SETTLE_S", 0.0)


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


def test_one_that_is_just_being_written_anew_is_not_taken(folder, quick, monkeypatch):
    elsewhere(folder, time.time())
    away = iter([True])

    def read(uri: str) -> object:
        if next(away, False):
            raise MissingError(uri)
        return read_json(uri)

    monkeypatch.setattr(leases, "read_json", read)
    with pytest.raises(HeldError), lease(folder, "r", lambda _: elsewhere(folder, time.time())):
        pytest.fail("taken")
    assert next(away, None) is None


def test_one_that_nobody_renews_is_waited_for(folder, quick, monkeypatch):
    monkeypatch.setattr(leases, "_TOO_OLD_S", 1.0)
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


def test_of_many_that_come_at_once_one_gets_it(folder, quick, monkeypatch):
    for name in ("_SETTLE_LOCAL_S", "_SETTLE_S"):  # the test's server answers one request at a time
        monkeypatch.setattr(leases, name, 3.0)
    start, ended, held, refused = threading.Barrier(6), threading.Event(), [], []

    def come() -> None:
        start.wait()
        try:
            with lease(folder, "r"):
                held.append(1)
                ended.wait(20)
        except HeldError:
            refused.append(1)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(held) + len(refused) < 6 and time.monotonic() < deadline:
        time.sleep(0.05)
    ended.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)


def test_one_that_was_taken_over_is_not_written_over(folder, quick):
    with lease(folder, "r"):
        elsewhere(folder, time.time())
        time.sleep(0.3)
        assert read_json(join(folder, "lease.json"))["owner"] == "another"
    assert exists(join(folder, "lease.json"))  # it is the other one's


@pytest.mark.usefixtures("quick")
def test_what_is_no_lease_holds_nothing(tmp_path):
    for text in ("", "[]", "{}", '{"owner": "a"}'):
        (tmp_path / "lease.json").write_text(text)
        with lease(str(tmp_path), "r", pytest.fail):
            pass
