"""The losses of fine-tuning.

The published ones look at u, v and depth apart from each other: a network that is not sure answers each one's median, which is
no hand. Two more compare whole hands in 3D, one of them after Procrustes alignment, so that it stays a hand.
"""

from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.geometry import from_25d, procrustes_turn
from pipeline.models.pose import PoseOutput, PoseTargets

REFERENCE_SIDE = 128
"""The published weights belong to 2D errors in pixels of a 128 px view; other sizes are brought to it."""


class PoseLossSettings(Settings):
    """Weights of the losses. Those on 2D, depth and root are as published (parent repository of PeCLR)."""

    weight_2d: float = Field(default=1.0, ge=0)
    """Weight of the loss on u, v, in pixels of a 128 px view (other view sizes are scaled to it)."""
    weight_depth: float = Field(default=5.0, ge=0)
    """Weight of the loss on the depth relative to the root, in bone lengths."""
    weight_root: float = Field(default=1.0, ge=0)
    """Weight of the loss on the depth of the root, in bone lengths. It trains only the network of `head.refine_root`,
    and is unused without it."""
    weight_3d: float = Field(default=5.0, ge=0)
    """Weight of the loss on 3D joints relative to the root, in bone lengths. With this and `weight_aligned` at 0, the
    published losses remain."""
    weight_aligned: float = Field(default=10.0, ge=0)
    """Weight of the loss on 3D joints after Procrustes alignment, in bone lengths: the shape of the hand, whatever its
    place and direction."""


class PoseLosses(NamedTuple):
    """Scalars; `total` is the weighted sum."""

    total: Tensor
    loss_2d: Tensor
    """Mean |error| of u and v, pixels of a 128 px view."""
    loss_depth: Tensor
    """Mean |error| of the relative depth, bone lengths."""
    loss_root: Tensor
    """Mean |error| of the root depth, bone lengths."""
    loss_3d: Tensor
    """Mean distance of 3D joints relative to the root, bone lengths, the root's true depth given."""
    loss_aligned: Tensor
    """Mean distance of the same joints after Procrustes alignment, bone lengths."""


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
    output: PoseOutput,
    targets: PoseTargets,
    camera: Tensor,
    side: int,
    settings: PoseLossSettings,
    valid: Tensor | None = None,
    has_3d: Tensor | None = None,
) -> PoseLosses:
    """Losses of a batch of views with `side` pixels and cameras (B, 3, 3).

    valid: see `mean_l1`; the root's depth and the losses in 3D need a label of every joint. has_3d: (B,) bool, rows of which
    more is known than u and v, so that all losses look at them; None: all. A loss without any row is 0.
    """
    predicted, true = output.joints_25d, targets.joints_25d
    rows = torch.ones_like(true[:, 0, 0]) if has_3d is None else has_3d.to(true)
    # What is made up may be a bone without length, to which any depth is infinite.
    targets = targets._replace(root_depth=torch.where(rows > 0, targets.root_depth, 1.0))
    loss_2d = mean_l1(predicted[..., :2], true[..., :2], valid) * (REFERENCE_SIDE / side)
    depth_valid = rows[:, None].expand(true.shape[:2]) if valid is None else valid * rows[:, None]
    loss_depth = mean_l1(predicted[..., 2:], true[..., 2:], depth_valid)
    loss_root = _mean_of_rows((output.root_depth - targets.root_depth).abs(), rows)
    total = settings.weight_2d * loss_2d + settings.weight_depth * loss_depth + settings.weight_root * loss_root
    loss_3d = loss_aligned = torch.zeros_like(loss_root)
    if settings.weight_3d or settings.weight_aligned:
        # The true depth of the root, for both: errors of the bone equation are the refinement's to mend.
        found, wanted = (from_25d(pose, 1.0, camera, root_depth=targets.root_depth) for pose in (predicted, true))
        loss_3d = _mean_distance(found - found[:, :1], wanted - wanted[:, :1], rows)
        loss_aligned = aligned_distance(found, wanted, rows)
        total = total + settings.weight_3d * loss_3d + settings.weight_aligned * loss_aligned
    return PoseLosses(total, loss_2d, loss_depth, loss_root, loss_3d, loss_aligned)


def aligned_distance(predicted: Tensor, true: Tensor, rows: Tensor | None = None) -> Tensor:
    """Scalar: mean distance of joints (B, 21, 3) after the predicted ones were moved, scaled and turned onto the true ones.

    rows: (B,) weights of the hands; None counts all alike.

    The alignment is taken as a constant: it is the best one already, so to first order the squared error does not change
    with it, and a gradient through a singular value decomposition is not finite where two of the values agree.
    """
    predicted, true = (joints - joints.mean(1, keepdim=True) for joints in (predicted, true))
    with torch.no_grad():
        # Joints that are not finite give a loss that is not finite, which the loop reports, and no error from here.
        found, wanted = (torch.nan_to_num(joints) for joints in (predicted, true))
        size, true_size = (torch.linalg.matrix_norm(joints, keepdim=True).clamp_min(1e-6) for joints in (found, wanted))
        turn, overlap = procrustes_turn(found / size, wanted / true_size)
        scale = overlap * true_size / size
    return _mean_distance(scale * (predicted @ turn), true, torch.ones_like(true[:, 0, 0]) if rows is None else rows)


def _mean_distance(predicted: Tensor, true: Tensor, rows: Tensor) -> Tensor:
    return _mean_of_rows(torch.linalg.vector_norm(predicted - true, dim=-1).mean(-1), rows)


def _mean_of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Scalar: mean of values (B,) weighted by rows (B,); 0 without any weight."""
    return (values * rows).sum() / rows.sum().clamp_min(1.0)
