"""What Prometheus gets of a run."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline import gauges
from pipeline.gauges import METRICS, WorkerGauges, exported, teller
from pipeline.training.pulse import Sign
from pipeline.training.waiting import Watch
from tests.tiny_sets import write_tiny_set

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")

Series = dict[str, list[tuple[dict[str, str], float]]]


def series(text: str) -> Series:
    """Name -> [(labels, value)] of what an endpoint says of the project."""
    found: Series = {}
    for line in text.splitlines():
        if line.startswith("ray_equihand_") and (match := LINE.match(line)):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def value(found: Series, name: str) -> float:
    [(_, number)] = found[name]
    return number


@pytest.mark.slow
def test_a_run_is_scraped(tmp_path):
    write_tiny_set(str(tmp_path / "frames"), splits={"train": 96}, broken=frozenset({5}))
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.scraped_run", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=250,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scraped = json.loads((tmp_path / "scraped.json").read_text())
    found, metrics = series(scraped["text"]), scraped["result"]["metrics"]

    assert set(found) == {name for metric in METRICS for name in exported(metric)}
    for each in found.values():
        for labels, _ in each:
            assert (labels["run_id"], labels["job"]) == ("watched", "pretrain")
            assert labels["worker"] in ("0", "driver")
    assert value(found, "ray_equihand_loss") == pytest.approx(metrics["loss"])
    assert value(found, "ray_equihand_frames_per_second") == pytest.approx(metrics["frames_per_second"])
    assert value(found, "ray_equihand_frames_seen") == 16 * metrics["step"] == 2 * 96
    assert value(found, "ray_equihand_bad_frames") == metrics["bad_frames"] == 1
    assert value(found, "ray_equihand_bad_steps") == metrics["bad_steps"] == 0
    assert before < value(found, "ray_equihand_checkpoint_timestamp_seconds") < time.time()
    assert value(found, "ray_equihand_step_seconds_count") == 6  # every 2 of 12 steps
    assert 0 < value(found, "ray_equihand_data_wait_seconds_total") < scraped["result"]["wall_s"]
    assert value(found, "ray_equihand_waiting_for_nodes_seconds") == 0

    (log,) = (tmp_path / "runs" / "watched" / "logs").glob("*-worker-0.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all((line["run"], line["worker"]) == ("watched", 0) for line in lines)
    assert [(line["message"], line["step"]) for line in lines if line["message"] in ("started", "epoch", "ended")] == [
        ("started", 0),
        ("ended", 12),
    ]
    assert [line["step"] for line in lines if line["message"] == "checkpoint begun"] == [6, 12]


class Told:
    def __init__(self) -> None:
        self.values: list[tuple[str, float]] = []

    def __call__(self, name: str, value: float) -> None:
        assert name in METRICS
        self.values.append((name.removeprefix("equihand_"), value))


def test_the_first_worker_tells_what_is_of_the_run_and_every_worker_its_own(monkeypatch):
    monkeypatch.setattr(gauges.time, "time", lambda: 1000.0)
    metrics = {"step": 10, "epoch": 0.5, "frames_per_second": 64.0, "loss": 2.5, "bad_steps": 1, "bad_frames": 2}
    first, second = Told(), Told()
    for rank, told in enumerate((first, second)):
        worker = WorkerGauges(told, rank)
        worker.logged(metrics, 320, waited_s=1.5)
        worker.logged({"step": 20, "frames_per_second": 32.0}, 640, waited_s=2.0)
        worker.checkpoint_is_there()
    own = [("step_seconds", 0.5), ("data_wait_seconds", 1.5), ("step_seconds", 1.0), ("data_wait_seconds", 0.5)]
    assert second.values == own
    assert Counter(first.values) == Counter(
        [
            ("checkpoint_timestamp_seconds", 1000.0),
            ("frames_per_second", 64.0),
            ("loss", 2.5),
            ("bad_frames", 2.0),
            ("bad_steps", 1.0),
            ("frames_seen", 320),
            ("frames_per_second", 32.0),
            ("frames_seen", 640),
            ("checkpoint_timestamp_seconds", 1000.0),
            *own,
        ]
    )


def test_waiting_for_workers_is_told_in_whole_seconds():
    told, now = Told(), [0.0]
    watch = Watch(2, {"CPU": 1.0}, 1000.0, lambda text: None, lambda _: "", lambda *_: False, lambda: now[0], tell=told)
    for signs in ({}, {}, {}, {0: Sign("step", 0.1, 3), 1: Sign("step", 0.1, 3)}):
        now[0] += 0.8
        watch.look(signs)
    assert [round(seconds) for _, seconds in told.values] == [0, 1, 2, 0]
    told.values.clear()
    for _ in range(20):
        now[0] += 0.8
        watch.look(signs)
    assert told.values == 2 * [("waiting_for_nodes_seconds", 0.0)]


def test_gauges_are_told_again(monkeypatch):
    """Ray forgets them otherwise."""
    told, now = Told(), [100.0]
    monkeypatch.setattr(gauges.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gauges.time, "time", lambda: 1000.0)
    worker = WorkerGauges(told, 0)
    worker.logged({"step": 1, "loss": 2.5}, 32, waited_s=1.0)
    told.values.clear()
    worker.repeat()
    assert told.values == []
    now[0] += gauges.REPEAT_S
    worker.repeat()
    worker.repeat()
    assert told.values == [("checkpoint_timestamp_seconds", 1000.0), ("loss", 2.5), ("frames_seen", 32)]


def test_without_ray_nothing_is_told(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(gauges, "_made", lambda name: pytest.fail("made"))
    teller("run", "pretrain", "0")("equihand_loss", 1.0)
