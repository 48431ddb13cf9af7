"""The losses of fine-tuning."""

from typing import NamedTuple

import torch
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


def mean_l1(predicted: Tensor, true: Tensor, valid: Tensor | None = None) -> Tensor:
    """Scalar: mean |error| over the valid joints of the whole batch, and over the C numbers of each.

    predicted, true: (B, 21, C). valid: (B, 21) weights of the joints, 0 for those without a label; None counts all alike.
    Without any valid joint the loss is 0. Source: published code of PeCLR, which divides by the sum of the weights.
    """
    errors = (predicted - true).abs().mean(-1)
    if valid is None:
        return errors.mean()
    # Where there is no label its place may hold anything, also NaN.
    errors = errors.masked_fill(valid == 0, 0.0)
    return (errors * valid).sum() / valid.sum().clamp_min(torch.finfo(errors.dtype).tiny)


def pose_losses(
    output: PoseOutput, targets: PoseTargets, side: int, settings: PoseLossSettings, valid: Tensor | None = None
) -> PoseLosses:
    """L1 losses of a batch of views with `side` pixels. valid: see `mean_l1`; the root's depth needs a label in every row."""
    predicted, true = output.joints_25d, targets.joints_25d
    loss_2d = mean_l1(predicted[..., :2], true[..., :2], valid) * (REFERENCE_SIDE / side)
    loss_depth = mean_l1(predicted[..., 2:], true[..., 2:], valid)
    loss_root = (output.root_depth - targets.root_depth).abs().mean()
    total = settings.weight_2d * loss_2d + settings.weight_depth * loss_depth + settings.weight_root * loss_root
    return PoseLosses(total, loss_2d, loss_depth, loss_root)
