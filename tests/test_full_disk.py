"""A disk that fills up while something is written: one line, what was there stays whole, and the work can go on."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import FullError
from pipeline.frames.buckets import write_row_groups
from pipeline.frames.schema import SCHEMA, rows_to_table
from pipeline.models.checkpoints import check_checkpoint, read_checkpoint
from pipeline.storage import copy_from_local, write_bytes
from tests.tiny_sets import write_tiny_set
from tests.training.test_pretrain import Training, small


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 32 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that takes all the room but `leave` bytes."""
    path = disk / "filler"
    path.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return path


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(
        "pipeline.frames.windows.read_items",
        lambda items, reader: ((item, reader.read(item)) for item in items),
    )


def test_a_file_is_written_whole_or_not_at_all(small_disk, tmp_path):
    uri = str(small_disk / "a" / "x.json")
    write_bytes(uri, b"before")
    fill(small_disk, leave=2**16)
    with pytest.raises(FullError, match=r"x\.json: no space left on the disk; free some") as raised:
        write_bytes(uri, bytes(2**20))
    assert "\n" not in str(raised.value)
    assert Path(uri).read_bytes() == b"before"
    assert [path.name for path in Path(uri).parent.iterdir()] == ["x.json"]
    (tmp_path / "large").write_bytes(bytes(2**20))
    with pytest.raises(FullError, match="no space left on the disk"):
        copy_from_local(tmp_path / "large", str(small_disk / "copy"))


def test_a_shard_is_not_there_until_it_is_whole(small_disk, tmp_path):
    rows = [
        {
            **dict.fromkeys(SCHEMA.names),
            "frame_id": f"a/{number}",
            "clip_id": "a",
            "frame_index": number,
            "source": "s",
            "hand": "right",
            "mirrored": False,
            "jpeg": os.urandom(2**18),
            "crop": [1, 0, 0, 0, 1, 0],
            "split": "train",
        }
        for number in range(4)
    ]
    table = rows_to_table(rows)
    uri, work = str(small_disk / "set"), str(small_disk / "work")
    fill(small_disk, leave=2**19)
    with pytest.raises(FullError, match=r"/work/.*: no space left on the disk; free some") as raised:
        write_row_groups(uri, "shards/x.parquet", work, "s", "train", [table])
    assert "\n" not in str(raised.value)
    assert not Path(uri).exists()
    (small_disk / "filler").unlink()
    shard = write_row_groups(uri, "shards/x.parquet", work, "s", "train", [table])
    assert shard.num_rows == 4
    assert pq.read_table(f"{uri}/shards/x.parquet").num_rows == 4


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("temporary", [False, True])
def test_a_run_goes_on_after_the_disk_was_full(small_disk, tmp_path, monkeypatch, temporary):
    """Either the disk of the run's folder is full at the third checkpoint, or that of temporary files."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    settings = small(str(tmp_path / "set"), epochs=2, checkpoint={"every_steps": 2})
    folder = tmp_path / "run" if temporary else small_disk / "run"
    if temporary:
        monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    report = Training.report

    def full_at_the_third(training, metrics, save):
        if len(training.checkpoints) == 2:
            fill(small_disk, leave=2**17)
        report(training, metrics, save)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "report", full_at_the_third)
        with pytest.raises(FullError, match="no space left on the disk; free some") as raised:
            Training(settings, folder)
    line = str(raised.value)
    assert str(small_disk) in line
    assert "\n" not in line
    there = sorted(folder.glob("checkpoint_*"))
    assert [path.name for path in there] == ["checkpoint_000001", "checkpoint_000002"]
    for path in there:
        check_checkpoint(path, str(path))
    (small_disk / "filler").unlink()
    rest = Training(settings, folder)
    assert rest.steps == [5, 6, 7, 8]
    whole = Training(settings, tmp_path / "whole")
    first, second = (read_checkpoint(str(run.kept.newest))[0] for run in (whole, rest))
    assert all(torch.equal(first[name], second[name]) for name in first)
