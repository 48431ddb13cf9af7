"""Boxes in the formats of COCO and COCO-WholeBody."""

import json

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.frames.sources.coco import CocoSettings
from tests.frames.sources.coco_set import CAMERA, box_of, joints_of, write_coco
from tests.frames.sources.dots import check_dots
from tests.frames.sources.reading import read

FILES = ["train2017/000000000009.jpg", "train2017/000000000025.jpg", "b/x.jpg"]


def settings(images, annotations, **changes):
    return CocoSettings(uri=str(images), annotations=str(annotations), **changes)


def check(row, number):
    """The joints that the image was drawn with, brought into the crop by its matrix, lie on the crop's dots."""
    points = np.array(list(joints_of(row["hand"], number).values())) @ CAMERA.T
    pixels = np.column_stack([points[:, :2] / points[:, 2:] + 0.5, np.ones(21)])
    check_dots({**row, "joints_3d": pixels, "camera": [*np.ravel(row["crop"]), 0, 0, 1]}, radius=5.0)
    assert 256 / abs(np.ravel(row["crop"])[0]) == pytest.approx(1.5 * max(box_of(row["hand"], number)[2:]))
    assert row["mirrored"] == (row["hand"] == "left")
    assert row["joints_3d"] is None


def test_categories_called_hand_with_their_sides(tmp_path):
    rows, rejects, units = read(settings(*write_coco(tmp_path, FILES)))
    assert rejects.counts == {"crowd": 1}
    assert [unit.name for unit in units] == ["b/x", "train2017/000000000009", "train2017/000000000025"]
    assert [(name, row["hand"]) for name, row in rows.items()] == [
        (f"s/{unit.name}#{track}/000000", hand) for unit in units for track, hand in enumerate(("right", "left"))
    ]
    for (_, row), number in zip(rows.items(), (2, 2, 0, 0, 1, 1), strict=True):
        check(row, number)


def test_files_may_be_named_in_other_ways(tmp_path):
    """With backslashes, and one of them by two names; folders count by number."""
    images, annotations = write_coco(tmp_path, ["c/9.jpg", "c/10.jpg", "d/1.jpg"])
    (images / "d" / "1.jpg").unlink()
    (images / "d" / "1.jpg").symlink_to(images / "c" / "10.jpg")
    value = json.loads(annotations.read_text())
    for image in value["images"]:
        image["file_name"] = ".\\" + image["file_name"].replace("/", "\\")
    annotations.write_bytes(json.dumps(value).encode("utf-16"))
    rows, rejects, (unit,) = read(settings(images, annotations, coco={"clips": "folder"}))
    assert [entry["file"] for entry in unit.entries or []] == ["9.jpg", "10.jpg"]
    assert len(rows) + rejects.counts.get("duplicate_hand", 0) == 6
    for image in value["images"]:
        image["file_name"] = "/data/" + image["file_name"]
    annotations.write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"images\[0\]: file_name must be a path below the source's URI"):
        read(settings(images, annotations))


def test_whole_body_boxes(tmp_path):
    rows, rejects, _ = read(settings(*write_coco(tmp_path, FILES, whole_body=True)))
    assert rejects.counts == {"crowd": 1}
    assert len(rows) == 5  # one hand is not annotated
    for (_, row), number in zip(rows.items(), (2, 2, 0, 0, 1), strict=True):
        check(row, number)


def test_crowds_without_annotated_hands_are_no_loss(tmp_path):
    images, annotations = write_coco(tmp_path, FILES, whole_body=True)
    value = json.loads(annotations.read_text())
    (crowd,) = (annotation for annotation in value["annotations"] if annotation["iscrowd"])
    crowd.update(lefthand_valid=False, righthand_valid=False, lefthand_box=[0.0] * 4, righthand_box=[0.0] * 4)
    annotations.write_text(json.dumps(value))
    rows, rejects, _ = read(settings(images, annotations))
    assert not rejects.counts
    assert len(rows) == 5


def test_folders_as_clips(tmp_path):
    files = [f"clip_{c}/{i}.jpg" for c in "ab" for i in range(3)]
    rows, _, units = read(settings(*write_coco(tmp_path, files), coco={"clips": "folder"}))
    assert [unit.name for unit in units] == ["clip_a", "clip_b"]
    assert [name for name, row in rows.items() if row["hand"] == "left"] == [
        f"s/clip_{c}#1/{i:06d}" for c in "ab" for i in range(3)
    ]
    for number, name in enumerate(f"s/clip_{c}#1/{i:06d}" for c in "ab" for i in range(3)):
        check(rows[name], number)


def test_categories_by_name(tmp_path):
    images, annotations = write_coco(tmp_path, FILES)
    rows, _, _ = read(settings(images, annotations, coco={"categories": ["handbag", "left_hand"]}, default_hand="left"))
    assert len(rows) == 6
    assert {row["hand"] for row in rows.values()} == {"left"}
    with pytest.raises(DataError, match=r"no category 'hnad' .*only Right Hand, handbag, left_hand"):
        read(settings(images, annotations, coco={"categories": ["hnad"]}))


def test_bad_entries_are_counted(tmp_path):
    images, annotations = write_coco(tmp_path, FILES)
    value = json.loads(annotations.read_text())
    left = [a for a in value["annotations"] if a["category_id"] == 7]
    left[0]["bbox"] = [0, 0, "wide", 5]
    left[1]["bbox"] = [10, 10, -5, 5]
    left[2]["image_id"] = 1
    value["images"][1]["width"] = 1000
    annotations.write_text(json.dumps(value))
    (images / FILES[2]).unlink()
    rows, rejects, _ = read(settings(images, annotations))
    assert rejects.counts == {"crowd": 1, "bad_box": 2, "bad_labels": 1, "wrong_size": 1, "missing_image": 1}
    assert [row["hand"] for row in rows.values()] == ["right"]


def spoiled(change):
    def write(tmp_path):
        images, annotations = write_coco(tmp_path, FILES)
        value = json.loads(annotations.read_text())
        change(value)
        annotations.write_text(json.dumps(value))
        return images, annotations

    return write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["categories"].__setitem__(slice(None), [{"id": 5, "name": "handbag"}]),
            r"\(handbag\) is called hand",
        ),
        (lambda v: v.pop("categories"), r"\(none\) is called hand"),
        (lambda v: v["annotations"][1].pop("bbox"), r"annotations\[1\] has no 'bbox'"),
        (lambda v: v["images"][0].pop("id"), r"images\[0\] has no 'id'"),
        (lambda v: v["images"][1].update(id=900), r"images\[1\]: another image has id 900"),
        (lambda v: v["images"][1].update(file_name=FILES[0]), r"two images have the file_name 'train2017/0+9\.jpg'"),
        (lambda v: v["images"].insert(1, 7), r"images\[1\] is not of COCO's form"),
        (lambda v: v["annotations"].clear(), "no hand in an image"),
    ],
)
def test_files_that_are_not_usable(tmp_path, change, message):
    with pytest.raises(DataError, match=r"annotations\.json: .*" + message) as caught:
        read(settings(*spoiled(change)(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path):
    images, annotations = write_coco(tmp_path, FILES)
    for text in ("[1, 2]", '{"images": [{"id": 1', "not json"):
        annotations.write_text(text)
        with pytest.raises(DataError, match=r"annotations\.json: not JSON of the expected form"):
            read(settings(images, annotations))
