import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.frames.epoch_plan import StreamPlan
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.manifest import read_manifest
from pipeline.frames.mine import (
    MineSettings,
    _KeypointReader,
    mine,
    nearest_of_other_videos,
    normalised_poses,
    principal_components,
    video_of,
)
from pipeline.frames.pairs import pairs_shard, read_pairs_info
from pipeline.storage import write_bytes
from tests.tiny_sets import write_tiny_set


def test_poses_have_neither_place_nor_size():
    keypoints = np.random.default_rng(0).normal(size=(5, 21, 2))
    poses = normalised_poses(keypoints.reshape(5, 42))
    moved = normalised_poses((3 * keypoints + (40, -7)).reshape(5, 42))
    np.testing.assert_allclose(moved, poses, atol=1e-12)
    np.testing.assert_allclose((poses**2).sum(1), 21)
    turned = normalised_poses((keypoints @ np.array([[0, 1], [-1, 0]])).reshape(5, 42))
    assert np.abs(turned - poses).max() > 0.5


def test_components_keep_distances_where_there_are_enough():
    poses = np.random.default_rng(1).normal(size=(30, 4)) @ np.random.default_rng(2).normal(size=(4, 42))
    points = principal_components(poses, 4)
    assert points.shape == (30, 4)
    before, after = (np.linalg.norm(each[:, None] - each, axis=-1) for each in (poses, points))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_nearest_neighbour_by_a_naive_loop(monkeypatch):
    monkeypatch.setattr("pipeline.frames.mine._COLUMNS_AT_ONCE", 7)
    rng = np.random.default_rng(3)
    points, videos = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 6, size=40)
    found = nearest_of_other_videos(points[:20], videos[:20], points, videos)
    for query in range(20):
        others = [i for i in range(40) if videos[i] != videos[query]]
        assert found[query] == min(others, key=lambda i: np.linalg.norm(points[i] - points[query]))
    assert (nearest_of_other_videos(points, 0 * videos, points, 0 * videos) == -1).all()


def test_two_hands_of_a_video_are_one_video():
    assert video_of("source/a/b#1") == video_of("source/a/b") == "source/a/b"


def test_joints_in_the_image_serve_like_projected_ones(tmp_path):
    poses = []
    for name, in_2d in (("a", lambda number: False), ("b", lambda number: number % 2 == 0)):
        shard = write_tiny_set(str(tmp_path / name), splits={"train": 16}, in_2d=in_2d).shards[0]
        read = _KeypointReader(MineSettings(frame_set=str(tmp_path / name)))
        poses.append(read((shard.path, 0))[1])
    assert np.isfinite(poses[0]).all()
    np.testing.assert_allclose(poses[1], poses[0], rtol=1e-4)


def expected_partners(uri):
    """By the definition, over the whole split."""
    batch = FrameSet.open(uri).load("train", columns=("frame_id", "clip_id", "joints_3d", "camera"))
    image = batch.columns["joints_3d"] @ batch.columns["camera"].transpose(1, 2)
    keypoints = (image[..., :2] / image[..., 2:]).flatten(1).numpy()
    poses = normalised_poses(keypoints)
    names, clips = batch.columns["frame_id"], batch.columns["clip_id"]
    apart = np.sqrt(((poses[:, None] - poses) ** 2).mean(-1))
    apart[np.array([[one == other for other in clips] for one in clips])] = np.inf
    partner = apart.argmin(1)
    return {
        name: (names[other], apart[row, other], batch.frames[other].numpy(), keypoints[other])
        for row, (name, other) in enumerate(zip(names, partner, strict=True))
    }


@pytest.mark.usefixtures("ray_cluster")
def test_mined_pairs_stream_beside_the_frames(tmp_path):
    """Three shards with uneven row groups: every frame comes with the JPEG and joints of its nearest neighbour."""
    uri = str(tmp_path / "set")
    # All 42 components: then neighbours in the embedding are those in the poses.
    write_tiny_set(uri, splits={"train": 150, "val": 16}, wobble=0.02)
    settings = MineSettings(frame_set=uri, components=42)
    info = mine(settings)
    assert (info.num_rows, info.num_without_keypoints, info.num_without_partner) == (150, 0, 0)
    assert info.frame_set_digest == read_manifest(uri).digest
    expected = expected_partners(uri)
    assert info.mean_distance == pytest.approx(np.mean([value[1] for value in expected.values()]), rel=1e-3)

    columns = (
        "frame_id",
        "clip_id",
        "pair_frame_id",
        "pair_clip_id",
        "pair_timestamp_s",
        "keypoints",
        "pair_keypoints",
    )
    plan = StreamPlan(split="train", batch_size=32, drop_last=False, columns=columns, pairs="similar")
    num_rows = 0
    for batch in FrameSet.open(uri).stream(plan):
        assert batch.partners is not None
        for row, name in enumerate(batch.columns["frame_id"]):
            other, _, frame, keypoints = expected[name]
            found = batch.columns["pair_frame_id"][row]
            assert found == other
            num_rows += 1
            np.testing.assert_array_equal(batch.partners[row].numpy(), frame)
            np.testing.assert_allclose(batch.columns["pair_keypoints"][row].numpy().ravel(), keypoints, rtol=1e-5)
            assert found.startswith(batch.columns["pair_clip_id"][row])
            assert batch.columns["pair_clip_id"][row] != batch.columns["clip_id"][row]
    assert num_rows == 150

    written = mine(settings)
    assert written == info  # nothing was done again


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_mined(tmp_path):
    unlabelled, single = str(tmp_path / "unlabelled"), str(tmp_path / "single")
    write_tiny_set(unlabelled, splits={"train": 8}, labelled=False)
    with pytest.raises(DataError, match="split 'train': no frame has 2D joints; try --keypoints detector"):
        mine(MineSettings(frame_set=unlabelled))
    write_tiny_set(single, splits={"train": 4})
    with pytest.raises(DataError, match="all frames are of one video"):
        mine(MineSettings(frame_set=single))
    with pytest.raises(DataError, match="split 'val' is empty"):
        mine(MineSettings(frame_set=single, splits=("val",)))
    with pytest.raises(DataError, match=r"needs detector\.model"):
        mine(MineSettings(frame_set=single, keypoints="detector"))


@pytest.mark.usefixtures("ray_cluster")
def test_pairs_of_another_state_are_refused(tmp_path):
    uri = str(tmp_path / "set")
    manifest = write_tiny_set(uri, splits={"train": 64})
    with pytest.raises(DataError, match=r"has no pairs 'similar'; run python -m jobs.mine --frame_set"):
        read_pairs_info(FrameSet(uri, manifest), "similar", "train")
    mine(MineSettings(frame_set=uri))
    assert read_pairs_info(FrameSet(uri, manifest), "similar", "train").num_rows == 64
    with pytest.raises(DataError, match="holds pairs of train, not of split 'val'"):
        read_pairs_info(FrameSet(uri, manifest), "similar", "val")
    changed = manifest.model_copy(update={"digest": "0" * 32})
    with pytest.raises(DataError, match="was mined before the frame set changed"):
        read_pairs_info(FrameSet(uri, changed), "similar", "train")
    # A shard that was swapped behind the manifest's back.
    other = str(tmp_path / "other")
    write_tiny_set(other, splits={"train": 64}, source="other")
    path = manifest.shards[0].path
    mine(MineSettings(frame_set=other))
    with open(pairs_shard(other, "similar", path.replace("tiny", "other")), "rb") as file:
        write_bytes(pairs_shard(uri, "similar", path), file.read())
    with pytest.raises(Exception, match="its rows are not those of the frame set's shard"):
        list(FrameSet.open(uri).stream(StreamPlan(split="train", batch_size=16, pairs="similar")))
