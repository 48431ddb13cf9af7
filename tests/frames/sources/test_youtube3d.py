"""YouTube 3D Hands as published: joints land where they were drawn, and the set's known defects cost what they must."""

import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.frames.sources.youtube3d import YouTube3dSettings
from tests.frames.sources.dots import check_dots
from tests.frames.sources.reading import edit_json, read
from tests.frames.sources.youtube3d_set import write_youtube3d

VIDEOS = {"abc": 3, "PQSjVMOaRGc": 1, "Su0mLlax_0s": 2}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_youtube3d(tmp_path_factory.mktemp("youtube"), VIDEOS)


@pytest.fixture
def root(tmp_path, published):
    """A copy to spoil."""
    return shutil.copytree(published, tmp_path / "youtube")


def settings(root, regressor=True, **changes):
    section = {"regressor": str(root / "regressor.npy")} if regressor else {}
    annotations = str(root / "youtube_train.json")
    values = {"uri": str(root), "annotations": annotations, "youtube3d": section, **changes}
    return YouTube3dSettings.model_validate(values)


def frame(root, number, video="abc", suffix="png"):
    return root / "youtube" / video / "video" / "frames" / f"{number}.{suffix}"


def edit(root, change):
    edit_json(root / "youtube_train.json", change)


def test_joints_land_on_their_dots(published):
    rows, rejects, units = read(settings(published))
    assert not rejects.counts
    assert {unit.name: unit.split_key for unit in units} == {
        "abc": "abc",
        "PQSjVMOaRGc": "Su0mLlax_0s",  # one video under two ids
        "Su0mLlax_0s": "Su0mLlax_0s",
    }
    assert [name for name in rows if "/abc" in name] == [
        "s/abc#0/000000",
        "s/abc#0/000001",
        "s/abc#0/000002",
        "s/abc#1/000000",
    ]
    assert sorted(row["hand"] for row in rows.values()) == ["left"] * 3 + ["right"] * 6
    for row in rows.values():
        check_dots(row, radius=5.0)
        assert row["mirrored"] == (row["hand"] == "left")
        assert row["joints_3d"] is row["camera"] is None  # there is no depth


def test_without_a_regressor_boxes_are_those_of_the_mesh(published):
    rows, rejects, _ = read(settings(published, regressor=False))
    with_joints, _, _ = read(settings(published))
    assert not rejects.counts
    assert list(rows) == list(with_joints)
    for name, row in rows.items():
        assert row["joints_3d"] is row["camera"] is row["joints_2d"] is None
        side, joints_side = (256 / abs(np.ravel(r["crop"])[0]) / 1.5 for r in (row, with_joints[name]))
        assert side == pytest.approx(joints_side + 8, abs=0.1)  # the mesh reaches 4 px further


def test_frames_that_are_gone_or_of_another_resolution(root):
    frame(root, 9, "PQSjVMOaRGc").unlink()  # with all frames of its video
    frame(root, 9).unlink()
    for number, size in ((39, (640, 480)), (69, (320, 320))):
        Image.open(frame(root, number)).resize(size).save(frame(root, number))
    rows, rejects, units = read(settings(root))
    assert rejects.counts == {"missing_image": 4, "wrong_size": 1}
    assert rejects.examples["missing_image"] == ["abc/9", "PQSjVMOaRGc/9"]
    assert rejects.examples["wrong_size"] == ["abc/69.png"]
    assert [unit.name for unit in units] == ["Su0mLlax_0s", "abc"]
    assert [name for name in rows if "/abc" in name] == ["s/abc/000000"]
    for row in rows.values():
        check_dots(row, radius=5.0)


def test_frames_as_jpeg(tmp_path):
    root = write_youtube3d(tmp_path, {"abc": 2}, suffix="jpg")
    rows, rejects, _ = read(settings(root))
    assert len(rows) == 3
    assert not rejects.counts


def test_bad_annotations_cost_their_hand(root):
    def spoil(value):
        value["annotations"][0]["vertices"] = value["annotations"][0]["vertices"][:777]
        value["annotations"][1]["vertices"][5][0] = float("nan")
        value["annotations"][2]["image_id"] = 999

    edit(root, spoil)
    rows, rejects, _ = read(settings(root))
    assert rejects.counts == {"bad_labels": 3}
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["annotations"][1].pop("is_left"), r"annotations\[1\] has no 'is_left'"),
        (lambda v: v["images"][2].update(name="frames/2.png"), r"images\[2\] .*'frames/2\.png' is not youtube/VIDEO"),
        (lambda v: v["images"].insert(0, None), r"images\[0\] is not as published"),
        (lambda v: v["annotations"].clear(), "annotates no hands"),
    ],
)
def test_another_layout(root, change, message):
    edit(root, change)
    with pytest.raises(DataError, match=r"youtube_train\.json: .*" + message) as caught:
        read(settings(root))
    assert "\n" not in str(caught.value)


def test_no_frame_and_no_regressor(root):
    shutil.rmtree(root / "youtube")
    with pytest.raises(
        DataError, match=r"not one of the 6 annotated frames .* expected at youtube/abc/video/frames/9\.png"
    ):
        read(settings(root))
    np.save(root / "regressor.npy", np.zeros((778, 16)))
    with pytest.raises(DataError, match=r"regressor\.npy: not an array of 16 x 778"):
        read(settings(root))
