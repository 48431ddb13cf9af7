"""Most of these read work items in this process: the plan and the reader are what Ray Data runs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.frames import stream
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.stream import (
    ItemReader,
    decode_frames,
    load_frames,
    num_batches,
    plan_epoch,
    stream_batches,
)
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("tiny"))
    write_tiny_set(uri, splits={"train": 301, "val": 20})
    return uri


@pytest.fixture
def in_process(monkeypatch):
    """Run work items here instead of in Ray Data's tasks."""

    def execute(items, reader, num_readers, window_bytes):
        for item in items:
            yield reader.read(item)

    monkeypatch.setattr(stream, "_execute", execute)


def census(uri, **options):
    options = {"split": "train", "batch_size": 16, "columns": ("frame_id",), **options}
    return [(b.epoch, b.step, b.columns["frame_id"]) for b in stream_batches(uri, **options)]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_frame_exactly_once_an_epoch(tiny, world_size):
    for epoch in range(2):
        names = [
            name
            for rank in range(world_size)
            for _, _, ids in census(
                tiny, rank=rank, world_size=world_size, drop_last=False, start_epoch=epoch, num_epochs=1
            )
            for name in ids
        ]
        assert len(names) == 301
        assert len(set(names)) == 301


@pytest.mark.usefixtures("in_process")
def test_all_workers_make_the_same_number_of_full_batches(tiny):
    manifest = read_manifest(tiny)
    for world_size in (1, 2, 3, 5):
        expected = num_batches(manifest, "train", 16, world_size, drop_last=True)
        for rank in range(world_size):
            batches = census(tiny, rank=rank, world_size=world_size, num_epochs=2)
            assert [len(ids) for *_, ids in batches] == [16] * 2 * expected
            assert [(e, s) for e, s, _ in batches] == list(itertools.product(range(2), range(expected)))


@pytest.mark.usefixtures("in_process")
def test_order_depends_on_seed_and_epoch_only(tiny):
    first = census(tiny, seed=1, num_epochs=2)
    assert first == census(tiny, seed=1, num_epochs=2)
    assert first != census(tiny, seed=2, num_epochs=2)
    assert first[0][2] != first[len(first) // 2][2]
    assert census(tiny, seed=1, start_epoch=1) == first[len(first) // 2 :]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("start_step", [1, 7, 17])
def test_an_epoch_goes_on_in_the_middle(tiny, start_step):
    whole = census(tiny, num_epochs=2, batch_size=16)
    assert census(tiny, num_epochs=2, batch_size=16, start_step=start_step) == whole[start_step:]


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(1, 700), min_size=1, max_size=12),
    world_size=st.integers(1, 7),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_plans_of_all_workers_are_a_partition(groups, world_size, seed, epoch):
    manifest = _manifest(groups)
    pieces = [
        piece
        for rank in range(world_size)
        for item in plan_epoch(manifest, "train", rank, world_size, seed, epoch)
        for piece in item
    ]
    rows = [(path, group, row) for path, group, start, stop in pieces for row in range(start, stop)]
    assert len(rows) == len(set(rows)) == sum(groups)
    counts = [
        sum(
            stop - start
            for item in plan_epoch(manifest, "train", rank, world_size, seed, epoch)
            for *_, start, stop in item
        )
        for rank in range(world_size)
    ]
    assert max(counts) - min(counts) <= 1


def _manifest(groups: list[int]) -> Manifest:
    shard = {
        "path": "shards/a.parquet",
        "source": "a",
        "split": "train",
        "num_rows": sum(groups),
        "num_bytes": 1,
        "row_groups": groups,
        "digest": "0",
    }
    return Manifest.model_validate(
        {
            "created_at": "",
            "image_size": 8,
            "group_size": 1,
            "num_rows": sum(groups),
            "num_clips": 1,
            "counts": {"a": {"train": sum(groups)}},
            "hands": {},
            "rejects": {},
            "reject_examples": {},
            "settings": {},
            "digest": "0",
            "shards": [shard],
        }
    )


def test_frame_groups_stay_together(tiny):
    manifest = read_manifest(tiny)
    reader = ItemReader(tiny, ("clip_id",), 0, manifest.group_size, manifest.image_size, True, None)
    item = plan_epoch(manifest, "train", 0, 1, 0, 0)[0]
    clips = reader.read({"epoch": 0, "index": 0, "pieces": item})["clip_id"].tolist()
    changes = sum(a != b for a, b in itertools.pairwise(clips))
    assert changes == len(set(clips)) - 1
    assert clips != sorted(clips)


def test_columns_and_frames_come_as_tensors(tiny):
    batch = load_frames(tiny, split="val", columns=("joints_3d", "camera", "frame_id"))
    assert batch.frames.shape == (20, 3, 32, 32)
    assert batch.frames.dtype == torch.uint8
    assert batch.frames.is_contiguous(memory_format=torch.channels_last)
    assert batch.columns["joints_3d"].shape == (20, 21, 3)
    assert batch.columns["camera"].shape == (20, 3, 3)
    # The fixture draws a bright square at the wrist.
    wrist = torch.einsum("bij,bj->bi", batch.columns["camera"], batch.columns["joints_3d"][:, 0])
    pixel = (wrist[:, :2] / wrist[:, 2:]).long()
    bright = batch.frames[torch.arange(20), :, pixel[:, 1], pixel[:, 0]]
    assert (bright.float().mean(0) > 180).all()


def test_decoding_agrees_with_pillow(tiny):
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    shard = next(shard for shard in read_manifest(tiny).shards if shard.split == "val")
    jpegs = pq.read_table(f"{tiny}/{shard.path}")["jpeg"].to_pylist()
    expected = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs])
    decoded, problems = decode_frames(jpegs, 32)
    assert problems == [""] * len(jpegs)
    assert np.abs(decoded.astype(int) - expected).max() <= 2
    assert decode_frames([jpegs[0], jpegs[1][:40]], 32)[1] == ["", "JPEG does not decode"]
    assert decode_frames(jpegs[:1], 48)[1] == ["is 32x32 px, the set says 48"]


@pytest.mark.usefixtures("in_process")
def test_broken_frames_are_named_and_replaced(tmp_path):
    write_tiny_set(str(tmp_path), splits={"train": 200}, broken=frozenset({3, 90}))
    batches = list(stream_batches(str(tmp_path), split="train", batch_size=20, max_bad_fraction=0.05))
    assert sum(batch.num_frames for batch in batches) == 200
    problems = [problem for batch in batches for problem in batch.problems]
    assert sorted(problem.split(" ")[0] for problem in problems) == [
        "tiny/train-00000/000003",
        "tiny/train-00022/000002",
    ]
    assert all("does not decode" in problem for problem in problems)

    many = tmp_path / "many"
    write_tiny_set(str(many), splits={"train": 200}, broken=frozenset(range(0, 200, 4)))
    with pytest.raises(DataError, match=r"unusable, above max_bad_fraction=0.05: tiny/train"):
        list(stream_batches(str(many), split="train", batch_size=20, max_bad_fraction=0.05))
    with pytest.raises(DataError, match="50 frames are unusable"):
        load_frames(str(many), split="train")


@pytest.mark.usefixtures("in_process")
def test_a_vanished_shard_and_an_empty_split_are_named(tmp_path):
    manifest = write_tiny_set(str(tmp_path), splits={"train": 200})
    (tmp_path / manifest.shards[1].path).unlink()
    with pytest.raises(DataError, match=rf"{manifest.shards[1].path}.*vanished"):
        list(stream_batches(str(tmp_path), split="train", batch_size=20))
    with pytest.raises(DataError, match="split 'test' has no frames; the set has 200 train"):
        list(stream_batches(str(tmp_path), split="test", batch_size=20))


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_gives_what_the_plan_says_from_s3(s3, monkeypatch):
    uri = f"{s3}/frames"
    write_tiny_set(uri, splits={"train": 301})
    names = census(uri, seed=4, num_epochs=2, drop_last=False)
    monkeypatch.setattr(stream, "_execute", lambda items, reader, *_: (reader.read(item) for item in items))
    assert names == census(uri, seed=4, num_epochs=2, drop_last=False)
