"""Label selection by clip, and the batches that training gets."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import DataError
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import (
    LabelSettings,
    complete_labels,
    decoded_megabytes,
    load_labelled,
    mean_bone_lengths,
    memory_epoch,
    read_joints_2d,
    read_poses,
    select_labels,
)
from pipeline.geometry import default_camera, project
from pipeline.storage import join
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    write_tiny_set(uri, splits={"train": 80, "val": 8}, image_size=32)
    return uri


def choose(frame_set: str, **labels):
    return select_labels(FrameSet.open(frame_set), "train", LabelSettings(**labels))


def test_all_labels_by_default(frame_set):
    selection = choose(frame_set)
    assert (selection.num_frames, len(selection.clips), selection.num_unlabelled) == (80, 20, 0)
    loaded = load_labelled(FrameSet.open(frame_set), "train", clips=selection.clips)
    assert selection.mean_bone_length == pytest.approx(mean_bone_lengths(loaded.joints_3d), rel=1e-5)


def test_all_poses_of_a_split(frame_set, tmp_path):
    poses = read_poses(FrameSet.open(frame_set), "train")
    loaded = load_labelled(FrameSet.open(frame_set), "train")
    np.testing.assert_allclose(np.sort(poses[:, 0, 0]), np.sort(loaded.joints_3d[:, 0, 0]), atol=1e-7)
    assert read_poses(FrameSet.open(frame_set), "test").shape == (0, 21, 3)
    write_tiny_set(str(tmp_path), splits={"train": 8}, image_size=32, labelled=False)
    assert read_poses(FrameSet.open(str(tmp_path)), "train").shape == (0, 21, 3)


def test_fractions_are_whole_clips_and_nested(frame_set):
    chosen = [choose(frame_set, fraction=fraction) for fraction in (0.05, 0.25, 0.5)]
    assert [selection.num_frames for selection in chosen] == [4, 20, 40]
    assert chosen[0].clips < chosen[1].clips < chosen[2].clips
    loaded = load_labelled(FrameSet.open(frame_set), "train", clips=chosen[1].clips)
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
    data = load_labelled(FrameSet.open(frame_set), "train")

    def joints(epoch: int, seed: int = 0) -> np.ndarray:
        return np.concatenate([b.joints_3d.numpy() for b in memory_epoch(data, 16, 5, seed, epoch)])

    assert sorted(joints(0)[:, 0, 0]) == sorted(data.joints_3d[:, 0, 0])
    assert np.array_equal(joints(3), joints(3))
    assert not np.array_equal(joints(3), joints(4))
    assert not np.array_equal(joints(3), joints(3, seed=1))


def test_shares_are_disjoint_and_equal(frame_set):
    data = load_labelled(FrameSet.open(frame_set), "train")
    shares = [data.share(rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [26, 26, 26]
    names = [name for share in shares for name in share.frame_ids]
    assert len(set(names)) == 78


def test_memory_estimate():
    assert decoded_megabytes(6500, 160) == pytest.approx(499.2)


def test_labels_in_the_image_become_a_plane_that_projects_to_them():
    """With the row's own camera where it has one; rows in 3D stay as they are."""
    generator = torch.Generator().manual_seed(0)
    joints_3d = 0.05 * torch.randn(4, 21, 3, generator=generator) + torch.tensor([0.0, 0.0, 0.6])
    camera = torch.tensor([[70.0, 0, 30], [0, 75, 36], [0, 0, 1]]).repeat(4, 1, 1)
    joints_2d = torch.rand(4, 21, 2, generator=generator) * 64
    nan = float("nan")
    known = {"joints_3d": joints_3d.clone(), "camera": camera.clone(), "joints_2d": joints_2d.clone()}
    known["joints_2d"][0] = nan
    known["joints_3d"][1:], known["camera"][2:] = nan, nan
    known["joints_3d"][3] = joints_3d[3]  # without a camera it has no place in the image
    filled, cameras, has_3d = complete_labels(known, 64)
    assert has_3d.tolist() == [True, False, False, False]
    assert torch.equal(filled[0], joints_3d[0])
    assert torch.equal(cameras[:2], camera[:2])
    assert torch.equal(cameras[2:], default_camera(2, 64))
    torch.testing.assert_close(project(filled, cameras)[1:], joints_2d[1:], atol=1e-4, rtol=0)
    assert (filled[1:, :, 2] == 0.5).all()


def test_sets_with_labels_in_the_image(tmp_path):
    """Of the first of two shards all, of the second every other clip; the same joints as in 3D."""
    uri, whole = str(tmp_path / "set"), str(tmp_path / "whole")
    write_tiny_set(uri, splits={"train": 128}, image_size=32, in_2d=lambda n: n < 64 or n % 8 < 4)
    write_tiny_set(whole, splits={"train": 128}, image_size=32)
    selection, in_3d = choose(uri), choose(whole)
    assert (selection.num_frames, selection.num_2d_only, selection.num_unlabelled) == (128, 96, 0)
    assert selection.clips == in_3d.clips
    assert selection.constant is not None
    assert selection.constant.num_poses == 32
    np.testing.assert_allclose(selection.constant_2d, in_3d.constant_2d, atol=1e-6)
    assert read_poses(FrameSet.open(uri), "train").shape == (32, 21, 3)
    mixed, complete_2d = (read_joints_2d(FrameSet.open(each), "train") for each in (uri, whole))
    np.testing.assert_allclose(mixed, complete_2d, atol=1e-6)
    loaded, complete = (load_labelled(FrameSet.open(each), "train") for each in (uri, whole))
    assert loaded.has_3d.sum() == 32
    assert complete.has_3d.all()
    points = [project(torch.from_numpy(d.joints_3d), torch.from_numpy(d.camera)) for d in (loaded, complete)]
    torch.testing.assert_close(*points, atol=1e-4, rtol=1e-4)
    assert np.array_equal(loaded.joints_3d[loaded.has_3d], complete.joints_3d[loaded.has_3d])
    assert (loaded.pixel_size == 1).all()
    shares = [loaded.share(rank, 2) for rank in range(2)]
    assert [len(share.has_3d) for share in shares] == [64, 64]
    assert sum(share.has_3d.sum() for share in shares) == 32


def test_a_set_without_depth_has_no_sizes(tmp_path):
    write_tiny_set(str(tmp_path), splits={"train": 16}, image_size=32, in_2d=lambda number: True)
    selection = choose(str(tmp_path))
    assert (selection.num_frames, selection.num_2d_only, selection.constant) == (16, 16, None)
    assert selection.mean_bone_length == {}


def test_the_side_of_a_pixel_of_mirrored_and_shrunk_crops(tmp_path):
    manifest = write_tiny_set(str(tmp_path), splits={"train": 4}, image_size=32)
    path = join(str(tmp_path), manifest.shards[0].path)
    table = pq.read_table(path)
    crops = [[-2.0, 0, 32, 0, 2, 0], [0.25, 0, 5, 0, 0.25, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]]
    field = table.schema.field("crop")
    table = table.set_column(table.schema.names.index("crop"), field, pa.array(crops, field.type))
    pq.write_table(table, path, row_group_size=16)
    assert load_labelled(FrameSet.open(str(tmp_path)), "train").pixel_size.tolist() == [0.5, 4.0, 1.0, 1.0]
