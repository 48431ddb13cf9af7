"""HO-3D as published: joints land where they were drawn, and its pickles run nothing."""

import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, StorageError
from pipeline.frames.sources.ho3d import Ho3dSettings
from pipeline.frames.sources.plain_pickle import load_plain
from tests.frames.sources.dots import check_dots
from tests.frames.sources.ho3d_set import CAMERA, meta, python2, write_ho3d
from tests.frames.sources.reading import read


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return {version: write_ho3d(tmp_path_factory.mktemp(f"ho3d_v{version}"), version) for version in (2, 3)}


@pytest.fixture
def root(tmp_path, published):
    """A copy to spoil."""
    return shutil.copytree(published[3], tmp_path / "ho3d")


def settings(root, **changes):
    return Ho3dSettings(uri=str(root), **changes)


@pytest.mark.parametrize("version", [2, 3])
def test_joints_land_on_their_dots(published, version):
    rows, rejects, units = read(settings(published[version]))
    assert not rejects.counts
    assert list(rows) == [f"s/train/{name}/{i:06d}" for name in ("ABF10", "ABF11", "MC1") for i in range(3)]
    assert [unit.split_key for unit in units] == ["ABF", "ABF", "MC"]
    for row in rows.values():
        check_dots(row, radius=9.0)
        assert (row["hand"], row["mirrored"]) == ("right", False)


def test_evaluation_has_boxes_and_no_joints(published):
    rows, rejects, _ = read(settings(published[2], part="evaluation"))
    assert not rejects.counts
    assert list(rows) == [f"s/evaluation/SM1/{i:06d}" for i in range(3)]
    for row in rows.values():
        assert row["joints_3d"] is None
        np.testing.assert_allclose(row["crop"] @ [(250 + 460) / 2, (150 + 330) / 2, 1], [128, 128])
        full = np.vstack([row["crop"], [0, 0, 1]]) @ (CAMERA + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]))
        np.testing.assert_allclose(row["camera"], full)


@pytest.mark.parametrize("version", [2, 3])
def test_evaluation_joints_that_were_published_later(tmp_path, version):
    root = write_ho3d(tmp_path, version, with_joints=True)
    rows, rejects, _ = read(settings(root, part="evaluation", stride=2))
    assert not rejects.counts
    assert list(rows) == [f"s/evaluation/SM1/{i:06d}" for i in (0, 2)]
    for row in rows.values():
        check_dots(row, radius=9.0)
    (root / "evaluation_xyz.json").write_text(json.dumps(np.zeros((2, 21, 3)).tolist()))
    with pytest.raises(DataError, match=r"evaluation_xyz\.json: joints of 2 frames, but .*evaluation\.txt names 3"):
        read(settings(root, part="evaluation"))


def test_defects_of_single_frames_are_counted(root):
    folder = root / "train/MC1"
    (folder / "rgb/0000.jpg").unlink()
    Image.new("RGB", (320, 240)).save(folder / "rgb/0001.jpg")
    label = folder / "meta/0002.pkl"
    label.write_bytes(label.read_bytes()[:-40])
    (root / "train/ABF10/meta/0000.pkl").unlink()
    for number, change in enumerate([{"camMat": np.full((3, 3), np.nan)}, {"handJoints3D": np.ones((21, 3))}]):
        content, _ = meta("train", number)
        (root / f"train/ABF11/meta/{number:04d}.pkl").write_bytes(pickle.dumps({**content, **change}, protocol=2))
    with (root / "train.txt").open("a") as file:
        file.write("MC1/0003\n")  # its label says that there is no hand
    rows, rejects, _ = read(settings(root))
    assert rejects.examples == {
        "bad_labels": ["train/ABF10/000000", "train/MC1/000002"],
        "bad_camera": ["train/ABF11/000000"],
        "bad_joints": ["train/ABF11/000001"],
        "no_hand": ["train/MC1/000003"],
        "missing_image": ["train/MC1/000000"],
        "wrong_size": ["train/MC1/000001"],
    }
    assert len(rows) == 3


def test_a_missing_sequence_is_counted(root):
    shutil.rmtree(root / "train/ABF11")
    rows, rejects, _ = read(settings(root))
    assert rejects.counts == {"bad_labels": 3}
    assert len(rows) == 6


def test_other_lists_of_frames_are_refused(root):
    for text, message in [("ABF10/0000\nABF10\n", r"train\.txt: line 2: 'ABF10' is not"), ("", "names no frames")]:
        (root / "train.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read(settings(root))
    (root / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        read(settings(root))
    (root / "train.txt").unlink()
    with pytest.raises(StorageError, match=r"train\.txt: no such file"):
        read(settings(root))


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (exec, ("raise SystemExit",)),
        (np.load, ("/etc/passwd",)),
        (np.fromfile, ("/etc/passwd",)),
        (pickle.loads, (b"N.",)),
    ],
)
def test_a_pickle_that_calls_something_is_refused_before_it_does(root, call):
    uri = root / "train/ABF11/meta/0001.pkl"
    uri.write_bytes(pickle.dumps({"handJoints3D": [Evil(*call)]}))
    with pytest.raises(DataError, match=r"meta/0001\.pkl: this pickle asks for \w+") as caught:
        read(settings(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol_are_read(protocol):
    value = {"a": np.arange(12.0).reshape(3, 4), "b": np.int64(3), "c": ["x", 1.5, None], "d": np.array(["u", "v"])}
    result = load_plain(pickle.dumps(value, protocol=protocol), "f")
    np.testing.assert_array_equal(result.pop("a"), value["a"])
    np.testing.assert_array_equal(result.pop("d"), value["d"])
    assert result == {"b": 3, "c": ["x", 1.5, None]}


def test_a_pickle_of_python_2_is_read_like_numpy_reads_it():
    value, _ = meta("train", 0)
    data = python2(value)
    result, reference = load_plain(data, "f"), pickle.loads(data, encoding="latin1")
    assert result.keys() == reference.keys() == value.keys()
    np.testing.assert_array_equal(result["handJoints3D"], reference["handJoints3D"])
    np.testing.assert_array_equal(result["handJoints3D"], value["handJoints3D"])


def test_damaged_pickles_are_none():
    data = pickle.dumps({"a": np.arange(1000.0)}, protocol=2)
    for broken in (b"", b"garbage", data[:-1], data[: len(data) // 2], b"\x89PNG" + data):
        assert load_plain(broken, "f") is None
