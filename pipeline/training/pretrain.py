"""Pretraining with equivariant contrastive learning (PeCLR, Spurr et al. 2021) on any number of workers.

A step: a batch of uint8 crops -> two views each, on the device -> both views through encoder and projection head in one
pass -> each view's transform undone on its projection -> NT-Xent against the views of all workers. What a step computes is
in contrast.py, how a batch larger than the memory gets through the network in grad_cache.py.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.frames.manifest import Manifest
from pipeline.frames.mixing import (
    FrameSet,
    FrameSets,
    describe,
    digest_of,
    open_frame_sets,
    total_rows,
    uris_of,
)
from pipeline.frames.pairs import read_pairs_info
from pipeline.frames.stream import Batch, steps_per_epoch, stream_batches
from pipeline.models.checkpoints import META, SaveCheckpoint, read_part, read_trainer_state, save_checkpoint
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.models.weights import load_encoder
from pipeline.objectives import ObjectiveSettings, similarity_stats
from pipeline.progress import SILENT, Progress
from pipeline.runs import RunSettings, new_run_id, open_run
from pipeline.storage import join, preflight, write_bytes
from pipeline.tracking import TrackingSettings
from pipeline.training.contrast import Pairs, columns_for, make_pairs, step_loss
from pipeline.training.distributed import bf16_pays, gather_values
from pipeline.training.grad_cache import backward
from pipeline.training.launch import WorkerSettings, train_on_workers, worker_checkpoints
from pipeline.training.online import NUM_VIEW_PAIRS, OnlineProbe, ProbeSettings, view_pairs_picture
from pipeline.training.optim import (
    OptimiserSettings,
    build_optimiser,
    learning_rate_at,
    peak_learning_rate,
    set_learning_rate,
)
from pipeline.training.supply import BadFrames, Startup, one_ahead
from pipeline.training.sync_norm import synchronise_batch_norm
from pipeline.views import ViewSettings, generator_for

Report = Callable[[dict[str, Any], SaveCheckpoint | None], None]
"""Receives the metrics of an interval, and where a checkpoint is due also the means to save it."""

Notice = Callable[[int, dict[str, float]], None]
"""Receives the frames seen so far, and the newest figures."""


class CheckpointSettings(Settings):
    """When checkpoints are written and which are kept."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between checkpoints; the last epoch always gets one, and each that is probed."""
    every_steps: int | None = Field(default=None, ge=1)
    """Also a checkpoint every so many steps within an epoch, for epochs that take long."""
    keep: int = Field(default=3, ge=1)
    """How many of the best checkpoints are kept: by the probe's PA-EPE, without a probe by the loss. The newest two always are."""


class PretrainRecipe(Settings):
    """What is pretrained, on what, and how."""

    frame_set: FrameSets
    """URI of the frame set to learn from, or a list of several with weights, [{uri: A, weight: 3}, {uri: B, weight: 1}]: their
    parts of every batch, each as large as the set where no weights are given. Labels are not used."""
    split: str = "train"
    """Split of the frame set."""
    epochs: int = Field(default=100, ge=1)
    """Passes over the split (PeCLR: 100); of several sets, an epoch has as many frames as they have together."""
    batch_size: int = Field(default=128, ge=2)
    """Frames per worker and step; every frame gives two views."""
    micro_batch: int | None = Field(default=None, ge=2)
    """Frames that pass through the network at a time (gradient caching); none takes the whole batch at once. Memory then
    follows micro_batch, not batch_size, for one more forward pass; BatchNorm sees each micro-batch for itself."""
    seed: int = Field(default=5, ge=0)
    """Seed of initial weights, order and views."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Autocast of encoder and head; auto: bf16 where the device is faster with it. The loss is always float32."""
    compile: bool = False
    """torch.compile the network: slower start, faster steps on GPUs."""
    sync_batch_norm: bool = False
    """Batch statistics over all workers instead of each worker's own."""
    log_every: int = Field(default=10, ge=1)
    """Steps between logged metrics."""
    num_readers: int | None = Field(default=None, ge=1)
    """Reading and decoding tasks at a time per worker; none leaves it to Ray Data."""
    window_mb: int = Field(default=192, ge=16)
    """Decoded frames that Ray Data reads at a time, MiB; each worker holds three such windows in the object store."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable frames in an epoch above which the run stops; until then others take their places."""
    views: ViewSettings = ViewSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    init: str | None = None
    """Encoder to start from: URI of a checkpoint, a run, a torchvision (ImageNet) or a PeCLR file, which brings its own
    architecture; none starts from random weights."""
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


class PretrainSettings(PretrainRecipe):
    """A pretraining run: what is pretrained, and where."""

    workers: WorkerSettings = WorkerSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()


def pretrain(settings: PretrainSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run pretraining on a Ray cluster (needs a running Ray); the result is also in <storage>/<run_id>/result.json."""
    preflight(*uris_of(settings.frame_set))
    sets = check_recipe(settings, settings.workers.num_workers)
    steps = steps_of_epoch(settings, sets, settings.workers.num_workers)
    run_id = settings.run.run_id or new_run_id("pretrain")
    _, finished = open_run(settings, settings.run, run_id)
    if finished is not None:
        return finished
    global_batch = settings.batch_size * settings.workers.num_workers
    return train_on_workers(
        pretrain_worker,
        {
            "settings": settings.model_dump(mode="json", include=set(PretrainSettings.model_fields)),
            "sets": [(each.uri, each.manifest.model_dump_json(), each.weight) for each in sets],
        },
        settings=settings,
        run=settings.run,
        run_id=run_id,
        kind="pretrain",
        workers=settings.workers,
        tracking=settings.tracking,
        total=settings.epochs * steps * global_batch,
        unit="frames",
        progress=progress,
        tags={
            "frame_set": ", ".join(each.uri for each in sets),
            "frame_set_digest": digest_of(sets),
            **_probed_set(settings, sets),
        },
    )


def check_recipe(settings: PretrainRecipe, workers: int) -> list[FrameSet]:
    """The opened frame sets. Raises an EquihandError before any long work where data, weights or settings do not fit."""
    sets = open_frame_sets(settings.frame_set, settings.split)
    steps_of_epoch(settings, sets, workers)
    _check_positives(settings, sets)
    if settings.init is not None:
        load_encoder(settings.init)
    OnlineProbe.check(settings.probe, sets[0].uri)
    return sets


def steps_of_epoch(settings: PretrainRecipe, sets: Sequence[FrameSet], workers: int) -> int:
    """Optimiser steps of an epoch. Raises SettingsError where the frames make not one batch."""
    rows = total_rows(sets, settings.split)
    steps = steps_per_epoch(sets, settings.split, settings.batch_size, workers, drop_last=True)
    if steps == 0:
        raise SettingsError(
            f"setting 'batch_size' = {settings.batch_size}: {workers} workers need {workers * settings.batch_size} frames "
            f"for one step, split '{settings.split}' has {rows}"
        )
    return steps


def _probed_set(settings: PretrainRecipe, sets: Sequence[FrameSet]) -> dict[str, str]:
    """{"probe_frame_set": URI}, of several sets the first unless the settings name one; nothing where nothing is probed."""
    return {"probe_frame_set": settings.probe.frame_set or sets[0].uri} if settings.probe.enabled else {}


def _check_positives(settings: PretrainRecipe, sets: Sequence[FrameSet]) -> None:
    positives = settings.objective.positives
    for each in sets:
        if positives.kind == "temporal" and each.manifest.group_size < 2:
            raise SettingsError(
                f"setting 'objective.positives.kind' = 'temporal': {each.uri} has no frame groups, its frames are "
                "shuffled one by one; ingest it with group_size 2 or more"
            )
        if positives.kind == "similar":
            read_pairs_info(each.uri, positives.pairs, each.manifest, settings.split)


def pretrain_worker(config: dict[str, Any]) -> dict[str, Any]:
    """The loop of one Ray Train worker. Returns {"error": text} where training cannot go on, the same on all workers."""
    import ray.train
    import ray.train.torch

    settings = PretrainSettings.model_validate(config["settings"])
    sets = [FrameSet(uri, Manifest.model_validate_json(text), weight) for uri, text, weight in config["sets"]]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    startup = Startup(config["started_at"], config["folder"], rank)
    device = ray.train.torch.get_device() if config["use_gpu"] else torch.device("cpu")
    local_workers = context.get_local_world_size()
    torch.set_num_threads(
        settings.workers.threads or (1 if device.type == "cuda" else max(1, (os.cpu_count() or 1) // local_workers))
    )

    def notice(num_frames: int, figures: dict[str, float]) -> None:
        config["board"].post("train", num_frames, **figures)

    with worker_checkpoints(config, settings.checkpoint.keep, rank) as (resume, report):
        return run_epochs(
            settings,
            sets,
            device,
            report,
            folder=config["folder"],
            rank=rank,
            world_size=world_size,
            resume=resume,
            notice=notice,
            mark=startup.mark,
        )


def run_epochs(
    settings: PretrainRecipe,
    sets: Sequence[FrameSet],
    device: torch.device,
    report: Report,
    *,
    folder: str,
    rank: int = 0,
    world_size: int = 1,
    resume: Path | None = None,
    notice: Notice | None = None,
    mark: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """The training loop of one worker, in whatever process (needs a running Ray, which reads the frames).

    report gets metrics every `log_every` steps and at each epoch's end, averages over all workers and the same on each;
    where a checkpoint is due also a function that saves it, on rank 0, and "score", unless the run is probed, but not just now.
    folder: URI for pictures and lists of bad frames. resume: a checkpoint directory of this same run. notice: on rank 0, after every step, the frames seen by all
    workers. mark: called with the name of each part of the start as it is done.
    Returns the run's last metrics, or {"error": text} where training cannot go on, the same on all workers.
    """
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = True
    epoch_steps = steps_of_epoch(settings, sets, world_size)
    saved = _saved_state(resume)
    # The first batch is read, and Ray Data started, while the network is built.
    with one_ahead(_stream(settings, sets, rank, world_size, saved.step, epoch_steps), device) as batches:
        settings, model, optimiser = _built(settings, saved, device)
        network = _distributed(model, settings, device, world_size)
        steps = Steps(network, optimiser, settings, device, rank, world_size, epoch_steps)
        probe = OnlineProbe(settings.probe, sets[0].uri, settings.views, device) if rank == 0 else None
        mark("model")
        metrics: dict[str, Any] = saved.metrics or {"step": saved.step, "epoch": saved.step / epoch_steps}
        probed = saved.probed
        bad = BadFrames(folder, rank)
        for batch, waited in _timed(batches):
            mark("first_batch")
            steps.run(batch, waited)
            mark("first_step")
            bad.add(batch.problems)
            last_of_epoch = batch.step == epoch_steps - 1
            if rank == 0 and notice is not None:
                done = (batch.epoch * epoch_steps + batch.step + 1) * settings.batch_size * world_size
                notice(done, steps.figures())
            if not (last_of_epoch or (steps.number % settings.log_every == 0) or _due(settings, steps.number)):
                continue
            logged, problem = steps.interval_metrics()
            if problem:
                return {"error": problem}
            metrics = {"step": steps.number, "epoch": (steps.number / epoch_steps), **logged}
            metrics["bad_frames"] = int(gather_values(torch.tensor([float(bad.num)], device=device)).sum().item())
            if last_of_epoch:
                bad.write()
            pictures: dict[str, bytes] = {}
            epochs_done = batch.epoch + 1
            last = epochs_done == settings.epochs
            is_probed = last_of_epoch and settings.probe.due(epochs_done, last)
            if rank == 0 and last_of_epoch:
                if probe is not None and is_probed:
                    probed, pictures = probe.run(model, last)
                    metrics |= probed
                if epochs_done == 1 or last:
                    pictures["views.png"] = view_pairs_picture(*steps.examples())
            for name, data in pictures.items():
                write_bytes(join(folder, "pictures", name), data)
            if pictures:
                metrics["pictures"] = sorted(pictures)
            is_due = last_of_epoch and (epochs_done % settings.checkpoint.every_epochs == 0 or last)
            if is_due or is_probed or _due(settings, steps.number):
                # The best checkpoint is the one with the best probe; without a probe, the one with the lowest loss. An earlier
                # probe says nothing of this one, nor does a loss beside errors in mm.
                best_by = "probe_pa_epe_mm" if settings.probe.enabled else "loss"
                if best_by in metrics:
                    metrics["score"] = metrics[best_by]
                save = _saver(metrics, model, optimiser, settings, sets, probed)
                report(metrics, save if rank == 0 else None)
            else:
                report(metrics, None)
    return {
        "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)} | probed,
        "frame_set": settings.model_dump(mode="json")["frame_set"],
        "frame_set_digest": digest_of(sets),
        "frame_sets": describe(sets, settings.split),
        **_probed_set(settings, sets),
        "world_size": world_size,
    }


class Steps:
    """Training steps, and the figures of those since the last log."""

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: PretrainRecipe,
        device: torch.device,
        rank: int,
        world_size: int,
        steps_per_epoch: int,
    ) -> None:
        self.network, self.optimiser, self.settings, self.device = network, optimiser, settings, device
        self.rank, self.world_size, self.steps_per_epoch = rank, world_size, steps_per_epoch
        self.total = settings.epochs * steps_per_epoch
        self.peak = peak_learning_rate(settings.optimiser, settings.batch_size * world_size)
        bf16 = settings.precision == "bf16" or (settings.precision == "auto" and bf16_pays(device))
        self.autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=bf16)
        self.number = 0
        self.learning_rate = 0.0
        self._pairs: Pairs | None = None
        self._stats: dict[str, Tensor] = {}
        self._shown: dict[str, float] = {}
        self._reset()

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._fallbacks: list[float] = []
        self._waited, self._frames, self._started = 0.0, 0, time.perf_counter()

    def run(self, batch: Batch, waited: float) -> None:
        """One optimiser step."""
        settings, objective = self.settings, self.settings.objective
        step = batch.epoch * self.steps_per_epoch + batch.step
        generator = generator_for(settings.seed, batch.epoch, batch.step, self.rank)
        self._pairs = pairs = make_pairs(batch, objective, settings.views, generator, self.device)
        self.learning_rate = learning_rate_at(step, self.total, settings.optimiser, self.peak)
        set_learning_rate(self.optimiser, self.learning_rate)
        self.optimiser.zero_grad(set_to_none=True)
        done = backward(
            self.network,
            pairs.render,
            lambda outputs: step_loss(outputs, pairs, objective),
            len(pairs),
            settings.micro_batch,
            self.autocast,
        )
        if settings.optimiser.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.optimiser.gradient_clip)
        self.optimiser.step()

        self.number = step + 1
        self._losses.append(done.loss)
        self._fallbacks.append(pairs.fallback)
        self._waited += waited
        self._frames += len(pairs)
        if (
            self.number % settings.log_every == 0
            or batch.step == self.steps_per_epoch - 1
            or _due(settings, self.number)
        ):
            self._stats = {f"loss_{name}": value for name, value in done.terms.items()} if len(done.terms) > 1 else {}
            if done.latents is not None:
                self._stats |= similarity_stats(done.latents[:, 0], done.latents[:, 1])

    def examples(self) -> tuple[Tensor, Tensor]:
        """Some pairs of the last step as the network saw them, (N, 3, size, size) each."""
        assert self._pairs is not None, "examples are of a step that was run"
        return self._pairs.examples(NUM_VIEW_PAIRS)

    def figures(self) -> dict[str, float]:
        """What the progress bar shows."""
        return self._shown

    def interval_metrics(self) -> tuple[dict[str, float], str]:
        """Averages since the last call, over all workers; and, if a loss was not finite, what to say of it."""
        losses = gather_values(torch.stack(self._losses))  # (workers, steps)
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            first = bad[bad[:, 1].argmin()]
            step = self.number - losses.shape[1] + int(first[1]) + 1
            return {}, (
                f"the loss is {losses[tuple(first)].item()} at step {step} on worker {int(first[0])}; the last good "
                "checkpoint is kept. Lower optimiser.learning_rate, raise warmup_fraction or set optimiser.gradient_clip"
            )
        alone = gather_values(torch.tensor(self._fallbacks, device=self.device)).mean().item()
        if alone == 1:
            return {}, (
                f"no frame of the last {losses.shape[1]} steps has a partner under objective.positives.kind = "
                f"'{self.settings.objective.positives.kind}': temporal ones need frame groups and times in the frame set "
                "and max_seconds above their stride, similar ones 2D joints"
            )
        seconds = time.perf_counter() - self._started
        metrics = {
            "loss": losses.mean().item(),
            "learning_rate": self.learning_rate,
            "frames_per_second": self._frames * self.world_size / seconds,
            "data_wait_fraction": self._waited / seconds,
            **{name: float(value) for name, value in self._stats.items()},
        }
        if self.settings.objective.positives.kind != "same-frame":
            metrics["without_partner"] = alone
        self._shown = {"loss": round(metrics["loss"], 3)}
        self._reset()
        return metrics, ""


def _timed(stream: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Batches, each with the seconds spent waiting for it."""
    while True:
        started = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def _due(settings: PretrainRecipe, step: int) -> bool:
    every = settings.checkpoint.every_steps
    return every is not None and step % every == 0


def _distributed(model: PretrainModel, settings: PretrainRecipe, device: torch.device, world_size: int) -> nn.Module:
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network: nn.Module = model
    if settings.sync_batch_norm and world_size > 1:
        network = synchronise_batch_norm(network, device)
    if settings.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    if world_size > 1:
        # Running statistics are read on rank 0 only, which saves and probes: no need to send them about in every step.
        network = nn.parallel.DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    return network.train()


@dataclass(frozen=True)
class _Saved:
    """What the run's newest checkpoint holds; of a new run, nothing."""

    step: int = 0
    probed: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None
    optimiser: dict[str, Any] | None = None


def _saved_state(directory: Path | None) -> _Saved:
    from safetensors.torch import load_file

    if directory is None:
        return _Saved()
    state = read_trainer_state(directory)
    metrics = read_part(str(directory), META).get("metrics", {})
    return _Saved(
        state["step"], state["probed"], metrics, load_file(directory / "model.safetensors"), state["optimiser"]
    )


def _built(
    settings: PretrainRecipe, saved: _Saved, device: torch.device
) -> tuple[PretrainRecipe, PretrainModel, torch.optim.Optimizer]:
    """The model and its optimiser, as they were saved; and the settings, with the architecture of initial weights."""
    initial = load_encoder(settings.init)[0] if settings.init is not None else None
    if initial is not None:
        settings = settings.model_copy(update={"encoder": initial.settings})
    model = PretrainModel(settings.encoder, settings.projection, settings.objective)
    if initial is not None:
        model.encoder.load_state_dict(initial.state_dict())
    optimiser = build_optimiser(model, settings.optimiser)
    if saved.weights is not None and saved.optimiser is not None:
        model.load_state_dict(saved.weights)
        model.to(device)
        optimiser.load_state_dict(saved.optimiser)
    return settings, model, optimiser


def _stream(
    settings: PretrainRecipe, sets: Sequence[FrameSet], rank: int, world_size: int, step: int, epoch_steps: int
) -> Iterator[Batch]:
    """This worker's batches from a step of the run on; none where it was the last."""
    positives = settings.objective.positives
    first_epoch, first_step = divmod(step, epoch_steps)
    return stream_batches(
        sets,
        split=settings.split,
        batch_size=settings.batch_size,
        rank=rank,
        world_size=world_size,
        seed=settings.seed,
        start_epoch=first_epoch,
        start_step=first_step,
        num_epochs=settings.epochs - first_epoch,
        num_readers=settings.num_readers,
        window_mb=settings.window_mb,
        max_bad_fraction=settings.max_bad_fraction,
        columns=columns_for(settings.objective),
        pairs=positives.pairs if positives.kind == "similar" else None,
    )


def _saver(
    metrics: dict[str, Any],
    model: PretrainModel,
    optimiser: torch.optim.Optimizer,
    settings: PretrainRecipe,
    sets: Sequence[FrameSet],
    probed: dict[str, float],
) -> SaveCheckpoint:
    def save(directory: Path) -> None:
        save_checkpoint(
            directory,
            model,
            {"optimiser": optimiser.state_dict(), "step": metrics["step"], "probed": probed},
            {
                "kind": "pretrain",
                "step": metrics["step"],
                "epoch": metrics["epoch"],
                "settings": settings.model_dump(mode="json"),
                "frame_set_digest": digest_of(sets),
                "frame_sets": describe(sets, settings.split),
                **_probed_set(settings, sets),
                "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)},
            },
        )

    return save
