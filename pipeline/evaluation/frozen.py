"""What a frozen encoder knows, on frames with joints: all probes of probes.py at once, during training and afterwards."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.evaluation.probes import equivariance_score, retrieval_probe, ridge_probe
from pipeline.views import ViewSettings, apply_views, cat_views, identity_views

_BATCH = 256
_MAX_TURNED, _TURN_DEG = 256, 45.0


@torch.inference_mode()
def encode(encoder: nn.Module, frames: Tensor, views: ViewSettings, device: torch.device) -> Tensor:
    """Features (N, F), float32 on the CPU, of plain views of uint8 crops (N, 3, S, S). The encoder's mode is kept."""
    parts = []
    for part in frames.split(_BATCH):
        images = apply_views(part.to(device), identity_views(len(part), device), views)
        parts.append(encoder(images).float().cpu())
    return torch.cat(parts)


def frozen_scores(features: tuple[Tensor, Tensor], joints_3d: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Ridge regression to the pose, and the poses of nearest neighbours (retrieval_*), errors in mm.

    features: (N, F) of the frames to fit on and of those to measure on; joints_3d: (N, 21, 3) metres of both.
    """
    fitted, measured = zip(features, joints_3d, strict=True)
    retrieval = retrieval_probe(*fitted, *measured)
    return ridge_probe(*fitted, *measured) | {f"retrieval_{name}": value for name, value in retrieval.items()}


@torch.inference_mode()
def turning_scores(
    points_of: Callable[[Tensor], Tensor], frames: Tensor, views: ViewSettings, device: torch.device
) -> dict[str, float]:
    """Whether points (N, 2P) that a model makes of images turn with them (equivariance_*; see `equivariance_score`).

    frames: uint8 crops; the first 256 are turned by angles spread evenly over +- 45 degrees.
    """
    frames = frames[:_MAX_TURNED]
    plain = identity_views(len(frames), device)
    angle = torch.linspace(-1, 1, len(frames), device=device) * math.radians(_TURN_DEG)
    images = apply_views(frames.to(device), cat_views(plain, plain._replace(angle=angle)), views)
    before, after = torch.cat([points_of(part).float() for part in images.split(_BATCH)]).cpu().chunk(2)
    return {f"equivariance_{name}": value for name, value in equivariance_score(before, after, angle.cpu()).items()}
