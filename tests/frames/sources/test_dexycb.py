"""DexYCB as published: joints land where they were drawn, and what is wrong with it is named."""

import shutil

import numpy as np
import pytest
import yaml

from pipeline.errors import DataError
from pipeline.frames.groups import assign_splits
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.dexycb import DexYcbSection, DexYcbSettings
from tests.frames.sources.dexycb_set import SERIALS, SESSIONS, label, write_dexycb
from tests.frames.sources.dots import check_dots, hand
from tests.frames.sources.reading import read

FIRST = "20200709-subject-01/20200709_141754"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_dexycb(tmp_path_factory.mktemp("dexycb"))


@pytest.fixture
def root(tmp_path, published):
    """A copy to spoil."""
    return shutil.copytree(published, tmp_path / "dexycb")


def settings(root, **changes):
    return DexYcbSettings(uri=str(root), **changes)


def edit(path, change):
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


def test_joints_land_on_their_dots(published):
    rows, rejects, units = read(settings(published, image_rate=30.0))
    assert rejects.counts == {"no_hand": 6}
    assert list(rows) == [f"s/{name}/{serial}/{i:06d}" for name in SESSIONS for serial in SERIALS for i in (1, 2, 3)]
    assert {unit.split_key for unit in units} == {"20200709-subject-01", "20200813-subject-02"}
    for name, row in rows.items():
        check_dots(row, radius=9.0)
        assert row["hand"] == next(side for session, side in SESSIONS.items() if session in name)
        assert row["mirrored"] == (row["hand"] == "left")
        assert row["timestamp_s"] == pytest.approx(row["frame_index"] / 30)


def test_cameras_and_sessions_of_a_subject_share_a_split(published):
    _, _, units = read(settings(published))
    splits = assign_splits([unit.split_key for unit in units], {"train": 0.5, "val": 0.5}, seed=0)
    assert sorted(splits.values()) == ["train", "val"]
    by_session = DexYcbSettings(uri=str(published), dexycb=DexYcbSection(split_by="session"))
    units = by_session.reader().list_units(Rejects())
    assert [unit.split_key for unit in units] == [session for session in SESSIONS for _ in SERIALS]


def test_defects_of_single_frames_are_counted(root):
    folder = root / FIRST / SERIALS[0]
    (folder / "color_000001.jpg").unlink()
    (folder / "labels_000002.npz").unlink()
    damaged = folder / "labels_000003.npz"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    other = root / FIRST / SERIALS[1]
    objects = label(hand("right", 1), SERIALS[1]) | {"joint_3d": np.array([{"a": 1}], dtype=object)}
    np.savez(other / "labels_000001.npz", allow_pickle=True, **objects)
    (other / "color_000002.jpg").write_bytes(b"")
    behind = label({name: -joint for name, joint in hand("right", 1).items()}, SERIALS[1])
    np.savez(other / "labels_000003.npz", allow_pickle=False, **behind)
    rows, rejects, _ = read(settings(root))
    rejects.examples.pop("no_hand")
    first, second = (f"{FIRST}/{serial}" for serial in SERIALS)
    assert rejects.examples == {
        "bad_labels": [f"{first}/000002", f"{first}/000003", f"{second}/000001"],
        "missing_image": [f"{first}/000001"],
        "unreadable_image": [f"{second}/000002"],
        "bad_joints": [f"{second}/000003"],
    }
    assert len(rows) == 12


def test_cameras_that_are_not_there_are_not_missed(root):
    for session in SESSIONS:
        shutil.rmtree(root / session / SERIALS[1])
    (root / f"calibration/intrinsics/{SERIALS[1]}_640x480.yml").unlink()
    rows, rejects, units = read(settings(root))
    assert rejects.counts == {"no_hand": 3}
    assert [unit.name for unit in units] == [f"{session}/{SERIALS[0]}" for session in SESSIONS]
    assert len(rows) == 9
    for session in SESSIONS:
        shutil.rmtree(root / session / SERIALS[0])
    with pytest.raises(DataError, match="no session has a folder of one of the cameras"):
        read(settings(root))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (f"{FIRST}/meta.yml", lambda v: v.pop("mano_sides"), r"meta\.yml: mano_sides is None"),
        (f"{FIRST}/meta.yml", lambda v: v.update(mano_sides=["both"]), r"meta\.yml: mano_sides is \['both'\]"),
        (f"{FIRST}/meta.yml", lambda v: v.update(serials="8362"), r"meta\.yml: serials is 8362"),
        (f"{FIRST}/meta.yml", lambda v: v.update(num_frames=-1), r"meta\.yml: num_frames is -1"),
        (f"calibration/intrinsics/{SERIALS[0]}_640x480.yml", lambda v: v.pop("color"), r"640x480\.yml: color\.fx"),
        (f"calibration/intrinsics/{SERIALS[0]}_640x480.yml", lambda v: v["color"].pop("ppx"), r"640x480\.yml: color"),
    ],
)
def test_other_descriptions_are_refused(root, file, change, message):
    edit(root / file, change)
    with pytest.raises(DataError, match=message) as caught:
        read(settings(root))
    assert "\n" not in str(caught.value)


def test_damaged_descriptions_are_refused(root):
    meta = root / FIRST / "meta.yml"
    for text in ("serials: [", "!!python/object/apply:os.system ['true']", "- 1"):
        meta.write_text(text)
        with pytest.raises(DataError, match=r"meta\.yml: not ") as caught:
            read(settings(root))
        assert "\n" not in str(caught.value)


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    source = settings(tmp_path).reader()
    with pytest.raises(DataError, match=r"no <subject>/<session>/meta\.yml here"):
        source.list_units(Rejects())
