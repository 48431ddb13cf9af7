"""Tasks with resources of their own: results, errors and lost workers, and what ends them."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError, SettingsError, TrainingError
from pipeline.ray_tasks import MAX_RETRIES, TaskNeeds, run_tasks

pytestmark = pytest.mark.usefixtures("ray_cluster")
ONE = TaskNeeds(cpus=1)


def scaled(item: int, factors: np.ndarray) -> float:
    if item == 2:
        raise DataError("item 2 is bad")
    if item == 3:
        raise ValueError("not foreseen")
    return float(item * factors.sum())


def test_every_item_gets_its_result_or_why_it_failed():
    found = dict(run_tasks(scaled, [0, 1, 2, 3, 4], ONE, np.ones(3)))
    assert {item: value for item, value in found.items() if item in (0, 1, 4)} == {0: 0.0, 1: 3.0, 4: 12.0}
    assert isinstance(found[2], DataError)
    assert str(found[2]) == "item 2 is bad"
    assert isinstance(found[3], TrainingError)
    assert str(found[3]) == "ValueError: not foreseen"
    assert found[3].__cause__ is not None


def test_no_items_need_no_cluster():
    assert list(run_tasks(scaled, [], TaskNeeds(cpus=1000), np.ones(3))) == []


def counted(item: int, folder: str) -> int:
    """How many run at the same time."""
    mine = Path(folder, str(item))
    mine.touch()
    time.sleep(0.5)
    num = len(list(Path(folder).iterdir()))
    mine.unlink()
    return num


def test_no_more_at_a_time_than_asked_for(tmp_path):
    found = [num for _, num in run_tasks(counted, range(4), TaskNeeds(cpus=1, most=1), str(tmp_path))]
    assert found == [1, 1, 1, 1]


def dies(item: int, folder: str) -> int:
    tries = Path(folder, f"tries-{item}")
    tries.write_text(tries.read_text() + "." if tries.exists() else ".")
    if len(tries.read_text()) <= item:
        os._exit(1)
    return len(tries.read_text())


def test_a_lost_worker_is_another_try_but_not_for_ever(tmp_path):
    found = dict(run_tasks(dies, [0, 1, MAX_RETRIES + 1], ONE, str(tmp_path)))
    assert (found[0], found[1]) == (1, 2)
    assert isinstance(found[MAX_RETRIES + 1], TrainingError)


def test_what_no_node_can_hold_is_refused():
    with pytest.raises(SettingsError, match="1000 CPU"):
        list(run_tasks(scaled, [1], TaskNeeds(cpus=1000), np.ones(1)))


def sleeps(item: int, folder: str) -> None:
    Path(folder, "started").touch()
    time.sleep(5)
    Path(folder, "ended").touch()


def test_who_stops_asking_ends_what_runs(tmp_path):
    results = run_tasks(counted_or_sleeps, [0, 1], ONE, str(tmp_path))
    assert next(results) == (0, None)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "started").exists()
    results.close()
    time.sleep(7)
    assert not (tmp_path / "ended").exists()


def counted_or_sleeps(item: int, folder: str) -> None:
    if item == 1:
        sleeps(item, folder)
