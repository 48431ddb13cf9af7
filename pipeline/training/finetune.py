"""Fine-tune an encoder, pretrained or random, into a 3D hand pose model.

A step: a batch of labelled uint8 crops -> one random view each, on the device, with camera K' = T K, so that 3D labels stay
as they are -> 2.5D joints -> losses in 2D, depth and 3D. The loop is the same for one process (`finetune`, which a search's trials call)
and for the workers of a Ray Train run (finetune_run.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.labelled import PoseBatch
from pipeline.geometry import project, transform_camera
from pipeline.models.checkpoints import META, Snapshot, read_part, read_trainer_state
from pipeline.models.encoder import Encoder, build_encoder
from pipeline.models.kinematic import KinematicHead
from pipeline.models.pose import PoseModel
from pipeline.models.weights import load_encoder
from pipeline.run_log import at_step
from pipeline.training.bad_steps import GuardedStep, backward_from
from pipeline.training.finetune_data import FinetuneData, SharedFrames
from pipeline.training.finetune_recipe import FinetuneSettings, initial_pose_model, with_epochs
from pipeline.training.optim import (
    build_optimiser,
    learning_rate_at,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)
from pipeline.training.pose_loss import PoseLosses, pose_losses
from pipeline.training.validation import score_figures, score_of, validate
from pipeline.training.worker import LossLog, Worker, check_finite, place
from pipeline.views import apply_views, generator_for, sample_views, view_matrix


def finetune(settings: FinetuneSettings, frames: SharedFrames, worker: Worker) -> dict[str, Any]:
    """Fine-tune in this process; where the frames are in memory, neither Ray nor MLflow is touched.

    Returns {"score", "epoch", "stopped_early", "metrics"}. Raises TrainingError when training cannot go on.
    """
    settings = with_epochs(settings, frames.selection.num_frames, 1)
    return run_epochs(settings, frames.data(settings), worker)


def run_epochs(settings: FinetuneSettings, data: FinetuneData, worker: Worker) -> dict[str, Any]:
    """The training loop of one worker; the workers agree on all decisions. settings: as `with_epochs` gives them.

    It reports, every `log_every` steps and at each epoch's end: "step", "epoch", "loss", "loss_2d", "loss_depth", "loss_root",
    "loss_3d", "loss_aligned", "bad_steps", "learning_rate", "frames_per_second"; and at validations also "val_*" metrics, "score",
    and what a checkpoint holds. Where the workers have to leave, it reports a checkpoint without a score, in mid-epoch
    too. Raises TrainingError, on all workers, when training cannot go on.
    """
    torch.manual_seed(settings.seed)
    model = build_model(settings, data.mean_bone_length, data.constant)
    optimiser = build_optimiser(model, settings.optimiser, groups=learning_rate_groups(model, settings))
    state: dict[str, Any] = {"epoch": 0, "steps": 0, "best": float("inf"), "without_gain": 0}
    place(model, worker.device)
    if worker.resume is not None:
        state |= _load_state(worker.resume, model, optimiser)
        # With other workers an epoch has another number of steps.
        state["steps"] = state["steps"] * data.steps_per_epoch // state.pop("steps_per_epoch", data.steps_per_epoch)
    worker.mark("model")
    # Where the last checkpoint was the end, its figures are the run's.
    metrics: dict[str, float] = read_part(str(worker.resume), META).get("metrics", {}) if worker.resume else {}
    trainer = _Trainer(settings, model, optimiser, data, worker, int(metrics.get("bad_steps", 0)))
    stopped_early = False
    for epoch in range(state["epoch"], settings.epochs):
        if settings.patience is not None and state["without_gain"] >= settings.patience:
            stopped_early = True
            break
        trainer.start_epoch(epoch, state["steps"])
        at_step(trainer.number)
        leaving = False
        for step, batch in _batches(data, epoch, state["steps"], worker):
            worker.mark("first_batch")
            leaving = worker.leaving()
            trainer.step(batch.to(worker.device), epoch, step)
            at_step(trainer.number)
            worker.mark("first_step")
            worker.notice(trainer.number * data.batch_size * worker.world_size, trainer.shown)
            last_step = step == data.steps_per_epoch - 1
            if last_step or not (leaving or trainer.number % settings.log_every == 0):
                continue
            metrics = trainer.interval_metrics()
            if not leaving:
                worker.report(metrics, None)
                continue
            check_finite(model, optimiser, trainer.number)
            within = {"steps": step + 1, "steps_per_epoch": data.steps_per_epoch}
            worker.report(metrics, _snapshot(settings, model, optimiser, data, state | within, metrics))
        metrics = trainer.interval_metrics()
        state |= {"epoch": epoch + 1, "steps": 0}
        is_validated = state["epoch"] % (settings.validate_every or 1) == 0 or state["epoch"] == settings.epochs
        if not (is_validated or leaving):
            worker.report(metrics, None)
            continue
        check_finite(model, optimiser, trainer.number)
        if not is_validated:
            worker.report(metrics, _snapshot(settings, model, optimiser, data, state, metrics))
            continue
        with worker.busy("validation"):
            metrics |= validate(model, data.validation, settings.views.size, data.constant, data.constant_2d)
        metrics["score"] = score_of(metrics, settings.best_by)
        gained = metrics["score"] < state["best"]
        state["best"] = min(state["best"], metrics["score"])
        state["without_gain"] = 0 if gained else state["without_gain"] + 1
        trainer.shown |= score_figures(metrics, metrics["score"], settings.best_by)
        worker.report(metrics, _snapshot(settings, model, optimiser, data, state, metrics))
    return {"score": state["best"], "epoch": state["epoch"], "stopped_early": stopped_early, "metrics": metrics}


def _batches(data: FinetuneData, epoch: int, first: int, worker: Worker) -> Iterator[tuple[int, PoseBatch]]:
    """Steps of an epoch and their batches, from a step on."""
    batches = enumerate(data.batches(epoch))
    while True:
        with worker.busy("data"):
            step, batch = next(batches, (0, None))
            while batch is not None and step < first:  # in memory they cost next to nothing
                step, batch = next(batches, (0, None))
        if batch is None:
            return
        yield step, batch


def build_model(
    settings: FinetuneSettings, mean_bone_length: dict[str, float], constant: Constant | None = None
) -> PoseModel:
    """The pose model with its initial weights. constant: of the training labels, where a new head begins if it can."""
    model = initial_pose_model(settings)
    if model is None or model.settings != settings.head.settled(model.settings):
        encoder: Encoder = load_encoder(settings.init)[0] if settings.init else build_encoder(settings.encoder)
        model = PoseModel(encoder, settings.head)
        if isinstance(model.head, KinematicHead) and constant is not None:
            model.head.start_at(constant.procrustes_mean, constant.median)
    # Labels without depth have no size: it stays that of the initial model, or an adult's.
    model.mean_bone_length.fill_(mean_bone_length.get(model.convention.bone, model.mean_bone_length))
    return model


def cut_tight(frames: Tensor, joints_2d: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Crops (B, 3, S, S) uint8, some of them black beyond a box around their joints (B, 21, 2), as photographs that end there
    look to a model. Each side of the box is its own distance away, 0 to 0.3 of the joints' longer side.
    """
    count, side = len(frames), frames.shape[-1]
    drawn = torch.rand((count, 5), generator=generator, device=generator.device).to(frames.device)
    low, high = joints_2d.amin(1), joints_2d.amax(1)
    margin = 0.3 * (high - low).amax(1, keepdim=True)
    low, high = low - margin * drawn[:, 0:2], high + margin * drawn[:, 2:4]
    start = torch.arange(side, device=frames.device)
    columns, rows = ((start + 1 > low[:, axis, None]) & (start <= high[:, axis, None]) for axis in (0, 1))
    shown = (rows[:, :, None] & columns[:, None, :]) | (drawn[:, 4] >= share)[:, None, None]
    return frames * shown[:, None]


def learning_rate_groups(model: PoseModel, settings: FinetuneSettings) -> list[dict[str, object]]:
    """Parameter groups: the head at the full learning rate, the encoder's stages at theirs."""
    encoder = model.encoder
    stem = nn.ModuleList([encoder.conv1, encoder.bn1])
    stages: list[nn.Module] = [stem, encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
    head = nn.ModuleList([model.head, *([model.refinement] if model.refinement is not None else [])])
    groups = parameter_groups(head, settings.optimiser.weight_decay)
    for depth, stage in enumerate(reversed(stages)):
        scale = settings.encoder_lr_factor * settings.layer_lr_decay**depth
        groups += [{**group, "lr_scale": scale} for group in parameter_groups(stage, settings.optimiser.weight_decay)]
    return groups


def trains_encoder(settings: FinetuneSettings, epoch: int) -> bool:
    """Whether the encoder learns in this epoch."""
    return settings.train_mode == "end-to-end" or (settings.train_mode == "staged" and epoch >= settings.head_epochs)


class _Trainer:
    """Optimiser steps, and the figures of those since the last log."""

    def __init__(
        self,
        settings: FinetuneSettings,
        model: PoseModel,
        optimiser: torch.optim.Optimizer,
        data: FinetuneData,
        worker: Worker,
        num_bad: int,
    ) -> None:
        self.settings, self.model, self.optimiser, self.worker = settings, model, optimiser, worker
        self.steps_per_epoch, self.batch_size = data.steps_per_epoch, data.batch_size
        self.total = settings.epochs * data.steps_per_epoch
        self.peak = peak_learning_rate(settings.optimiser, data.batch_size * worker.world_size)
        self.autocast = worker.autocast(settings.precision)
        self.network: nn.Module | None = None
        self.encoder_learns = True
        self.number = 0
        self.learning_rate = 0.0
        self.shown: dict[str, float] = {}
        self._log = LossLog(worker, settings.optimiser.max_bad_steps, num_bad)
        self._guard = GuardedStep(optimiser, model, settings.optimiser.gradient_clip)

    def start_epoch(self, epoch: int, steps: int) -> None:
        """Put the modules into the epoch's mode. steps: those of it that are done already."""
        learns = trains_encoder(self.settings, epoch)
        if self.network is None or learns != self.encoder_learns:
            # DistributedDataParallel fixes at wrapping which parameters get gradients.
            self.encoder_learns = learns
            self.model.encoder.requires_grad_(learns)
            self.network = self.worker.distributed(self.model)
        self.model.train()
        if not learns:
            self.model.encoder.eval()
        self.number = epoch * self.steps_per_epoch + steps
        self._log.restart()

    def step(self, batch: PoseBatch, epoch: int, step: int) -> None:
        """One optimiser step; a bad one (bad_steps.py) changes nothing."""
        settings, device = self.settings, self.worker.device
        count, crop_size = len(batch.frames), batch.frames.shape[-1]
        generator = generator_for(settings.seed, epoch, step, self.worker.rank, device)
        views = sample_views(settings.views, count, generator=generator, device=device)
        frames = batch.frames
        if settings.tight_share:
            frames = cut_tight(frames, project(batch.joints_3d, batch.camera), settings.tight_share, generator)
        images = apply_views(frames, views, settings.views)
        camera = transform_camera(view_matrix(views, crop_size, settings.views.size), batch.camera)
        self.learning_rate = learning_rate_at(self.number, self.total, settings.optimiser, self.peak)
        set_learning_rate(self.optimiser, self.learning_rate)
        assert self.network is not None
        self._guard.begin()
        with self.autocast():
            output = self.network(images, camera)
        targets = self.model.targets(batch.joints_3d, camera)
        losses = pose_losses(output, targets, camera, settings.views.size, settings.loss, has_3d=batch.has_3d)
        self.optimiser.zero_grad(set_to_none=True)
        backward_from(losses.total)
        taken = self._guard.take()
        self.number += 1
        self._log.add(torch.stack([loss.detach() for loss in losses]), taken, batch.frame_ids)

    def interval_metrics(self) -> dict[str, float]:
        """Averages since the last call, over all workers. Raises TrainingError where too many steps were bad."""
        losses, num_steps, seconds = self._log.take(self.number, self.number % self.steps_per_epoch == 0)
        parts = dict(zip(("loss", *PoseLosses._fields[1:]), losses, strict=False))  # of an interval of bad steps none
        self.shown |= {name: round(value, 3) for name, value in parts.items() if name == "loss"}
        return {
            "step": self.number,
            "epoch": self.number / self.steps_per_epoch,
            **parts,
            "bad_steps": self._log.num_bad,
            "learning_rate": self.learning_rate,
            "frames_per_second": num_steps * self.batch_size * self.worker.world_size / seconds,
        }


def _snapshot(
    settings: FinetuneSettings,
    model: PoseModel,
    optimiser: torch.optim.Optimizer,
    data: FinetuneData,
    state: dict[str, Any],
    metrics: dict[str, float],
) -> Snapshot:
    recipe = settings.model_dump(mode="json", include=set(FinetuneSettings.model_fields))
    meta = {
        "kind": "pose",
        "step": int(metrics["step"]),
        "epoch": state["epoch"],
        # Encoder and head are those of the weights, which `init` may have brought.
        "settings": {
            **recipe,
            "encoder": model.encoder.settings.model_dump(mode="json"),
            "head": model.settings.model_dump(mode="json"),
        },
        "frame_set_digest": data.frame_set_digest,
        **({} if data.constant is None else {"constant": data.constant.to_json()}),
        "metrics": metrics,
    }
    return Snapshot(model.state_dict(), {"optimiser": optimiser.state_dict(), **state}, meta)


def _load_state(directory: Path, model: PoseModel, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(directory / "model.safetensors"))
    state = read_trainer_state(directory)
    # Of a run that goes on they are the same; a member of a population goes on from another one's, with rates of its own.
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimiser.param_groups]
    optimiser.load_state_dict(state.pop("optimiser"))
    for group, options in zip(optimiser.param_groups, own, strict=True):
        group.update(options)
    return state
