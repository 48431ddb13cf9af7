"""The kinematic head: heat maps, and beside them a whole hand of bones, so that an unsure network still answers a hand."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import geometry
from pipeline.hands import BONES, FINGERS, MIDDLE_MCP
from pipeline.models.encoder import Encoder
from pipeline.models.heads import JointMaps

_SIDE_OF_BONE = 0.1
"""Length of the middle finger's first bone in view sides, where a KinematicHead begins."""
_SMALLEST = 0.05  # of what it began with
_LENGTH_RANGE = 0.3  # in natural logarithms


def _open_hand() -> Tensor:
    """(21, 3) a flat right hand with its fingers up, an adult's proportions, in lengths of the middle finger's first bone."""
    angles = (-50.0, -15.0, 0.0, 13.0, 27.0)  # of the fingers, clockwise from up
    lengths = (
        (1.4, 1.0, 1.1, 0.8),
        (3.4, 0.8, 0.5, 0.5),
        (3.2, 1.0, 0.6, 0.4),
        (3.1, 0.9, 0.5, 0.4),
        (3.0, 0.6, 0.3, 0.3),
    )  # as those of rendered hands
    hand = [torch.zeros(1, 3)]
    for degrees, of_finger in zip(angles, lengths, strict=True):
        up = torch.tensor([math.sin(math.radians(degrees)), -math.cos(math.radians(degrees)), 0.0])
        hand.append(torch.tensor(of_finger).cumsum(0)[:, None] * up)
    return torch.cat(hand)


_OPEN_HAND = _open_hand()


class KinematicHead(JointMaps):
    """The joints of the maps, added to a whole hand that the pooled features give: 20 bones with directions and lengths, where it is and how
    large. So where the maps say nothing, the answer still is a hand.
    """

    bone_lengths: Tensor
    """(20,) in lengths of the reference bone; what the features say changes each by at most a third."""

    def __init__(self, encoder: Encoder, root: Literal["palm", "wrist"], bone: geometry.Bone) -> None:
        """root: which point is joint 0 of what it gives. bone: the reference bone."""
        super().__init__(encoder.num_features, 3 + 4 * len(BONES))
        self.root, self.bone = root, bone
        self.register_buffer("bone_lengths", torch.ones(len(BONES)))
        self.side_of_bone = float(_SIDE_OF_BONE * geometry.bone_length(_OPEN_HAND, bone))
        self.start_at(_OPEN_HAND, _OPEN_HAND)

    @torch.no_grad()
    def start_at(self, shape: Tensor, posed: Tensor) -> None:
        """Begin with a hand of the bone lengths of `shape` and the bone directions of `posed`: (21, 3) with the wrist as joint 0, in any
        unit."""
        shape = shape / geometry.bone_length(shape, self.bone)
        parents, children = (list(joints) for joints in zip(*BONES, strict=True))
        self.bone_lengths.copy_(torch.linalg.vector_norm(shape[children] - shape[parents], dim=-1))
        directions = F.normalize(posed[children] - posed[parents], dim=-1)
        self.together.get_parameter("3.bias")[3 : 3 + 3 * len(BONES)] = directions.flatten().to(self.bone_lengths)

    def joints(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Raw joints (B, 21, 3) of images (B, 3, S, S)."""
        joints, hand = self.read(encoder, images)
        with torch.autocast(images.device.type, enabled=False):
            return joints + self._hand(hand)

    def _hand(self, values: Tensor) -> Tensor:
        """(B, 83) place (2), size, directions (60), lengths (20) -> raw joints (B, 21, 3), by weak perspective."""
        place, size, directions, lengths = values.split([2, 1, 3 * len(BONES), len(BONES)], dim=1)
        scale = self.bone_lengths * torch.exp(_LENGTH_RANGE * torch.tanh(lengths))
        bones = F.normalize(directions.unflatten(1, (len(BONES), 3)), dim=-1, eps=1e-4) * scale[..., None]
        fingers = bones.unflatten(1, (len(FINGERS), -1)).cumsum(2).flatten(1, 2)  # each from the wrist outwards
        root = torch.zeros_like(fingers[:, :1])
        if self.root == "palm":
            root = fingers[:, MIDDLE_MCP - 1 : MIDDLE_MCP] / 2  # the wrist is not among them
        hand = torch.cat([torch.zeros_like(root), fingers - root], 1)
        side = self.side_of_bone * (1 + size).clamp_min(_SMALLEST)
        return torch.cat([place[:, None] + side[..., None] * hand[..., :2], hand[..., 2:]], -1)
