"""Label selection by clip, and the batches that training gets."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError
from pipeline.frames.manifest import read_manifest
from pipeline.storage import join
from pipeline.training.labelled import (
    LabelSettings,
    decoded_megabytes,
    load_labelled,
    mean_bone_lengths,
    memory_epoch,
    read_poses,
    select_labels,
)
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    write_tiny_set(uri, splits={"train": 80, "val": 8}, image_size=32)
    return uri


def choose(frame_set: str, **labels):
    return select_labels(frame_set, "train", LabelSettings(**labels), read_manifest(frame_set))


def test_all_labels_by_default(frame_set):
    selection = choose(frame_set)
    assert (selection.num_frames, len(selection.clips), selection.num_unlabelled) == (80, 20, 0)
    loaded = load_labelled(frame_set, "train", read_manifest(frame_set), clips=selection.clips)
    assert selection.mean_bone_length == pytest.approx(mean_bone_lengths(loaded.joints_3d), rel=1e-5)


def test_all_poses_of_a_split(frame_set, tmp_path):
    manifest = read_manifest(frame_set)
    poses = read_poses(frame_set, "train", manifest)
    loaded = load_labelled(frame_set, "train", manifest)
    np.testing.assert_allclose(np.sort(poses[:, 0, 0]), np.sort(loaded.joints_3d[:, 0, 0]), atol=1e-7)
    assert read_poses(frame_set, "test", manifest).shape == (0, 21, 3)
    unlabelled = write_tiny_set(str(tmp_path), splits={"train": 8}, image_size=32, labelled=False)
    assert read_poses(str(tmp_path), "train", unlabelled).shape == (0, 21, 3)


def test_fractions_are_whole_clips_and_nested(frame_set):
    chosen = [choose(frame_set, fraction=fraction) for fraction in (0.05, 0.25, 0.5)]
    assert [selection.num_frames for selection in chosen] == [4, 20, 40]
    assert chosen[0].clips < chosen[1].clips < chosen[2].clips
    loaded = load_labelled(frame_set, "train", read_manifest(frame_set), clips=chosen[1].clips)
    assert {name.rsplit("/", 1)[0] for name in loaded.frame_ids} == chosen[1].clips
    assert len(loaded) == 20


def test_numbers_round_up_to_whole_clips_and_the_seed_counts(frame_set):
    assert choose(frame_set, num=10).num_frames == 12
    assert choose(frame_set, num=10) == choose(frame_set, num=10)
    assert choose(frame_set, num=10).clips != choose(frame_set, num=10, seed=6).clips
    with pytest.raises(DataError, match=r"labels\.num = 81, but split 'train' has 80"):
        choose(frame_set, num=81)


def test_clips_with_gaps_are_left_out_and_counted(tmp_path):
    uri = str(tmp_path)
    manifest = write_tiny_set(uri, splits={"train": 16}, image_size=32)
    path = join(uri, manifest.shards[0].path)
    table = pq.read_table(path)
    joints = table["joints_3d"].to_pylist()
    joints[5] = None
    column = table.schema.get_field_index("joints_3d")
    field = table.schema.field(column)
    table = table.set_column(column, field, pa.array(joints, field.type))
    pq.write_table(table, path, row_group_size=16)
    selection = choose(uri)
    assert (selection.num_frames, len(selection.clips), selection.num_unlabelled) == (12, 3, 4)


def test_no_labels_at_all_is_an_error(tmp_path):
    write_tiny_set(str(tmp_path), splits={"train": 8}, image_size=32, labelled=False)
    with pytest.raises(DataError, match="no labelled clip in split 'train'"):
        choose(str(tmp_path))


def test_epochs_are_seeded_permutations(frame_set):
    data = load_labelled(frame_set, "train", read_manifest(frame_set))

    def joints(epoch: int, seed: int = 0) -> np.ndarray:
        return np.concatenate([b.joints_3d.numpy() for b in memory_epoch(data, 16, 5, seed, epoch)])

    assert sorted(joints(0)[:, 0, 0]) == sorted(data.joints_3d[:, 0, 0])
    assert np.array_equal(joints(3), joints(3))
    assert not np.array_equal(joints(3), joints(4))
    assert not np.array_equal(joints(3), joints(3, seed=1))


def test_shares_are_disjoint_and_equal(frame_set):
    data = load_labelled(frame_set, "train", read_manifest(frame_set))
    shares = [data.share(rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [26, 26, 26]
    names = [name for share in shares for name in share.frame_ids]
    assert len(set(names)) == 78


def test_memory_estimate():
    assert decoded_megabytes(6500, 160) == pytest.approx(499.2)
