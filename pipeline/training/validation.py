"""Errors of a pose model on labelled frames while it is trained, beside those of a constant; and what of them people are shown."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from pipeline.errors import TrainingError
from pipeline.evaluation.image_metrics import frame_errors_2d, image_metrics
from pipeline.evaluation.metrics import pose_metrics
from pipeline.evaluation.yardsticks import Constant, skills
from pipeline.frames.labelled import (
    LabelledFrames,
)
from pipeline.geometry import project
from pipeline.models.pose import PoseModel
from pipeline.models.predict import bone_lengths, predict
from pipeline.training.distributed import gather_values, share_buffers

Score = Literal["pa_epe_mm", "mpjpe_mm", "epe_mm", "epe_2d", "pa_skill", "mpjpe_skill"]
"""By what early stopping, a search and the choice of the best checkpoint judge (see metrics.pose_metrics, yardsticks.skills)."""


_VALIDATED = ("pa_epe_mm", "epe_mm", "mpjpe_mm", "auc", "pa_auc", "constant_pa_epe_mm", "constant_mpjpe_mm")


_SHOWN: dict[Score, tuple[str, str, int, str | None]] = {
    "pa_epe_mm": ("PA-EPE", "mm", 1, "constant_pa_epe_mm"),
    "mpjpe_mm": ("root-relative EPE", "mm", 1, "constant_mpjpe_mm"),
    "epe_mm": ("EPE", "mm", 1, None),
    "epe_2d": ("2D EPE", "% of the hand", 100, "constant_epe_2d"),
    "pa_skill": ("PA skill", "", 1, None),
    "mpjpe_skill": ("root-relative skill", "", 1, None),
}
"""For people: label, unit, units in one, and what a constant's is called."""

_VALIDATED_2D = ("epe_2d", "epe_2d_crop_px", "pck_2d_10", "constant_epe_2d")


def validate(
    model: PoseModel,
    data: LabelledFrames,
    view_size: int,
    constant: Constant | None,
    constant_2d: np.ndarray | None = None,
) -> dict[str, float]:
    """ "val_*" metrics on plain views, each hand's bone length given; averages over all workers' frames.

    Beside the model's errors are those of the constants, and the skill over the one in 3D (see yardsticks.skills). Metrics in
    3D are of the frames with joints in 3D, and left out where there are none; those in the image are of all frames. Raises
    TrainingError, on all workers, where a pose is not finite.
    """
    share_buffers(model)
    batch = data.batch(slice(None))
    lengths = bone_lengths(model, batch.joints_3d, batch.has_3d)
    predictions = predict(model, batch.frames, batch.camera, view_size, lengths)
    good = predictions.joints_2d.isfinite().all(-1).all(-1) & predictions.joints_3d.isfinite().all(-1).all(-1)
    num_bad = int(gather_values((~good).sum().to(model.mean_bone_length.device)[None]).sum())
    if num_bad:
        raise TrainingError(
            f"the poses of {num_bad} validation frames are not finite, though the weights are; the learning rate may be too high"
        )
    target_2d = project(batch.joints_3d, batch.camera)
    metrics = image_metrics(predictions.joints_2d, target_2d, torch.from_numpy(data.pixel_size))
    if constant_2d is not None:
        answer = torch.from_numpy(constant_2d * batch.frames.shape[-1]).expand(target_2d.shape)
        metrics["constant_epe_2d"] = float(frame_errors_2d(answer, target_2d).mean())
    if batch.has_3d.any():
        target = batch.joints_3d[batch.has_3d]
        metrics |= pose_metrics(predictions.joints_3d[batch.has_3d], target)
        metrics |= {} if constant is None else constant.errors_mm(target)
    device = model.mean_bone_length.device
    means = _over_workers(metrics, _VALIDATED, int(batch.has_3d.sum()), device)
    if "constant_pa_epe_mm" in means:
        means |= skills(means)
    means |= _over_workers(metrics, _VALIDATED_2D, len(target_2d), device)
    return {f"val_{name}": value for name, value in means.items()}


def score_name(metrics: Mapping[str, float], best_by: Score | None) -> Score:
    """What is judged by. best_by: as it is set; None takes PA-EPE, or the error in the image where no validation frame has joints
    in 3D. metrics: of a validation.

    Raises TrainingError where the validation frames cannot tell it.
    """
    name: Score = best_by or ("pa_epe_mm" if "val_pa_epe_mm" in metrics else "epe_2d")
    if f"val_{name}" not in metrics:
        known = ", ".join(each for each in _SHOWN if f"val_{each}" in metrics)
        raise TrainingError(f"setting 'best_by' = '{name}': these labels do not tell it; they tell {known}")
    return name


def score_of(metrics: Mapping[str, float], best_by: Score | None) -> float:
    """One number, smaller is better. Of a skill it is the share of the constant's error that is left."""
    name = score_name(metrics, best_by)
    value = metrics[f"val_{name}"]
    return 1 - value if name.endswith("skill") else value


def score_figures(
    metrics: Mapping[str, float], score: float, best_by: Score | None = None, which: str = ""
) -> dict[str, float]:
    """For people: a score, and what a constant reaches on the same frames. metrics: of a validation. which: such as "best "."""
    label, unit, factor, constant = _SHOWN[score_name(metrics, best_by)]
    if constant is None and unit == "":
        return {f"{which}{label}": round(1 - score, 3)}
    figures = {f"{which}{label} {unit}": round(factor * score, 1)}
    if constant is not None and f"val_{constant}" in metrics:
        figures[f"constant pose {unit}"] = round(factor * metrics[f"val_{constant}"], 1)
    return figures


def _over_workers(
    metrics: Mapping[str, float], names: Sequence[str], num: int, device: torch.device
) -> dict[str, float]:
    """Means of those metrics that are known over the `num` frames of each worker. The same on all workers."""
    values = [(num * metrics[name], num) if num and name in metrics else (0.0, 0) for name in names]
    totals, counts = gather_values(torch.tensor(values, dtype=torch.float64, device=device)).sum(0).T.tolist()
    return {name: total / count for name, total, count in zip(names, totals, counts, strict=True) if count}
