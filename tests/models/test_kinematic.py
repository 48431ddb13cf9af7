"""The kinematic head: it starts at a given hand, and what it gives as a whole stays one."""

import math

import pytest
import torch

from pipeline.geometry import bone_joints
from pipeline.hands import BONES, MIDDLE_MCP
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.kinematic import KinematicHead
from pipeline.models.pose import CONVENTIONS, PoseModel, PoseSettings
from tests.models.test_pose import hands_and_cameras

ROOTS = ("palm", "wrist")


def head_of(root: str) -> KinematicHead:
    torch.manual_seed(0)
    settings = PoseSettings.model_validate({"kind": "kinematic", "root": root})
    head = PoseModel(build_encoder(EncoderSettings(width=8)), settings).eval().head
    assert isinstance(head, KinematicHead)
    return head


def naive_hand(head: KinematicHead, values: torch.Tensor) -> torch.Tensor:
    """One hand of 83 numbers, bone by bone."""
    joints = [torch.zeros(3)] * 21
    for number, (parent, child) in enumerate(BONES):
        direction = values[3 + 3 * number : 6 + 3 * number]
        factor = math.exp(0.3 * math.tanh(values[63 + number].item()))
        joints[child] = joints[parent] + factor * head.bone_lengths[number] * direction / direction.norm()
    if head.root == "palm":
        palm = (joints[0] + joints[MIDDLE_MCP]) / 2
        joints = [joint - palm for joint in [palm, *joints[1:]]]
    side = head.side_of_bone * (1 + values[2])
    return torch.stack([torch.cat([values[:2] + side * joint[:2], joint[2:]]) for joint in joints])


@pytest.mark.parametrize("root", ROOTS)
def test_the_hand_is_that_of_its_bones(root):
    head = head_of(root)
    head.bone_lengths.copy_(torch.rand(20) + 0.5)
    values = torch.randn(5, 83) * 0.5
    torch.testing.assert_close(head._hand(values), torch.stack([naive_hand(head, each) for each in values]))


@pytest.mark.parametrize("root", ROOTS)
def test_it_starts_at_the_hand_of_the_labels_whatever_the_image(root):
    head = head_of(root)
    shape, posed = hands_and_cameras(2)[0].float()
    head.start_at(shape - shape[:1], posed - posed[:1])
    with torch.no_grad():
        for name in ("maps.weight", "together.3.weight"):
            head.get_parameter(name).zero_()
        (first, second) = head.joints(build_encoder(EncoderSettings(width=8)).eval(), torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(first, second)
    hand = torch.cat([first[:, :2] / head.side_of_bone, first[:, 2:]], 1)
    if root == "palm":
        hand[0] = 2 * hand[0] - hand[MIDDLE_MCP]
    start, end = bone_joints(CONVENTIONS[root].bone)
    unit = (shape[end] - shape[start]).norm()
    for parent, child in BONES:
        found, bone = hand[child] - hand[parent], posed[child] - posed[parent]
        torch.testing.assert_close(found.norm(), (shape[child] - shape[parent]).norm() / unit)
        torch.testing.assert_close(found / found.norm(), bone / bone.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("root", ROOTS)
def test_without_labels_in_3d_it_starts_with_an_open_hand(root):
    head = head_of(root)
    hand = head._hand(head.get_parameter("together.3.bias")[None])[0]
    assert hand[:, 2].abs().max() == 0
    assert 0.2 < hand[:, 1].max() - hand[:, 1].min() < 0.8  # of the view
    tips = hand[[4, 8, 12, 16, 20], 0].tolist()
    assert tips == sorted(tips)  # the palm of a right hand, thumb on the left: as its back is seen
    assert head.bone_lengths.min() > 0


def test_bones_keep_about_their_lengths_whatever_the_features_say():
    head = head_of("wrist")
    values = torch.randn(64, 83) * 100
    values[:, 2] = 0
    hands = head._hand(values)
    hands = torch.cat([(hands[..., :2] - values[:, None, :2]) / head.side_of_bone, hands[..., 2:]], -1)
    parents, children = (list(joints) for joints in zip(*BONES, strict=True))
    ratio = (hands[:, children] - hands[:, parents]).norm(dim=-1) / head.bone_lengths
    assert 0.74 < ratio.min() < 0.8
    assert 1.3 < ratio.max() < 1.36


def test_gradients_are_finite_where_a_direction_vanishes():
    head = head_of("palm")
    values = torch.zeros(3, 83, requires_grad=True)
    head._hand(values).square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
