"""What a pretraining is: its settings, and whether they fit the frame sets."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config import Settings, Uri
from pipeline.errors import SettingsError
from pipeline.frames.epoch_plan import steps_per_epoch
from pipeline.frames.mixing import FrameSets, Mixture
from pipeline.frames.pairs import read_pairs_info
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import ProjectionSettings
from pipeline.models.weights import load_encoder
from pipeline.objectives import ObjectiveSettings
from pipeline.training.online import OnlineProbe, ProbeSettings
from pipeline.training.optim import OptimiserSettings
from pipeline.training.worker import Precision
from pipeline.views import ViewSettings


class CheckpointSettings(Settings):
    """When checkpoints are written and which are kept."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between checkpoints. The last epoch and each probed epoch always get one."""
    every_steps: int | None = Field(default=None, ge=1)
    """Also write a checkpoint every so many steps within an epoch, for long epochs; none writes none."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes after which a checkpoint is written at the next logged step (`log_every`), too. It bounds what a lost machine
    costs, whatever an epoch takes."""
    keep: int = Field(default=3, ge=1)
    """How many of the best checkpoints are kept, by the PA-EPE of the probe, or by the loss without a probe. The newest
    two are always kept."""


class PretrainRecipe(Settings):
    """What is pretrained, on what, and how."""

    frame_set: FrameSets
    """URI of the frame set to learn from, or a list of several with weights: [{uri: A, weight: 3}, {uri: B, weight:
    1}]. The weights say how much of every batch comes from each set; without weights each set counts by its size.
    Labels are not used."""
    split: str = "train"
    """Split of the frame set to train on."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the split (PeCLR: 100). An epoch of several sets has as many frames as they have together."""
    batch_size: int = Field(default=128, ge=2)
    """Frames of a share of the global batch, which is what each worker takes in one step; every frame gives two views."""
    shares: int | None = Field(default=None, ge=1)
    """Shares that the global batch consists of. none: one for each worker that the run starts with (the most of
    `workers.num_workers`). It decides the order of the frames and what is learnt; with fewer or more workers these stay the same,
    and each takes several shares of a step, or a part of one."""
    micro_batch: int | None = Field(default=None, ge=2)
    """Frames that pass through the network at a time (gradient caching); none takes the whole batch at once. Memory
    then depends on `micro_batch` instead of `batch_size`, at the cost of one more forward pass. BatchNorm treats each
    micro-batch on its own."""
    seed: int = Field(default=5, ge=0)
    """Seed of initial weights, order and views."""
    precision: Precision = "auto"
    """Number format of encoder and head. auto: bf16 where the device is faster with it. The loss is always float32."""
    compile: bool = False
    """Whether to compile the network with torch.compile: a slower start, and faster steps on GPUs."""
    sync_batch_norm: bool = False
    """Whether BatchNorm takes its statistics over all workers instead of each worker's own batch."""
    log_every: int = Field(default=10, ge=1)
    """Steps between logged metrics."""
    num_readers: int | None = Field(default=None, ge=1)
    """How many tasks read and decode for each worker at a time; none leaves it to Ray Data."""
    window_mb: int = Field(default=192, ge=16)
    """MiB of decoded frames that Ray Data reads at a time. Each worker holds three such windows in the object store."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Largest share of unusable frames in an epoch. Above it the run stops; below it other frames take their places."""
    views: ViewSettings = ViewSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    init: Uri | None = None
    """Encoder to start from: URI of a checkpoint, a run, a torchvision (ImageNet) file or a PeCLR file. It brings its
    own architecture. none starts from random weights."""
    encoder: EncoderSettings = EncoderSettings()
    projection: ProjectionSettings = ProjectionSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    probe: ProbeSettings = ProbeSettings()

    @model_validator(mode="after")
    def _views_fit(self) -> Self:
        if self.views.size < 16:
            raise ValueError(f"setting 'views.size' = {self.views.size}: must be at least 16 for a ResNet")
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(
                f"setting 'micro_batch' = {self.micro_batch}: is larger than batch_size = {self.batch_size}"
            )
        return self


def check_recipe(settings: PretrainRecipe, workers: int) -> Mixture:
    """The opened frame sets. Raises an EquihandError before any long work where data, weights or settings do not fit."""
    mixture = Mixture.open(settings.frame_set, settings.split)
    steps_of_epoch(settings, mixture, workers)
    if workers > (frames := global_batch(settings, workers)):
        raise SettingsError(
            f"setting 'workers.num_workers' = {workers}: {settings.shares} shares of batch_size = {settings.batch_size} give only "
            f"{frames} of them a frame in each step"
        )
    _check_positives(settings, mixture)
    if settings.init is not None:
        load_encoder(settings.init)
    OnlineProbe.check(settings.probe, mixture.uris[0])
    return mixture


def num_shares(settings: PretrainRecipe, workers: int) -> int:
    """Shares that the global batch consists of, for a run of so many workers."""
    return settings.shares or workers


def global_batch(settings: PretrainRecipe, workers: int) -> int:
    """Frames of a step of all workers together."""
    return num_shares(settings, workers) * settings.batch_size


def steps_of_epoch(settings: PretrainRecipe, mixture: Mixture, workers: int) -> int:
    """Optimiser steps of an epoch. Raises SettingsError where the frames make not one batch."""
    quotas, shares = mixture.quotas(settings.split), num_shares(settings, workers)
    steps = steps_per_epoch(quotas, settings.batch_size, shares, drop_last=True)
    if steps == 0:
        raise SettingsError(
            f"setting 'batch_size' = {settings.batch_size}: {shares} {'workers' if shares == workers else 'shares'} need "
            f"{shares * settings.batch_size} frames for one step, split '{settings.split}' has {sum(quotas)}"
        )
    return steps


def probed_set(settings: PretrainRecipe, mixture: Mixture) -> dict[str, str]:
    """{"probe_frame_set": URI}, of several sets the first unless the settings name one; nothing where nothing is probed."""
    return {"probe_frame_set": settings.probe.frame_set or mixture.uris[0]} if settings.probe.enabled else {}


def _check_positives(settings: PretrainRecipe, mixture: Mixture) -> None:
    positives = settings.objective.positives
    for each in mixture.sets:
        if positives.kind == "temporal" and each.manifest.group_size < 2:
            raise SettingsError(
                f"setting 'objective.positives.kind' = 'temporal': {each.uri} has no frame groups, its frames are "
                "shuffled one by one; ingest it with group_size 2 or more"
            )
        if positives.kind == "similar":
            read_pairs_info(each, positives.pairs, settings.split)
