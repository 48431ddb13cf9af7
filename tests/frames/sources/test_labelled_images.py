"""Labelled photographs of one's own: joints land where they were drawn, and whatever is wrong with an entry is named."""

import codecs
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, SettingsError
from pipeline.frames.ingest import ingest
from pipeline.frames.plan import IngestSettings, SplitSettings, make_plan
from pipeline.hands import reorder
from tests.frames.inline_ray import PLACES, map_inline
from tests.frames.sources.dots import check_dots, draw, hand, pixels_of
from tests.frames.sources.labelled_images_set import (
    LABELS,
    RADIUS,
    SIDES,
    camera_of,
    entry_of,
    settings,
    write_photographs,
)
from tests.frames.sources.reading import read
from tests.frames.test_ingest import read_set

FILES = [f"{folder}/{number}.jpg" for folder in ("a", "b") for number in (1, 2, 10)]


def check(row):
    """The row's labels, in 3D or in 2D, lie on the dots of its crop."""
    assert (row["joints_2d"] is None) == (row["joints_3d"] is not None)
    assert row["mirrored"] == (row["hand"] == "left")
    check_dots(row, RADIUS)


@pytest.fixture(params=LABELS)
def root(request, tmp_path):
    """Six images in two folders, right and left hands in turn, with labels of a kind."""
    return write_photographs(tmp_path, FILES, request.param, SIDES)


@pytest.mark.parametrize("size", [256, 96])
def test_joints_land_on_their_dots(root, size):
    rows, rejects, units = read(settings(root), image_size=size, box_margin=1.8)
    assert not rejects.counts
    assert [unit.name for unit in units] == ["a", "b"]
    # Right and left hands of a folder are tracks of their own, and 2.jpg comes before 10.jpg.
    assert list(rows) == [
        f"s/{name}/{index:06d}"
        for name, indexes in (("a#0", (0, 2)), ("a#1", (1,)), ("b#0", (0, 2)), ("b#1", (1,)))
        for index in indexes
    ]
    for row in rows.values():
        check(row)
        assert (row["timestamp_s"], row["confidence"]) == (None, None)


def test_a_camera_beside_joints_in_2d_is_kept(tmp_path):
    root = write_photographs(tmp_path, FILES[:1], "joints_2d")
    (row,) = read(settings(root))[0].values()
    assert row["camera"] is None
    (row,) = read(settings(root, lambda entries: entries[0].update(camera=[420, 424.2, 160, 120])))[0].values()
    expected = row["crop"] @ np.array([[420, 0, 160.5], [0, 424.2, 120.5], [0, 0, 1]])
    np.testing.assert_allclose(np.reshape(row["camera"], (3, 3))[:2], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "section"),
    [
        (lambda entry: entry.update(camera={"fx": 420, "fy": 424.2, "cx": 160, "cy": 120}), {}),
        (lambda entry: entry.update(camera=[420, 424.2, 160, 120]), {}),
        (lambda entry: entry.update(joints_3d=(1000 * np.array(entry["joints_3d"])).tolist()), {"unit": "mm"}),
        (lambda entry: entry.update(camera=[420, 424.2, 160.5, 120.5]), {"first_pixel": "corner"}),
        (
            lambda entry: entry.update(joints_3d=reorder(np.array(entry["joints_3d"]), "freihand", "mano").tolist()),
            {"joint_order": "mano"},
        ),
        (
            lambda entry: entry.update(joints_3d=reorder(np.array(entry["joints_3d"]), "freihand", "ait").tolist()),
            {"joint_order": "ait"},
        ),
    ],
    ids=["named camera", "camera of four", "millimetres", "corner", "mano", "ait"],
)
def test_other_ways_to_say_the_same(tmp_path, change, section):
    root = write_photographs(tmp_path, FILES[:1], "joints_3d")
    (plain,) = read(settings(root))[0].values()
    (row,) = read(settings(root, lambda entries: change(entries[0]), labelled_images=section))[0].values()
    check(row)
    for name in ("joints_3d", "camera", "crop"):
        np.testing.assert_allclose(np.ravel(row[name]), np.ravel(plain[name]), atol=1e-9)


def test_files_of_other_systems_are_read(tmp_path):
    root = write_photographs(tmp_path, FILES[:2], "joints_3d")
    plain, _, _ = read(settings(root))
    entries = json.loads((root / "labels.json").read_text())
    entries[0]["file"], entries[1]["file"] = r".\a\1.jpg", "a//2.jpg"
    entries[0]["hand"] = "Right"
    text = json.dumps(entries)
    for data in (codecs.BOM_UTF8 + text.encode(), text.encode("utf-16")):
        (root / "labels.json").write_bytes(data)
        assert read(settings(root))[0].keys() == plain.keys()


def test_several_hands_of_one_image(tmp_path):
    """Also of one side; each gets a crop of its own."""
    camera = camera_of(640, 240)
    hands = [hand("right", 0, x=-0.25), hand("right", 1), hand("left", 2, x=0.25)]
    (tmp_path / "images").mkdir()
    draw(hands, camera, 640, 240, RADIUS).save(tmp_path / "images" / "three.png")
    sides = ("right", "right", "left")
    kinds = ("joints_3d", "joints_2d", "joints_2d")
    entries = [entry_of("three.png", *each) for each in zip(sides, hands, [camera] * 3, kinds, strict=True)]
    (tmp_path / "labels.json").write_text(json.dumps([*entries, entries[0]]))
    rows, rejects, (unit,) = read(settings(tmp_path))
    assert rejects.counts == {"duplicate_hand": 1}
    assert unit.num_frames == 4
    assert [(row["hand"], row["joints_2d"] is None) for row in rows.values()] == [
        ("right", True),
        ("right", False),
        ("left", False),
    ]
    for row in rows.values():
        check(row)


def test_hands_that_reach_over_the_border_are_kept(tmp_path):
    """A third of the hand is cut off; its labels are right for all of it."""
    (tmp_path / "images").mkdir()
    camera = camera_of(320, 240)
    joints = hand("left", 0)
    cut = round(min(point[0] for point in pixels_of(joints, camera).values()) + 25)
    draw([joints], camera, 320, 240, RADIUS).crop((cut, 0, 320, 240)).save(tmp_path / "images" / "0.png")
    shifted = camera - np.array([[0, 0, cut], [0, 0, 0], [0, 0, 0]])
    whole = read(settings(write_photographs(tmp_path / "whole", ["0.png"], "joints_3d", ("left",))))[0]
    for kind in LABELS:
        (tmp_path / "labels.json").write_text(json.dumps([entry_of("0.png", "left", joints, shifted, kind)]))
        rows, rejects, _ = read(settings(tmp_path))
        (row,) = rows.values()
        assert not rejects.counts
        (other,) = whole.values()
        expected = np.array(other["joints_3d"]) @ np.reshape(other["camera"], (3, 3)).T
        found = row["joints_2d"]
        if found is None:
            points = np.array(row["joints_3d"]) @ np.reshape(row["camera"], (3, 3)).T
            found = points[:, :2] / points[:, 2:]
        np.testing.assert_allclose(found, expected[:, :2] / expected[:, 2:], atol=1e-6)
        crop = np.asarray(Image.open(io.BytesIO(row["jpeg"])).convert("L"))
        assert (crop[:, -20:] < 8).all()  # mirrored: what is left of the image is right in the crop


def test_a_box_decides_the_crop(root):
    box = [100.0, 60.0, 220.0, 180.0]
    rows, _, _ = read(settings(root, lambda entries: entries[0].update(box_xyxy=box)))
    row = rows["s/a#0/000000"]
    check(row)
    np.testing.assert_allclose(abs(row["crop"][0, 0]), 256 / (1.5 * 120))


def test_images_that_need_a_decision(tmp_path):
    """Labels are for the image as displayed: turned by EXIF, grey, transparent, of 16 bits."""
    root = write_photographs(tmp_path, ["0.png"], "joints_2d")
    upright = Image.open(root / "images" / "0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(root / "images" / "turned.jpg", exif=exif, quality=95, subsampling=0)
    upright.convert("RGBA").save(root / "images" / "alpha.png")
    grey = upright.convert("L")
    grey.save(root / "images" / "grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(root / "images" / "deep.png")
    names = ["0.png", "turned.jpg", "alpha.png", "grey.png", "deep.png"]

    def copies(entries):
        entries[:] = [{**entries[0], "file": name} for name in names]

    rows, rejects, units = read(settings(root, copies, labelled_images={"clips": "image"}))
    assert not rejects.counts
    assert [unit.name for unit in units] == ["0", "alpha", "deep", "grey", "turned"]
    for name in ("0", "turned", "alpha"):
        check(rows[f"s/{name}/000000"])
    for name in ("grey", "deep"):
        crop = np.asarray(Image.open(io.BytesIO(rows[f"s/{name}/000000"]["jpeg"])), dtype=float)
        reference = np.asarray(Image.open(io.BytesIO(rows["s/0/000000"]["jpeg"])).convert("L"), dtype=float)
        assert np.abs(crop.mean(2) - reference).mean() < 1.5


def test_clips_and_splits(tmp_path):
    files = [*FILES, "c/1.jpg"]
    root = write_photographs(tmp_path, files, "joints_2d")

    def names(change, **section):
        source = settings(root, change, labelled_images=section)
        return {unit.name: (unit.split_key, unit.split, unit.num_frames) for unit in read(source)[2]}

    assert names(None) == {"a": (None, None, 3), "b": (None, None, 3), "c": (None, None, 1)}
    assert names(None, clips="image") == {file.removesuffix(".jpg"): (None, None, 1) for file in files}

    def told(entries):
        for number, entry in enumerate(entries):
            entry["clip"], entry["subject"] = f"take {number // 4}", number // 6
            if number == 4:
                entry.update(split="test", subject=None)
        entries[5]["subject"] = entries[4]["subject"]

    assert names(told) == {"take 0": ("0", None, 4), "take 1": ("1", "test", 3)}


def planned(source, **splits):
    plan = make_plan(IngestSettings(source=source, splits=SplitSettings(**splits)), source.reader())
    return {unit.name: split for task in plan.tasks for unit, split in task.units}


def test_splits_of_the_labels_hold_for_whole_subjects(tmp_path):
    root = write_photographs(tmp_path, FILES, "joints_2d")

    def told(entries):
        for entry, subject in zip(entries, "xxyyzz", strict=True):
            entry["subject"] = subject
        entries[0]["split"], entries[2]["split"] = "val", "test"

    source = settings(root, told, labelled_images={"clips": "image"})
    assert planned(source) == dict(
        zip(
            [file.removesuffix(".jpg") for file in FILES], ["val", "val", "test", "test", "train", "train"], strict=True
        )
    )
    source = settings(root, lambda entries: entries[1].update(split="train"), labelled_images={"clips": "image"})
    with pytest.raises(DataError, match="the labels give 'x' two splits, val and train"):
        planned(source)
    (tmp_path / "splits.csv").write_text("a/1,train\n")
    with pytest.raises(DataError, match=r"the labels give splits, and so does splits\.file"):
        planned(
            settings(root, lambda entries: entries[1].pop("split"), labelled_images={"clips": "image"}),
            file=str(tmp_path / "splits.csv"),
            unlisted="train",
        )


NAN = float("nan")


def scaled(factor):
    return lambda entry: entry.update(joints_3d=(factor * np.array(entry["joints_3d"])).tolist())


def shifted(*by):
    return lambda entry: entry.update(joints_3d=(np.array(entry["joints_3d"]) + by).tolist())


BAD_ENTRIES = {
    "missing image": ("missing_image", lambda entry: entry.update(file="a/no.jpg")),
    "20 joints": ("bad_joints", lambda entry: entry["joints_3d"].pop()),
    "joints of 4 numbers": ("bad_joints", lambda entry: entry.update(joints_3d=[[0, 0, 1, 1]] * 21)),
    "NaN": ("bad_joints", lambda entry: entry["joints_3d"][4].__setitem__(1, NAN)),
    "ragged": ("bad_joints", lambda entry: entry["joints_3d"][4].pop()),
    "null joint": ("bad_joints", lambda entry: entry["joints_3d"].__setitem__(3, None)),
    "quoted": ("bad_joints", lambda entry: entry.update(joints_3d=[["0", "0", "1"]] * 21)),
    "null": ("bad_labels", lambda entry: entry.update(joints_3d=None)),
    "millimetres": ("wrong_unit", scaled(1000)),
    "centimetres": ("wrong_unit", scaled(100)),
    "behind": ("joints_behind_camera", shifted(0, 0, -2)),
    "relative to the wrist": ("joints_behind_camera", shifted(0, -0.05, -0.6)),
    "no camera": ("missing_camera", lambda entry: entry.pop("camera")),
    "null camera": ("missing_camera", lambda entry: entry.update(camera=None)),
    "camera of words": ("bad_camera", lambda entry: entry.update(camera="unknown")),
    "half a camera": ("bad_camera", lambda entry: entry.update(camera={"fx": 400, "fy": 400})),
    "transposed camera": ("bad_camera", lambda entry: entry.update(camera=np.transpose(entry["camera"]).tolist())),
    "camera without focal length": ("bad_camera", lambda entry: entry.update(camera=[0, 0, 1, 1])),
    "camera of another size": ("joints_outside_image", lambda entry: entry.update(camera=[1680, 1680, 640, 480])),
    "y up": ("joints_outside_image", lambda entry: shifted(0, 0.3, 0)(entry)),
    "another box": ("joints_outside_box", lambda entry: entry.update(box_xyxy=[0, 0, 30, 30])),
    "box of three": ("bad_box", lambda entry: entry.update(box_xyxy=[1, 2, 3])),
    "2D elsewhere": ("labels_disagree", lambda entry: entry.update(joints_2d=[[9.0 * n, n] for n in range(21)])),
}


@pytest.mark.parametrize(("reason", "change"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_bad_entries_are_counted_by_reason_and_named(tmp_path, reason, change):
    root = write_photographs(tmp_path, FILES, "joints_3d")
    rows, rejects, _ = read(settings(root, lambda entries: change(entries[1])))
    assert rejects.counts == {reason: 1}
    assert rejects.examples[reason] == ["a/no.jpg" if reason == "missing_image" else "a/2.jpg, entry 1"]
    assert len(rows) == 5


BAD_2D = {
    "20 joints": ("bad_joints", lambda entry: entry["joints_2d"].pop()),
    "visibility": ("bad_joints", lambda entry: entry.update(joints_2d=[[1, 2, 1]] * 21)),
    "infinite": ("bad_joints", lambda entry: entry["joints_2d"][4].__setitem__(1, float("inf"))),
    "fractions": ("wrong_unit", lambda entry: entry.update(joints_2d=(np.array(entry["joints_2d"]) / 300).tolist())),
    "of a larger image": (
        "joints_outside_image",
        lambda entry: entry.update(joints_2d=(np.array(entry["joints_2d"]) * 4).tolist()),
    ),
    "NaN camera": ("bad_camera", lambda entry: entry.update(camera=[NAN, 1, 1, 1])),
}


@pytest.mark.parametrize(("reason", "change"), BAD_2D.values(), ids=BAD_2D)
def test_bad_entries_in_2d(tmp_path, reason, change):
    root = write_photographs(tmp_path, FILES, "joints_2d")
    rows, rejects, _ = read(settings(root, lambda entries: change(entries[1])))
    assert (rejects.counts, rejects.examples[reason]) == ({reason: 1}, ["a/2.jpg, entry 1"])
    assert len(rows) == 5


def test_joints_in_2d_that_agree_are_no_fault(tmp_path):
    root = write_photographs(tmp_path, FILES[:1], "joints_3d")
    points = entry_of("", "right", hand("right", 0), camera_of(320, 240), "joints_2d")["joints_2d"]
    rows, rejects, _ = read(settings(root, lambda entries: entries[0].update(joints_2d=points)))
    assert not rejects.counts
    (row,) = rows.values()
    assert row["joints_2d"] is None  # those in 3D say it
    check(row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[2].update(hand="both"), r"entry 2 \(a/10\.jpg\): hand: Input should be 'right' or 'left'"),
        (lambda e: e[2].pop("file"), "entry 2: file: Field required"),
        (lambda e: e[2].update(file="/data/1.jpg"), r"entry 2 \(/data/1\.jpg\): file: must be a path below the source"),
        (lambda e: e[2].update(file=r"C:\x\1.jpg"), "file: must be a path below"),
        (lambda e: e[2].update(file="../1.jpg"), "file: must be a path below"),
        (
            lambda e: e[2].update(joints3d=e[2].pop("joints_3d")),
            r"entry 2 \(a/10\.jpg\): has neither joints_3d nor joints_2d; its keys are file, hand, camera, joints3d",
        ),
        (lambda e: e.insert(0, 7), "entry 0: Input should be a valid dictionary"),
        (lambda e: e.clear(), "an empty list"),
        (lambda e: e[1].update(split="training"), r"entry 1 \(a/2\.jpg\): split: Input should be"),
        (
            lambda e: [e[0].update(subject="x"), e[1].update(subject="y")],
            r"entry 1 \(a/2\.jpg\) has the subject 'y', but entry 0 \(a/1\.jpg\), of the same clip, has 'x'",
        ),
        (
            lambda e: e.extend([{**e[0], "clip": "x"}, {**e[0], "clip": "y"}]),
            r"entry 7 \(a/1\.jpg\) has the clip 'y', but entry 6 \(a/1\.jpg\), of the same image, has 'x'",
        ),
    ],
)
def test_files_that_are_not_usable_are_one_line(tmp_path, change, message):
    root = write_photographs(tmp_path, FILES, "joints_3d")
    with pytest.raises(DataError, match=r"labels\.json: .*" + message) as caught:
        read(settings(root, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{not json", "not valid JSON"), ('{"images": []}', "not a list of labels"), ("", "not valid JSON")],
)
def test_a_file_of_another_kind(tmp_path, text, message):
    root = write_photographs(tmp_path, FILES[:1], "joints_3d")
    (root / "labels.json").write_text(text)
    with pytest.raises(DataError, match=r"labels\.json: " + message):
        read(settings(root))


def test_settings_that_make_no_sense(tmp_path):
    root = write_photographs(tmp_path, FILES[:1], "joints_3d")
    with pytest.raises(SettingsError, match=r"source\.image_rate"):
        settings(root, image_rate=10, labelled_images={"clips": "image"}).reader()
    with pytest.raises(ValueError, match="annotations\n  Input should be a valid string"):
        settings(root, annotations=None)
    with pytest.raises(DataError, match="a file; labelled_images needs the folder"):
        read(settings(root, uri=str(root / "images" / FILES[0])))


def test_frames_of_video_have_times(tmp_path):
    root = write_photographs(tmp_path, [f"a/{number}.jpg" for number in range(6)], "joints_3d")
    rows, _, _ = read(settings(root, image_rate=10, fps=5))
    assert [(row["frame_index"], row["timestamp_s"]) for row in rows.values()] == [(0, 0.0), (2, 0.2), (4, 0.4)]


def test_a_set_that_is_wrong_as_a_whole_says_how(tmp_path, monkeypatch):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    root = write_photographs(tmp_path, FILES, "joints_3d")
    source = settings(root, lambda entries: [scaled(1000)(entry) for entry in entries])
    with pytest.raises(
        DataError, match=r"wrong_unit 6 \(e\.g\. a/1\.jpg, entry 0\); wrong_unit: .*millimetres"
    ) as caught:
        ingest(IngestSettings(source=source), str(tmp_path / "frames"))
    assert "\n" not in str(caught.value)


def test_ingested_labels_are_found_again_and_corrections_are_noticed(tmp_path, monkeypatch):
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    root = write_photographs(tmp_path, FILES, "joints_2d", SIDES)
    out = str(tmp_path / "frames")
    source = settings(root, name="own", labelled_images={"clips": "image"})
    splits = SplitSettings(train=0.5, val=0.5)
    manifest = ingest(IngestSettings(source=source, splits=splits, image_size=256, jpeg_quality=95), out)
    assert manifest.counts == {"own": {"train": 3, "val": 3, "test": 0}}
    again, rows = read_set(out)
    assert again == manifest
    for row in rows:
        check(row)
    first = (root / "labels.json").read_text()
    number = re.search(r"\d\.(\d)", first)
    assert number is not None
    (root / "labels.json").write_text(
        first[: number.start(1)] + str((int(number[1]) + 1) % 10) + first[number.end(1) :]
    )
    with pytest.raises(DataError, match="its files have changed since"):
        ingest(IngestSettings(source=source, splits=splits, image_size=256, jpeg_quality=95), out)


def test_images_in_object_storage(tmp_path, s3):
    from pipeline.storage import copy_from_local

    root = write_photographs(tmp_path, FILES, "joints_2d", SIDES)
    copy_from_local(root, f"{s3}/set")
    rows, rejects, _ = read(settings(root, uri=f"{s3}/set/images", annotations=f"{s3}/set/labels.json"))
    assert not rejects.counts
    assert len(rows) == 6
    for row in rows.values():
        check(row)
