"""Crops, passes and the way back to the source image, with a model that knows the answer."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import DataError
from pipeline.frames.crop import assumed_camera, crop_camera, crop_matrix
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import Hand
from pipeline.geometry import bone_joints, project, transform_camera, transform_points
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseOutput, PoseSettings
from pipeline.prediction.cameras import Cameras
from pipeline.prediction.hands import CropPlan, camera_of_crop, camera_of_source, hand_row, to_source
from pipeline.prediction.poses import box_views, next_boxes, predict_poses
from pipeline.storage import write_json
from pipeline.views import identity_views, view_matrix
from tests.frames.clips import CAMERA, HEIGHT, WIDTH, draw, joints_at
from tests.frames.clips import project as to_pixels

VIEW, MARGIN = 64, 1.25


class Oracle(PoseModel):
    """Knows the hand in the camera frame of the crop (mirrored for left hands) and sees it through each view's camera."""

    def __init__(self, joints_3d: np.ndarray, shift: float = 0.0) -> None:
        super().__init__(build_encoder(EncoderSettings(width=8)), PoseSettings(refine_root=False))
        self.answer = torch.from_numpy(joints_3d).float()[None]
        self.shift = shift
        self.cameras: list[torch.Tensor] = []
        self.eval()

    def forward(self, images: torch.Tensor, camera: torch.Tensor | None = None) -> PoseOutput:
        assert camera is not None
        self.cameras.append(camera)
        targets = self.targets(self.answer, camera)
        uvz = targets.joints_25d + torch.tensor([self.shift if len(self.cameras) == 1 else 0.0, 0.0, 0.0])
        joints = self.to_rooted(self.answer) / targets.bone_length[:, None, None]
        return PoseOutput(uvz, targets.root_depth, joints)


def hand_in_front() -> np.ndarray:
    """(21, 3) metres; a hand-sized thing whose joints lie within the image of `clips`."""
    return joints_at(3)


def row_of(hand: str, joints: np.ndarray, camera: np.ndarray | None = CAMERA):
    pixels = to_pixels(joints, CAMERA)
    box = (*pixels.min(0).tolist(), *pixels.max(0).tolist())
    plan = CropPlan.for_model(VIEW, MARGIN, bone_joints("middle"))
    row = hand_row(
        Image.fromarray(draw([pixels])),
        Hand(0, hand, box, joints_3d=joints),
        plan,
        Rejects(),
        name="a",
        frame_index=2,
        timestamp_s=0.2,
        camera=camera,
        focal_factor=1.2,
    )
    assert row is not None
    return row, pixels


@pytest.mark.parametrize("hand", ["right", "left"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_hand_comes_back_where_it_is(hand, passes):
    """Left hands are mirrored into the crop and back out; 3D projects onto 2D with the source's camera."""
    joints = hand_in_front()
    row, pixels = row_of(hand, joints)
    seen = joints * [-1, 1, 1] if hand == "left" else joints
    model = Oracle(seen)
    poses = predict_poses(
        model,
        torch.from_numpy(row["image"].copy()).permute(2, 0, 1)[None],
        torch.from_numpy(camera_of_crop(row)).float()[None],
        torch.from_numpy(row["box"]).float()[None],
        VIEW,
        MARGIN,
        passes,
    )
    assert len(model.cameras) == passes
    found = to_source(row, *(value[0].double().numpy() for value in poses))
    np.testing.assert_allclose(found["joints_2d"], pixels, atol=0.02)
    length = np.linalg.norm(joints[10] - joints[9])
    np.testing.assert_allclose(found["joints_3d"] * length, joints, atol=1e-5)
    np.testing.assert_allclose(to_pixels(found["joints_3d"], row["camera"]), found["joints_2d"], atol=0.02)
    # K' = T K: the view's camera sees the crop's hand where the view's matrix takes the source's pixels.
    view = torch.from_numpy(found["view"]).float()
    through = project(torch.from_numpy(seen).float(), model.cameras[-1][0])
    torch.testing.assert_close(through, transform_points(view, torch.from_numpy(pixels).float()), atol=0.02, rtol=0)
    assert (found["view"][0, 0] < 0) == (hand == "left")


def test_second_pass_looks_where_the_first_found_the_hand():
    joints = hand_in_front()
    row, pixels = row_of("right", joints)
    model = Oracle(joints, shift=8.0)  # the first answer is 8 px of the view too far right
    arguments = (
        torch.from_numpy(row["image"].copy()).permute(2, 0, 1)[None],
        torch.from_numpy(camera_of_crop(row)).float()[None],
        torch.from_numpy(row["box"]).float()[None],
    )
    poses = predict_poses(model, *arguments, VIEW, MARGIN, passes=2)
    found = to_source(row, *(value[0].double().numpy() for value in poses))
    centre = np.linalg.inv(found["view"][:, :2]) @ ([VIEW / 2, VIEW / 2] - found["view"][:, 2])
    true = (pixels.min(0) + pixels.max(0)) / 2
    side = (pixels.max(0) - pixels.min(0)).max()
    np.testing.assert_allclose(
        centre, true + np.array([8 * MARGIN * side / VIEW, 0]), atol=0.7
    )  # palm and wrist differ a little
    np.testing.assert_allclose(found["joints_2d"], pixels, atol=0.02)  # its answer is right wherever it looks


def test_plain_box_gives_the_plain_view():
    """A box in the middle of a stored crop gives the view that evaluation uses."""
    size, margin = 72, 1.5
    side = size / margin
    box = torch.tensor([[size - side, size - side, size + side, size + side]]) / 2
    matrix = view_matrix(box_views(box, size, 1.25), size, VIEW)
    torch.testing.assert_close(matrix, view_matrix(identity_views(1), size, VIEW))


def test_box_fills_its_share_of_the_view():
    box = torch.tensor([[10.0, 30.0, 50.0, 50.0], [0.0, 0.0, 10.0, 40.0]])
    matrix = view_matrix(box_views(box, 100, MARGIN), 100, VIEW)
    corners = transform_points(matrix, box.view(2, 2, 2))
    sides = (corners[:, 1] - corners[:, 0]).amax(1)
    torch.testing.assert_close(sides, torch.full((2,), VIEW / MARGIN))
    torch.testing.assert_close(corners.mean(1), torch.full((2, 2), VIEW / 2))


def test_next_boxes_stay_near_the_hand():
    before = torch.tensor([[20.0, 20.0, 60.0, 40.0]]).expand(4, 4)
    points = torch.rand(4, 21, 2, generator=torch.Generator().manual_seed(0))
    wild = torch.stack([points[0] * 10 + 35, points[1] * 1000 - 500, points[2] + 500, points[3] * torch.nan])
    boxes = next_boxes(wild, before)
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert sides[0] == 20  # not less than half
    assert sides[1] == 64  # not more than 1.6
    assert ((boxes[2, :2] + boxes[2, 2:]) / 2).tolist() == [60, 40]  # its centre stays in the box
    assert torch.equal(boxes[3], before[3])


def test_camera_of_the_source_comes_back():
    for mirrored in (False, True):
        matrix = crop_matrix((30, 20, 90, 70), 48, 1.5, mirrored)
        np.testing.assert_allclose(camera_of_source(crop_camera(CAMERA, matrix), matrix), CAMERA, atol=1e-9)
        # The same rule as for views.
        if not mirrored:
            torch.testing.assert_close(
                transform_camera(torch.from_numpy(matrix), torch.from_numpy(CAMERA)),
                torch.from_numpy(crop_camera(CAMERA, matrix)),
            )


def test_unknown_camera_is_assumed_and_flagged(tmp_path):
    row, _ = row_of("right", hand_in_front(), camera=None)
    assert row["camera_source"] == "default"
    np.testing.assert_allclose(row["camera"], assumed_camera(WIDTH, HEIGHT, 1.2))
    assert row["camera"][0].tolist() == [1.2 * WIDTH, 0, WIDTH / 2]
    assert row["camera"][1].tolist() == [0, 1.2 * WIDTH, HEIGHT / 2]
    write_json(str(tmp_path / "k.json"), {"a.jpg": CAMERA.tolist()})
    cameras = Cameras(str(tmp_path / "k.json"))
    assert np.array_equal(np.asarray(cameras.find("a.jpg")), CAMERA)
    assert cameras.find("b.jpg") is None
    write_json(str(tmp_path / "k.json"), CAMERA.tolist())
    assert np.array_equal(np.asarray(Cameras(str(tmp_path / "k.json")).find("anything")), CAMERA)
    write_json(str(tmp_path / "k.json"), [[1, 2], [3, 4]])
    with pytest.raises(DataError, match=r"not a camera: expected \[\[fx"):
        Cameras(str(tmp_path / "k.json"))


def test_unusable_hands_are_counted():
    rejects = Rejects()
    plan = CropPlan.for_model(VIEW, MARGIN, (9, 10))
    image = Image.new("RGB", (40, 30))
    keywords: dict[str, Any] = {"name": "a", "frame_index": 0, "timestamp_s": None, "camera": None, "focal_factor": 1.2}
    for box in ((20, 20, 21, 21), (100, 100, 140, 140)):
        assert hand_row(image, Hand(0, "right", box), plan, rejects, **keywords) is None
    assert rejects.counts == {"bad_box": 1, "box_outside_image": 1}
