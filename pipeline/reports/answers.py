"""How well answers fit a labelled set: a model's, one fixed hand for every frame, training poses taken blindly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.image_metrics import frame_errors_2d, image_metrics, mean_joints_2d
from pipeline.evaluation.metrics import MM, Protocol, joint_errors, pose_metrics
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM, Constant, random_poses, skill, skills
from pipeline.geometry import procrustes_align
from pipeline.reports.report_data import Curve, ModelResult

TABLE_METRICS = (
    "pa_epe_mm",
    "pa_skill",
    "root_relative_epe_mm",
    "root_relative_skill",
    "epe_mm",
    "pa_auc",
    "auc",
    "epe_2d",
    "pck_2d_10",
)
"""Metrics of the comparison table, by the names of metric_names.METRICS."""
TABLE_METRICS_2D = (
    "epe_2d",
    "epe_2d_skill",
    "epe_2d_px",
    "epe_2d_crop_px",
    "pck_2d_05",
    "pck_2d_10",
    "pck_2d_20",
    "auc_2d",
)
"""Those where no frame has joints in 3D."""


@dataclass(frozen=True)
class Answers:
    """How well some answers fit."""

    name: str
    metrics: dict[str, Any]
    """All of pose_metrics (where frames have joints in 3D) and image_metrics, of a constant pose those that it has; where a
    constant is known, also its errors and the skill over it (`beside_constant`)."""
    errors_mm: np.ndarray
    """Mean joint error after Procrustes alignment, mm, of each frame with joints in 3D."""
    errors_2d: np.ndarray
    """(N,) mean joint error in the image, sizes of the hand, of each frame; (0,) where it is not known."""

    def result(self) -> ModelResult:
        """The part that tables and charts need."""
        if "pa_epe_mm" not in self.metrics:
            return ModelResult(name=self.name, metrics={name: self.metrics.get(name) for name in TABLE_METRICS_2D})
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
        errors = constant.frame_errors_mm(target, protocol)
        found |= dict.fromkeys(names, Answers(row, metrics, errors, np.zeros(0)))
    return found


def random_answers(poses: Tensor, target: Tensor, protocol: Protocol, constant: Constant | None) -> Answers:
    """What training poses (M, 21, 3) reach that are taken blindly, the same ones every time."""
    drawn = random_poses(poses, len(target)).to(target)
    metrics = beside_constant(pose_metrics(drawn, target, protocol), constant, target, protocol)
    return Answers(RANDOM, metrics, frame_errors_mm(drawn, target, protocol), np.zeros(0))


def answers_in_image(train: np.ndarray, target: Tensor, side: int, pixel_size: Tensor) -> list[Answers]:
    """What the mean of training joints in the image reaches, and training joints that are taken blindly; see image_metrics.

    train: (M, 21, 2) in fractions of the crop's side. target: (N, 21, 2) pixels of crops of `side` pixels.
    """
    mean = torch.from_numpy(mean_joints_2d(train)).expand(target.shape)
    drawn = {CONSTANT: mean, RANDOM: random_poses(torch.from_numpy(train), len(target))}
    constant_epe = image_metrics(mean * side, target, pixel_size)["epe_2d"]
    return [
        Answers(
            name,
            beside_constant_2d(image_metrics(pred * side, target, pixel_size), constant_epe),
            np.zeros(0),
            frame_errors_2d(pred * side, target),
        )
        for name, pred in drawn.items()
    ]


def beside_constant_2d(metrics: Mapping[str, Any], constant_epe: float | None) -> dict[str, Any]:
    """image_metrics with the constant's epe_2d on the same frames, and the skill over it; as they are where it is not known."""
    if constant_epe is None:
        return dict(metrics)
    return {**metrics, "constant_epe_2d": constant_epe, "epe_2d_skill": skill(metrics["epe_2d"], constant_epe)}


def with_image(answers: Answers, in_image: Sequence[Answers]) -> Answers:
    """Answers in 3D that have no place in the image, with the metrics of those in the image of the same kind."""
    same = next((each for each in in_image if answers.name.startswith(each.name)), None)
    return (
        answers if same is None else replace(answers, metrics=answers.metrics | same.metrics, errors_2d=same.errors_2d)
    )
