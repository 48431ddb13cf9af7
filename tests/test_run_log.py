import json
import logging
from pathlib import Path

import pytest

from pipeline import run_log as module
from pipeline.errors import StorageError, warn
from pipeline.run_log import at_step, log, run_log


def lines(folder: Path) -> list[dict]:
    (path,) = (folder / "logs").iterdir()
    assert path.name.endswith("-worker-0.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_happens_is_kept_as_lines_of_json(tmp_path):
    log("before")
    with run_log(str(tmp_path / "run-1"), "worker-0"):
        log("epoch", metrics={"loss": 1.5, "where": Path("a")})
        warn("s3://a/b: cut off, seen by the log's test")
    log("after")
    found = lines(tmp_path / "run-1")
    assert [line["message"] for line in found] == [
        "started",
        "epoch",
        "s3://a/b: cut off, seen by the log's test",
        "ended",
    ]
    assert [line["level"] for line in found] == ["info", "info", "warning", "info"]
    assert all((line["run"], line["process"]) == ("run-1", "worker-0") for line in found)
    assert not any({"worker", "step"} & line.keys() for line in found)  # it is not known to be a worker's
    assert found[0]["versions"]["torch"]
    assert found[1]["metrics"] == {"loss": 1.5, "where": "a"}
    assert sorted(line["time"] for line in found) == [line["time"] for line in found]
    assert logging.getLogger("equihand").level == logging.NOTSET


def test_lines_of_a_worker_name_its_rank_and_step(tmp_path):
    with run_log(str(tmp_path / "run-1"), "worker-0", worker=0):
        at_step(7)
        log("placed")
        log("bad step", step=5)
    found = lines(tmp_path / "run-1")
    assert [line["step"] for line in found] == [0, 7, 5, 7]
    assert all(line["worker"] == 0 for line in found)


def test_how_it_failed_is_the_last_line(tmp_path):
    with pytest.raises(ValueError, match="no such\nframe"), run_log(str(tmp_path / "run-1"), "worker-0"):
        raise ValueError("no such\nframe")
    assert {"message": "failed", "level": "error", "what": "no such frame"}.items() <= lines(tmp_path / "run-1")[
        -1
    ].items()


def test_the_file_is_there_while_the_process_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    with run_log(str(tmp_path / "run-1"), "worker-0"):
        log("placed")
        assert [line["message"] for line in lines(tmp_path / "run-1")][-1] == "placed"


def test_a_storage_that_refuses_it_does_not_disturb_the_run(tmp_path, monkeypatch):
    def refuse(uri, data):
        raise StorageError(f"{uri}: no permission")

    monkeypatch.setattr(module, "write_bytes", refuse)
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    said: list[str] = []
    with run_log(str(tmp_path / "run-1"), "worker-0", said.append):
        log("placed")
    assert len(said) == 1
    assert said[0].endswith("no permission)")
