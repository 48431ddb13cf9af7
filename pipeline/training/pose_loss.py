"""The losses of fine-tuning."""

from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.models.pose import PoseOutput, PoseTargets

REFERENCE_SIDE = 128
"""The published weights belong to 2D errors in pixels of a 128 px view; other sizes are brought to it."""


class PoseLossSettings(Settings):
    """Weights of the L1 losses; the defaults are those published (parent repository of PeCLR)."""

    weight_2d: float = Field(default=1.0, ge=0)
    """On u, v, in pixels of a 128 px view (other view sizes are scaled to it)."""
    weight_depth: float = Field(default=5.0, ge=0)
    """On the depth relative to the root, in bone lengths."""
    weight_root: float = Field(default=1.0, ge=0)
    """On the root's depth, in bone lengths; trains the refinement only, and is unused without it."""


class PoseLosses(NamedTuple):
    """Scalars; `total` is the weighted sum."""

    total: Tensor
    loss_2d: Tensor
    """Mean |error| of u and v, pixels of a 128 px view."""
    loss_depth: Tensor
    """Mean |error| of the relative depth, bone lengths."""
    loss_root: Tensor
    """Mean |error| of the root depth, bone lengths."""


def pose_losses(output: PoseOutput, targets: PoseTargets, side: int, settings: PoseLossSettings) -> PoseLosses:
    """L1 losses of a batch of views with `side` pixels; every row needs a label."""
    difference = (output.joints_25d - targets.joints_25d).abs()
    loss_2d = difference[..., :2].mean() * (REFERENCE_SIDE / side)
    loss_depth = difference[..., 2].mean()
    loss_root = (output.root_depth - targets.root_depth).abs().mean()
    total = settings.weight_2d * loss_2d + settings.weight_depth * loss_depth + settings.weight_root * loss_root
    return PoseLosses(total, loss_2d, loss_depth, loss_root)
