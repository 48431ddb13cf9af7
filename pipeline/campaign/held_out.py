"""Frames that neither training nor search has seen, and a model's errors on them, clip by clip, beside those of the constant pose."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline import hands
from pipeline.errors import SettingsError
from pipeline.evaluation.image_metrics import frame_errors_2d
from pipeline.evaluation.metrics import MM, Protocol, joint_errors
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelledFrames, load_labelled, read_joints_2d
from pipeline.frames.manifest import total_digest
from pipeline.geometry import project
from pipeline.models.weights import load_pose_model
from pipeline.reports.evaluate import Evaluation, evaluate_model


@dataclass(frozen=True)
class HeldOutSplit:
    """Which frames models are tested on, and by which protocol: errors can be compared where both are the same."""

    frame_set: str
    test_digest: str
    """Of all rows of the split."""
    split: str
    protocol: Protocol
    num_frames: int

    @classmethod
    def of(cls, frame_set: FrameSet, split: str, protocol: Protocol) -> Self:
        """Raises SettingsError, in one line, where the set has no such frames, or some without labels."""
        num_frames = frame_set.manifest.rows_in(split)
        off = "or give --winner.seeds 0: then nothing is trained anew"
        if not num_frames:
            raise SettingsError(
                f"setting 'winner.split' = '{split}': {frame_set.uri} has no frames in it "
                f"({frame_set.manifest.counts_text()}); give another split that the search does not read, {off}"
            )
        num_labelled = len(read_joints_2d(frame_set, split))
        if num_labelled < num_frames:
            raise SettingsError(
                f"setting 'winner.split' = '{split}': {num_frames - num_labelled} of its {num_frames} frames in {frame_set.uri} "
                f"have no labels; label them, {off}"
            )
        return cls(frame_set.uri, total_digest(frame_set.shards(split)), split, protocol, num_frames)

    def is_like(self, other: Mapping[str, Any]) -> bool:
        """Whether something was tested on the same frames, wherever they lay, by the same protocol."""
        return all(getattr(self, name) == other.get(name) for name in ("test_digest", "split", "protocol"))


@dataclass(frozen=True)
class HeldOut:
    """The frames in memory."""

    about: HeldOutSplit
    frames: LabelledFrames
    constant_2d: np.ndarray
    """(21, 2) of the search's training labels; see image_metrics.mean_joints_2d."""

    @classmethod
    def load(cls, frame_set: FrameSet, about: HeldOutSplit, constant_2d: np.ndarray) -> Self:
        """All frames of the split."""
        return cls(about, load_labelled(frame_set, about.split), constant_2d)


@dataclass(frozen=True)
class ClipErrors:
    """One kind of error on those frames that can tell it."""

    clips: list[str]
    frames: list[int]
    """Of each clip."""
    means: list[float]
    """The model's mean error on each."""
    constant: list[float] | None
    """That of always answering one fixed hand, the best of the model's training labels; None where that is not known."""

    @property
    def mean(self) -> float:
        """Over all frames."""
        return float(np.average(self.means, weights=self.frames))

    @property
    def constant_mean(self) -> float | None:
        """The constant's over all frames."""
        return None if self.constant is None else float(np.average(self.constant, weights=self.frames))


@dataclass(frozen=True)
class ModelErrors:
    """A model's errors."""

    model: str
    """URI."""
    frame_set_digest: str
    """Of the frames that it was trained on; empty where that is not known."""
    about: HeldOutSplit
    metrics: dict[str, float]
    """Over all frames, by the names of metric_names.METRICS; those of the constant are called constant_*."""
    errors: dict[str, ClipErrors]
    """ "pa_epe_mm", "root_relative_epe_mm", "epe_mm" of frames with joints in 3D, where there are any; "epe_2d" (sizes of the hand) of
    all."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError or TypeError for anything else."""
        plain = {field.name: values[field.name] for field in fields(cls)}
        errors = {name: ClipErrors(**each) for name, each in plain["errors"].items()}
        return cls(**{**plain, "about": HeldOutSplit(**plain["about"]), "errors": errors})


def measure(uri: str, held_out: HeldOut, device: torch.device) -> ModelErrors:
    """Test a pose model; each hand's reference bone is given, as FreiHAND gives it. Raises DataError where there is no model."""
    loaded, data, protocol = load_pose_model(uri), held_out.frames, held_out.about.protocol
    batch = data.batch(slice(None))
    clips = np.array([name.rsplit("/", 1)[0] for name in data.frame_ids])
    true_2d, in_3d = project(batch.joints_3d, batch.camera), batch.has_3d
    fixed = torch.from_numpy(held_out.constant_2d * batch.frames.shape[-1]).expand(true_2d.shape)
    fixed_2d = frame_errors_2d(fixed, true_2d)
    model = evaluate_model(uri, loaded, data, "given", protocol, device, loaded.constant, float(fixed_2d.mean()))
    errors = {"epe_2d": _by_clip(clips, model.errors_2d, fixed_2d)}
    if in_3d.any():
        errors = (
            _errors_3d(model, batch.joints_3d[in_3d], in_3d, clips[in_3d.numpy()], loaded.constant, protocol) | errors
        )
    metrics = {name: float(value) for name, value in model.result().metrics.items() if value is not None}
    metrics |= {f"constant_{name}": mean for name, each in errors.items() if (mean := each.constant_mean) is not None}
    return ModelErrors(uri, str(loaded.meta.get("frame_set_digest") or ""), held_out.about, metrics, errors)


def _errors_3d(
    model: Evaluation, target: Tensor, in_3d: Tensor, clips: np.ndarray, constant: Any, protocol: Protocol
) -> dict[str, ClipErrors]:
    """target: true joints (M, 21, 3) of the frames that `in_3d` marks; clips: (M,) theirs."""
    pred, target = model.predictions.joints_3d[in_3d].double(), target.double()
    relative = joint_errors(pred - _wrists(pred), target - _wrists(target))
    aligned_of_fixed, relative_of_fixed = (
        (None, None) if constant is None else map(_frame_mm, constant.errors(target, protocol))
    )
    return {
        "pa_epe_mm": _by_clip(clips, model.errors_mm, aligned_of_fixed),
        "root_relative_epe_mm": _by_clip(clips, _frame_mm(relative), relative_of_fixed),
        "epe_mm": _by_clip(clips, _frame_mm(joint_errors(pred, target)), None),
    }


def _wrists(joints: Tensor) -> Tensor:
    return joints[:, hands.WRIST : hands.WRIST + 1]


def _frame_mm(errors: Tensor) -> np.ndarray:
    """(N,) mean of joint errors (N, 21) in metres, mm."""
    return (errors.mean(-1) * MM).numpy()


def _by_clip(clips: np.ndarray, errors: np.ndarray, constant: np.ndarray | None) -> ClipErrors:
    """From the clip and the errors of each frame, (N,)."""
    names, clip_of, frames = np.unique(clips, return_inverse=True, return_counts=True)

    def means(values: np.ndarray) -> list[float]:
        return [float(value) for value in np.bincount(clip_of, weights=values) / frames]

    return ClipErrors(names.tolist(), frames.tolist(), means(errors), None if constant is None else means(constant))
