"""Smaller frame sets inside a frame set."""

from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSettings, select_labels
from pipeline.frames.manifest import read_manifest
from pipeline.frames.schema import SCHEMA
from pipeline.frames.verify import verify
from pipeline.study.subsets import nested_clips, write_subset
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("sets") / "set")
    write_tiny_set(
        uri, splits={"train": 160, "val": 16, "test": 16}, group_size=4, rows_per_shard=64, row_group_size=16
    )
    return uri


def test_smaller_shares_are_among_larger_ones_and_seeds_differ(frame_set):
    shares = [nested_clips(FrameSet.open(frame_set), "train", share, 3) for share in (0.01, 0.125, 0.25, 0.5, 1.0)]
    assert [len(clips) for clips in shares] == [1, 5, 10, 20, 40]
    assert all(small < large for small, large in pairwise(shares))
    assert nested_clips(FrameSet.open(frame_set), "train", 0.25, 4) != shares[2]


def test_labelled_clips_are_the_first_of_the_unlabelled_ones(frame_set):
    labelled = select_labels(FrameSet.open(frame_set), "train", LabelSettings(fraction=0.1, seed=3)).clips
    assert labelled == nested_clips(FrameSet.open(frame_set), "train", 0.1, 3)


def test_a_subset_is_a_whole_frame_set(frame_set, tmp_path):
    target = str(tmp_path / "half")
    written = write_subset(frame_set, target, "train", 0.5, 3)
    clips = nested_clips(FrameSet.open(frame_set), "train", 0.5, 3)
    assert written == read_manifest(target)
    assert (written.rows_in("train"), written.rows_in("test"), written.num_clips) == (80, 0, 20)
    checked = verify(FrameSet(target, written))
    assert checked.is_sound
    assert not checked.warnings
    columns = ("frame_id", "clip_id")
    mine, every = (FrameSet.open(uri).load("train", columns=columns) for uri in (target, frame_set))
    expected = [name for name, clip in zip(*every.columns.values(), strict=True) if clip in clips]
    assert mine.columns["frame_id"] == expected
    # Frame groups stay whole, inside one row group each.
    for shard in written.shards:
        file = pq.ParquetFile(tmp_path / "half" / shard.path)
        assert file.schema_arrow.equals(SCHEMA)
        seen = [set(file.read_row_group(index)["clip_id"].to_pylist()) for index in range(file.num_row_groups)]
        assert len(set().union(*seen)) == sum(map(len, seen))

    (tmp_path / "half" / written.shards[0].path).unlink()
    assert write_subset(frame_set, target, "train", 0.5, 3) == written  # it is there, and is not made anew
