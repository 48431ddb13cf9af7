"""Folders of images without boxes: whole images, and hands found by a detector."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, SettingsError
from pipeline.frames import detect_stage, pieces, plan
from pipeline.frames.detect import DetectorSettings
from pipeline.frames.detect_stage import FindsHands
from pipeline.frames.ingest import ingest
from pipeline.frames.plan import IngestSettings
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import image_folder
from pipeline.frames.sources.image_folder import ImageFolderSection, ImageFolderSettings
from pipeline.frames.sources.published import continuous_camera
from pipeline.frames.track import Detection
from pipeline.storage import copy_from_local
from tests.conftest import real_data
from tests.frames.inline_ray import PLACES, map_inline
from tests.frames.sources.coco_set import CAMERA, box_of, joints_of, write_coco
from tests.frames.sources.dots import check_dots, draw, jpeg
from tests.frames.sources.reading import read

FILES = [f"clip_{c}/{i}.jpg" for c in "ab" for i in range(3)]
WHOLE = ImageFolderSection(hands="whole_image")


def check(row, number, side):
    """The joints that the image was drawn with lie on the crop's dots."""
    points = np.array(list(joints_of(side, number).values())) @ CAMERA.T
    pixels = np.column_stack([points[:, :2] / points[:, 2:] + 0.5, np.ones(21)])
    check_dots({**row, "joints_3d": pixels, "camera": [*np.ravel(row["crop"]), 0, 0, 1]}, radius=5.0)


def detector_of(sides, model_uri, settings):
    """Instead of MediaPipe: finds the hands of an image, whose number is the wrist's place, as coco_set draws them."""

    def detect(image, with_joints):
        row = np.asarray(image.convert("L"), dtype=float)[:, : image.width // 2]
        if row.max() < 100:
            return []
        whites = np.argwhere(np.asarray(image).min(2)[:, : image.width // 2] > 200).mean(0)[1]
        number = int(np.argmin([abs(whites - (joints_of("right", n)["wrist"] @ CAMERA.T)[0] / 0.6) for n in range(6)]))
        found = []
        for side in sides:
            x, y, w, h = box_of(side, number)
            joints = np.array(list(joints_of(side, number).values())).tolist()
            labels = (joints, continuous_camera(CAMERA).tolist()) if with_joints else ()
            found.append(Detection((x, y, x + w, y + h), side, 0.9, *labels))
        return found

    return detect


@pytest.fixture
def detector(monkeypatch):
    """Two hands an image."""
    monkeypatch.setattr(image_folder, "require_mediapipe", lambda: None)
    monkeypatch.setattr(image_folder, "shared_detector", lambda *args: detector_of(("right", "left"), *args))


def folder(tmp_path, **changes):
    images, _ = write_coco(tmp_path, FILES)
    return ImageFolderSettings(uri=str(images), **changes)


def detected(tmp_path, **changes):
    (tmp_path / "model.task").write_bytes(b"model")
    return folder(tmp_path, detector={"model": str(tmp_path / "model.task")}, **changes)


@pytest.mark.parametrize("side", ["right", "left"])
def test_whole_images_are_the_crops(tmp_path, side):
    picture = draw([joints_of("right", 0)], CAMERA, 200, 240, radius=5.0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(jpeg(picture))
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, "JPEG", exif=exif, quality=95, subsampling=0)
    (tmp_path / "a" / "2.jpg").write_bytes(turned.getvalue())
    (tmp_path / "a" / "3.jpg").write_bytes(b"nothing")
    settings = ImageFolderSettings(uri=str(tmp_path), image_folder=WHOLE, default_hand=side)
    assert not isinstance(settings.reader(), FindsHands)
    rows, rejects, _ = read(settings)
    assert rejects.counts == {"unreadable_image": 1}
    assert list(rows) == ["s/a/000000", "s/a/000001"]
    for row in rows.values():
        crop = np.asarray(Image.open(io.BytesIO(row["jpeg"])))
        assert crop[:, :18].max() < 20  # the bars beside an image that is higher than wide
        assert crop.max(2)[:, 25:-25].mean(0).min() > 15
        assert abs(np.ravel(row["crop"])[0]) == pytest.approx(256 / 240)
        assert row["mirrored"] == (side == "left")
        check(row, 0, "right")


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_images_come_in_the_order_of_their_numbers(tmp_path, request, storage):
    for number in range(1, 13):
        Image.new("RGB", (64, 64), (20 * number,) * 3).save(tmp_path / f"frame_{number}.png")
        (tmp_path / f"._frame_{number}.png").write_bytes(b"of a Mac")
    uri = str(tmp_path)
    if storage == "s3":
        uri = request.getfixturevalue("s3")
        copy_from_local(tmp_path, f"{uri}/in")
        uri += "/in"
    settings = ImageFolderSettings(uri=uri, image_folder=WHOLE, image_rate=10)
    rows, rejects, _ = read(settings)
    assert not rejects.counts
    shown = [np.asarray(Image.open(io.BytesIO(row["jpeg"]))).mean() for row in rows.values()]
    assert np.abs(np.array(shown) - 20 * np.arange(1, 13)).max() < 2
    assert [row["timestamp_s"] for row in rows.values()] == [index / 10 for index in range(12)]


def test_images_as_clips(tmp_path):
    _, rejects, units = read(folder(tmp_path, image_folder={"hands": "whole_image", "clips": "image"}))
    assert [unit.name for unit in units] == [file.removesuffix(".jpg") for file in FILES]
    assert not rejects.counts
    with pytest.raises(SettingsError, match=r"source\.image_rate"):
        folder(tmp_path, image_rate=5, image_folder={"hands": "whole_image", "clips": "image"}).reader()


def test_stills_stand_for_themselves(tmp_path, detector):
    settings = detected(tmp_path)
    Image.new("RGB", (320, 240)).save(tmp_path / "images" / "clip_a" / "1.jpg")
    (tmp_path / "images" / "clip_a" / "0.jpg").write_bytes(b"nothing")
    rows, rejects, _ = read(settings)
    assert rejects.counts == {"no_hand": 1, "unreadable_image": 1}
    assert len(rows) == 8
    for name, row in rows.items():
        clip, _, index = name.rpartition("/")
        check(row, int(index) + 3 * ("clip_b" in clip), row["hand"])
        assert clip.endswith("#0" if row["hand"] == "right" else "#1")
        assert row["confidence"] == pytest.approx(0.9)


def test_joints_of_the_detector_are_labels_where_they_are_asked_for(tmp_path, detector):
    rows, rejects, _ = read(detected(tmp_path, labels="detector"))
    assert rejects.notes == ["joints are answers of the detector, not ground truth (source.labels)"]
    assert {row["hand"] for row in rows.values()} == {"right", "left"}
    for row in rows.values():
        check_dots(row, radius=5.0)
    rows, rejects, _ = read(detected(tmp_path))
    assert rejects.notes == []
    assert {row["joints_3d"] for row in rows.values()} == {None}
    with pytest.raises(SettingsError, match=r"source\.labels.*source\.image_folder\.hands"):
        folder(tmp_path, image_folder=WHOLE, labels="detector").reader()


def test_a_sequence_is_tracked_as_video_is(tmp_path, detector):
    rows, rejects, _ = read(detected(tmp_path, image_rate=10, track={"min_frames": 3, "smoothing_s": 0}))
    assert not rejects.counts
    assert sorted({row["timestamp_s"] for row in rows.values()}) == [0.0, 0.1, 0.2]
    assert len(rows) == 12
    rows, rejects, _ = read(detected(tmp_path, image_rate=10, fps=5))
    assert not rows
    assert rejects.counts == {"short_track": 8}


@pytest.mark.parametrize("labels", [None, "detector"])
def test_what_the_stage_found_is_used(tmp_path, detector, monkeypatch, labels):
    settings = detected(tmp_path, labels=labels)
    source: Any = settings.reader()
    assert isinstance(settings.reader(), FindsHands)
    unit = source.list_units(Rejects())[0]
    (tmp_path / "found.json").write_text(json.dumps([source.detect(unit)]))
    monkeypatch.setattr(image_folder, "shared_detector", None)
    with source.open(replace(unit, found=[(str(tmp_path / "found.json"), 0)]), Rejects()) as opened:
        assert opened is not None
        assert [len(frame.hands) for frame in opened.frames] == [2, 2, 2]
        assert {hand.joints_3d is None for frame in opened.frames for hand in frame.hands} == {labels is None}


def test_single_images_are_looked_at_in_parts(tmp_path, detector, monkeypatch):
    """A million photographs must not be a million items of Ray Data."""
    items: dict[str, list[int]] = {}

    def inline(work, todo, **options):
        items.setdefault(work.func.__name__, []).append(len(todo))
        return map_inline(work, todo, **options)

    for place in PLACES:
        monkeypatch.setattr(place, inline)
    source = detected(tmp_path, image_folder=ImageFolderSection(clips="image"))
    settings = IngestSettings(source=source, image_size=48)
    digests = []
    for least in (64, 4, 1):
        monkeypatch.setattr(detect_stage, "MIN_FRAMES_PER_FILE", least)
        manifest = ingest(settings, str(tmp_path / f"frames-{least}"))
        assert manifest.num_rows == 2 * len(FILES)
        digests.append(manifest.digest)
    assert items["_find"] == [1, 2, 6]
    assert len(set(digests)) == 1


@pytest.mark.parametrize("rate", [{}, {"image_rate": 10, "track": {"min_frames": 2}}, {"stride": 2}])
def test_a_large_folder_gives_the_same_set_in_pieces(tmp_path, detector, monkeypatch, rate):
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 2)
    monkeypatch.setattr(detect_stage, "MIN_FRAMES_PER_FILE", 1)
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    source = detected(tmp_path, **rate)
    write_coco(tmp_path, [f"clip_a/{i}.jpg" for i in range(5)])
    (tmp_path / "images" / "clip_a" / "3.jpg").write_bytes(b"broken")
    settings = IngestSettings(source=source, image_size=48)
    manifests = []
    for cut in (pieces.into_pieces, list):
        monkeypatch.setattr(plan, "into_pieces", cut)
        planned = plan.make_plan(settings, source.reader())
        assert sum(len(task.units) for task in planned.tasks) == (5 if cut is not list else 2)
        manifests.append(ingest(settings, str(tmp_path / cut.__name__)).model_copy(update={"created_at": ""}))
    assert manifests[0] == manifests[1]
    assert manifests[0].num_clips == 4
    assert manifests[0].rejects["images"] == ({} if rate == {"stride": 2} else {"unreadable_image": 1})


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"source\.detector\.model.* whole_image"):
        ImageFolderSettings(uri=str(tmp_path)).reader()
    with pytest.raises(DataError, match="no image here"):
        ImageFolderSettings(uri=str(tmp_path), image_folder=WHOLE).reader().list_units(Rejects())
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="needs a folder"):
        read(ImageFolderSettings(uri=str(tmp_path / "a.jpg"), image_folder=WHOLE))


def test_real_hands(tmp_path):
    pytest.importorskip("mediapipe")
    frames = sorted(real_data("frames").rglob("*.jpg"))[:2]
    for frame in frames:
        (tmp_path / frame.name).write_bytes(frame.read_bytes())
    model = DetectorSettings(model=str(real_data("hand_landmarker.task")))
    rows, rejects, _ = read(ImageFolderSettings(uri=str(tmp_path), detector=model))
    assert rows
    assert len({row["frame_index"] for row in rows.values()}) + rejects.counts.get("no_hand", 0) == len(frames)
