"""What a fine-tuning is: its settings, how many epochs and steps they make, and whether labels and weights are there."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError, warn
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import (
    LabelSelection,
    LabelSettings,
    select_labels,
)
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.weights import load_encoder, load_pose_model, read_meta
from pipeline.training.optim import (
    OptimiserSettings,
)
from pipeline.training.pose_loss import PoseLossSettings
from pipeline.training.validation import Score
from pipeline.training.worker import Precision
from pipeline.views import ViewSettings

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
    A pose model (equihand-small, which comes with the package, or your own) also brings its head, if the settings under `head`
    ask for no other one."""
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
    best_by: Score | None = None
    """What decides which checkpoint is best, when to stop early, and which trials of a search are better. none: PA-EPE, or the
    error in the image where the labels have no depth."""
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


def check_settings(settings: FinetuneSettings) -> tuple[FrameSet, LabelSelection]:
    """Find out before any long work whether the labels and the initial weights are there."""
    model = initial_pose_model(settings)
    if model is not None:
        _say_whose_head(settings, model.settings)
    elif settings.init is not None:
        load_encoder(settings.init)
    frame_set = FrameSet.open(settings.frame_set)
    selection = select_labels(frame_set, settings.split, settings.labels)
    if frame_set.manifest.rows_in(settings.validation_split) == 0:
        raise DataError(
            f"{settings.frame_set}: validation_split '{settings.validation_split}' is empty; the set has "
            f"{frame_set.manifest.counts_text()}"
        )
    return frame_set, selection


def initial_pose_model(settings: FinetuneSettings) -> PoseModel | None:
    """The pose model that `init` names, unless a new head is wanted."""
    if settings.init is None or settings.new_head or read_meta(settings.init).get("kind") != "pose":
        return None
    return load_pose_model(settings.init).model.train()


def with_head(settings: FinetuneSettings) -> FinetuneSettings:
    """The settings with `head.kind` as it will be."""
    if settings.head.kind is not None:
        return settings
    model = initial_pose_model(settings)
    return settings.model_copy(update={"head": settings.head.settled(None if model is None else model.settings)})


def _say_whose_head(settings: FinetuneSettings, its_own: PoseSettings) -> None:
    """Where `head` asks for another one than the initial pose model has, that one is lost, and not in silence."""
    asked = settings.head.settled(its_own).model_dump()
    other = [f"head.{name} = {value}" for name, value in its_own.model_dump().items() if value != asked[name]]
    if other:
        warn(
            f"{settings.init}: its head has {', '.join(other)}; the settings ask for another one, which starts anew (new_head true, "
            "where that is meant)"
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
