"""Errors of hand poses in the image, for labels with and without depth.

They are measured in sizes of the hand, so that hands near and far count alike. A hand's size is the longer side of the tight box
around its true joints (what mmpose's PCK takes, norm_item "bbox"): other than the length from the wrist to the middle
knuckle, it does not vanish where the palm points at the camera.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import hands
from pipeline.errors import DataError
from pipeline.evaluation.metrics import checked_joints, curve_area, joint_errors, pck_curve

PCK_PERCENT = (5, 10, 20)
"""Thresholds of the shares that are reported, percent of the hand's size."""


def image_metrics(pred: Tensor, target: Tensor, pixel_size: Tensor) -> dict[str, Any]:
    """Errors of joints in the image (N, 21, 2) against true ones, both in pixels of the crop.

    pixel_size: (N,) side of a pixel of the crop in pixels of the source image.

    - epe_2d: mean distance, in sizes of the hand; epe_2d_crop_px, epe_2d_px: in pixels of the crop and of the source.
    - pck_2d_05, pck_2d_10, pck_2d_20: share of joints within 5, 10, 20 % of the hand's size; auc_2d: area under the curve of
      that share from 0 to 20 %, 0-1; pck_2d: the curve, at thresholds_2d.
    - per_joint_2d: 21 mean distances in sizes of the hand, by joint name.

    Raises DataError for other shapes, no samples, or values that are not finite.
    """
    pred, target = checked_joints("pred", pred, 2), checked_joints("target", target, 2)
    if pred.shape != target.shape:
        raise DataError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    pixels = joint_errors(pred, target)
    errors = pixels / hand_sizes(target)[:, None]
    thresholds = torch.linspace(0, max(PCK_PERCENT) / 100, 101, dtype=torch.float64)
    curve = pck_curve(errors, thresholds).mean(0)
    return {
        "epe_2d": float(errors.mean()),
        "epe_2d_crop_px": float(pixels.mean()),
        "epe_2d_px": float((pixels * pixel_size[:, None].to(pixels)).mean()),
        **{f"pck_2d_{percent:02d}": float((errors <= percent / 100).double().mean()) for percent in PCK_PERCENT},
        "auc_2d": float(curve_area(curve, thresholds)),
        "pck_2d": curve.tolist(),
        "thresholds_2d": thresholds.tolist(),
        "per_joint_2d": dict(zip(hands.JOINTS, errors.mean(0).tolist(), strict=True)),
    }


def frame_errors_2d(pred: Tensor, target: Tensor) -> np.ndarray:
    """(N,) mean distance of each frame's joints (N, 21, 2), in sizes of the hand."""
    errors = joint_errors(pred, target) / hand_sizes(target)[:, None]
    return errors.mean(-1).double().numpy()


def hand_sizes(joints_2d: Tensor) -> Tensor:
    """(N,) longer side of the tight box around joints (N, 21, 2), at least a pixel."""
    return (joints_2d.amax(1) - joints_2d.amin(1)).amax(-1).clamp_min(1.0)


def mean_joints_2d(joints_2d: np.ndarray) -> np.ndarray:
    """(21, 2) the constant in the image: where training joints (N, 21, 2) lie on average, in fractions of the crop's side.

    Crops are cut around the hand's box, so this is an answer that knows the box and nothing else.
    """
    return np.asarray(joints_2d, dtype=np.float64).mean(0)
