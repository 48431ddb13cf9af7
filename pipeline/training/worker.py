"""One process of a training as its loop sees it, and what every loop does alike: threads, autocast, gradients of all workers,
the losses since the last log."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.cores import usable_cores
from pipeline.errors import TrainingError, warn
from pipeline.models.checkpoints import Snapshot
from pipeline.run_log import log
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.distributed import bf16_pays, device_for, gather_objects, gather_values
from pipeline.training.node_gradients import average_on_one_machine

Report = Callable[[dict[str, Any], Snapshot | None], None]
"""Receives the metrics of an interval, averages over all workers; where a checkpoint is due also what it holds."""

Notice = Callable[[int, dict[str, float]], None]
"""Receives, after every step, the frames that all workers have seen so far, and the newest figures."""

REMEDY = "Lower optimiser.learning_rate, raise optimiser.warmup_fraction or set optimiser.gradient_clip"
_MOST_NAMED = 3
Precision = Literal["auto", "bf16", "float32"]


_CPU = torch.device("cpu")


def _nothing(*_: Any) -> None: ...


def _stays() -> bool:
    return False


@dataclass(frozen=True)
class Worker:
    """Where a loop is, what it goes on from, and whom it tells. Alone in its process by default, telling nobody."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = _CPU
    folder: str = ""
    """URI of the run's folder, for what the loop writes besides checkpoints."""
    reader_cpus: float = 1
    """Logical CPUs that each task which reads frames for this worker reserves."""
    resume: Path | None = None
    """Checkpoint directory of this same run to go on from."""
    report: Report = _nothing
    notice: Notice = _nothing
    say: Callable[[str], None] = warn
    """Receives what the user should know."""
    mark: Callable[[str], None] = _nothing
    """Called with the name of each part of the start as it is done."""
    leaving: Callable[[], bool] = _stays
    """Whether the loop is to report a checkpoint after the step that comes, because the workers have to go. Called before every
    step, by every worker: all get the same answer."""
    busy: Callable[[str], AbstractContextManager[Any]] = nullcontext
    """Surrounds what may take long beside the steps, such as waiting for data or a probe; it gets its name."""

    def autocast(self, precision: Precision) -> Callable[[], AbstractContextManager[Any]]:
        """What the network's forward pass runs under; "auto" takes bf16 where this device is faster with it."""
        bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(self.device))
        return partial(torch.autocast, self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def distributed(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over all workers."""
        if self.world_size == 1:
            return network
        # Running statistics are read where they are probed or saved only: no need to send them about in every step.
        wrapped = nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        in_memory = average_on_one_machine(wrapped)
        log("gradients", through_shared_memory=in_memory)
        return wrapped


def check_finite(model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """For what is about to be saved; every worker calls it, and has the same weights and state. Raises TrainingError."""
    bad = [name for name, values in model.state_dict().items() if not torch.isfinite(values).all()]
    states = [(name, optimiser.state.get(parameter, {})) for name, parameter in model.named_parameters()]
    bad += [
        f"{key} of {name}"
        for name, state in states
        for key, values in state.items()
        if isinstance(values, Tensor) and not torch.isfinite(values).all()
    ]
    if bad:
        raise TrainingError(
            f"'{bad[0]}' is no longer finite after step {step}, though the losses were; the last good checkpoint is kept. {REMEDY}"
        )


def use_threads(threads: int | None, device: torch.device, local_workers: int) -> None:
    """torch's CPU threads of this process; None: the node's usable cores shared between its workers, and one beside a GPU."""
    shared = 1 if device.type == "cuda" else max(1, usable_cores() // local_workers)
    torch.set_num_threads(threads or shared)


def prepare_process(threads: int, use_gpu: bool) -> torch.device:
    """Ready this process for a training by itself: torch's CPU threads, and memory. Gives its device."""
    torch.set_num_threads(threads)
    device = device_for(use_gpu)
    keep_freed_memory(device)
    return device


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to the device, its weights in the order of memory that is fastest there.

    For GPUs that is channels_last. On CPUs oneDNN reorders the weights whatever their order is, and the fused AdamW copies the
    gradients of those that are not contiguous.
    """
    order = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model.to(device, memory_format=order)  # type: ignore[call-overload]


class Interval(NamedTuple):
    """What a `LossLog` holds."""

    losses: list[float]
    """Means over the steps that were taken, and workers: the total, then its parts. Empty where no step was taken."""
    num_steps: int
    seconds: float


class LossLog:
    """Losses since the last log, and how many steps of the run were bad (bad_steps.py)."""

    def __init__(self, worker: Worker, max_bad_steps: int = 0, num_bad: int = 0) -> None:
        """max_bad_steps: with one more, `take` ends the run. num_bad: those of the run before this process."""
        self._worker, self._max_bad_steps, self.num_bad = worker, max_bad_steps, num_bad
        self._said = self._any_good = False
        self.restart()

    def restart(self) -> None:
        """An interval begins."""
        self._losses: list[Tensor] = []
        self._taken: list[Tensor] = []
        self._own: list[Tensor] = []
        self._frames: list[Sequence[str]] = []
        self._started = time.perf_counter()

    def add(self, losses: Tensor, taken: Tensor, frames: Sequence[str] = (), own: Tensor | None = None) -> None:
        """A step's. losses: detached, the total, or (parts,) with the total first. taken: () bool, the same on all workers:
        whether the step was taken. frames: ids of this worker's. own: what is not finite where this worker's frames made the
        step bad; none takes the total."""
        self._losses.append(losses)
        self._taken.append(taken)
        self._frames.append(frames)
        self._own.append(losses.flatten()[0] if own is None else own)

    def take(self, step: int, epoch_ends: bool = False) -> Interval:
        """The interval up to this step, of all workers, and begin another. Every worker must call it.

        Raises TrainingError, the same on all workers, where too many steps of the run were bad, or all of an epoch.
        """
        mine = torch.stack(self._losses).view(len(self._losses), -1)
        losses = gather_values(mine.flatten()).view(self._worker.world_size, *mine.shape)
        taken = torch.stack(self._taken).cpu()
        self._any_good = self._any_good or bool(taken.any())
        if not taken.all():
            bad = (~taken).nonzero().flatten().tolist()
            self._tell(step - len(mine) + 1, losses, bad, none_good=epoch_ends and not self._any_good)
            losses = losses[:, taken]
        means = losses.mean(dim=(0, 1)).tolist() if losses.numel() else []
        interval = Interval(means, len(mine), time.perf_counter() - self._started)
        self._any_good = self._any_good and not epoch_ends
        self.restart()
        return interval

    def _tell(self, first_step: int, losses: Tensor, bad: list[int], none_good: bool) -> None:
        """Note the bad steps of the interval, by their number in it, in the run's log, and say once that there are some."""
        of_step = []
        for number in bad:
            self.num_bad += 1
            frames, own = self._frames[number], self._own[number]
            log(
                "bad step",
                step=first_step + number,
                loss=str(losses[self._worker.rank, number, 0].item()),
                frames=[*frames],
            )
            of_step.append((bool(torch.isfinite(own).all()), _some(frames)))
        # By worker, the first step's, or the one that is too many.
        over = self.num_bad > self._max_bad_steps
        chosen = self._max_bad_steps - self.num_bad + len(bad) if over else 0
        everyone = gather_objects(of_step[chosen])
        step = first_step + bad[chosen]
        totals = losses[:, bad[chosen], 0].tolist()
        at = [rank for rank, (finite, _) in enumerate(everyone) if not finite]
        at = at or [rank for rank, total in enumerate(totals) if not math.isfinite(total)] or [*range(len(everyone))]
        value = next((totals[rank] for rank in at if not math.isfinite(totals[rank])), None)
        what = "the gradients are not finite" if value is None else f"the loss is {value}"
        where = "; ".join(f"worker {rank}{everyone[rank][1]}" for rank in at[:_MOST_NAMED])
        text = f"{what} at step {step} on {where}"
        if over:
            raise TrainingError(
                f"{text}; with {self._max_bad_steps + 1} such steps, optimiser.max_bad_steps = {self._max_bad_steps} is "
                f"exceeded, and the last good checkpoint is kept. {REMEDY}"
            )
        if none_good:
            raise TrainingError(
                f"{text}, and no other step of this epoch was good; the last good checkpoint is kept. {REMEDY}"
            )
        if self._worker.rank == 0 and not self._said:
            self._worker.say(
                f"{text}; this step changes nothing. More are counted as bad_steps; after {self._max_bad_steps} "
                "(optimiser.max_bad_steps) the run ends"
            )
        self._said = True


def _some(frames: Sequence[str]) -> str:
    """Such as " (frames a/0, a/1, b/0 and 13 more)"; empty where their ids are not known."""
    more = f" and {len(frames) - _MOST_NAMED} more" if len(frames) > _MOST_NAMED else ""
    return f" (frames {', '.join(frames[:_MOST_NAMED])}{more})" if len(frames) else ""
