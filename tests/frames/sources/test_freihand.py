"""FreiHAND as published: joints land where they were drawn, poses stay whole, and what is wrong with it is named."""

import json
import re
import shutil

import numpy as np
import pytest

from pipeline.errors import DataError, SettingsError
from pipeline.frames.ingest import ingest
from pipeline.frames.plan import IngestSettings, SplitSettings, make_plan
from pipeline.frames.sources.freihand import FreiHandSettings
from tests.frames.sources.dots import check_dots
from tests.frames.sources.freihand_set import write_freihand
from tests.frames.sources.reading import read
from tests.frames.test_ingest import read_set


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = write_freihand(tmp_path_factory.mktemp("freihand"))
    return write_freihand(root, "evaluation", 2, 1)


@pytest.fixture
def root(tmp_path, published):
    """A copy to spoil."""
    return shutil.copytree(published, tmp_path / "freihand")


def settings(root, **changes):
    return FreiHandSettings(uri=str(root), **changes)


def test_joints_land_on_their_dots_in_all_versions(published):
    rows, rejects, units = read(settings(published))
    assert not rejects.counts
    assert [unit.name for unit in units] == [f"training/{label:08d}" for label in range(3)]
    assert list(rows) == [f"s/training/{label:08d}/{label + 3 * v:06d}" for label in range(3) for v in range(4)]
    for row in rows.values():
        check_dots(row)
        assert (row["hand"], row["mirrored"], row["timestamp_s"]) == ("right", False, None)
        assert 0.5 < np.asarray(row["joints_3d"])[:, 2].mean() < 1.5  # metres


def test_versions_and_the_evaluation_part(published):
    rows, _, _ = read(settings(published, freihand={"versions": ["auto", "gs"]}))
    assert [int(name.rpartition("/")[2]) for name in rows] == [0, 9, 1, 10, 2, 11]
    rows, rejects, _ = read(settings(published, part="evaluation"))
    assert list(rows) == ["s/evaluation/00000000/000000", "s/evaluation/00000001/000001"]
    assert not rejects.counts
    for row in rows.values():
        check_dots(row)
    with pytest.raises(SettingsError, match=r"source\.freihand\.versions"):
        settings(published, part="evaluation", freihand={"versions": ["gs"]}).reader()


def test_a_pose_is_in_one_split_with_all_its_backgrounds(tmp_path, ray_cluster):
    root = write_freihand(tmp_path / "FreiHAND", num_labels=10)
    splits = SplitSettings(train=0.6, val=0.2, test=0.2)
    manifest = ingest(IngestSettings(source=settings(root), splits=splits, image_size=224), str(tmp_path / "frames"))
    read_manifest, rows = read_set(str(tmp_path / "frames"))
    assert read_manifest == manifest
    assert manifest.counts == {"FreiHAND": {"train": 24, "val": 8, "test": 8}}
    assert manifest.num_clips == 10
    for row in rows:
        check_dots(row)
    by_label: dict[int, set[str]] = {}
    for row in rows:
        by_label.setdefault(row["frame_index"] % 10, set()).add(row["split"])
    assert all(len(of_label) == 1 for of_label in by_label.values())


def test_a_cut_of_the_published_set_keeps_the_names_of_its_images(tmp_path):
    root = write_freihand(tmp_path, stride=32_560)
    (root / "training_mano.json").unlink()
    rows, rejects, _ = read(settings(root))
    assert not rejects.counts
    assert list(rows) == [f"s/training/{i:08d}/{i + 32_560 * v:06d}" for i in range(3) for v in range(4)]
    for row in rows.values():
        check_dots(row)


def test_what_is_wrong_with_one_image_costs_that_image(root):
    xyz = json.loads((root / "training_xyz.json").read_text())
    xyz[1][4][0] = float("nan")
    (root / "training_xyz.json").write_text(json.dumps(xyz))
    (root / "training" / "rgb" / "00000000.jpg").rename(root / "training" / "rgb" / "00000077.jpg")
    (root / "training" / "rgb" / "00000005.jpg").write_bytes(b"\xff\xd8 no image")
    rows, rejects, _ = read(settings(root))
    assert rejects.counts == {"bad_joints": 4, "missing_image": 1, "unreadable_image": 1}
    assert rejects.examples["missing_image"] == ["training/00000000/000000"]
    assert len(rows) == 6


def spoil(root, name, change):
    path = root / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "training/rgb/00000011.jpg").unlink(), r"training/rgb: 11 images for the 3 labels"),
        (lambda root: shutil.rmtree(root / "training"), r"training/rgb: 0 images for the 3 labels"),
        (lambda root: (root / "training_xyz.json").unlink(), r"training_xyz\.json: not there; .*FreiHAND_pub_v2\.zip"),
        (lambda root: spoil(root, "training_K.json", lambda v: v[:2]), r"training_K\.json: 2 cameras, but 3 labels"),
        (lambda root: spoil(root, "training_scale.json", lambda v: v[:2]), r"training_scale\.json: 2 scales, but 3"),
        (
            lambda root: spoil(root, "training_xyz.json", lambda v: (1000 * np.array(v)).tolist()),
            r"training_scale\.json: not the lengths \(metres\) of bone 9-10",
        ),
        (
            lambda root: spoil(root, "training_K.json", lambda v: {"K": v}),
            r"training_K\.json: not JSON of the expected",
        ),
        (
            lambda root: spoil(root, "training_K.json", lambda v: [1, 2, 3]),
            r"training_K\.json: not one of 3 elements is 3 x 3",
        ),
        (lambda root: spoil(root, "training_K.json", lambda v: []), r"training_K\.json: an empty list"),
    ],
)
def test_files_that_do_not_belong_together(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message) as caught:
        make_plan(IngestSettings(source=settings(root)), settings(root).reader())
    assert "\n" not in str(caught.value)


def test_versions_that_are_not_there(tmp_path):
    root = write_freihand(tmp_path, num_versions=1)
    assert len(read(settings(root))[0]) == 3
    with pytest.raises(DataError, match=re.escape("no images of version auto (source.freihand.versions), only gs")):
        read(settings(root, freihand={"versions": ["gs", "auto"]}))
