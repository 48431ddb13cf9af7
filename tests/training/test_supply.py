import json
import time

import pytest
import torch

from pipeline.errors import DataError
from pipeline.frames.batches import Batch
from pipeline.frames.read_items import BadFrame
from pipeline.training.distributed import device_for
from pipeline.training.supply import BadFrames, Startup, one_ahead


def wait_until(what):
    """Until it is true, and then as long as something that should not happen might take."""
    for _ in range(200):
        if what():
            break
        time.sleep(0.01)
    time.sleep(0.05)


def batches(count, made):
    for step in range(count):
        made.append(step)
        yield Batch(0, step, torch.full((2, 3, 4, 4), step, dtype=torch.uint8), {})


def test_the_next_batch_is_made_while_the_last_one_is_used():
    made: list[int] = []
    with one_ahead(batches(9, made), torch.device("cpu")) as ahead:
        wait_until(lambda: len(made) == 2)
        assert made == [0, 1]  # before the first one is asked for: one waits, one is held by the thread
        assert next(ahead).step == 0
        wait_until(lambda: len(made) == 3)
        assert made == [0, 1, 2]
        assert [batch.step for batch in ahead] == list(range(1, 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_pinned_batches():
    with one_ahead(batches(2, []), device_for(True)) as ahead:
        assert all(batch.frames.is_pinned() for batch in ahead)


def test_errors_come_through_and_an_early_end_stops_the_reading():
    def failing():
        yield from batches(2, [])
        raise DataError("shard 7 has vanished")

    with one_ahead(failing(), torch.device("cpu")) as ahead:
        assert [next(ahead).step, next(ahead).step] == [0, 1]
        with pytest.raises(DataError, match="shard 7"):
            next(ahead)

    made: list[int] = []
    with one_ahead(batches(100, made), torch.device("cpu")) as ahead:
        next(ahead)
    time.sleep(0.1)
    assert len(made) <= 4


def test_bad_frames_are_listed_once(tmp_path):
    first, second = BadFrame("a/0", "s/1.parquet", "JPEG does not decode"), BadFrame("row 3", "s/2.parquet", "vanished")
    bad = BadFrames(str(tmp_path), 1)
    bad.write()
    assert not list(tmp_path.iterdir())  # nothing is wrong, nothing is written
    for _ in range(2):  # two epochs meet the same rows
        bad.add([first, second])
    bad.write()
    listed = json.loads((tmp_path / "bad_frames/worker-1.json").read_text())
    assert listed == {"num": 2, "frames": [first._asdict(), second._asdict()]}


def test_the_start_s_parts_are_kept(tmp_path):
    for rank in (1, 0):
        startup = Startup(time.time() - 5, str(tmp_path), rank)
        for name in ("model", "first_batch", "first_step", "first_step"):
            assert not (tmp_path / "startup.json").exists() or name == "first_step"
            startup.mark(name)
    seconds = json.loads((tmp_path / "startup.json").read_text())["seconds"]
    assert list(seconds) == ["workers", "model", "first_batch", "first_step"]
    assert 5 <= seconds["workers"] <= seconds["first_step"] < 10
