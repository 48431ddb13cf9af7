"""One way into Ray for finite work: order, errors, lost workers, and what ends it."""

import os
import time
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest

from jobs.runtime import _own_error
from pipeline.errors import DataError, StorageError, causes
from pipeline.ray_map import ray_map

pytestmark = pytest.mark.usefixtures("ray_cluster")
both = pytest.mark.parametrize("lasting", [False, True])
PATIENCE_S = 120


def wait_for(condition):
    """Until it is true; fails where it never gets so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def after(folder: Path, item: int) -> tuple[int, np.ndarray]:
    """Ends only after the item behind it has."""
    if item < 3:
        wait_for((folder / str(item + 1)).exists)
    (folder / str(item)).touch()
    return item, np.full(2, item, np.float32)


@both
@pytest.mark.parametrize("ordered", [False, True])
def test_results_come_as_they_are_ready_or_in_order(tmp_path, ordered, lasting):
    results = list(ray_map(partial(after, tmp_path), range(4), ordered=ordered, lasting=lasting, num_workers=4))
    assert [item for item, _ in results] == ([0, 1, 2, 3] if ordered else [3, 2, 1, 0])
    assert all((array == item).all() and array.dtype == np.float32 for item, array in results)


@both
def test_no_items_need_no_workers(lasting):
    assert list(ray_map(fail, [], lasting=lasting)) == []


def fail(error):
    raise error


@both
def test_errors_for_people_come_as_they_are(lasting):
    with pytest.raises(StorageError, match=r"^s3://a/b: is not there$") as raised:
        list(ray_map(fail, [StorageError("s3://a/b: is not there")], lasting=lasting))
    assert raised.type is StorageError
    assert raised.value.__cause__ is None


@both
def test_other_errors_are_the_cause_of_rays(lasting):
    with pytest.raises(Exception, match="of a library") as raised:
        list(ray_map(fail, [KeyError("of a library")], lasting=lasting))
    assert isinstance(list(causes(raised.value))[-1], KeyError)
    assert _own_error(raised.value) is None


def die(folder: Path, times: int, item: int) -> int:
    """Kill the process the first few times."""
    tries = folder / str(item)
    with tries.open("a") as file:
        file.write("x")
    if item == 2 and tries.stat().st_size <= times:
        os._exit(1)
    return item


@both
def test_a_lost_worker_is_replaced(tmp_path, lasting):
    found = ray_map(partial(die, tmp_path, 2), range(6), ordered=True, lasting=lasting, num_workers=2)
    assert list(found) == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "2").stat().st_size == 3


@both
def test_an_item_that_kills_every_worker_ends_the_work(tmp_path, lasting):
    with pytest.raises(DataError, match="a worker died 3 times"):
        list(ray_map(partial(die, tmp_path, 99), [2], lasting=lasting))
    assert (tmp_path / "2").stat().st_size == 3


class Detector:
    """Work with something that is loaded once and kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> int:
        (self.folder / f"loaded-{len(list(self.folder.glob('loaded-*')))}-{os.getpid()}").touch()
        return os.getpid()

    def __call__(self, item: int) -> int:
        (self.folder / f"item-{item}").touch()
        wait_for(lambda: len(list(self.folder.glob("item-*"))) > 2)  # three at least are at work at the same time
        assert self.model == os.getpid()
        return self.model


@pytest.mark.parametrize("num_workers", [None, 3])
def test_lasting_workers_load_once_and_are_as_many_as_there_are_cpus(tmp_path, num_workers):
    processes = list(ray_map(Detector(tmp_path), range(12), lasting=True, num_workers=num_workers))
    assert len(processes) == 12
    assert len(list(tmp_path.glob("loaded-*"))) == len(set(processes)) >= 3
    assert num_workers is None or len(set(processes)) == num_workers


def count(folder: Path, item: int) -> int:
    """All but the first wait for a file."""
    (folder / f"begun-{item}").touch()
    if item:
        wait_for((folder / "go").exists)
    (folder / f"done-{item}").touch()
    return item


@both
def test_the_work_ends_where_nobody_asks_for_more(tmp_path, lasting):
    import ray

    results = ray_map(partial(count, tmp_path), range(20), lasting=lasting)
    assert next(results) == 0
    wait_for(lambda: len(list(tmp_path.glob("begun-*"))) > 1)
    results.close()  # type: ignore[attr-defined]
    wait_for(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    (tmp_path / "go").touch()
    assert [path.name for path in tmp_path.glob("done-*")] == ["done-0"]
    assert list(ray_map(partial(count, tmp_path), [7])) == [7]
