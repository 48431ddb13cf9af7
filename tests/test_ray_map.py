"""One way into Ray for finite work: order, errors, lost workers, and what ends it."""

import os
import time
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
import ray

from jobs.runtime import _own_error
from pipeline.errors import DataError, StorageError, causes
from pipeline.ray_map import beside, ray_map

pytestmark = pytest.mark.usefixtures("ray_cluster")
both = pytest.mark.parametrize("lasting", [False, True])
PATIENCE_S = 250


def wait_for(condition):
    """Until it is true; fails where it never gets so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def after(folder: Path, item: int) -> tuple[int, np.ndarray]:
    """The first item waits for a file."""
    if item == 0:
        wait_for((folder / "go").exists)
    if item == 2:
        (folder / "go").touch()
    return item, np.full(2, item, np.float32)


@both
def test_results_in_order(tmp_path, lasting):
    results = list(ray_map(partial(after, tmp_path), range(3), ordered=True, lasting=lasting, num_workers=2))
    assert [item for item, _ in results] == [0, 1, 2]
    assert all((array == item).all() and array.dtype == np.float32 for item, array in results)


def test_results_as_they_come(tmp_path):
    results = ray_map(partial(after, tmp_path), range(2), num_workers=2)
    assert next(results)[0] == 1
    (tmp_path / "go").touch()
    assert [item for item, _ in results] == [0]


def test_no_items_need_no_workers():
    assert list(ray_map(fail, [])) == []


def fail(error):
    raise error


def test_errors_for_people_come_as_they_are():
    with pytest.raises(StorageError, match=r"^s3://a/b: is not there$") as raised:
        list(ray_map(fail, [StorageError("s3://a/b: is not there")]))
    assert raised.type is StorageError
    assert raised.value.__cause__ is None


def test_other_errors_are_the_cause_of_rays():
    with pytest.raises(Exception, match="of a library") as raised:
        list(ray_map(fail, [KeyError("of a library")]))
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
    found = ray_map(partial(die, tmp_path, 2), range(4), ordered=True, lasting=lasting, num_workers=2)
    assert list(found) == [0, 1, 2, 3]
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
        wait_for(lambda: len(list(self.folder.glob("item-*"))) > 1)  # another worker has come
        assert self.model == os.getpid()
        return self.model


def test_lasting_workers_load_once_and_grow_in_number(tmp_path):
    processes = list(ray_map(Detector(tmp_path), range(8), lasting=True))
    assert len(processes) == 8
    assert len(list(tmp_path.glob("loaded-*"))) == len(set(processes)) > 1


def count(folder: Path, item: int) -> int:
    """All but the first wait for a file."""
    (folder / f"begun-{item}").touch()
    if item:
        wait_for((folder / "go").exists)
    (folder / f"done-{item}").touch()
    return item


@both
def test_the_work_ends_where_nobody_asks_for_more(tmp_path, lasting):
    results = ray_map(partial(count, tmp_path), range(20), lasting=lasting)
    assert next(results) == 0
    wait_for(lambda: len(list(tmp_path.glob("begun-*"))) > 1)
    results.close()  # type: ignore[attr-defined]
    (tmp_path / "go").touch()
    assert list(ray_map(partial(count, tmp_path), [99])) == [
        99
    ]  # by the same CPUs, so the others would have had their turn
    assert len(list(tmp_path.glob("begun-*"))) < 12


def _marked(folder):
    """Waits for a file."""
    (folder / "begun").touch()
    wait_for((folder / "go").exists)
    return os.getpid()


def _fails(_):
    raise DataError("shard 7 has vanished")


def test_one_call_runs_beside_the_block_in_another_process(tmp_path):
    with beside(_marked, tmp_path) as result:
        wait_for((tmp_path / "begun").exists)
        (tmp_path / "go").touch()  # only after it has begun, so both were under way
        assert result() != os.getpid()


def test_its_error_is_the_blocks():
    with pytest.raises(DataError, match=r"^shard 7 has vanished$"), beside(_fails, 0) as result:
        result()


def test_it_ends_with_the_block(tmp_path):
    with suppress(KeyError), beside(_marked, tmp_path) as result:
        wait_for((tmp_path / "begun").exists)
        raise KeyError
    with pytest.raises(ray.exceptions.TaskCancelledError):  # it would wait for ever
        result()
