"""What a worker does: one pretraining, or one fine-tuning with its tests, from the last checkpoint on.

Each is a single process with its own device. So cells need no start of a process group, and a machine with few cores or
one GPU is used best by running several of them.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import hands
from pipeline.errors import warn
from pipeline.evaluation.frozen import encode
from pipeline.evaluation.metrics import MM, joint_errors
from pipeline.evaluation.probes import fit_ridge
from pipeline.evaluation.yardsticks import random_poses
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelledFrames, load_labelled, select_labels
from pipeline.geometry import procrustes_align
from pipeline.models.checkpoints import SaveCheckpoint
from pipeline.models.encoder import build_encoder
from pipeline.models.kept import Kept, OutOfTime, read_best
from pipeline.models.predict import predict
from pipeline.models.weights import load_encoder, load_pose_model
from pipeline.storage import delete, join, write_json
from pipeline.study.grid import for_labels
from pipeline.training import finetune, pretrain
from pipeline.training.finetune_data import worker_data
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe, check_recipe, steps_of_epoch
from pipeline.training.worker import Report, Worker, prepare_process
from pipeline.views import ViewSettings

_HISTORY = ("step", "epoch", "loss", "val_pa_epe_mm", "val_mpjpe_mm")

Notice = Callable[[int], None]
"""Receives the frames seen so far."""


@dataclass(frozen=True)
class Place:
    """Where a cell runs and what it leaves."""

    key: str
    folder: str
    """URI of the study."""
    deadline: float | None
    """Seconds since 1970 after which the cell stops at its next checkpoint."""
    threads: int
    use_gpu: bool

    @property
    def work(self) -> str:
        """URI of what is kept while the cell is under way; of a pretraining also afterwards."""
        return join(self.folder, "work", self.key)

    @property
    def result(self) -> str:
        """URI of the file that says that the cell is done."""
        return join(self.folder, "cells", f"{self.key}.json")

    def device(self) -> torch.device:
        """Prepares this process."""
        return prepare_process(self.threads, self.use_gpu)


@dataclass(frozen=True)
class Errors:
    """Errors on the test frames, mm, summed up by clip: after Procrustes alignment, and with wrists in one place."""

    pa_epe: list[float]
    root_relative_epe: list[float]

    @classmethod
    def of_joints(cls, aligned: Tensor, relative: Tensor, clip_of: np.ndarray) -> "Errors":
        """From joint errors (N, 21) in metres of N frames; clip_of: (N,) their clips' numbers."""

        def sums(errors: Tensor) -> list[float]:
            return [round(value, 4) for value in np.bincount(clip_of, weights=errors.mean(-1).numpy() * MM).tolist()]

        return cls(sums(aligned), sums(relative))

    @classmethod
    def of(cls, predicted: Tensor, true: Tensor, clip_of: np.ndarray) -> "Errors":
        """From joints (N, 21, 3), metres. The alignment is the official FreiHAND scorer's, for models, probes and
        constants alike."""
        predicted, true = predicted.double(), true.double()
        aligned = procrustes_align(predicted, true, allow_reflection=True)
        return cls.of_joints(joint_errors(aligned, true), joint_errors(_rooted(predicted), _rooted(true)), clip_of)


def pretrain_cell(
    place: Place, recipe: PretrainRecipe, notice: Notice, say: Callable[[str], None] = warn
) -> dict[str, Any]:
    """Pretrain an arm; {"stopped": True} where its time was over. say: receives what is wrong with its checkpoints.

    The result, also in the cell's file: "encoder" (URI), "frames" seen, "unlabelled_frames", "wall_s", "history".
    """
    device = place.device()
    mixture = check_recipe(recipe, workers=1)
    kept = Kept(place.work, deadline=place.deadline)

    def report(metrics: dict[str, Any], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, metrics, last=metrics["epoch"] >= recipe.epochs)

    try:
        with tempfile.TemporaryDirectory() as directory:
            pretrain.run_epochs(recipe, mixture, _worker(place, device, kept.resume(directory, say), report, notice))
    except OutOfTime:
        return {"stopped": True}
    return _finished(
        place,
        {
            "kind": "pretrain",
            "encoder": str(kept.newest),
            "frames": recipe.epochs * steps_of_epoch(recipe, mixture, 1) * recipe.batch_size,
            "unlabelled_frames": sum(mixture.quotas(recipe.split)),
            "wall_s": round(kept.wall_s, 1),
            "history": _history(kept),
        },
    )


def finetune_cell(
    place: Place,
    settings: FinetuneSettings,
    validations: int,
    test_split: str,
    probe_frames: int,
    notice: Notice,
    say: Callable[[str], None] = warn,
) -> dict[str, Any]:
    """Fine-tune and test the best model; {"stopped": True} where the time was over. settings: with a budget in frames.

    The result, also in the cell's file: "clips" (names of the test clips), "clip_frames", and the `Errors` on them of
    "model", "probe" (ridge regression from what it started from), "constant", and "random" (training poses taken
    blindly); "frames" seen, "labelled_frames", "wall_s", "history".
    """
    device = place.device()
    frame_set = FrameSet.open(settings.frame_set)
    selection = select_labels(frame_set, settings.split, settings.labels)
    settings = for_labels(settings, validations, selection.num_frames)
    data = worker_data(settings, frame_set, selection, 0, 1)
    kept = Kept(place.work, deadline=place.deadline)

    def report(metrics: dict[str, float], save: SaveCheckpoint | None) -> None:
        if save is not None:
            kept.keep(save, metrics, last=metrics["epoch"] >= settings.epochs)

    try:
        with tempfile.TemporaryDirectory() as directory:
            finetune.run_epochs(settings, data, _worker(place, device, kept.resume(directory, say), report, notice))
    except OutOfTime:
        return {"stopped": True}
    test = load_labelled(frame_set, test_split)
    clips, clip_of = np.unique([name.rsplit("/", 1)[0] for name in test.frame_ids], return_inverse=True)
    true = torch.from_numpy(test.joints_3d)
    predicted = _predicted(read_best(place.work)[0], test, device)
    assert selection.constant is not None, "a study's labels are in 3D"
    some = load_labelled(frame_set, settings.split, clips=selection.clips, limit=probe_frames)
    result = _finished(
        place,
        {
            "kind": "finetune",
            "clips": clips.tolist(),
            "clip_frames": np.bincount(clip_of).tolist(),
            "model": asdict(Errors.of(predicted, true, clip_of)),
            "probe": asdict(Errors.of(_probed(settings, some, test, device), true, clip_of)),
            "constant": asdict(Errors.of_joints(*selection.constant.errors(true), clip_of)),
            "random": asdict(Errors.of(random_poses(torch.from_numpy(some.joints_3d), len(true)), true, clip_of)),
            "frames": settings.epochs * data.steps_per_epoch * data.batch_size,
            "labelled_frames": selection.num_frames,
            "wall_s": round(kept.wall_s, 1),
            "history": _history(kept),
        },
    )
    delete(place.work)
    return result


def _worker(place: Place, device: torch.device, resume: Path | None, report: Report, notice: Notice) -> Worker:
    return Worker(
        device=device, folder=place.work, resume=resume, report=report, notice=lambda frames, _: notice(frames)
    )


def _predicted(checkpoint: str, test: LabelledFrames, device: torch.device) -> Tensor:
    """Joints (N, 21, 3), metres; each hand's reference bone is given, as FreiHAND gives it."""
    loaded = load_pose_model(checkpoint)
    model, batch = loaded.model.to(device), test.batch(slice(None))
    return predict(model, batch.frames, batch.camera, loaded.view_size, model.bone_length(batch.joints_3d)).joints_3d


def _probed(settings: FinetuneSettings, train: LabelledFrames, test: LabelledFrames, device: torch.device) -> Tensor:
    """Joints (N, 21, 3), wrist at zero, by ridge regression from features of what fine-tuning started from."""
    torch.manual_seed(settings.seed)  # from scratch: the very weights that fine-tuning drew
    encoder = load_encoder(settings.init)[0] if settings.init else build_encoder(settings.encoder)
    encoder = encoder.to(device).eval()
    views = ViewSettings(size=settings.views.size)
    features = [encode(encoder, part.batch(slice(None)).frames, views, device) for part in (train, test)]
    targets = _rooted(torch.from_numpy(train.joints_3d)).flatten(1)
    return fit_ridge(features[0], targets).predict(features[1]).view(-1, hands.NUM_JOINTS, 3)


def _rooted(joints: Tensor) -> Tensor:
    return joints - joints[:, hands.WRIST : hands.WRIST + 1]


def _history(kept: Kept) -> list[dict[str, float]]:
    """Of its metrics, those that a study shows."""
    return [{key: metrics[key] for key in _HISTORY if key in metrics} for metrics in kept.history]


def _finished(place: Place, result: dict[str, Any]) -> dict[str, Any]:
    """Write the cell's file: from now on it is done."""
    result = {"key": place.key, **result}
    write_json(place.result, result)
    return result
