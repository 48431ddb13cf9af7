"""Sources and rows together: what a labelled video or an image folder becomes."""

import io
import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.frames.quality import QualitySettings
from pipeline.frames.rejects import Rejects
from pipeline.frames.rows import unit_groups
from pipeline.frames.sources import SourceSettings
from pipeline.frames.sources.boxed_images import BoxedImagesSettings
from pipeline.frames.sources.labelled_video import LabelledVideoSettings
from pipeline.frames.sources.video import find_videos
from tests.frames.clips import CAMERA, FPS, draw, hand_label, joints_at, project, write_clip, write_images, write_video

CROPS = SimpleNamespace(
    image_size=128, box_margin=1.5, jpeg_quality=95, group_size=4, group_stride_s=0.2, quality=QualitySettings()
)


def read_rows(settings: SourceSettings, crops=CROPS):
    """(groups, rejects) of a whole source."""
    source = settings.reader()
    rejects = Rejects()
    units = source.list_units(rejects)
    return [g for unit in units for g in unit_groups(source, "s", unit, "train", crops, rejects)], rejects


def labelled(folder, **settings):
    return LabelledVideoSettings(uri=str(folder), **settings)


def flat(groups):
    return sorted((row for group in groups for row in group), key=lambda row: row["frame_id"])


def bright_spot(jpeg: bytes, point: np.ndarray, reach: int = 5) -> np.ndarray:
    """Centre of brightness around a point of a crop, in continuous pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), dtype=float)
    x0, y0 = (int(v) - reach for v in point)
    window = np.clip(pixels[y0 : y0 + 2 * reach + 1, x0 : x0 + 2 * reach + 1] - 70, 0, None)
    x, y = np.meshgrid(np.arange(window.shape[1]) + x0 + 0.5, np.arange(window.shape[0]) + y0 + 0.5)
    return np.array([(window * x).sum(), (window * y).sum()]) / window.sum()


@pytest.mark.parametrize("hand", ["right", "left"])
def test_joints_land_on_the_dots_of_the_crop(tmp_path, hand):
    write_clip(tmp_path, "clip", num_frames=6, hand=hand)
    groups, rejects = read_rows(labelled(tmp_path))
    rows = flat(groups)
    assert not rejects.counts
    assert [row["frame_id"] for row in rows] == [f"s/clip/{i:06d}" for i in range(6)]
    for row in rows:
        assert row["hand"] == hand
        assert row["mirrored"] == (hand == "left")
        points = project(row["joints_3d"], row["camera"])
        found = np.array([bright_spot(row["jpeg"], point) for point in points])
        assert np.abs(found - points).max() < 0.7
        assert np.abs((found - points).mean(0)).max() < 0.15  # no half-pixel shift
        source = project(joints_at(row["frame_index"]), CAMERA)
        np.testing.assert_allclose(points, source @ row["crop"][:, :2].T + row["crop"][:, 2], atol=1e-6)
        assert row["timestamp_s"] == pytest.approx(row["frame_index"] / FPS, abs=1e-3)


def test_frames_of_a_group_are_apart(tmp_path):
    write_clip(tmp_path, "clip", num_frames=19)
    groups, _ = read_rows(labelled(tmp_path))
    assert sorted(len(g) for g in groups) == [1, 2, 4, 4, 4, 4]
    assert len(flat(groups)) == 19
    for group in groups:
        assert all(gap > 0.199 for gap in np.diff([row["timestamp_s"] for row in group]))


def test_two_hands_become_two_clips(tmp_path):
    hands = [[hand_label(i), hand_label(i, "left", track=3)] for i in range(4)]
    hands[2].append(hand_label(2, "left", track=3))
    frames = [{"index": i, "hands": hands[i]} for i in range(4)]
    write_clip(tmp_path, "a/clip", num_frames=4, labels={"frames": frames})
    groups, rejects = read_rows(labelled(tmp_path))
    assert {row["clip_id"] for row in flat(groups)} == {"s/a/clip#0", "s/a/clip#3"}
    assert len(flat(groups)) == 8
    assert rejects.counts == {"duplicate_hand": 1}


def test_labels_without_joints_or_camera_are_fine(tmp_path):
    frames = [{"index": i, "hands": [hand_label(i, joints_3d=None)]} for i in range(3)]
    write_clip(tmp_path, "clip", num_frames=3, labels={"frames": frames, "camera": None})
    groups, rejects = read_rows(labelled(tmp_path))
    assert [row["joints_3d"] for row in flat(groups)] == [row["camera"] for row in flat(groups)] == [None] * 3
    assert not rejects.counts


def test_other_joint_orders_are_converted(tmp_path):
    from pipeline.hands import reorder

    frames = [
        {"index": 0, "hands": [hand_label(0, joints_3d=reorder(joints_at(0), "freihand", "ait").tolist())]},
    ]
    write_clip(tmp_path, "clip", num_frames=1, labels={"frames": frames, "joint_order": "ait"})
    groups, _ = read_rows(labelled(tmp_path))
    np.testing.assert_allclose(flat(groups)[0]["joints_3d"], joints_at(0), atol=1e-9)


NAN = float("nan")
BAD_HANDS: dict[str, list[dict[str, Any]]] = {
    "bad_box": [
        {"box": [1, 2, 3]},
        {"box": [NAN, 2, 30, 40]},
        {"box": [30, 2, 10, 40]},
        {"box": [None, 1, 2, 3]},
    ],
    "box_outside_image": [{"box": [500, 500, 600, 600]}, {"box": [-100, 0, 40, 50]}],
    "bad_joints": [
        {"joints_3d": [[0, 0, NAN]] * 21},
        {"joints_3d": [[0, 0, 1]] * 20},
        {"joints_3d": [[0, 0, None]] * 21},
        {"joints_3d": [[0, 0, -1]] * 21},
        {"joints_3d": [[0, 0, 1], [2]]},
        {"joints_3d": (1000 * joints_at(1)).tolist()},  # millimetres
    ],
}


@pytest.mark.parametrize(("reason", "change"), [(r, c) for r in BAD_HANDS for c in BAD_HANDS[r]])
def test_a_bad_hand_costs_itself_only(tmp_path, reason, change):
    frames = [{"index": i, "hands": [hand_label(i, **(change if i == 1 else {}))]} for i in range(4)]
    write_clip(tmp_path, "clip", num_frames=4, labels={"frames": frames})
    groups, rejects = read_rows(labelled(tmp_path))
    assert rejects.counts == {reason: 1}
    assert rejects.examples == {reason: ["s/clip/000001"]}
    assert [row["frame_index"] for row in flat(groups)] == [0, 2, 3]


def test_frames_without_hands_and_labels_without_frames_are_counted(tmp_path):
    frames = [{"index": 0, "hands": [hand_label(0)]}, {"index": 1, "hands": []}, {"index": 9, "hands": [hand_label(9)]}]
    write_clip(tmp_path, "clip", num_frames=4, labels={"frames": frames})
    groups, rejects = read_rows(labelled(tmp_path))
    assert len(flat(groups)) == 1
    assert rejects.counts == {"no_hand": 3, "missing_frame_label": 1}


@pytest.mark.parametrize(
    "labels",
    [
        {"num_frames": 9},
        {"width": 320},
        {"version": 3},
        {"joint_order": "unheard-of"},
        {"frames": "none"},
        {"frames": [{"index": 0, "hands": [{"hand": "both", "box": [1, 2, 3, 4]}]}]},
    ],
)
def test_labels_that_do_not_match_cost_the_clip(tmp_path, labels):
    write_clip(tmp_path, "bad", num_frames=4, labels=labels)
    write_clip(tmp_path, "good", num_frames=4)
    groups, rejects = read_rows(labelled(tmp_path))
    assert {row["clip_id"] for row in flat(groups)} == {"s/good"}
    assert rejects.counts == {"labels_mismatch": 1}
    assert rejects.examples == {"labels_mismatch": ["bad"]}


def test_labels_that_are_no_json_cost_the_clip(tmp_path):
    write_clip(tmp_path, "bad")
    (tmp_path / "bad.labels.json").write_text('{"version": 1, ')
    groups, rejects = read_rows(labelled(tmp_path))
    assert groups == []
    assert rejects.counts == {"labels_mismatch": 1}


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, None])
def test_an_unreadable_video_costs_the_clip(tmp_path, content):
    path = write_clip(tmp_path, "clip")
    # None: cut in half; the index at the end of the file is lost.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    groups, rejects = read_rows(labelled(tmp_path))
    assert groups == []
    assert rejects.counts == {"unreadable_video": 1}


def test_a_broken_tail_is_counted_and_the_rest_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    write_clip(tmp_path, "clip", num_frames=24)
    images = [
        draw([project(joints_at(i), CAMERA)]) // 2 + rng.integers(0, 99, (120, 160, 3), np.uint8) for i in range(24)
    ]
    path = tmp_path / "clip.mp4"
    write_video(path, images, movflags="faststart")  # the index comes first, so a cut file still opens
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    groups, rejects = read_rows(labelled(tmp_path))
    rows = flat(groups)
    assert 4 <= len(rows) <= 16
    assert set(rejects.counts) == {"broken_video_tail"}
    assert rejects.counts["broken_video_tail"] + len(rows) == 24
    assert [row["frame_index"] for row in rows] == list(range(len(rows)))


def test_videos_without_labels_are_counted(tmp_path):
    write_clip(tmp_path, "with")
    shutil.copy(tmp_path / "with.mp4", tmp_path / "without.mp4")
    groups, rejects = read_rows(labelled(tmp_path))
    assert len(flat(groups)) == 8
    assert rejects.counts == {"missing_labels": 1}
    (tmp_path / "with.labels.json").unlink()
    with pytest.raises(DataError, match="none of 2 videos"):
        read_rows(labelled(tmp_path))


def test_what_is_wrong_with_labels_is_noted(tmp_path):
    write_clip(tmp_path, "good")
    for name, text in (("comma", '{"version": 1,}'), ("twice", '{"version": 1, "version": 1}')):
        write_clip(tmp_path, name).with_name(f"{name}.labels.json").write_text(text)
    write_clip(tmp_path, "case").with_name("case.labels.json").rename(tmp_path / "Case.labels.json")
    _, rejects = read_rows(labelled(tmp_path))
    assert rejects.counts == {"labels_mismatch": 2, "missing_labels": 1}
    assert rejects.notes == [
        f"{tmp_path}/case.mp4: has no case.labels.json; 'Case.labels.json' differs from it in upper and lower case",
        f"{tmp_path}/comma.labels.json: a comma before '}}', which JSON does not allow in line 1",
        f"{tmp_path}/twice.labels.json: the key 'version' is there twice in one object",
    ]


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(DataError, match="no video here"):
        read_rows(labelled(tmp_path))
    (tmp_path / "boxes.json").write_text("[]")
    with pytest.raises(DataError, match="no image here"):
        read_rows(BoxedImagesSettings(uri=str(tmp_path), boxes=str(tmp_path / "boxes.json")))


def test_one_video_can_be_named(tmp_path):
    path = write_clip(tmp_path, "one")
    write_clip(tmp_path, "other")
    groups, _ = read_rows(labelled(path))
    assert {row["clip_id"] for row in flat(groups)} == {"s/one"}


def test_one_video_without_a_suffix_has_a_name(tmp_path):
    write_clip(tmp_path, "one").rename(tmp_path / "one")
    assert find_videos(str(tmp_path / "one")) == {"one": str(tmp_path / "one")}


def test_videos_of_one_name_keep_their_suffix(tmp_path):
    path = write_clip(tmp_path, "clip", num_frames=2)
    shutil.copy(path, tmp_path / "clip.mov")
    groups, _ = read_rows(labelled(tmp_path))
    assert {row["clip_id"] for row in flat(groups)} == {"s/clip.mp4", "s/clip.mov"}


@pytest.mark.parametrize(
    ("sampling", "indexes"),
    [
        ({"stride": 3}, [0, 3, 6, 9]),
        ({"fps": 5}, [0, 2, 4, 6, 8, 10]),
        ({"fps": 4}, [0, 3, 5, 8, 10]),
        ({"fps": 30}, range(12)),
    ],
)
def test_sampling(tmp_path, sampling, indexes):
    write_clip(tmp_path, "clip", num_frames=12)
    groups, rejects = read_rows(labelled(tmp_path, **sampling))
    assert [row["frame_index"] for row in flat(groups)] == list(indexes)
    assert not rejects.counts


def test_a_turned_phone_video_is_upright(tmp_path):
    from pipeline.frames.sources.video import probe, read_frames

    upright = np.zeros((96, 64, 3), dtype=np.uint8)
    upright[:24] = 255
    sideways = np.rot90(upright, k=1)
    path = tmp_path / "phone.mp4"
    write_video(path, [np.ascontiguousarray(sideways)] * 3)
    data = bytearray(path.read_bytes())
    # Write a display matrix of 90 degrees into the track header, as phones do.
    at = data.index(b"tkhd") + 4 + 40
    matrix = [0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000]
    data[at : at + 36] = b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in matrix)
    path.write_bytes(data)
    info = probe(str(path))
    assert info is not None
    assert (info.width, info.height) == (64, 96)
    _, image = next(read_frames(str(path), info, [0], "phone", Rejects()))
    np.testing.assert_allclose(np.asarray(image, dtype=float), upright, atol=30)


def boxed(tmp_path, entries, **settings):
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    return BoxedImagesSettings(uri=str(tmp_path / "images"), boxes=str(tmp_path / "boxes.json"), **settings)


def test_folders_of_images_are_clips(tmp_path):
    entries = write_images(tmp_path / "images", {"b": 5, "a/c": 3})
    groups, rejects = read_rows(boxed(tmp_path, entries[::-1]))
    rows = flat(groups)
    assert not rejects.counts
    assert [row["frame_id"] for row in rows] == [
        *(f"s/a/c/{i:06d}" for i in range(3)),
        *(f"s/b/{i:06d}" for i in range(5)),
    ]
    assert {row["timestamp_s"] for row in rows} == {None}
    assert sorted(len(group) for group in groups) == [1, 3, 4]
    for row in rows:
        points = project(joints_at(row["frame_index"]), CAMERA) @ row["crop"][:, :2].T + row["crop"][:, 2]
        found = np.array([bright_spot(row["jpeg"], point) for point in points])
        assert np.abs((found - points).mean(0)).max() < 0.15


def test_images_with_a_rate_have_times(tmp_path):
    entries = write_images(tmp_path / "images", {"a": 6})
    groups, _ = read_rows(boxed(tmp_path, entries, image_rate=10, fps=5))
    assert [row["timestamp_s"] for row in flat(groups)] == pytest.approx([0, 0.2, 0.4])


def test_hands_of_an_image_folder_become_tracks(tmp_path):
    entries = write_images(tmp_path / "images", {"a": 6}, boxes_per_image=2)
    entries[3]["boxes_xyxy"].reverse()
    for entry in entries:
        entry["hands"] = ["left", "right"]
    entries[3]["hands"].reverse()
    groups, _ = read_rows(boxed(tmp_path, entries))
    for clip, hand in (("s/a#0", "left"), ("s/a#1", "right")):
        mine = [row for row in flat(groups) if row["clip_id"] == clip]
        assert len(mine) == 6
        assert {row["hand"] for row in mine} == {hand}


def test_the_default_hand_is_used_where_none_is_said(tmp_path):
    groups, _ = read_rows(boxed(tmp_path, write_images(tmp_path / "images", {"a": 2}), default_hand="left"))
    assert all(row["mirrored"] for row in flat(groups))


def test_bad_images_are_counted_and_named(tmp_path):
    entries = write_images(tmp_path / "images", {"a": 8})
    folder = tmp_path / "images" / "a"
    (folder / "00001.jpg").unlink()
    whole = (folder / "00002.jpg").read_bytes()
    (folder / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "00003.jpg").write_bytes(b"")
    entries[4]["boxes_xyxy"] = []
    entries[5]["boxes_xyxy"] = [[1, 2, NAN, 4]]
    entries[6]["boxes_xyxy"] = [[900, 900, 950, 950]]
    groups, rejects = read_rows(boxed(tmp_path, entries))
    assert [row["frame_index"] for row in flat(groups)] == [0, 7]
    assert rejects.counts == {
        "missing_image": 1,
        "unreadable_image": 2,
        "no_hand": 1,
        "bad_box": 1,
        "box_outside_image": 1,
    }
    assert rejects.examples["unreadable_image"] == ["a/00002.jpg", "a/00003.jpg"]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    entries = write_images(tmp_path / "images", {"a": 1})
    image = Image.open(tmp_path / "images/a/00000.jpg").convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert("RGB").convert(mode)
    name = "00000.jpg" if mode == "CMYK" else "00000.png"
    image.save(tmp_path / "images/a" / name)
    entries[0]["file"] = f"a/{name}"
    groups, rejects = read_rows(boxed(tmp_path, entries))
    assert not rejects.counts
    crop = Image.open(io.BytesIO(flat(groups)[0]["jpeg"]))
    assert crop.mode == "RGB"
    pixels = np.asarray(crop, dtype=float)
    assert 25 < np.median(pixels) < 55
    assert pixels.max() > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a valid boxes file"),
        ('[{"file": "a.jpg"}]', r"0\.boxes_xyxy"),
        ('[{"file": "a.jpg", "boxes_xyxy": [[1, 2, 3, 4]], "hands": []}]', "hands than boxes"),
        ("[]", "names no images"),
    ],
)
def test_a_bad_boxes_file_is_said(tmp_path, content, message):
    settings = boxed(tmp_path, write_images(tmp_path / "images", {"a": 1}))
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(settings)
