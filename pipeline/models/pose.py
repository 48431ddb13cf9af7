"""The pose model: image and camera -> 21 joints in 2.5D and, through the bone equation, in 3D.

A head on the encoder (heads.py) gives, for every joint, its place in the view and its depth relative to the root. The root's
depth follows from one bone having length 1 (Iqbal et al. 2018, eq. 6-7) and is corrected by a small network
(Spurr et al. 2020). Joints are in FreiHAND order, except that in the "palm" convention joint 0 is the palm.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline import geometry
from pipeline.config import Settings
from pipeline.geometry import default_camera
from pipeline.hands import MIDDLE_MCP
from pipeline.models.encoder import Encoder
from pipeline.models.heads import LinearHead, SpatialHead
from pipeline.models.kinematic import KinematicHead

DEFAULT_BONE_LENGTH_M = {"palm": 0.032, "wrist": 0.095}
"""Reference bone of an average adult hand, metres, for models that were not told their training set's mean."""


@dataclass(frozen=True)
class RootConvention:
    """Which point is the root, and which bone has length 1."""

    bone: str
    depth_range: tuple[float, float]
    """Root depths outside are clamped, in bone lengths: about 0.12 to 1.5 m for an adult hand."""


CONVENTIONS = {
    # Released PeCLR model: palm = midpoint of wrist and middle MCP, bone middle MCP-PIP (FreiHAND's own scale bone).
    "palm": RootConvention(bone="middle", depth_range=(4.0, 50.0)),
    # Open training code of PeCLR: wrist, and bone wrist - index MCP, which is about three times as long.
    "wrist": RootConvention(bone="wrist-index", depth_range=(4.0 / 3, 50.0 / 3)),
}


class PoseSettings(Settings):
    """What the pose head is, and what it predicts."""

    kind: Literal["kinematic", "spatial", "peclr"] | None = None
    """How joints are read from the features. `kinematic`: a heat map and a depth map for each joint, added to a whole hand (bone
    lengths and directions) that the pooled features give and that begins as the mean of the labels. `spatial`: the same maps, corrected
    joint by joint; worse with few labels. `peclr`: a linear map of the pooled features, as published. none: that of the pose model that
    training starts from, else `kinematic`."""
    root: Literal["palm", "wrist"] = "palm"
    """Root joint and reference bone. `palm`: the palm, and the bone from middle MCP to middle PIP, as in PeCLR's
    released model. `wrist`: the wrist, and the bone from wrist to index MCP."""
    refine_root: bool = True
    """Whether a small network corrects the depth of the root that follows from the reference bone (Spurr et al.
    2020)."""

    def settled(self, initial: "PoseSettings | None" = None) -> "PoseSettings":
        """With the kind that none stands for. initial: the head of the pose model that training starts from."""
        kind = self.kind or (initial and initial.kind) or "kinematic"
        return self.model_copy(update={"kind": kind})


class PoseOutput(NamedTuple):
    """What the model says about a batch of views. FreiHAND order; joint 0 is the root (palm or wrist)."""

    joints_25d: Tensor
    """(B, 21, 3): u, v in pixels of the view, depth relative to the root in bone lengths."""
    root_depth: Tensor
    """(B,) depth of the root in bone lengths."""
    joints_3d: Tensor
    """(B, 21, 3) camera frame, in bone lengths."""


class PoseTargets(NamedTuple):
    """What the model should say about a labelled batch: the same representation, made from joints in metres."""

    joints_25d: Tensor
    root_depth: Tensor
    bone_length: Tensor
    """(B,) metres."""


class RootRefinement(nn.Sequential):
    """Residual on the root depth from [21 relative depths, 42 ray coordinates x0, y0, x1, ..., root depth]: (B, 64)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(64, 128),
            nn.BatchNorm1d(128),
            nn.LeakyReLU(),
            nn.Linear(128, 128),
            nn.BatchNorm1d(128),
            nn.LeakyReLU(),
            nn.Linear(128, 1),
        )


class PoseModel(nn.Module):
    """Encoder, 2.5D head and root-depth refinement.

    `mean_bone_length` (metres) is that of the training labels, for hands whose scale is unknown.
    """

    mean_bone_length: Tensor

    def __init__(self, encoder: Encoder, settings: PoseSettings | None = None) -> None:
        super().__init__()
        self.settings = (settings or PoseSettings()).settled()
        self.convention = CONVENTIONS[self.settings.root]
        self.encoder = encoder
        self.head: SpatialHead | KinematicHead | LinearHead
        if self.settings.kind == "spatial":
            self.head = SpatialHead(encoder)
        elif self.settings.kind == "kinematic":
            self.head = KinematicHead(encoder, self.settings.root, self.convention.bone)
        else:
            self.head = LinearHead(encoder)
        self.refinement = RootRefinement() if self.settings.refine_root else None
        self.register_buffer("mean_bone_length", torch.tensor(DEFAULT_BONE_LENGTH_M[self.settings.root]))

    def forward(self, images: Tensor, camera: Tensor | None = None) -> PoseOutput:
        """images: (B, 3, S, S) normalised views. camera: (B, 3, 3) of the view, pixels; None takes `default_camera`.

        Depth and 3D joints are only as right as the camera; u, v and relative depth do not depend on it.
        """
        joints_25d = self.joints_25d(images)
        with torch.autocast(images.device.type, enabled=False):
            if camera is None:
                camera = default_camera(len(images), images.shape[-1], images.device)
            return self.lift(joints_25d, camera.to(joints_25d.dtype))

    def joints_25d(self, images: Tensor) -> Tensor:
        """2.5D joints (B, 21, 3) of normalised views (B, 3, S, S); under autocast, geometry stays in full precision."""
        raw = self.head.joints(self.encoder, images)
        uv = (raw[..., :2] + 0.5) * images.shape[-1]
        relative_depth = torch.cat([torch.zeros_like(raw[:, :1, 2:]), raw[:, 1:, 2:]], dim=1)
        return torch.cat([uv, relative_depth], dim=-1)

    def lift(self, joints_25d: Tensor, camera: Tensor) -> PoseOutput:
        """2.5D joints (B, 21, 3) and cameras (B, 3, 3) -> the full output, with joints in bone lengths.

        The bone equation is ill-conditioned where the bone points at the camera, so no gradient flows through it, nor
        through the refinement's input (released PeCLR code): 2D and relative depth learn from their own losses.
        """
        rays = geometry.rays(joints_25d[..., :2], camera)
        bone, limits = self.convention.bone, self.convention.depth_range
        given = joints_25d.detach()
        root_depth = geometry.root_depth(given, camera, bone=bone, limits=limits)
        if self.refinement is not None:
            inputs = torch.cat([given[..., 2], rays.detach()[..., :2].flatten(1), root_depth[:, None]], dim=1)
            root_depth = root_depth + self.refinement(inputs).squeeze(1)
        joints_3d = rays * (joints_25d[..., 2:] + root_depth[:, None, None])
        return PoseOutput(joints_25d, root_depth, joints_3d)

    def targets(self, joints_3d: Tensor, camera: Tensor) -> PoseTargets:
        """Labels in this model's representation.

        joints_3d: (B, 21, 3) metres with the wrist as joint 0. camera: (B, 3, 3) of the view.
        """
        rooted = self.to_rooted(joints_3d)
        joints_25d, bone_length = geometry.to_25d(rooted, camera, root=0, bone=self.convention.bone)
        return PoseTargets(joints_25d, rooted[:, 0, 2] / bone_length, bone_length)

    def bone_length(self, joints_3d: Tensor) -> Tensor:
        """(B,) length of the reference bone of joints (B, 21, 3), in their unit."""
        return geometry.bone_length(joints_3d, self.convention.bone)

    def to_rooted(self, joints: Tensor) -> Tensor:
        """Joints (B, 21, C) with the wrist as joint 0 -> with this model's root as joint 0."""
        if self.settings.root == "wrist":
            return joints
        return torch.cat([(joints[:, :1] + joints[:, MIDDLE_MCP : MIDDLE_MCP + 1]) / 2, joints[:, 1:]], dim=1)

    def from_rooted(self, joints: Tensor) -> Tensor:
        """The inverse of `to_rooted`: wrist = 2 palm - middle MCP."""
        if self.settings.root == "wrist":
            return joints
        return torch.cat([2 * joints[:, :1] - joints[:, MIDDLE_MCP : MIDDLE_MCP + 1], joints[:, 1:]], dim=1)

    def metric_joints(self, output: PoseOutput, bone_length: Tensor | None = None) -> Tensor:
        """(B, 21, 3) metres, camera frame, FreiHAND order with the wrist.

        bone_length: (B,) metres of each hand's reference bone; None takes the training set's mean for every hand, which
        leaves the size and distance of the hand uncertain by as much as hands differ.
        """
        if bone_length is None:
            bone_length = self.mean_bone_length.expand(len(output.joints_3d))
        return self.from_rooted(output.joints_3d) * bone_length[:, None, None].to(output.joints_3d)
