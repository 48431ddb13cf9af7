"""Most of these read work items in this process: the plan and the reader are what Ray Data runs."""

import itertools
import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load
from pipeline.errors import DataError, SettingsError
from pipeline.frames import windows
from pipeline.frames.epoch_plan import StreamPlan, plan_epoch, rows_after, share_rows, steps_per_epoch
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.mixing import FrameSetShare, Mixture
from pipeline.frames.read_items import ItemReader, decode_frames
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


def _read_here(items, reader):
    return ((item, reader.read(item)) for item in items)


def census(frames, start=(0, 0), num_epochs=1, **options):
    """(epoch, step, names) of each batch of num_epochs epochs, from the place `start` on. frames: a URI or a mixture."""
    plan = StreamPlan(
        **{"split": "train", "batch_size": 16, "columns": ("frame_id",), "epochs": start[0] + num_epochs, **options}
    )
    stream = (FrameSet.open(frames) if isinstance(frames, str) else frames).stream(plan)
    stream.load_state_dict({"epoch": start[0], "step": start[1]})
    return [(b.epoch, b.step, b.columns["frame_id"]) for b in stream]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_frame_exactly_once_an_epoch(tiny, world_size):
    for epoch in range(2):
        names = [
            name
            for rank in range(world_size)
            for _, _, ids in census(tiny, start=(epoch, 0), rank=rank, world_size=world_size, drop_last=False)
            for name in ids
        ]
        assert len(names) == 301
        assert len(set(names)) == 301


@pytest.mark.usefixtures("in_process")
def test_all_workers_make_the_same_number_of_full_batches(tiny):
    for world_size in (1, 2, 3, 5):
        expected = steps_per_epoch([301], 16, world_size, drop_last=True)
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
    assert census(tiny, (1, 0), seed=1) == first[len(first) // 2 :]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("start_step", [1, 7, 17])
def test_an_epoch_goes_on_in_the_middle(tiny, start_step):
    whole = census(tiny, num_epochs=2, batch_size=16)
    assert census(tiny, (0, start_step), 2, batch_size=16) == whole[start_step:]


def together(frames, world_size, **options):
    """(epoch, step, names) of the batches of all workers together."""
    of_workers = [census(frames, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    places = sorted({batch[:2] for of_worker in of_workers for batch in of_worker})
    names: dict[tuple[int, int], list[str]] = {place: [] for place in places}
    for of_worker in of_workers:
        for epoch, step, ids in of_worker:
            names[epoch, step] += ids
    return [(*place, ids) for place, ids in names.items()]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("num_shares", [1, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_batches_do_not_depend_on_the_number_of_workers(tiny, world_size, num_shares):
    """Also where it changes within an epoch: every remaining row comes once."""
    options = {"num_shares": num_shares, "batch_size": 12, "num_epochs": 2, "seed": 1}
    whole = together(tiny, num_shares, **options)
    assert together(tiny, world_size, **options) == whole
    assert together(tiny, world_size, start=(0, 3), **options) == whole[3:]
    last = {"drop_last": False, **options}
    assert together(tiny, world_size, **last) == together(tiny, num_shares, **last)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("world_size", [1, 3, 5])
def test_mixed_batches_do_not_depend_on_the_number_of_workers(three_sets, world_size):
    sets = mixed(*zip(three_sets, (5, 1, 2), strict=True))
    options = {"num_shares": 2, "batch_size": 16, "start": (1, 4), "seed": 2}
    assert together(sets, world_size, **options) == together(sets, 2, **options)


@pytest.mark.usefixtures("in_process")
def test_what_replaces_a_broken_row_does_not_depend_on_the_number_of_workers(tmp_path):
    write_tiny_set(str(tmp_path), splits={"train": 200}, broken=frozenset({3, 90, 91, 160}))
    options = {"num_shares": 2, "batch_size": 10, "max_bad_fraction": 0.1}
    whole = together(str(tmp_path), 2, **options)
    assert len({name for *_, names in whole for name in names}) == 196
    for world_size in (1, 3, 4):
        assert together(str(tmp_path), world_size, **options) == whole


@pytest.mark.usefixtures("in_process")
def test_the_place_in_the_data_is_saved_and_restored(tiny):
    """After every batch, also an epoch's last one; as plain values."""
    plan = StreamPlan(split="train", batch_size=100, epochs=2, columns=("frame_id",))
    stream = FrameSet.open(tiny).stream(plan)
    assert stream.state_dict() == {"epoch": 0, "step": 0}
    whole, states = [], []
    for batch in stream:
        whole.append(batch.columns["frame_id"])
        states.append(json.loads(json.dumps(stream.state_dict())))
    assert states == [{"epoch": epoch, "step": step + 1} for epoch in range(2) for step in range(3)]
    for number, state in enumerate(states, 1):
        other = FrameSet.open(tiny).stream(plan)
        other.load_state_dict(state)
        assert [batch.columns["frame_id"] for batch in other] == whole[number:]
    chosen = FrameSet.open(tiny).stream(replace(plan, clips=frozenset({"tiny/train-00000"})))
    chosen.load_state_dict({"epoch": 1, "step": 0})
    with pytest.raises(ValueError, match="from the start of an epoch"):
        chosen.load_state_dict({"epoch": 1, "step": 1})


def test_no_epochs_read_nothing(tiny, monkeypatch):
    monkeypatch.setattr(windows, "read_items", lambda *_: pytest.fail("something was read"))
    assert census(tiny, (3, 0), 0) == []


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("rows", [2, 31, 32, 33, 34])
@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_goes_on_wherever_it_was_left(tmp_path, rows, drop_last):
    """Also at its very end, and for workers with fewer batches than others, or none."""
    uri = str(tmp_path)
    write_tiny_set(uri, splits={"train": rows}, image_size=16, labelled=False)
    options = {"num_epochs": 2, "batch_size": 4, "drop_last": drop_last}
    for world_size in (1, 2, 3, 5):
        steps = steps_per_epoch([rows], 4, world_size, drop_last)
        for rank, start_step in itertools.product(range(world_size), range(steps + 1)):
            whole = census(uri, (1, 0), **options, rank=rank, world_size=world_size)
            rest = census(uri, (1, start_step), **options, rank=rank, world_size=world_size)
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
    plans = [
        StreamPlan(split="train", batch_size=8, rank=rank, world_size=world_size, seed=seed)
        for rank in range(world_size)
    ]
    items = [plan_epoch(sets, [sum(groups)], plan, epoch) for plan in plans]
    ranges = [each for of_worker in items for item in of_worker for each in item.ranges]
    rows = [(path, group, row) for path, group, start, stop in ranges for row in range(start, stop)]
    assert len(rows) == len(set(rows)) == sum(groups)
    counts = [sum(item.num_rows for item in of_worker) for of_worker in items]
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
    plan = StreamPlan(split="train", batch_size=16, columns=("clip_id",))
    item = plan_epoch([FrameSet.open(tiny)], [301], plan, 0)[0]
    clips = ItemReader(32, plan).read(item)["clip_id"].tolist()
    changes = sum(a != b for a, b in itertools.pairwise(clips))
    assert changes == len(set(clips)) - 1
    assert clips != sorted(clips)


def test_columns_and_frames_come_as_tensors(tiny):
    batch = FrameSet.open(tiny).load("val", columns=("joints_3d", "camera", "frame_id"))
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
    plan = StreamPlan(split="train", batch_size=20, max_bad_fraction=0.05)
    batches = list(FrameSet.open(str(tmp_path)).stream(plan))
    assert sum(batch.num_frames for batch in batches) == 200
    problems = [problem for batch in batches for problem in batch.problems]
    assert sorted((bad.frame, bad.shard[-30:]) for bad in problems) == [
        ("tiny/train-00000/000003", "shards/tiny-train-00000.parquet"[-30:]),
        ("tiny/train-00022/000002", "shards/tiny-train-00001.parquet"[-30:]),
    ]
    assert {bad.reason for bad in problems} == {"JPEG does not decode"}

    many = tmp_path / "many"
    write_tiny_set(str(many), splits={"train": 200}, broken=frozenset(range(0, 200, 4)))
    frames = FrameSet.open(str(many))
    with pytest.raises(DataError, match=r"unusable already, above max_bad_fraction=0.05: tiny/train"):
        list(frames.stream(plan))
    with pytest.raises(DataError, match="50 frames are unusable"):
        frames.load("train", max_bad_fraction=0.2)
    loaded = frames.load("train", limit=120, columns=("frame_id",), max_bad_fraction=0.25)
    assert loaded.num_frames == 120
    assert not {bad.frame for bad in loaded.problems} & set(loaded.columns["frame_id"])
    assert len(loaded.problems) == 50


def test_an_empty_split_is_named(tiny):
    with pytest.raises(DataError, match="split 'test' has no frames; the set has 301 train, 20 val"):
        FrameSet.open(tiny).stream(StreamPlan(split="test", batch_size=20))


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_gives_what_the_plan_says_from_s3(s3, monkeypatch):
    uri = f"{s3}/frames"
    write_tiny_set(uri, splits={"train": 1301})  # windows cross the epochs
    names = census(uri, seed=4, num_epochs=2, drop_last=False)
    assert len(names) == 2 * 82
    monkeypatch.setattr(windows, "read_items", _read_here)
    assert names == census(uri, seed=4, num_epochs=2, drop_last=False)


def mixed(*shares):
    return Mixture.open([FrameSetShare(uri=uri, weight=weight) for uri, weight in shares], "train")


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
                "start": (epoch, 0),
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
        options = {"rank": rank, "world_size": world_size, "num_epochs": 2, "seed": 3}
        whole = census(sets, (1, 0), **options)
        assert len(whole) == 2 * steps_per_epoch(sets.quotas("train"), 16, world_size, drop_last=True)
        assert census(sets, (1, start_step), **options) == whole[start_step:]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    batch_size=st.integers(2, 64),
    world_size=st.integers(1, 5),
)
def test_all_workers_make_as_many_steps_whatever_is_mixed(rows, weights, batch_size, world_size):
    sets = tuple(FrameSet(f"{place}", _manifest([n])) for place, n in enumerate(rows))
    quotas = Mixture(sets, tuple(weights[: len(rows)])).quotas("train")
    assert sum(quotas) == sum(rows)
    steps = steps_per_epoch(quotas, batch_size, world_size, drop_last=True)
    for rank in range(world_size):
        own = share_rows(quotas, rank, world_size)
        taken = rows_after(own, batch_size)
        assert tuple(taken[-1]) == own
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
    plan = StreamPlan(split="train", batch_size=16, num_readers=num_readers, window_mb=1)
    items = [item for epoch in range(8) for item in plan_epoch([FrameSet.open(uri)], [700], plan, epoch)]
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
    found = list(windows.read_items(iter(items), ItemReader(32, plan)))
    assert [item for item, _ in found] == items
    assert [block["item"] for _, block in found[1:]] == items[1:]
    assert max(most) == (1 if num_readers == 1 else 2)
