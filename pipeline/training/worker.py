"""One process of a training as its loop sees it, and what every loop does alike: threads, autocast, gradients of all workers,
the losses since the last log."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError, warn
from pipeline.models.checkpoints import SaveCheckpoint
from pipeline.training.distributed import bf16_pays, gather_values

Report = Callable[[dict[str, Any], SaveCheckpoint | None], None]
"""Receives the metrics of an interval, averages over all workers; where a checkpoint is due also the means to save it."""

Notice = Callable[[int, dict[str, float]], None]
"""Receives, after every step, the frames that all workers have seen so far, and the newest figures."""

REMEDY = "Lower optimiser.learning_rate, raise optimiser.warmup_fraction or set optimiser.gradient_clip"
Precision = Literal["auto", "bf16", "float32"]


_CPU = torch.device("cpu")


def _nothing(*_: Any) -> None: ...


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

    def autocast(self, precision: Precision) -> Callable[[], AbstractContextManager[Any]]:
        """What the network's forward pass runs under; "auto" takes bf16 where this device is faster with it."""
        bf16 = precision == "bf16" or (precision == "auto" and bf16_pays(self.device))
        return partial(torch.autocast, self.device.type, dtype=torch.bfloat16, enabled=bf16)

    def distributed(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over all workers."""
        if self.world_size == 1:
            return network
        # Running statistics are read where they are probed or saved only: no need to send them about in every step.
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def check_finite(model: nn.Module, step: int) -> None:
    """For the weights before they are saved; every worker calls it, and has the same ones. Raises TrainingError."""
    bad = [name for name, values in model.state_dict().items() if not torch.isfinite(values).all()]
    if bad:
        raise TrainingError(
            f"'{bad[0]}' is no longer finite after step {step}, though the losses were; the last good checkpoint is kept. {REMEDY}"
        )


def use_threads(threads: int | None, device: torch.device, local_workers: int) -> None:
    """torch's CPU threads of this process; None: the node's cores shared between its workers, and one beside a GPU."""
    shared = 1 if device.type == "cuda" else max(1, (os.cpu_count() or 1) // local_workers)
    torch.set_num_threads(threads or shared)


class Interval(NamedTuple):
    """What a `LossLog` holds."""

    losses: list[float]
    """Means over steps and workers: the total, then its parts."""
    num_steps: int
    seconds: float


class LossLog:
    """Losses since the last log."""

    def __init__(self, worker: Worker) -> None:
        self._world_size = worker.world_size
        self.restart()

    def restart(self) -> None:
        """An interval begins."""
        self._losses: list[Tensor] = []
        self._started = time.perf_counter()

    def add(self, losses: Tensor) -> None:
        """A step's, detached: the total, or (parts,) with the total first."""
        self._losses.append(losses)

    def take(self, step: int) -> Interval:
        """The interval up to this step, of all workers, and begin another. Every worker must call it.

        Raises TrainingError, the same on all workers, where a total was not finite.
        """
        mine = torch.stack(self._losses).view(len(self._losses), -1)
        losses = gather_values(mine.flatten()).view(self._world_size, *mine.shape)
        bad = (~torch.isfinite(losses[..., 0])).nonzero()
        if len(bad):
            worker, first = bad[bad[:, 1].argmin()].tolist()
            raise TrainingError(
                f"the loss is {losses[worker, first, 0].item()} at step {step - len(mine) + first + 1} on worker {worker}; "
                f"the last good checkpoint is kept. {REMEDY}"
            )
        interval = Interval(losses.mean(dim=(0, 1)).tolist(), len(mine), time.perf_counter() - self._started)
        self.restart()
        return interval
