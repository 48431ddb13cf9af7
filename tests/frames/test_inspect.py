"""The data card: its figures against NumPy on the same rows, its page, and its job."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from jobs.inspect import InspectJob, run
from pipeline.errors import DataError
from pipeline.frames import card
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.ingest import group_videos, run_task
from pipeline.frames.inspect import InspectSettings, gather, inspect
from pipeline.frames.inspect_columns import Clips, Measures, PairwiseSum, groups_of, measure_shard
from pipeline.frames.inspect_distribution import Distribution, merged
from pipeline.frames.inspect_sample import draw_sample
from pipeline.frames.manifest import read_manifest, write_manifest
from pipeline.frames.plan import IngestSettings, make_plan
from pipeline.hands import BONES, JOINTS
from pipeline.storage import exists, join, read_json
from pipeline.tracking import TrackingSettings
from pipeline.views import ViewSettings
from tests.frames import squares
from tests.frames.test_verify import set_column, write_plainly
from tests.reports.test_report import Page
from tests.tiny_sets import write_tiny_set

ROOT = Path(__file__).resolve().parents[2]
SMALL = ViewSettings(size=32)
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    """Labelled, 100 rows of train and 20 of val, with rejects."""
    uri = str(tmp_path_factory.mktemp("set") / "frames")
    manifest = write_tiny_set(uri, splits={"train": 100, "val": 20}, wobble=0.003)
    changes = {
        "rejects": {"tiny": {"bad_box": 3, "small_hand": 5}},
        "reject_examples": {"bad_box": [f"tiny/{EVIL}/000001"], "small_hand": ["tiny/b/000002"]},
    }
    write_manifest(uri, manifest.model_copy(update=changes))
    return uri


def all_rows(uri: str) -> list[dict]:
    return [row for shard in read_manifest(uri).shards for row in pq.read_table(join(uri, shard.path)).to_pylist()]


def test_distribution_against_numpy():
    values = np.random.default_rng(0).lognormal(4, 1, 20_000)
    found = merged([Distribution(part) for part in np.split(values, 10)])
    assert found.num == len(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == (values.min(), values.max())
    for share in (0.01, 0.25, 0.5, 0.9, 0.99):
        assert found.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.01)
    edges = np.linspace(0, 400, 21)
    assert found.histogram(edges) == pytest.approx(np.histogram(values, edges)[0], rel=0.05, abs=15)


def test_distribution_of_few_and_of_odd_values():
    assert Distribution().summary() == {"num": 0, "num_unusable": 0}
    odd = Distribution([0.0, 0.0, 3.0, np.nan, np.inf, -1.0])
    assert (odd.num, odd.num_unusable, odd.quantile(0.5), odd.high) == (3, 3, 0.0, 3.0)
    same = Distribution([7.0] * 5)
    assert [same.quantile(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([7, 7, 7])


def test_groups_are_runs_of_one_clip():
    clips, indexes = list("aaaaabbacc"), [0, 1, 2, 3, 9, 0, 1, 4, 8, 2]
    assert groups_of(clips, indexes, 4).tolist() == [0, 0, 0, 0, 1, 2, 2, 3, 4, 5]


def test_columns_against_numpy(frames):
    manifest = read_manifest(frames)
    parts = [measure_shard(frames, shard, 32, 4, 1.5) for shard in manifest.shards]
    total = parts[0]
    for part in parts[1:]:
        total.merge(part)
    rows = all_rows(frames)
    joints = np.array([row["joints_3d"] for row in rows]).reshape(-1, 21, 3)
    cameras = np.array([row["camera"] for row in rows]).reshape(-1, 3, 3)
    pixels = np.einsum("nij,nkj->nki", cameras, joints)
    pixels = pixels[..., :2] / pixels[..., 2:]
    inside = ((pixels >= 0) & (pixels <= 32)).all(-1)
    assert total.num_rows == total.num_labelled == 120
    assert total.num_all_joints_inside == inside.all(1).sum()
    assert total.joints_inside.tolist() == inside.sum(0).tolist()
    assert total.depth_m.mean == pytest.approx(joints[..., 2].mean(), rel=1e-5)
    for (parent, child), bone in zip(BONES, total.bones_mm, strict=True):
        lengths = 1000 * np.linalg.norm(joints[:, child] - joints[:, parent], axis=1)
        assert bone.mean == pytest.approx(lengths.mean(), rel=1e-5)
    assert total.hand_px.quantile(0.5) == pytest.approx(32 / 1.5, rel=0.01)
    assert total.focal_px.quantile(0.5) == pytest.approx(32, rel=0.01)
    assert total.group_gap_s.mean == pytest.approx(0.1)
    assert total.num_full_groups == 120
    assert sorted(total.clips.num_rows.tolist()) == [4] * 30
    assert (total.clips.last_s - total.clips.first_s) == pytest.approx(0.3)
    assert 0 < total.jpeg_bytes < total.num_bytes == sum(shard.num_bytes for shard in manifest.shards)


def test_joints_in_the_image_are_labels(tmp_path):
    """Of every second row; the first shard is of an earlier version, without a column for them."""
    uri = str(tmp_path)
    write_tiny_set(uri, splits={"train": 128}, wobble=0.003)
    in_3d = [measure_shard(uri, shard, 32, 4, 1.5) for shard in read_manifest(uri).shards]
    manifest = write_tiny_set(
        uri, splits={"train": 128}, wobble=0.003, in_2d=lambda number: number >= 64 and number % 2 == 1
    )
    path = tmp_path / manifest.shards[0].path
    pq.write_table(pq.read_table(path).drop_columns("joints_2d"), path, row_group_size=16)
    for shard, same in zip(manifest.shards, in_3d, strict=True):
        found = measure_shard(uri, shard, 32, 4, 1.5)
        assert (found.num_labelled, found.num_labelled_2d) == (64, 0 if shard is manifest.shards[0] else 32)
        assert found.joints_inside.tolist() == same.joints_inside.tolist()
        assert found.num_all_joints_inside == same.num_all_joints_inside
        assert found.depth_m.num == 64 - found.num_labelled_2d
    card = inspect(InspectSettings(frame_set=uri, output=str(tmp_path / "card"), views=SMALL)).card
    assert card is not None
    assert card["sources"]["tiny"]["labelled_2d_only_fraction"] == 0.25


def test_card_of_labels_in_the_image_only(tmp_path):
    uri = str(tmp_path / "frames")
    write_tiny_set(uri, splits={"train": 8}, in_2d=lambda number: True)
    found = inspect(InspectSettings(frame_set=uri, output=str(tmp_path / "card"), verify=True, views=SMALL))
    parsed = Page(found.page)
    assert "Labels of 8 random labelled rows" in parsed.text
    assert "Bone lengths" not in parsed.text
    assert "nan" not in parsed.text.lower().split()
    assert found.card is not None
    source = found.card["sources"]["tiny"]
    assert (source["labelled_fraction"], source["labelled_2d_only_fraction"], source["depth_m"]["num"]) == (1, 1, 0)


def test_many_shards_are_added_up_pairwise():
    """Each clip is sorted a few times, however many shards there are."""

    class Counting(Measures):
        merged = 0

        def merge(self, other):
            Counting.merged += len(self.clips.hashes) + len(other.clips.hashes)
            super().merge(other)

    added = PairwiseSum()
    for shard in range(1000):
        names = np.array([shard, shard + 1], np.uint64)
        added.add(Counting(num_rows=4, clips=Clips(names, np.full(2, 2), np.zeros(2), np.ones(2))))
    total = added.total()
    assert total.num_rows == 4000
    assert total.clips.hashes.tolist() == list(range(1001))
    assert total.clips.num_rows.tolist() == [2, *[4] * 999, 2]
    assert Counting.merged < 2000 * 12


def test_mirrored_and_enlarged_hands(tmp_path):
    uri = str(tmp_path)
    manifest = write_tiny_set(uri, splits={"train": 4}, labelled=False)
    path = tmp_path / manifest.shards[0].path
    table = pq.read_table(path)
    crops = [[-2.0, 0, 32, 0, 2, 0], [0.5, 0, 0, 0, 0.5, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]]
    write_plainly(set_column(table, "crop", crops), path)
    found = measure_shard(uri, manifest.shards[0], 32, 4, 2.0)
    assert (found.hand_px.low, found.hand_px.high) == (8, 32)
    assert found.num_enlarged == 1
    assert found.jpeg_bytes == pytest.approx(sum(len(jpeg) for jpeg in table["jpeg"].to_pylist()), rel=0.05)
    assert found.num_labelled == 0


def test_sample_is_drawn_by_seed_in_proportion(frames):
    one, same, other = (draw_sample(FrameSet.open(frames), 24, seed, {"tiny": 1.5}) for seed in (0, 0, 1))
    assert one.rows["frame_id"].to_pylist() == same.rows["frame_id"].to_pylist()
    assert one.rows["frame_id"].to_pylist() != other.rows["frame_id"].to_pylist()
    assert len(set(one.rows["frame_id"].to_pylist())) == 24
    assert one.rows["split"].to_pylist().count("val") == 4
    every = draw_sample(FrameSet.open(frames), 10_000, 0, {"tiny": 1.5})
    assert every.rows.num_rows == len(every.sharpness) == len(every.brightness) == 120


def test_sharpness_and_brightness_against_pillow(frames):
    sample = draw_sample(FrameSet.open(frames), 30, 0, {"tiny": 1.0})
    # Pillow's own 3 x 3 filter; an offset keeps the negative side, and what it still cuts off is rare here.
    kernel = ImageFilter.Kernel((3, 3), [0, 1, 0, 1, -4, 1, 0, 1, 0], scale=4, offset=128)
    for row, picture in enumerate(sample.frames(range(30), 32)):
        grey = Image.fromarray(picture.transpose(1, 2, 0)).convert("L")
        laplacian = 4 * (np.asarray(grey.filter(kernel), dtype=float)[1:-1, 1:-1] - 128)
        assert sample.sharpness[row] == pytest.approx(laplacian.var(), rel=0.05, abs=3)
        assert sample.brightness[row] == pytest.approx(np.asarray(grey).mean(), abs=0.5)


def test_card(frames, tmp_path):
    output = str(tmp_path / "card")
    found = inspect(InspectSettings(frame_set=frames, output=output, verify=True, views=SMALL))
    assert found.verification is not None
    assert found.verification.is_sound
    page = (tmp_path / "card" / "card.html").read_text()
    assert page == found.page
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {"crops", "sources", "measures", "labels", "views", "rejects", "settings"} <= set(parsed.ids)
    assert EVIL not in page
    assert EVIL in parsed.text
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    assert "the hand's box is smaller than quality.min_hand_px" in parsed.text
    assert "nan" not in parsed.text.lower().split()
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert card == found.card
    source = card["sources"]["tiny"]
    assert source["labelled_fraction"] == 1
    assert set(source["joints_inside_fraction"]) == set(JOINTS)
    assert source["hand_px"]["p50"] == pytest.approx(32 / 1.5, rel=0.01)
    assert source["sharpness"]["num"] == card["sample"]["num_rows"] == 120
    assert card["verification"]["sound"]
    assert read_json(join(output, "verify.json"))["sound"]


def test_card_of_unlabelled_frames_without_times(tmp_path):
    uri = str(tmp_path / "frames")
    manifest = write_tiny_set(uri, splits={"train": 8}, labelled=False, broken=frozenset({3}))
    path = tmp_path / "frames" / manifest.shards[0].path
    table = pq.read_table(path)
    pq.write_table(set_column(table, "timestamp_s", [None] * 8), path)
    found = inspect(InspectSettings(frame_set=uri, output=str(tmp_path / "card"), views=SMALL))
    assert found.card is not None
    assert found.card["sample"]["problems"] == [
        "tiny/train-00000/000003 in shards/tiny-train-00000.parquet (JPEG does not decode)"
    ]
    assert found.card["sources"]["tiny"]["group_gap_s"] == {"num": 0, "num_unusable": 0}
    text = Page(found.page).text
    assert "1 sampled crops do not decode" in text
    assert "No row has joints" in text
    assert "Steps between group frames" in text
    assert "Not checked" in text


def test_how_videos_are_shown_and_timed(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        squares.write_labels(squares.write(folder / f"{name}.avi"))
    stored = squares.write(folder / "c.mp4", stored=lambda image: squares.unshown(image, "hflip"))
    squares.write_labels(squares.set_matrix(stored, "hflip"))
    settings = IngestSettings.model_validate(
        {"source": {"kind": "labelled_video", "uri": str(folder)}, "image_size": 48, "group_size": 2}
    )
    source = settings.source.reader()
    plan = make_plan(settings, source)
    stats = [run_task(task, source, settings, plan.num_buckets, str(tmp_path / "work")) for task in plan.tasks]
    groups = group_videos(stats)
    assert [(g.num_videos, g.examples, g.order, g.times, g.turn) for g in groups] == [
        (2, ["a", "b"], "decoder", "decode times", "as stored"),
        (1, ["c"], "stamps", "stamps", "mirrored left to right"),
    ]
    uri = str(tmp_path / "frames")
    manifest = write_tiny_set(uri, splits={"train": 8})
    joined = groups[0].model_copy(update={"num_restarts": 1, "shown": "320 x 180"})
    notes = {"tiny": ["s3://bucket/in: 2 files of other kinds were left out: 2 <b>.xmp"]}
    write_manifest(uri, manifest.model_copy(update={"videos": {"tiny": [joined, groups[1]]}, "notes": notes}))
    found = inspect(InspectSettings(frame_set=uri, output=str(tmp_path / "card"), use_ray=False))
    assert found.card is not None
    assert found.card["videos"]["tiny"][1]["turn"] == "mirrored left to right"
    assert found.card["notes"] == notes
    assert "2 files of other kinds were left out: 2 &lt;b&gt;.xmp" in found.page
    for text in ("1 restart of the clock", "mirrored left to right", "decode times", "320 x 180", "1 of 1"):
        assert text in found.page


def test_examples_of_rejects_stand_beside_their_own_source(tmp_path):
    manifest = write_tiny_set(str(tmp_path), splits={"train": 4})
    changes = {
        "rejects": {"a": {"blurred": 2, "no_hand": 1}, "b": {"blurred": 1, "no_hand": 4}, "c": {"blurred": 1}},
        "reject_examples": {"blurred": ["a/x/000001", "b/y/000002", "a/x/000004"], "no_hand": ["z/000009"]},
    }
    rows = card._reject_rows(manifest.model_copy(update=changes))
    assert {(source, reason): examples for source, reason, _, _, _, examples in rows} == {
        ("a", "blurred"): ["a/x/000001", "a/x/000004"],
        ("b", "blurred"): ["b/y/000002"],
        ("c", "blurred"): [],
        ("a", "no_hand"): ["z/000009"],  # whose it is is not known
        ("b", "no_hand"): ["z/000009"],
    }


@pytest.mark.parametrize(
    ("values", "whole", "ticks"),
    [
        # One rate, but not quite the same numbers.
        ([0.26666, 0.26667, 0.26668] * 9, False, [f"{0.01 * n:.2f}" for n in range(23, 31)]),
        ([4] * 30, True, ["3", "4", "5"]),
        ([1] * 30, True, ["0", "1", "2"]),
        ([1, 2, 3, 3], True, ["0", "1", "2", "3"]),
    ],
)
def test_a_histogram_of_few_values_has_a_bar_where_they_lie(values, whole, ticks):
    shown = card._histogram("Time", "s", {"a": Distribution(values)}, "", "pairs", whole=whole)
    assert shown is not None
    assert re.findall(r'class="tick"[^>]*text-anchor="middle">([^<]+)<', shown.chart) == ticks


def test_a_damaged_shard_is_named_without_verify(tmp_path):
    uri = str(tmp_path / "frames")
    manifest = write_tiny_set(uri, splits={"train": 8})
    path = tmp_path / "frames" / manifest.shards[0].path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tiny-train-00000\.parquet: cannot be read .* --verify finds all damage"):
        inspect(InspectSettings(frame_set=uri, output=str(tmp_path / "card")))


def test_ray_data_gives_the_same_card(frames, ray_cluster):
    settings = InspectSettings(frame_set=frames, output="unused", sample=8, views=SMALL)
    one, other = (gather(settings, FrameSet.open(frames), None, use_ray) for use_ray in (False, True))
    for mine, its in zip(one.measures.values(), other.measures.values(), strict=True):
        assert mine.hand_px.summary() == its.hand_px.summary()
        assert np.array_equal(mine.clips.hashes, its.clips.hashes)
        assert mine.num_bytes == its.num_bytes


def test_job_in_object_storage_and_mlflow(s3, tmp_path):
    uri = join(s3, "frames")
    write_tiny_set(uri, splits={"train": 16})
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    job = InspectJob(frame_set=uri, output=join(s3, "card"), verify=True, track=True, tracking=tracking, views=SMALL)
    result = run(job)
    assert result["verification"]["sound"]
    assert exists(join(s3, "card", "card.html"))
    assert read_json(join(s3, "card", "card.json"))["digest"] == result["digest"]
    assert list(tmp_path.rglob("card.html"))


def test_command_line_names_damage_and_fails(tmp_path):
    manifest = write_tiny_set(str(tmp_path), splits={"train": 100, "val": 8})
    (tmp_path / manifest.shards[0].path).unlink()
    path = tmp_path / manifest.shards[1].path
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / "shards" / "stray.parquet").write_bytes(b"left behind")
    command = [sys.executable, "-m", "jobs.inspect", "--frame_set", str(tmp_path), "--verify"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == f"error: {tmp_path}/shards/tiny-train-00000.parquet: is missing"
    assert lines[1].startswith(f"error: {tmp_path}/shards/tiny-train-00001.parquet: has ")
    assert lines[2] == f"error: {tmp_path}/shards/stray.parquet: not in the manifest, so not part of the set"
    assert "damaged: 2 of 3 shards" in lines[3]
    assert len(lines) == 4


def test_nothing_to_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'output' is required"):
        InspectSettings(frame_set=str(tmp_path))
