"""A pose model that was never trained, and errors that nobody measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.campaign.held_out import ClipErrors, HeldOutSplit, ModelErrors
from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import read_poses
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.storage import write_json

SIZE = 32


def save_pose_model(run: Path, frame_set: str, seed: int = 0) -> str:
    """The URI of a run's folder with one checkpoint in it, whose constant is that of the set's training labels, where it has any."""
    torch.manual_seed(seed)
    encoder = build_encoder(EncoderSettings(width=8))
    model = PoseModel(encoder, PoseSettings())
    settings = {
        "frame_set": frame_set,
        "views": {"size": SIZE},
        "encoder": encoder.settings.model_dump(),
        "head": model.settings.model_dump(),
    }
    frames = FrameSet.open(frame_set)
    meta = {"kind": "pose", "step": 1, "epoch": 1, "settings": settings, "frame_set_digest": frames.manifest.digest}
    poses = read_poses(frames, "train")
    if len(poses):
        meta["constant"] = Constant.of(torch.from_numpy(poses)).to_json()
    best = run / "checkpoint_000001"
    save_checkpoint(best, model, {}, meta)
    write_json(str(run / "result.json"), {"run_id": run.name, "kind": "finetune", "best_checkpoint": str(best)})
    return str(run)


def clip_errors(
    mean: float, num_clips: int = 40, constant: float | None = 30.0, seed: int = 0, noise: float = 0.5
) -> ClipErrors:
    """With about this mean; what makes a clip hard is the same for all."""
    hardness = np.random.default_rng(1).uniform(-5, 5, num_clips)
    own = np.random.default_rng(seed).normal(0, noise, num_clips)
    clips = [f"clip-{number}" for number in range(num_clips)]
    fixed = None if constant is None else [constant + each for each in hardness.tolist()]
    return ClipErrors(clips, [4] * num_clips, (mean + hardness + own).tolist(), fixed)


def arm(means: Sequence[float], **changes) -> list[ClipErrors]:
    return [clip_errors(mean, seed=number, **changes) for number, mean in enumerate(means)]


def model_errors(model: str, mean: float, digest: str = "aa", trained_on: str = "set-1", **changes) -> ModelErrors:
    """Of a model, on a test split with this digest."""
    errors = clip_errors(mean, **changes)
    metrics = {
        "pa_epe_mm": errors.mean,
        **({} if errors.constant_mean is None else {"constant_pa_epe_mm": errors.constant_mean}),
    }
    about = HeldOutSplit("sets/a", digest, "test", "freihand", sum(errors.frames))
    return ModelErrors(model, trained_on, about, metrics, {"pa_epe_mm": errors})
