"""Errors of 3D hand poses, under the two protocols of the field.

- `freihand`: the official FreiHAND scorer (lmb-freiburg/freihand, eval.py). Use it for numbers that are compared with
  published ones.
- `peclr`: the evaluation of the published PeCLR code. Its AUC runs to 50 cm and is not comparable with FreiHAND's.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from pipeline import hands
from pipeline.errors import DataError
from pipeline.geometry import procrustes_align

MM = 1000.0
"""Millimetres in a metre."""

Protocol = Literal["freihand", "peclr"]


def pose_metrics(pred: Tensor, target: Tensor, protocol: Protocol = "freihand") -> dict[str, Any]:
    """Errors of predicted joints (N, 21, 3) against true ones, both in metres, camera frame, FreiHAND order.

    Plain floats, lists and dicts, so that the result goes into JSON. Under both protocols:

    - epe_mm, pa_epe_mm: mean joint error, as predicted and after Procrustes alignment (the protocol's), in millimetres;
      mpjpe_mm: mean joint error with both wrists in one place.
    - auc, pa_auc: area under the PCK curve, 0-1; pck, pa_pck: that curve, the share of joints within `thresholds`
      (metres).
    - per_joint_mm, pa_per_joint_mm: 21 mean errors by joint name; per_finger_mm, pa_per_finger_mm: means of each
      finger's four joints.

    `freihand` adds the scorer's own figures in metres: mean, median, aligned_mean, aligned_median (mean over the joints
    of each joint's mean or median over samples), aligned_auc (= pa_auc). Thresholds linspace(0, 0.05, 100), share <=
    threshold, area / 0.05; alignment by any orthogonal matrix, so a mirrored hand aligns.

    `peclr` adds, in metres: epe_mean, epe_median (the lower of two middle values), epe_min, epe_max, epe2d_mean,
    epe2d_median (x and y only), pa_epe_mean, pa_epe_median, auc_per_joint, pa_auc_per_joint, and pa_pck_5cm,
    pa_pck_5cm_thresholds (0 to 0.0495). Thresholds 0, 0.005, ..., 0.495, share < threshold; alignment by a proper
    rotation.

    Computed in float64. Raises DataError for other shapes, no samples, or values that are not finite; ValueError for
    another protocol.
    """
    pred, target = checked_joints("pred", pred), checked_joints("target", target)
    if pred.shape != target.shape:
        raise DataError(f"pred {tuple(pred.shape)} and target {tuple(target.shape)} differ in shape")
    if protocol not in ("freihand", "peclr"):
        raise ValueError(f"unknown protocol '{protocol}'; known are freihand and peclr")
    official = protocol == "freihand"
    error = joint_errors(pred, target)
    aligned_error = joint_errors(procrustes_align(pred, target, allow_reflection=official), target)
    wrist = slice(hands.WRIST, hands.WRIST + 1)
    relative_error = joint_errors(pred - pred[:, wrist], target - target[:, wrist])
    thresholds = freihand_thresholds() if official else peclr_thresholds()
    result: dict[str, Any] = {
        "protocol": protocol,
        "num_samples": len(pred),
        "epe_mm": float(error.mean()) * MM,
        "pa_epe_mm": float(aligned_error.mean()) * MM,
        "mpjpe_mm": float(relative_error.mean()) * MM,
        "thresholds": thresholds.tolist(),
    }
    for prefix, errors in (("", error), ("pa_", aligned_error)):
        curves = pck_curve(errors, thresholds, strict=not official)
        result[f"{prefix}auc"] = float(curve_area(curves, thresholds).mean())
        result[f"{prefix}pck"] = curves.mean(0).tolist()
        result.update({f"{prefix}{name}": value for name, value in _by_part(errors).items()})
    result.update((_freihand_figures if official else _peclr_figures)(pred, target, error, aligned_error))
    if official:
        result["aligned_auc"] = result["pa_auc"]
    return result


def joint_errors(pred: Tensor, target: Tensor) -> Tensor:
    """Distances (..., 21) between joints (..., 21, D)."""
    return torch.linalg.vector_norm(pred - target, dim=-1)


def pck_curve(errors: Tensor, thresholds: Tensor, strict: bool = False) -> Tensor:
    """Share of samples within each threshold (PCK), joint by joint: (J, T) from errors (N, J) and thresholds (T,).

    strict: count errors below a threshold, instead of below or equal. The pooled curve is the mean over joints.
    """
    # Sorting and counting needs no (N, J, T) array.
    ordered = errors.T.contiguous().sort(-1).values
    counts = torch.searchsorted(ordered, thresholds.expand(len(ordered), -1).contiguous(), right=not strict)
    return counts.to(errors.dtype) / errors.shape[0]


def curve_area(curves: Tensor, thresholds: Tensor) -> Tensor:
    """Area (...) under curves (..., T) by the trapezoid rule, divided by the range of the thresholds (T,)."""
    return torch.trapezoid(curves, thresholds) / (thresholds[-1] - thresholds[0])


def freihand_thresholds() -> Tensor:
    """0 to 0.05 m in 100 values, both ends included."""
    return torch.linspace(0, 0.05, 100, dtype=torch.float64)


def peclr_thresholds(step: float = 0.005) -> Tensor:
    """100 values from 0 in equal steps, in metres; the published step leads to 0.495 m."""
    return torch.arange(100, dtype=torch.float64) * step


def _freihand_figures(pred: Tensor, target: Tensor, error: Tensor, aligned_error: Tensor) -> dict[str, Any]:
    return {
        "mean": float(error.mean()),
        # quantile, unlike median, takes the mean of the two middle values.
        "median": float(error.quantile(0.5, dim=0).mean()),
        "aligned_mean": float(aligned_error.mean()),
        "aligned_median": float(aligned_error.quantile(0.5, dim=0).mean()),
    }


def _peclr_figures(pred: Tensor, target: Tensor, error: Tensor, aligned_error: Tensor) -> dict[str, Any]:
    error_2d = joint_errors(pred[..., :2], target[..., :2])
    thresholds, fine = peclr_thresholds(), peclr_thresholds(0.0005)
    return {
        "epe_mean": float(error.mean()),
        "epe_median": float(error.median()),
        "epe_min": float(error.min()),
        "epe_max": float(error.max()),
        "epe2d_mean": float(error_2d.mean()),
        "epe2d_median": float(error_2d.median()),
        "pa_epe_mean": float(aligned_error.mean()),
        "pa_epe_median": float(aligned_error.median()),
        "auc_per_joint": curve_area(pck_curve(error, thresholds, strict=True), thresholds).tolist(),
        "pa_auc_per_joint": curve_area(pck_curve(aligned_error, thresholds, strict=True), thresholds).tolist(),
        "pa_pck_5cm": pck_curve(aligned_error, fine, strict=True).mean(0).tolist(),
        "pa_pck_5cm_thresholds": fine.tolist(),
    }


def _by_part(errors: Tensor) -> dict[str, dict[str, float]]:
    joint_means = errors.mean(0) * MM
    return {
        "per_joint_mm": dict(zip(hands.JOINTS, joint_means.tolist(), strict=True)),
        "per_finger_mm": {
            finger: float(joint_means[list(joints)].mean()) for finger, joints in hands.FINGER_JOINTS.items()
        },
    }


def checked_joints(name: str, joints: Tensor, num_numbers: int = 3) -> Tensor:
    """The joints (N, 21, num_numbers) as float64 on the CPU. Raises DataError for other shapes, no rows, values not finite."""
    if joints.ndim != 3 or joints.shape[1:] != (hands.NUM_JOINTS, num_numbers) or len(joints) == 0:
        raise DataError(f"{name} must be (N, {hands.NUM_JOINTS}, {num_numbers}) with N > 0, not {tuple(joints.shape)}")
    joints = joints.detach().double().cpu()
    wrong = ~joints.isfinite().flatten(1).all(1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise DataError(f"{name}: {int(wrong.sum())} of {len(joints)} samples are not finite, the first is row {first}")
    return joints
