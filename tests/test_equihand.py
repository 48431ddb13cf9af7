"""The face: a few names, loaded on first use."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import equihand
from pipeline.errors import DataError
from pipeline.evaluation.yardsticks import Constant
from pipeline.prediction import in_process
from tests.frames.clips import CAMERA, WIDTH, draw, joints_at
from tests.frames.clips import project as to_pixels
from tests.prediction.test_poses import VIEW, Oracle


def test_every_name_is_there_and_nothing_heavy_is_imported():
    code = """
import sys, equihand
assert not {"torch", "pipeline"} & sys.modules.keys(), "loaded before it is used"
for name in equihand.__all__:
    assert getattr(equihand, name) is not None
assert not {"ray", "mlflow"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=250)
    assert set(equihand.__all__) <= set(dir(equihand))
    source = Path(equihand.__file__).read_text()
    seen_by_types = dict(reversed(each) for each in re.findall(r"^    from (\S+) import (\w+) as \2$", source, re.M))
    assert seen_by_types == equihand._FROM  # what type checkers read, and what is loaded
    assert equihand.Constant is Constant
    with pytest.raises(AttributeError, match="predict_hands"):
        equihand.predict  # noqa: B018


class Loaded:
    """What load_pose_model gives, of a model that knows the hand."""

    view_size, view_margin = VIEW, 1.25

    def __init__(self, joints: np.ndarray) -> None:
        self.model = Oracle(joints)


@pytest.mark.parametrize("hand", ["right", "left"])
def test_predicted_joints_are_those_of_the_image(hand):
    joints, camera = joints_at(3), CAMERA
    pixels = to_pixels(joints, camera)
    image, shown = draw([pixels]), joints
    if hand == "left":  # the same hand in a mirror
        image, shown, pixels = image[:, ::-1], joints * [-1, 1, 1], pixels * [-1, 1] + [WIDTH, 0]
        camera = np.array([[200.0, 0.0, WIDTH - 80.0], *CAMERA[1:]])
    box = [*pixels.min(0), *pixels.max(0)]
    loaded: Any = Loaded(joints)
    poses = equihand.predict_hands([image], [box], hand, loaded, camera, passes=1)
    np.testing.assert_allclose(poses.joints_2d[0], pixels, atol=0.02)
    own = float(loaded.model.bone_length(torch.from_numpy(joints)[None]))
    np.testing.assert_allclose(
        poses.joints_3d[0], shown * float(loaded.model.mean_bone_length) / own, rtol=1e-4, atol=1e-5
    )


def test_the_shipped_model_answers_as_many_hands_as_are_asked_for(monkeypatch):
    monkeypatch.setattr(in_process, "_BATCH", 2)
    image = draw([to_pixels(joints_at(0), CAMERA)])
    boxes = [[40, 20, 120, 90]] * 3
    poses = equihand.predict_hands([image, Image.fromarray(image), image], boxes, ["right", "left", "right"])
    assert poses.joints_2d.shape == (3, 21, 2)
    assert poses.joints_3d.shape == (3, 21, 3)
    assert np.isfinite(poses.joints_3d).all()
    np.testing.assert_allclose(poses.joints_3d[0], poses.joints_3d[2], atol=1e-6)
    assert np.abs(poses.joints_3d[0] - poses.joints_3d[1]).max() > 1e-3
    assert (poses.joints_3d[..., 2] > 0).all()


def test_a_photograph_is_taken_as_viewers_show_it(tmp_path):
    shown = Image.fromarray(draw([to_pixels(joints_at(0), CAMERA)]))
    stored = shown.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise by 90 degrees
    stored.save(tmp_path / "phone.png", exif=exif)
    with Image.open(tmp_path / "phone.png") as photograph:
        assert photograph.size == shown.size[::-1]
        poses = equihand.predict_hands([photograph, shown], [[40, 20, 120, 90]] * 2)
    np.testing.assert_array_equal(poses.joints_2d[0], poses.joints_2d[1])


def test_what_cannot_be_used_is_named():
    image = draw([])
    with pytest.raises(DataError, match=r"image 1: box .*outside the image"):
        equihand.predict_hands([image, image], [[10, 10, 60, 60], [300, 300, 350, 350]])
    with pytest.raises(DataError, match=r"need \(2, 4\) numbers"):
        equihand.predict_hands([image, image], [[10, 10, 60, 60]])
    with pytest.raises(DataError, match="'left' or 'right'"):
        equihand.predict_hands([image], [[10, 10, 60, 60]], "up")
