"""Most of these read work items in this process: the plan and the reader are what Ray Data runs."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load
from pipeline.errors import DataError, SettingsError
from pipeline.frames import windows
from pipeline.frames.epoch_plan import plan_epoch, rows_after, worker_rows
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.mixing import FrameSet, FrameSetShare, open_frame_sets, quotas
from pipeline.frames.read_items import ItemReader, Source
from pipeline.frames.stream import (
    decode_frames,
    load_frames,
    num_batches,
    steps_per_epoch,
    stream_batches,
)
from pipeline.training.pretrain_run import PretrainSettings
from tests.tiny_sets import write_tiny_set


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("tiny"))
    write_tiny_set(uri, splits={"train": 301, "val": 20})
    return uri


@pytest.fixture
def in_process(monkeypatch):
    """Run work items here instead of in Ray Data's tasks."""

    monkeypatch.setattr(windows, "read_items", _read_here)


def _read_here(items, reader, num_readers, window_bytes):
    return ((item, reader.read(item)) for item in items)


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


def test_no_epochs_read_nothing(tiny, monkeypatch):
    monkeypatch.setattr(windows, "read_items", lambda *_: pytest.fail("something was read"))
    assert census(tiny, num_epochs=0, start_epoch=3) == []


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("rows", [2, 31, 32, 33, 34])
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_goes_on_wherever_it_was_left(tmp_path, rows, drop_last):
    """Also at its very end, and for workers with fewer batches than others, or none."""
    uri = str(tmp_path)
    manifest = write_tiny_set(uri, splits={"train": rows}, image_size=16, labelled=False)
    options = {"num_epochs": 2, "start_epoch": 1, "batch_size": 4, "drop_last": drop_last}
    for world_size in (1, 2, 3, 5):
        steps = num_batches(manifest, "train", 4, world_size, drop_last)
        for rank, start_step in itertools.product(range(world_size), range(steps + 1)):
            whole = census(uri, **options, rank=rank, world_size=world_size)
            rest = census(uri, **options, rank=rank, world_size=world_size, start_step=start_step)
            assert rest == [batch for batch in whole if batch[:2] >= (1, start_step)]


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(1, 700), min_size=1, max_size=12),
    world_size=st.integers(1, 7),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_plans_of_all_workers_are_a_partition(groups, world_size, seed, epoch):
    sets = [FrameSet("", _manifest(groups))]
    plans = [plan_epoch(sets, "train", rank, world_size, seed, epoch) for rank in range(world_size)]
    pieces = [piece for plan in plans for item in plan for piece in item.pieces]
    rows = [(path, group, row) for path, group, start, stop in pieces for row in range(start, stop)]
    assert len(rows) == len(set(rows)) == sum(groups)
    counts = [sum(item.num_rows for item in plan) for plan in plans]
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
    reader = ItemReader((Source(tiny, manifest.group_size),), manifest.image_size, ("clip_id",))
    item = plan_epoch([FrameSet(tiny, manifest)], "train", 0, 1, 0, 0)[0]
    clips = reader.read(item)["clip_id"].tolist()
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
    assert sorted((bad.frame, bad.shard[-30:]) for bad in problems) == [
        ("tiny/train-00000/000003", "shards/tiny-train-00000.parquet"[-30:]),
        ("tiny/train-00022/000002", "shards/tiny-train-00001.parquet"[-30:]),
    ]
    assert {bad.reason for bad in problems} == {"JPEG does not decode"}

    many = tmp_path / "many"
    write_tiny_set(str(many), splits={"train": 200}, broken=frozenset(range(0, 200, 4)))
    with pytest.raises(DataError, match=r"unusable already, above max_bad_fraction=0.05: tiny/train"):
        list(stream_batches(str(many), split="train", batch_size=20, max_bad_fraction=0.05))
    with pytest.raises(DataError, match="50 frames are unusable"):
        load_frames(str(many), split="train", max_bad_fraction=0.2)
    loaded = load_frames(str(many), split="train", limit=120, columns=("frame_id",), max_bad_fraction=0.25)
    assert loaded.num_frames == 120
    assert not {bad.frame for bad in loaded.problems} & set(loaded.columns["frame_id"])
    assert len(loaded.problems) == 50


def test_an_empty_split_is_named(tiny):
    with pytest.raises(DataError, match="split 'test' has no frames; the set has 301 train, 20 val"):
        list(stream_batches(tiny, split="test", batch_size=20))


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_gives_what_the_plan_says_from_s3(s3, monkeypatch):
    uri = f"{s3}/frames"
    write_tiny_set(uri, splits={"train": 1301})  # windows cross the epochs
    names = census(uri, seed=4, num_epochs=2, drop_last=False)
    assert len(names) == 2 * 82
    monkeypatch.setattr(windows, "read_items", _read_here)
    assert names == census(uri, seed=4, num_epochs=2, drop_last=False)


def mixed(*shares):
    return open_frame_sets([FrameSetShare(uri=uri, weight=weight) for uri, weight in shares], "train")


@pytest.fixture(scope="module")
def three_sets(tmp_path_factory):
    """a, b, c of 800, 100 and 300 rows."""
    uris = []
    for name, rows in (("a", 800), ("b", 100), ("c", 300)):
        uris.append(str(tmp_path_factory.mktemp(name)))
        write_tiny_set(uris[-1], splits={"train": rows}, source=name, image_size=16, labelled=False)
    return uris


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_weights_are_met_and_nothing_is_left_out(three_sets, world_size):
    """Of 1200 rows an epoch, a gives 600 (two epochs see 800 of it, and 400 again), b 300 (three passes), c all its 300."""
    sets = mixed(*zip(three_sets, (2, 1, 1), strict=True))
    epochs = []
    for epoch in range(4):
        names = []
        for rank in range(world_size):
            options = {
                "rank": rank,
                "world_size": world_size,
                "start_epoch": epoch,
                "drop_last": False,
                "batch_size": 40,
            }
            for _, _, ids in census(sets, **options):
                names += ids
                of_set = Counter(name[0] for name in ids)
                assert abs(of_set["a"] / len(ids) - 0.5) <= 1.5 / len(ids)  # every batch
        assert names != sorted(names)
        epochs.append(Counter(names))
    for counts in epochs:
        of_set = Counter()
        for name, count in counts.items():
            of_set[name[0]] += count
        assert of_set == {"a": 600, "b": 300, "c": 300}
        assert {count for name, count in counts.items() if name[0] == "b"} == {3}
        assert {count for name, count in counts.items() if name[0] == "c"} == {1}
    whole = sum(epochs, Counter())  # 4 x 600 rows of a are three passes over it
    assert {count for name, count in whole.items() if name[0] == "a"} == {3}


@pytest.mark.usefixtures("in_process")
def test_without_weights_every_row_of_every_set_comes_once(three_sets):
    names = [name for *_, ids in census(mixed(*((uri, None) for uri in three_sets)), drop_last=False) for name in ids]
    assert len(names) == len(set(names)) == 1200


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("world_size", "start_step"), [(1, 13), (2, 7), (3, 1)])
def test_a_mixed_epoch_goes_on_in_the_middle(three_sets, world_size, start_step):
    sets = mixed(*zip(three_sets, (5, 1, 2), strict=True))
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "num_epochs": 2, "start_epoch": 1, "seed": 3}
        whole = census(sets, **options)
        assert len(whole) == 2 * steps_per_epoch(sets, "train", 16, world_size, drop_last=True)
        assert census(sets, **options, start_step=start_step) == whole[start_step:]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    batch_size=st.integers(2, 64),
    world_size=st.integers(1, 5),
)
def test_all_workers_make_as_many_steps_whatever_is_mixed(rows, weights, batch_size, world_size):
    sets = [FrameSet(str(n), _manifest([n]), weight) for n, weight in zip(rows, weights, strict=False)]
    assert sum(quotas(sets, "train")) == sum(rows)
    steps = steps_per_epoch(sets, "train", batch_size, world_size, drop_last=True)
    for rank in range(world_size):
        own = worker_rows(sets, "train", rank, world_size)
        taken = rows_after(tuple(own), batch_size)
        assert taken[-1].tolist() == own
        assert (np.diff(taken, axis=0) >= 0).all()
        assert len(taken) - 1 >= steps
        expected = np.outer(taken.sum(1), own) / max(1, sum(own))
        assert np.abs(taken - expected).max() <= len(own) / 2


def test_sets_that_do_not_fit_are_refused_in_one_line(three_sets, tiny):
    with pytest.raises(DataError, match=r"its crops have 32 px, those of \S+ 16 px; .*the same size"):
        mixed((three_sets[0], 1), (tiny, 1))
    with pytest.raises(SettingsError, match="'frame_set': give a weight to every set, or to none"):
        mixed((three_sets[0], 1), (three_sets[1], None))
    with pytest.raises(SettingsError, match="given twice"):
        mixed((tiny, 1), (tiny, 1))
    job = ["--frame_set", "[{uri: a, weight: 3}, {uri: b}]"]
    assert load(PretrainSettings, job).frame_set == [FrameSetShare(uri="a", weight=3), FrameSetShare(uri="b")]
    with pytest.raises(SettingsError, match=r"setting 'frame_set\.list\.0\.weight' = -1: .* greater than 0"):
        load(PretrainSettings, ["--frame_set", "[{uri: a, weight: -1}]"])


@pytest.mark.parametrize("num_readers", [None, 1, 2, 5])
def test_two_windows_are_read_at_a_time_in_order_and_with_the_readers_asked_for(tmp_path, monkeypatch, num_readers):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 700})
    sets = open_frame_sets(uri, "train")
    items = [item for epoch in range(8) for item in plan_epoch(sets, "train", 0, 1, 0, epoch)]
    reader = ItemReader((Source(uri, 4),), sets[0].manifest.image_size)
    running: list[int | None] = []
    most: list[int] = []

    def read(window, reader, share):
        running.append(share)
        most.append(len(running))
        assert num_readers is None or sum(share or 0 for share in running) <= num_readers
        time.sleep(0.02)
        running.remove(share)
        return [window]

    monkeypatch.setattr(windows, "_read_window", read)
    monkeypatch.setattr(windows, "_unpacked", lambda references, _: ({"item": item} for item in references[0]))
    found = list(windows.read_items(iter(items), reader, num_readers, 2**20))
    assert [item for item, _ in found] == items
    assert [block["item"] for _, block in found[1:]] == items[1:]
    assert max(most) == (1 if num_readers == 1 else 2)
