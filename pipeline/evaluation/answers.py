"""How well answers fit a labelled set: a model's, one fixed hand for every frame, training poses taken blindly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.evaluation.metrics import MM, Protocol, joint_errors, pose_metrics
from pipeline.evaluation.report_data import Curve, ModelResult
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM, Constant, random_poses, skills
from pipeline.geometry import procrustes_align

TABLE_METRICS = ("pa_epe_mm", "pa_skill", "root_relative_epe_mm", "root_relative_skill", "epe_mm", "pa_auc", "auc")
"""Metrics of the comparison table, by the names of metric_names.METRICS."""


@dataclass(frozen=True)
class Answers:
    """How well some answers fit."""

    name: str
    metrics: dict[str, Any]
    """All of pose_metrics, of a constant pose those that it has; where a constant is known, also its errors and the skill
    over it (`beside_constant`)."""
    errors_mm: np.ndarray
    """(N,) each frame's mean joint error after Procrustes alignment, mm."""

    def result(self) -> ModelResult:
        """The part that tables and charts need."""
        metrics = {
            **self.metrics,
            "root_relative_epe_mm": self.metrics["mpjpe_mm"],
            "root_relative_skill": self.metrics.get("mpjpe_skill"),
        }
        thresholds = [value * MM for value in metrics["thresholds"]]
        return ModelResult(
            name=self.name,
            metrics={name: metrics.get(name) for name in TABLE_METRICS},
            joint_errors_mm=list(metrics["pa_per_joint_mm"].values()),
            pck=Curve(thresholds_mm=thresholds, shares=metrics["pck"]) if "pck" in metrics else None,
            pa_pck=Curve(thresholds_mm=thresholds, shares=metrics["pa_pck"]),
        )


def beside_constant(
    metrics: Mapping[str, Any], constant: Constant | None, target: Tensor, protocol: Protocol
) -> dict[str, Any]:
    """The metrics with the constant's errors on the same true joints (N, 21, 3) and the skill over it; as they are where
    there is no constant."""
    if constant is None:
        return dict(metrics)
    both = {**metrics, **constant.errors_mm(target, protocol)}
    return {**both, **skills(both)}


def frame_errors_mm(pred: Tensor, target: Tensor, protocol: Protocol) -> np.ndarray:
    """Each frame's mean joint error (N,) after the protocol's alignment, mm, of joints (N, 21, 3) in metres."""
    aligned = procrustes_align(pred, target, allow_reflection=protocol == "freihand")
    return (joint_errors(aligned, target).mean(dim=-1) * MM).numpy()


def constant_answers(
    constants: Mapping[str, Constant | None], target: Tensor, protocol: Protocol
) -> dict[str, Answers]:
    """By model: what its constant reaches. Models with the same constant share one row of the table.

    constants: by model; models without one are left out.
    """
    models: dict[Constant, list[str]] = {}
    for name, constant in constants.items():
        if constant is not None:
            models.setdefault(constant, []).append(name)
    found: dict[str, Answers] = {}
    for constant, names in models.items():
        row = CONSTANT if len(models) == 1 else f"{CONSTANT} of {', '.join(names)}"
        metrics = beside_constant(constant.metrics(target, protocol), constant, target, protocol)
        found |= dict.fromkeys(names, Answers(row, metrics, constant.frame_errors_mm(target, protocol)))
    return found


def random_answers(poses: Tensor, target: Tensor, protocol: Protocol, constant: Constant | None) -> Answers:
    """What training poses (M, 21, 3) reach that are taken blindly, the same ones every time."""
    drawn = random_poses(poses, len(target)).to(target)
    metrics = beside_constant(pose_metrics(drawn, target, protocol), constant, target, protocol)
    return Answers(RANDOM, metrics, frame_errors_mm(drawn, target, protocol))
