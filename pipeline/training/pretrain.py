"""Pretraining with equivariant contrastive learning (PeCLR, Spurr et al. 2021): the loop of a worker.

A step: a batch of uint8 crops -> two views each, on the device -> both views through encoder and projection head in one
pass -> each view's transform undone on its projection -> NT-Xent against the views of all workers. What a step computes is
in contrast.py, how a batch larger than the memory gets through the network in grad_cache.py.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.frames.batches import Batch
from pipeline.frames.epoch_plan import StreamPlan
from pipeline.frames.mixing import Mixture
from pipeline.frames.shares import parts_of, rows_of_workers, share_of, workers_of
from pipeline.frames.stream import Stream
from pipeline.models.checkpoints import META, Snapshot, read_part, read_trainer_state
from pipeline.models.pretrain import PretrainModel
from pipeline.models.weights import load_encoder
from pipeline.objectives import similarity_stats
from pipeline.run_log import at_step
from pipeline.storage import join, write_bytes
from pipeline.training.bad_steps import GuardedStep
from pipeline.training.contrast import Pairs, columns_for, join_pairs, make_pairs, step_loss
from pipeline.training.distributed import gather_values
from pipeline.training.grad_cache import backward, cut
from pipeline.training.online import NUM_VIEW_PAIRS, OnlineProbe, view_pairs_picture
from pipeline.training.optim import build_optimiser, learning_rate_at, peak_learning_rate, set_learning_rate
from pipeline.training.pretrain_recipe import PretrainRecipe, global_batch, num_shares, probed_set, steps_of_epoch
from pipeline.training.supply import BadFrames, one_ahead
from pipeline.training.sync_norm import synchronise_batch_norm
from pipeline.training.worker import LossLog, Worker, check_finite, place
from pipeline.views import generator_for


def run_epochs(settings: PretrainRecipe, mixture: Mixture, worker: Worker) -> dict[str, Any]:
    """The training loop of one worker, in whatever process (needs a running Ray, which reads the frames).

    It reports metrics every `log_every` steps and at each epoch's end; where a checkpoint is due also what it holds, and
    "score", unless the run is probed, but not just now. Pictures and lists of bad frames go to the run's folder.
    Returns the run's last metrics. Raises TrainingError, on all workers, where training cannot go on.
    """
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = True
    rank, device = worker.rank, worker.device
    settings = settings.model_copy(update={"shares": num_shares(settings, worker.world_size)})
    epoch_steps = steps_of_epoch(settings, mixture, worker.world_size)
    frames_a_step = global_batch(settings, worker.world_size)
    saved = _saved_state(worker.resume)
    at_step(saved.step)
    # The first batch is read, and Ray Data started, while the network is built.
    with one_ahead(iter(_stream(settings, mixture, worker, *divmod(saved.step, epoch_steps))), device) as batches:
        settings, model, optimiser = _built(settings, saved, device)
        num_bad = int(saved.metrics.get("bad_steps", 0))
        steps = Steps(_network(model, settings, worker), optimiser, settings, worker, epoch_steps, num_bad)
        probe = OnlineProbe(settings.probe, mixture.uris[0], settings.views, device) if rank == 0 else None
        worker.mark("model")
        metrics: dict[str, Any] = saved.metrics or {"step": 0, "epoch": 0.0}
        probed = saved.probed
        bad = BadFrames(worker.folder, rank)
        saved_at = time.monotonic()
        for batch, waited in _timed(batches, worker):
            worker.mark("first_batch")
            leaving = worker.leaving()
            steps.run(batch, waited, leaving)
            at_step(steps.number)
            worker.mark("first_step")
            bad.add(batch.problems)
            last_of_epoch = batch.step == epoch_steps - 1
            worker.notice(steps.number * frames_a_step, steps.figures())
            if not steps.is_logged:
                continue
            metrics = {"step": steps.number, "epoch": (steps.number / epoch_steps), **steps.interval_metrics()}
            metrics["bad_frames"] = int(gather_values(torch.tensor([float(bad.num)], device=device)).sum().item())
            pictures: dict[str, bytes] = {}
            epochs_done = batch.epoch + 1
            last = epochs_done == settings.epochs
            is_probed = last_of_epoch and settings.probe.due(epochs_done, last)
            if last_of_epoch:
                with worker.busy("probe"):
                    bad.write()
                    if rank == 0 and probe is not None and is_probed:
                        probed, pictures = probe.run(model, last)
                        metrics |= probed
                    if rank == 0 and (epochs_done == 1 or last):
                        pictures["views.png"] = view_pairs_picture(*steps.examples())
                    for name, data in pictures.items():
                        write_bytes(join(worker.folder, "pictures", name), data)
            if pictures:
                metrics["pictures"] = sorted(pictures)
            is_due = last_of_epoch and (epochs_done % settings.checkpoint.every_epochs == 0 or last)
            save = None
            if is_due or is_probed or leaving or _due(settings, steps.number) or _late(settings, saved_at, device):
                saved_at = time.monotonic()
                # The best checkpoint is the one with the best probe; without a probe, the one with the lowest loss. An earlier
                # probe says nothing of this one, nor does a loss beside errors in mm.
                best_by = "probe_pa_epe_mm" if settings.probe.enabled else "loss"
                if best_by in metrics:
                    metrics["score"] = metrics[best_by]
                check_finite(model, optimiser, steps.number)
                save = _snapshot(metrics, model, optimiser, settings, mixture, probed)
            worker.report(metrics, save)
    return {
        "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)} | probed,
        "frame_set": settings.model_dump(mode="json")["frame_set"],
        **mixture.describe(settings.split),
        **probed_set(settings, mixture),
        "world_size": worker.world_size,
        "global_batch": frames_a_step,
    }


class Steps:
    """Training steps, and the figures of those since the last log."""

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        settings: PretrainRecipe,
        worker: Worker,
        steps_per_epoch: int,
        num_bad: int = 0,
    ) -> None:
        """num_bad: bad steps of the run so far (bad_steps.py)."""
        self.network, self.optimiser, self.settings, self.worker = network, optimiser, settings, worker
        self.steps_per_epoch = steps_per_epoch
        self.total = settings.epochs * steps_per_epoch
        size, shares = settings.batch_size, num_shares(settings, worker.world_size)
        self.peak = peak_learning_rate(settings.optimiser, size * shares)
        self.parts = parts_of(worker.rank, worker.world_size, shares, size)
        counts = rows_of_workers(worker.world_size, shares, size)
        self.counts = None if min(counts) == max(counts) else counts
        self.autocast = worker.autocast(settings.precision)
        self.number = 0
        self.is_logged = False
        """Whether `interval_metrics` is due after the last step."""
        self.learning_rate = 0.0
        self._pairs: Pairs | None = None
        self._stats: dict[str, Tensor] = {}
        self._shown: dict[str, float] = {}
        self._log = LossLog(worker, settings.optimiser.max_bad_steps, num_bad)
        self._guard = GuardedStep(optimiser, network, settings.optimiser.gradient_clip)
        self._fallbacks: list[float] = []
        self._waited = 0.0

    def run(self, batch: Batch, waited: float, leaving: bool = False) -> None:
        """One optimiser step; a bad one (bad_steps.py) changes nothing. leaving: it is logged, whatever its number."""
        settings, objective, worker = self.settings, self.settings.objective, self.worker
        step = batch.epoch * self.steps_per_epoch + batch.step
        self._pairs = pairs = self._make_pairs(batch)
        self.learning_rate = learning_rate_at(step, self.total, settings.optimiser, self.peak)
        set_learning_rate(self.optimiser, self.learning_rate)
        self.optimiser.zero_grad(set_to_none=True)
        self._guard.begin()
        parts, num_counted = self._passes(len(pairs))
        done = backward(
            self.network,
            pairs.render,
            lambda outputs: step_loss(outputs, pairs, objective),
            parts,
            self.autocast,
            num_counted,
        )
        taken = self._guard.take()

        self.number = step + 1
        # A view that is no number makes the losses of all workers so, but only its own worker's views.
        own = None if done.latents is None else done.latents.split(self.counts or len(pairs))[worker.rank].sum()
        self._log.add(done.loss, taken, batch.columns.get("frame_id", ()), own)
        self._fallbacks.append(pairs.fallback)
        self._waited += waited
        last_of_epoch = batch.step == self.steps_per_epoch - 1
        self.is_logged = (
            leaving or last_of_epoch or self.number % settings.log_every == 0 or _due(settings, self.number)
        )
        if self.is_logged:
            self._stats = {f"loss_{name}": value for name, value in done.terms.items()} if len(done.terms) > 1 else {}
            if done.latents is not None:
                self._stats |= similarity_stats(done.latents[:, 0], done.latents[:, 1])

    def _make_pairs(self, batch: Batch) -> Pairs:
        """The batch's, whose views are drawn share by share."""
        settings, made, first = self.settings, [], 0
        for part in self.parts:
            generator = generator_for(settings.seed, batch.epoch, batch.step, part.share)
            of = (settings.batch_size, slice(part.start, part.stop)) if part.num_rows < settings.batch_size else None
            rows = batch if len(self.parts) == 1 else batch.take(slice(first, first + part.num_rows))
            made.append(make_pairs(rows, settings.objective, settings.views, generator, self.worker.device, of))
            first += part.num_rows
        return made[0] if len(made) == 1 and self.counts is None else join_pairs(made, self.counts)

    def _passes(self, num_frames: int) -> tuple[list[slice], int | None]:
        """What goes through the network at a time, and the number of parts that its running statistics take note of.

        BatchNorm takes its statistics from each share, so several shares go through it one after the other, and its running
        statistics are those of the first share, as where another worker has it.
        """
        settings = self.settings
        if settings.sync_batch_norm or self.parts[0].num_rows < settings.batch_size:
            parts = cut(num_frames, settings.micro_batch)
            if settings.micro_batch and self.counts is not None:  # each pass is one of all workers together
                passes = math.ceil(max(self.counts) / settings.micro_batch)
                ends = [num_frames * number // passes for number in range(passes + 1)]
                parts = [slice(start, stop) for start, stop in pairwise(ends)]
            return parts, None
        of_share = cut(settings.batch_size, settings.micro_batch)
        parts = [
            slice(first + part.start, first + part.stop)
            for first in range(0, num_frames, settings.batch_size)
            for part in of_share
        ]
        return parts, len(of_share) if len(self.parts) > 1 else None

    def examples(self) -> tuple[Tensor, Tensor]:
        """Some pairs of the last step as the network saw them, (N, 3, size, size) each."""
        assert self._pairs is not None, "examples are of a step that was run"
        return self._pairs.examples(NUM_VIEW_PAIRS)

    def figures(self) -> dict[str, float]:
        """What the progress bar shows."""
        return self._shown

    def interval_metrics(self) -> dict[str, float]:
        """Averages since the last call, over all workers. Raises TrainingError, on all of them, where too many steps were bad
        or no frame had a partner."""
        losses, num_steps, seconds = self._log.take(self.number, self.number % self.steps_per_epoch == 0)
        loss = dict(zip(("loss",), losses, strict=False))  # of an interval of bad steps there is none
        alone = gather_values(torch.tensor(self._fallbacks, device=self.worker.device)).mean().item()
        if alone == 1:
            raise TrainingError(
                f"no frame of the last {num_steps} steps has a partner under objective.positives.kind = "
                f"'{self.settings.objective.positives.kind}': temporal ones need frame groups and times in the frame set "
                "and max_seconds above their stride, similar ones 2D joints"
            )
        metrics = {
            **loss,
            "bad_steps": self._log.num_bad,
            "learning_rate": self.learning_rate,
            "frames_per_second": num_steps * global_batch(self.settings, self.worker.world_size) / seconds,
            "data_wait_fraction": self._waited / seconds,
            **{name: value for name, figure in self._stats.items() if math.isfinite(value := float(figure))},
        }
        if self.settings.objective.positives.kind != "same-frame":
            metrics["without_partner"] = alone
        self._shown |= {name: round(value, 3) for name, value in loss.items()}
        self._fallbacks, self._waited = [], 0.0
        return metrics


def _timed(stream: Iterator[Batch], worker: Worker) -> Iterator[tuple[Batch, float]]:
    """Batches, each with the seconds spent waiting for it."""
    while True:
        started = time.perf_counter()
        with worker.busy("data"):
            batch = next(stream, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - started


def _due(settings: PretrainRecipe, step: int) -> bool:
    every = settings.checkpoint.every_steps
    return every is not None and step % every == 0


def _late(settings: PretrainRecipe, saved_at: float, device: torch.device) -> bool:
    """Whether a checkpoint is due by the first worker's clock. Every worker must call it."""
    minutes = settings.checkpoint.every_minutes
    if minutes is None:
        return False
    return gather_values(torch.tensor([time.monotonic() - saved_at], device=device))[0].item() >= 60 * minutes


def _network(model: PretrainModel, settings: PretrainRecipe, worker: Worker) -> nn.Module:
    """The model as it is trained."""
    place(model, worker.device)
    network: nn.Module = model
    shares = num_shares(settings, worker.world_size)
    if settings.sync_batch_norm and worker.world_size > 1:
        network = synchronise_batch_norm(network, worker.device)
    elif worker.world_size > shares:
        ranks = [workers_of(share, worker.world_size, shares) for share in range(shares)]
        groups = [dist.new_group(each) for each in ranks]  # every worker has to make all of them
        own = groups[share_of(worker.rank, worker.world_size, shares)]
        network = synchronise_batch_norm(network, worker.device, own)  # type: ignore[arg-type]
    if settings.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    return worker.distributed(network).train()


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
    meta, weights = read_part(str(directory), META), load_file(directory / "model.safetensors")
    return _Saved(state["step"], state["probed"], meta.get("metrics", {}), weights, state["optimiser"])


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


def _stream(settings: PretrainRecipe, mixture: Mixture, worker: Worker, epoch: int, step: int) -> Stream:
    """This worker's batches from a place on; none where it is the end. The stream itself is some batches ahead of what is trained
    on, so a checkpoint holds the steps of the run."""
    positives = settings.objective.positives
    stream = mixture.stream(
        StreamPlan(
            split=settings.split,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            rank=worker.rank,
            world_size=worker.world_size,
            num_shares=settings.shares,
            seed=settings.seed,
            num_readers=settings.num_readers,
            reader_cpus=worker.reader_cpus,
            window_mb=settings.window_mb,
            max_bad_fraction=settings.max_bad_fraction,
            columns=tuple(dict.fromkeys(("frame_id", *columns_for(settings.objective)))),  # to name bad steps by
            pairs=positives.pairs if positives.kind == "similar" else None,
        )
    )
    stream.load_state_dict({"epoch": epoch, "step": step})
    return stream


def _snapshot(
    metrics: dict[str, Any],
    model: PretrainModel,
    optimiser: torch.optim.Optimizer,
    settings: PretrainRecipe,
    mixture: Mixture,
    probed: dict[str, float],
) -> Snapshot:
    return Snapshot(
        model.state_dict(),
        {"optimiser": optimiser.state_dict(), "step": metrics["step"], "probed": probed},
        {
            "kind": "pretrain",
            "step": metrics["step"],
            "epoch": metrics["epoch"],
            "settings": settings.model_dump(mode="json"),
            **mixture.describe(settings.split),
            **probed_set(settings, mixture),
            "metrics": {k: v for k, v in metrics.items() if isinstance(v, int | float)},
        },
    )
