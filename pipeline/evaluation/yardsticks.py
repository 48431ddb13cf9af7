"""What answers without looking reach: one fixed hand for every frame, and training poses taken blindly.

A pose error means little alone. After Procrustes alignment any hand is near any other, so a model is worth something only
where it is better than always answering the best fixed hand that its training labels give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline import hands
from pipeline.errors import DataError
from pipeline.evaluation.metrics import MM, Protocol, checked_joints, joint_errors, pose_metrics
from pipeline.geometry import procrustes_align

CONSTANT, RANDOM = "constant pose", "random training pose"
"""What these answers are called in tables."""

_MAX_POSES = 20_000  # more hardly change the constant's error, which is flat around its least value
_MAX_ITERATIONS = 500
_CLOSE_M = 1e-9  # an iteration ends where it moves less
_SMALLEST_M = 1e-6  # of a length to divide by


@dataclass(frozen=True, eq=False)
class Constant:
    """The fixed hands that answer best for some training labels: one where errors are measured after Procrustes alignment,
    one where only the wrists are brought together."""

    procrustes_mean: Tensor
    """(21, 3) metres, float64, centred: the generalised Procrustes mean, in the mean size of the poses."""
    median: Tensor
    """(21, 3) metres, float64, wrist at zero: each joint's geometric median relative to the wrist."""
    num_poses: int
    """Labels behind them."""

    @classmethod
    def of(cls, poses: Tensor) -> Self:
        """The constant of training poses (N, 21, 3), metres; of more than 20,000, of that many taken evenly.

        Raises DataError for no poses, other shapes, or values that are not finite.
        """
        poses = checked_joints("training poses", poses)
        rows = torch.linspace(0, len(poses) - 1, min(len(poses), _MAX_POSES), dtype=torch.float64)
        some = poses[rows.round().long()]
        wrist = some[:, hands.WRIST : hands.WRIST + 1]
        return cls(procrustes_mean(some), geometric_median(some - wrist), len(poses))

    def __eq__(self, other: object) -> bool:
        """Equal to the micrometre, as one read from JSON is."""
        return isinstance(other, Constant) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.num_poses)

    def errors(self, target: Tensor, protocol: Protocol = "freihand") -> tuple[Tensor, Tensor]:
        """Joint errors (N, 21) on true joints (N, 21, 3), metres: after the protocol's alignment, and root-relative."""
        target = checked_joints("target", target)
        aligned = procrustes_align(self.procrustes_mean, target, allow_reflection=protocol == "freihand")
        relative = target - target[:, hands.WRIST : hands.WRIST + 1]
        return joint_errors(aligned, target), joint_errors(self.median, relative)

    def errors_mm(self, target: Tensor, protocol: Protocol = "freihand") -> dict[str, float]:
        """Mean errors on true joints (N, 21, 3): constant_pa_epe_mm, and root-relative constant_mpjpe_mm."""
        aligned, relative = self.errors(target, protocol)
        return {
            "constant_pa_epe_mm": float(aligned.mean()) * MM,
            "constant_mpjpe_mm": float(relative.mean()) * MM,
        }

    def frame_errors_mm(self, target: Tensor, protocol: Protocol = "freihand") -> np.ndarray:
        """(N,) each frame's mean joint error after alignment, mm."""
        return (self.errors(target, protocol)[0].mean(dim=-1) * MM).numpy()

    def metrics(self, target: Tensor, protocol: Protocol = "freihand") -> dict[str, Any]:
        """Those of metrics.pose_metrics that a hand without a place has: all after alignment, and mpjpe_mm."""
        aligned = pose_metrics(self.procrustes_mean.expand(len(target), -1, -1), target, protocol)
        kept = {name: value for name, value in aligned.items() if name.startswith(("pa_", "aligned_"))}
        shared = {name: aligned[name] for name in ("protocol", "num_samples", "thresholds")}
        return {**shared, "mpjpe_mm": self.errors_mm(target, protocol)["constant_mpjpe_mm"], **kept}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, in micrometres' precision."""
        return {
            "num_poses": self.num_poses,
            "procrustes_mean": [[round(x, 6) for x in joint] for joint in self.procrustes_mean.tolist()],
            "median": [[round(x, 6) for x in joint] for joint in self.median.tolist()],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises DataError for anything else."""
        try:
            shapes = [torch.tensor(values[name], dtype=torch.float64) for name in ("procrustes_mean", "median")]
            mean, median = (checked_joints(f"constant of {values['num_poses']} poses", one[None])[0] for one in shapes)
            return cls(mean, median, int(values["num_poses"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a constant pose: {error}") from None


def skill(error_mm: float, constant_mm: float) -> float:
    """The share of a constant's error that a model removes, 1 - error / constant's.

    1 is a perfect model, 0 is no better than the constant, below 0 is worse. A constant's error below a micrometre counts
    as one.
    """
    return 1 - error_mm / max(constant_mm, _SMALLEST_M * MM)


def skills(metrics: Mapping[str, float]) -> dict[str, float]:
    """pa_skill and (root-relative) mpjpe_skill from pa_epe_mm, mpjpe_mm, and the constant's of `Constant.errors_mm`."""
    return {
        "pa_skill": skill(metrics["pa_epe_mm"], metrics["constant_pa_epe_mm"]),
        "mpjpe_skill": skill(metrics["mpjpe_mm"], metrics["constant_mpjpe_mm"]),
    }


def random_poses(poses: Tensor, num: int, seed: int = 0) -> Tensor:
    """`num` of the poses (N, 21, C), drawn with replacement: what answering a training pose blindly gives."""
    generator = torch.Generator().manual_seed(seed)
    return poses[torch.randint(len(poses), (num,), generator=generator)]


def procrustes_mean(poses: Tensor) -> Tensor:
    """The generalised Procrustes mean (P, D) of poses (N, P, D), centred, in their mean size (root of summed squares).

    Every pose is moved, turned and scaled onto the mean, whose shape is then that of their mean, until it stays (Gower
    1975). It lies as the first pose does: orientation and place of a mean shape mean nothing.
    """
    centred = poses - poses.mean(-2, keepdim=True)
    sizes = torch.linalg.matrix_norm(centred)
    mean = centred[0] / sizes[0].clamp_min(_SMALLEST_M)
    for _ in range(_MAX_ITERATIONS):
        before, mean = mean, procrustes_align(centred, mean).mean(0)
        mean = mean - mean.mean(-2)  # else the rounding error of its place grows with each division
        mean = mean / torch.linalg.matrix_norm(mean).clamp_min(_SMALLEST_M)
        if torch.linalg.matrix_norm(mean - before) < 1e-9:
            break
    return mean * sizes.mean()


def geometric_median(points: Tensor) -> Tensor:
    """The points (..., D) with the least mean distance to points (N, ..., D), by Weiszfeld's iteration (1937)."""
    median = points.mean(0)
    for _ in range(_MAX_ITERATIONS):
        # A point that the iteration stands on would get all the weight, and hold it there.
        weights = 1 / torch.linalg.vector_norm(points - median, dim=-1, keepdim=True).clamp_min(_SMALLEST_M)
        before, median = median, (weights * points).sum(0) / weights.sum(0)
        if torch.linalg.vector_norm(median - before, dim=-1).max() < _CLOSE_M:
            break
    return median
