"""InterHand2.6M as published: joints land where they were drawn, and what is wrong with it is named."""

import re
import shutil

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.frames.sources.interhand import InterHandSettings
from tests.frames.sources.dots import check_dots
from tests.frames.sources.interhand_set import FRAMES, write_interhand
from tests.frames.sources.reading import edit_json, read


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_interhand(tmp_path_factory.mktemp("interhand"))


@pytest.fixture
def root(tmp_path, published):
    """A copy to spoil."""
    return shutil.copytree(published, tmp_path / "interhand")


def settings(root, **changes):
    return InterHandSettings(uri=str(root), **changes)


def edit(root, kind, change):
    edit_json(next(root.glob(f"annotations/*/*_{kind}.json")), change)


def test_joints_land_on_their_dots(published):
    rows, rejects, units = read(settings(published))
    assert not rejects.counts
    assert [unit.num_frames for unit in units] == [3, 3, 6, 6, 3, 3]
    assert {unit.split_key for unit in units} == {"subject0", "subject3"}
    assert len(rows) == 24
    both = [name for name in rows if name.startswith("s/Capture0/0390_dh_touchROM/cam400026#")]
    assert [name.rpartition("cam400026")[2] for name in both] == [f"#{t}/{f:06d}" for t in (0, 1) for f in FRAMES]
    assert {rows[name]["hand"] for name in both[:3]} == {"right"}
    for row in rows.values():
        check_dots(row)
        assert row["mirrored"] == (row["hand"] == "left")
        assert 0.5 < np.asarray(row["joints_3d"])[:, 2].mean() < 1.5  # metres
        assert row["timestamp_s"] is None


def test_the_earlier_layout_and_the_other_parts(tmp_path):
    write_interhand(tmp_path, "test", "all")
    rows, rejects, _ = read(settings(tmp_path, part="test", image_rate=5.0, stride=2))
    assert not rejects.counts
    assert len(rows) == 16
    assert {row["timestamp_s"] for row in rows.values()} == {0.0, 0.4}
    with pytest.raises(Exception, match=r"InterHand2\.6M_val_data\.json"):
        read(settings(tmp_path, part="val"))


def test_the_earlier_validation_part_has_machine_annotations_only(tmp_path):
    write_interhand(tmp_path, "val", "machine_annot")
    rows, rejects, _ = read(settings(tmp_path, part="val"))
    assert not rejects.counts
    assert len(rows) == 24


def test_validity_of_joints_by_coordinate(root):
    """Descriptions of the format also say "Jx3 list"; in the files themselves they are J x 1."""

    def widen(joints):
        for frames in joints.values():
            for frame in frames.values():
                frame["joint_valid"] = [3 * joint for joint in frame["joint_valid"]]
                frame.pop("seq")  # files before November 2023 lack it

    edit(root, "joint_3d", widen)
    rows, rejects, _ = read(settings(root))
    assert not rejects.counts
    assert len(rows) == 24
    for row in rows.values():
        check_dots(row)


def test_hands_without_all_joints(root):
    def hide(joints):
        joints["0"][str(FRAMES[0])]["joint_valid"][25] = [False]  # interacting: the left hand
        joints["0"][str(FRAMES[1] + 100)]["joint_valid"][40] = [False]  # a left hand alone

    def invalid(data):
        image = next(i for i, image in enumerate(data["images"]) if image["frame_idx"] == FRAMES[0] + 200)
        data["annotations"][image]["joint_valid"][7] = [0]  # a right hand alone, the joint lies in the image

    edit(root, "joint_3d", hide)
    edit(root, "data", invalid)
    rows, rejects, _ = read(settings(root))
    assert rejects.counts == {"partial_joints": 1}
    assert rejects.examples["partial_joints"] == [f"Capture0/0390_dh_touchROM/cam400026/{FRAMES[0]:06d}#1"]
    bare = {name: row for name, row in rows.items() if row["joints_3d"] is None}
    assert [row["hand"] for row in bare.values()] == ["left", "right"]
    assert len(rows) == 23
    for row in bare.values():  # the published box, with the camera kept
        middle = np.asarray(row["crop"]) @ [50.25 + 120, 80.5 + 165, 1]
        np.testing.assert_allclose(middle, [128, 128])
        assert row["camera"] is not None


def test_a_joint_outside_the_image_is_annotated_nevertheless(root):
    pinky = range(16, 20)

    def hide(data, joints):
        for image, annotation in zip(data["images"], data["annotations"], strict=True):
            if image["seq_name"] == "ROM01":
                for joint in joints:
                    annotation["joint_valid"][joint] = [0]

    edit(
        root, "camera", lambda cameras: cameras["3"]["princpt"].update({"400026": [290.0, 258.7]})
    )  # pinky at 345 of 334
    edit(root, "data", lambda data: hide(data, pinky))
    rows, rejects, _ = read(settings(root))
    assert not rejects.counts
    labelled = {name for name, row in rows.items() if row["joints_3d"] is not None}
    assert {name for name in rows if "ROM01/cam400026" in name} <= labelled
    assert not {name for name in rows if "ROM01/cam410053" in name} & labelled  # there the pinky lies in the image


def test_defects_of_single_images_are_counted(root):
    folder = root / "images/train/Capture3/ROM01/cam400026"
    first, second = (folder / f"image{frame + 200}.jpg" for frame in FRAMES[:2])
    first.unlink()
    second.write_bytes(second.read_bytes()[:500])

    def change(data):
        annotation = data["annotations"]
        annotation.append(annotation[0])
        del annotation[1]

    edit(root, "data", change)
    edit(root, "joint_3d", lambda joints: joints["0"][str(FRAMES[2])]["world_coord"].__setitem__(3, [1e9, 0, 0]))
    _, rejects, _ = read(settings(root))
    assert rejects.counts == {
        "missing_image": 1,
        "unreadable_image": 1,
        "duplicate_hand": 1,
        "no_hand": 1,
        "bad_joints": 1,
    }
    assert rejects.examples["missing_image"] == [f"Capture3/ROM01/cam400026/{FRAMES[0] + 200:06d}"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("data", lambda v: v["images"][2].pop("file_name"), r"_data\.json: images\[2\]: has no file_name"),
        ("data", lambda v: v["images"][1].update(frame_idx=7), r"images\[1\]: file_name is not .*image<frame_idx>"),
        ("data", lambda v: v["images"].__setitem__(0, 3), r"images\[0\]: "),
        ("data", lambda v: v["annotations"][0].update(hand_type="both"), r"annotations\[0\]: "),
        ("data", lambda v: v["annotations"][0].update(joint_valid=[1] * 21), r"annotations\[0\]: joint_valid has 21"),
        ("data", lambda v: v["annotations"][4].update(image_id=5), r"annotations\[4\]: image_id 5 is no image's id"),
        ("data", lambda v: v.clear(), r"_data\.json: annotates no images"),
        ("camera", lambda v: v["0"]["campos"].pop("400026"), r"_camera\.json: has no 0\.campos\.400026"),
        ("camera", lambda v: v["3"].update(focal=None), r"_camera\.json: has no 3\.focal\.400026"),
        ("camera", lambda v: v["0"]["camrot"].update({"410053": [1, 2]}), r"0\.camrot\.410053 is not 3 x 3 finite"),
        ("joint_3d", lambda v: v["0"]["2017"].pop("joint_valid"), r"_joint_3d\.json: 0\.2017: has no joint_valid"),
        ("joint_3d", lambda v: v["0"]["2017"].update(world_coord=[[1, 2, 3]]), r"0\.2017: world_coord and joint_valid"),
    ],
)
def test_other_annotation_files_are_refused(root, kind, change, message):
    edit(root, kind, change)
    with pytest.raises(DataError, match=message) as caught:
        read(settings(root))
    assert "\n" not in str(caught.value)


def test_a_truncated_annotation_file_is_refused(root):
    path = root / "annotations/train/InterHand2.6M_train_data.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=re.escape(f"{path}: not JSON of the expected form")):
        read(settings(root))
