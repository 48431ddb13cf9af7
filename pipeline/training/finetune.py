"""Fine-tune an encoder, pretrained or random, into a 3D hand pose model.

A step: a batch of labelled uint8 crops -> one random view each, on the device, with camera K' = T K, so that 3D labels stay
as they are -> 2.5D joints -> losses in 2D, depth and 3D. The loop is the same for one process (`finetune`, which a search's trials call)
and for the workers of a Ray Train run (finetune_run.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError
from pipeline.evaluation.image_metrics import frame_errors_2d, image_metrics
from pipeline.evaluation.metrics import pose_metrics
from pipeline.evaluation.yardsticks import Constant, skills
from pipeline.frames.epoch_plan import StreamPlan
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import (
    LabelledFrames,
    LabelSelection,
    LabelSettings,
    PoseBatch,
    decoded_megabytes,
    load_labelled,
    memory_epoch,
    select_labels,
    stream_forever,
)
from pipeline.geometry import project, transform_camera
from pipeline.models.checkpoints import META, SaveCheckpoint, read_part, read_trainer_state, save_checkpoint
from pipeline.models.encoder import Encoder, EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.predict import bone_lengths, predict
from pipeline.models.weights import load_encoder, load_pose_model, read_meta
from pipeline.training.distributed import gather_values, share_buffers
from pipeline.training.optim import (
    OptimiserSettings,
    build_optimiser,
    learning_rate_at,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)
from pipeline.training.pose_loss import PoseLosses, PoseLossSettings, pose_losses
from pipeline.training.worker import LossLog, Precision, Worker
from pipeline.views import ViewSettings, apply_views, generator_for, sample_views, view_matrix

SCORE, SCORE_2D = "val_pa_epe_mm", "val_epe_2d"
"""What early stopping and the choice of the best checkpoint look at; lower is better. The second (sizes of the hand) where no
validation frame has joints in 3D."""

FINETUNE_VIEWS = ViewSettings(
    rotation_deg=45.0,
    translation=0.05,
    scale=(1.0, 1.45),
    brightness=(0.7, 1.3),
    contrast=(0.8, 1.2),
    saturation=(0.7, 1.3),
    hue=0.02,
    offset=(0.0, 0.0),
)
"""Rotation and shift as published; scale about that of the plain view (1.2) and mild colour changes are ours."""

_VALIDATIONS = 20  # where their number is not given

_VALIDATED = ("pa_epe_mm", "epe_mm", "mpjpe_mm", "auc", "pa_auc", "constant_pa_epe_mm", "constant_mpjpe_mm")
_VALIDATED_2D = ("epe_2d", "epe_2d_crop_px", "pck_2d_10", "constant_epe_2d")


class FinetuneSettings(Settings):
    """What is trained, on what, and how."""

    frame_set: Uri
    """URI of a frame set with joints and cameras."""
    split: str = "train"
    """Split to train on."""
    validation_split: str = "val"
    """Split that decides when to stop early and which checkpoint is best."""
    max_validation_frames: int = Field(default=1000, ge=2)
    """Validate on at most this many frames."""
    labels: LabelSettings = LabelSettings()
    memory_limit_mb: int = Field(default=500, ge=1)
    """MB per worker up to which the training frames are held in memory (uint8). Larger sets are streamed with Ray
    Data."""

    init: Uri | None = None
    """Encoder to start from: URI of a checkpoint, a run, a torchvision file or a PeCLR file; none starts from scratch.
    A pose model (equihand-small, which comes with the package, or your own) also brings its head, if the settings under
    `head` are the same."""
    new_head: bool = False
    """Whether to start with a new head even if `init` brings one."""
    encoder: EncoderSettings = EncoderSettings()
    head: PoseSettings = PoseSettings()

    train_mode: Literal["end-to-end", "frozen", "staged"] = "end-to-end"
    """What is trained. `end-to-end`: everything. `frozen`: the head only (the encoder's batch statistics stay as they
    are, too). `staged`: the head first, then everything."""
    head_epochs: int = Field(default=5, ge=1)
    """Epochs with a frozen encoder at the start of `train_mode` staged."""
    encoder_lr_factor: float = Field(default=1.0, gt=0, le=10)
    """Learning rate of the encoder, as a multiple of the head's."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each stage of the encoder to the stage before it. 1 treats all stages alike."""

    epochs: int = Field(default=100, ge=1)
    """Passes over the chosen labels (the parent repository of PeCLR has 50 frozen, 100 end-to-end)."""
    frames: int | None = Field(default=None, ge=1)
    """Number of frames to train on in all, counting repeats. So a small set of labels gets as many steps as a large
    one. It replaces `epochs`, rounded to whole epochs; none leaves it to `epochs`."""
    batch_size: int = Field(default=128, ge=2)
    """Frames that each worker takes in one step."""
    seed: int = Field(default=5, ge=0)
    """Seed of initial weights, order and views."""
    precision: Precision = "auto"
    """Number format of the encoder. auto: bf16 where the device is faster with it. Head and losses are always
    float32."""
    validate_every: int | None = Field(default=None, ge=1)
    """Epochs between validations, each of which writes a checkpoint. The last epoch is always validated. none makes
    about 20 in all."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations in a row without a better score. none trains for all epochs."""
    log_every: int = Field(default=50, ge=1)
    """Steps between logged metrics. They are also logged at the end of every epoch."""

    views: ViewSettings = FINETUNE_VIEWS
    tight_share: float = Field(default=0.0, ge=0, le=1)
    """Share of frames that are shown like tightly cut photographs: black outside a box around the joints. The black
    begins at most 0.3 of the box's side away from it."""
    loss: PoseLossSettings = PoseLossSettings()
    optimiser: OptimiserSettings = OptimiserSettings(weight_decay=0.01, warmup_fraction=0.05, gradient_clip=10.0)

    @model_validator(mode="after")
    def _is_consistent(self) -> "FinetuneSettings":
        if self.train_mode == "staged" and self.frames is None and self.head_epochs >= self.epochs:
            raise ValueError(f"setting 'head_epochs' = {self.head_epochs}: must be less than epochs = {self.epochs}")
        if self.views.size < 32:
            raise ValueError(f"setting 'views.size' = {self.views.size}: must be at least 32 for a ResNet")
        return self


@dataclass(frozen=True)
class FinetuneData:
    """One worker's data."""

    batches: Callable[[int], Iterator[PoseBatch]]
    """Epoch -> its `steps_per_epoch` batches."""
    steps_per_epoch: int
    batch_size: int
    """Frames per step; less than the setting where there are fewer labels."""
    validation: LabelledFrames
    mean_bone_length: dict[str, float]
    constant: Constant | None
    constant_2d: np.ndarray | None
    frame_set_digest: str


def finetune(
    settings: FinetuneSettings,
    train: LabelledFrames,
    validation: LabelledFrames,
    *,
    mean_bone_length: dict[str, float],
    constant: Constant | None,
    constant_2d: np.ndarray | None = None,
    frame_set_digest: str = "",
    worker: Worker,
) -> dict[str, Any]:
    """Fine-tune in this process, on frames in memory; neither Ray nor MLflow is touched.

    Returns {"score", "epoch", "stopped_early", "metrics"}. Raises TrainingError when a loss is not finite.
    """
    settings = with_epochs(settings, len(train), 1)
    batch_size, steps = batch_and_steps(settings, len(train), 1)
    data = FinetuneData(
        batches=lambda epoch: memory_epoch(train, batch_size, steps, settings.seed, epoch),
        steps_per_epoch=steps,
        batch_size=batch_size,
        validation=validation,
        mean_bone_length=mean_bone_length,
        constant=constant,
        constant_2d=constant_2d,
        frame_set_digest=frame_set_digest,
    )
    return run_epochs(settings, data, worker)


def check_settings(settings: FinetuneSettings) -> tuple[FrameSet, LabelSelection]:
    """Find out before any long work whether the labels and the initial weights are there."""
    if settings.init is not None:
        load_encoder(settings.init)
    frame_set = FrameSet.open(settings.frame_set)
    selection = select_labels(frame_set, settings.split, settings.labels)
    if frame_set.manifest.rows_in(settings.validation_split) == 0:
        raise DataError(
            f"{settings.frame_set}: validation_split '{settings.validation_split}' is empty; the set has "
            f"{frame_set.manifest.counts_text()}"
        )
    return frame_set, selection


def in_memory(settings: FinetuneSettings, frame_set: FrameSet, selection: LabelSelection) -> bool:
    """Whether the chosen frames stay below the memory limit once decoded."""
    return decoded_megabytes(selection.num_frames, frame_set.manifest.image_size) <= settings.memory_limit_mb


def load_validation(settings: FinetuneSettings, frame_set: FrameSet) -> LabelledFrames:
    """The frames to validate on."""
    return load_labelled(frame_set, settings.validation_split, limit=settings.max_validation_frames)


def worker_data(
    settings: FinetuneSettings, frame_set: FrameSet, selection: LabelSelection, rank: int, world_size: int
) -> FinetuneData:
    """The data of one worker, from memory where the chosen frames fit, else streamed (needs a running Ray)."""
    batch_size, steps = batch_and_steps(settings, selection.num_frames, world_size)
    if in_memory(settings, frame_set, selection):
        train = load_labelled(frame_set, settings.split, clips=selection.clips)
        share = train.share(rank, world_size)

        def batches(epoch: int) -> Iterator[PoseBatch]:
            return memory_epoch(share, batch_size, steps, settings.seed, epoch, rank)
    else:
        stream: Iterator[PoseBatch] | None = None
        plan = StreamPlan(
            split=settings.split,
            batch_size=batch_size,
            epochs=settings.epochs,
            rank=rank,
            world_size=world_size,
            seed=settings.seed,
            clips=selection.clips,
        )

        def batches(epoch: int) -> Iterator[PoseBatch]:
            nonlocal stream
            if stream is None:  # one stream from the first epoch asked for, which a resumed run decides
                stream = stream_forever(frame_set, plan, epoch)
            return islice(stream, steps)

    validation = load_validation(settings, frame_set).share(rank, world_size)
    return FinetuneData(
        batches=batches,
        steps_per_epoch=steps,
        batch_size=batch_size,
        validation=validation,
        mean_bone_length=selection.mean_bone_length,
        constant=selection.constant,
        constant_2d=selection.constant_2d,
        frame_set_digest=frame_set.manifest.digest,
    )


def with_epochs(settings: FinetuneSettings, num_frames: int, world_size: int) -> FinetuneSettings:
    """The settings with `epochs` and `validate_every` as numbers, for so many labelled frames in all."""
    epochs = settings.epochs
    if settings.frames is not None:
        batch_size, steps = batch_and_steps(settings, num_frames, world_size)
        epochs = max(1, round(settings.frames / (steps * batch_size * world_size)))
    if settings.train_mode == "staged" and settings.head_epochs >= epochs:
        raise SettingsError(
            f"setting 'head_epochs' = {settings.head_epochs}: must be less than the {epochs} epochs that frames = "
            f"{settings.frames} are of {num_frames} labels"
        )
    validate_every = settings.validate_every or max(1, round(epochs / _VALIDATIONS))
    return settings.model_copy(update={"epochs": epochs, "frames": None, "validate_every": validate_every})


def batch_and_steps(settings: FinetuneSettings, num_frames: int, world_size: int) -> tuple[int, int]:
    """Frames per worker and step, and steps per epoch. Few labels make one small batch."""
    per_worker = num_frames // world_size
    if per_worker < 2:
        raise SettingsError(f"{world_size} workers need 2 labelled frames each, but {num_frames} were chosen")
    batch_size = min(settings.batch_size, per_worker)
    return batch_size, per_worker // batch_size


def run_epochs(settings: FinetuneSettings, data: FinetuneData, worker: Worker) -> dict[str, Any]:
    """The training loop of one worker; the workers agree on all decisions. settings: as `with_epochs` gives them.

    It reports, every `log_every` steps and at each epoch's end: "step", "epoch", "loss", "loss_2d", "loss_depth", "loss_root",
    "loss_3d", "loss_aligned", "learning_rate", "frames_per_second"; and at validations also "val_*" metrics, "score", and a
    function that saves a checkpoint. Raises TrainingError, on all workers, when a loss is not finite.
    """
    torch.manual_seed(settings.seed)
    model = build_model(settings, data.mean_bone_length)
    optimiser = build_optimiser(model, settings.optimiser, groups=learning_rate_groups(model, settings))
    state: dict[str, Any] = {"epoch": 0, "best": float("inf"), "without_gain": 0}
    model.to(worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if worker.resume is not None:
        state = _load_state(worker.resume, model, optimiser)
    worker.mark("model")
    trainer = _Trainer(settings, model, optimiser, data, worker)

    # Where the last checkpoint was the end, its figures are the run's.
    metrics: dict[str, float] = read_part(str(worker.resume), META).get("metrics", {}) if worker.resume else {}
    stopped_early = False
    for epoch in range(state["epoch"], settings.epochs):
        if settings.patience is not None and state["without_gain"] >= settings.patience:
            stopped_early = True
            break
        trainer.start_epoch(epoch)
        for step, batch in enumerate(data.batches(epoch)):
            worker.mark("first_batch")
            trainer.step(batch.to(worker.device), epoch, step)
            worker.mark("first_step")
            worker.notice(trainer.number * data.batch_size * worker.world_size, trainer.shown)
            last_step = step == data.steps_per_epoch - 1
            if trainer.number % settings.log_every == 0 and not last_step:
                worker.report(trainer.interval_metrics(), None)
        metrics = trainer.interval_metrics()
        state["epoch"] = epoch + 1
        if state["epoch"] % (settings.validate_every or 1) and state["epoch"] < settings.epochs:
            worker.report(metrics, None)
            continue
        metrics |= validate(model, data.validation, settings.views.size, data.constant, data.constant_2d)
        metrics["score"] = metrics.get(SCORE, metrics[SCORE_2D])
        gained = metrics["score"] < state["best"]
        state["best"] = min(state["best"], metrics["score"])
        state["without_gain"] = 0 if gained else state["without_gain"] + 1
        trainer.shown |= score_figures(metrics, metrics["score"])
        worker.report(metrics, _saver(settings, model, optimiser, data, state, metrics))
    return {"score": state["best"], "epoch": state["epoch"], "stopped_early": stopped_early, "metrics": metrics}


def build_model(settings: FinetuneSettings, mean_bone_length: dict[str, float]) -> PoseModel:
    """The pose model with its initial weights."""
    model = _initial_pose_model(settings)
    if model is None:
        encoder: Encoder = load_encoder(settings.init)[0] if settings.init else build_encoder(settings.encoder)
        model = PoseModel(encoder, settings.head)
    # Labels without depth have no size: it stays that of the initial model, or an adult's.
    model.mean_bone_length.fill_(mean_bone_length.get(model.convention.bone, model.mean_bone_length))
    return model


def _initial_pose_model(settings: FinetuneSettings) -> PoseModel | None:
    """The pose model that `init` names, where it has the head that is asked for."""
    if settings.init is None or settings.new_head or read_meta(settings.init).get("kind") != "pose":
        return None
    model = load_pose_model(settings.init).model.train()
    return model if model.settings == settings.head else None


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


def validate(
    model: PoseModel,
    data: LabelledFrames,
    view_size: int,
    constant: Constant | None,
    constant_2d: np.ndarray | None = None,
) -> dict[str, float]:
    """ "val_*" metrics on plain views, each hand's bone length given; averages over all workers' frames.

    Beside the model's errors are those of the constants, and the skill over the one in 3D (see yardsticks.skills). Metrics in
    3D are of the frames with joints in 3D, and left out where there are none; those in the image are of all frames.
    """
    share_buffers(model)
    batch = data.batch(slice(None))
    lengths = bone_lengths(model, batch.joints_3d, batch.has_3d)
    predictions = predict(model, batch.frames, batch.camera, view_size, lengths)
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


def score_figures(metrics: Mapping[str, float], score: float, which: str = "") -> dict[str, float]:
    """For people: a score, and what a constant reaches on the same frames. metrics: of a validation. which: such as "best "."""
    if SCORE in metrics:
        label, unit, factor, constant = "PA-EPE", "mm", 1, "val_constant_pa_epe_mm"
    else:
        label, unit, factor, constant = "2D EPE", "% of the hand", 100, "val_constant_epe_2d"
    figures = {f"{which}{label} {unit}": round(factor * score, 1)}
    if constant in metrics:
        figures[f"constant pose {unit}"] = round(factor * metrics[constant], 1)
    return figures


def _over_workers(
    metrics: Mapping[str, float], names: Sequence[str], num: int, device: torch.device
) -> dict[str, float]:
    """Means of those metrics that are known over the `num` frames of each worker. The same on all workers."""
    values = [(num * metrics[name], num) if num and name in metrics else (0.0, 0) for name in names]
    totals, counts = gather_values(torch.tensor(values, dtype=torch.float64, device=device)).sum(0).T.tolist()
    return {name: total / count for name, total, count in zip(names, totals, counts, strict=True) if count}


class _Trainer:
    """Optimiser steps, and the figures of those since the last log."""

    def __init__(
        self,
        settings: FinetuneSettings,
        model: PoseModel,
        optimiser: torch.optim.Optimizer,
        data: FinetuneData,
        worker: Worker,
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
        self._log = LossLog(worker)

    def start_epoch(self, epoch: int) -> None:
        """Put the modules into the epoch's mode."""
        learns = trains_encoder(self.settings, epoch)
        if self.network is None or learns != self.encoder_learns:
            # DistributedDataParallel fixes at wrapping which parameters get gradients.
            self.encoder_learns = learns
            self.model.encoder.requires_grad_(learns)
            self.network = self.worker.distributed(self.model)
        self.model.train()
        if not learns:
            self.model.encoder.eval()
        self.number = epoch * self.steps_per_epoch
        self._log.restart()

    def step(self, batch: PoseBatch, epoch: int, step: int) -> None:
        """One optimiser step."""
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
        with self.autocast():
            output = self.network(images, camera)
        targets = self.model.targets(batch.joints_3d, camera)
        losses = pose_losses(output, targets, camera, settings.views.size, settings.loss, has_3d=batch.has_3d)
        self.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        if settings.optimiser.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.optimiser.gradient_clip)
        self.optimiser.step()
        self.number += 1
        self._log.add(torch.stack([loss.detach() for loss in losses]))

    def interval_metrics(self) -> dict[str, float]:
        """Averages since the last call, over all workers. Raises TrainingError where a loss was not finite."""
        losses, num_steps, seconds = self._log.take(self.number)
        self.shown["loss"] = round(losses[0], 3)
        return {
            "step": self.number,
            "epoch": self.number / self.steps_per_epoch,
            "loss": losses[0],
            **dict(zip(PoseLosses._fields[1:], losses[1:], strict=True)),
            "learning_rate": self.learning_rate,
            "frames_per_second": num_steps * self.batch_size * self.worker.world_size / seconds,
        }


def _saver(
    settings: FinetuneSettings,
    model: PoseModel,
    optimiser: torch.optim.Optimizer,
    data: FinetuneData,
    state: dict[str, Any],
    metrics: dict[str, float],
) -> SaveCheckpoint:
    def save(directory: Path) -> None:
        recipe = settings.model_dump(mode="json", include=set(FinetuneSettings.model_fields))
        meta = {
            "kind": "pose",
            "step": int(metrics["step"]),
            "epoch": state["epoch"],
            # The encoder's settings are those of the weights, which `init` may have brought.
            "settings": {**recipe, "encoder": model.encoder.settings.model_dump(mode="json")},
            "frame_set_digest": data.frame_set_digest,
            **({} if data.constant is None else {"constant": data.constant.to_json()}),
            "metrics": metrics,
        }
        save_checkpoint(directory, model, {"optimiser": optimiser.state_dict(), **state}, meta)

    return save


def _load_state(directory: Path, model: PoseModel, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(directory / "model.safetensors"))
    state = read_trainer_state(directory)
    optimiser.load_state_dict(state.pop("optimiser"))
    return state
