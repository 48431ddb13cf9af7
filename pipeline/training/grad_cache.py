"""Gradient caching: a loss over a large batch whose forward passes hold only a part of it (Gao et al. 2021, GradCache).

The loss needs all representations at once, but they are small; what fills the memory is what the network keeps to compute
gradients. So the batch goes through the network twice: first in parts, keeping nothing but the representations, of which
the loss gives the gradients; then in parts again, each carrying its share of those gradients back through the network.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.bad_steps import backward_from

Outputs = dict[str, Tensor]
"""What the network gives, each tensor with one row a frame."""

ResultT = TypeVar("ResultT")


def backward(
    network: nn.Module,
    render: Callable[[slice], Tensor],
    loss_of: Callable[[Outputs], tuple[Tensor, ResultT]],
    parts: Sequence[slice],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    num_counted: int | None = None,
) -> ResultT:
    """Add the gradients of the loss over the frames of all parts to the parameters; gives what `loss_of` gives besides.

    network: images -> outputs, perhaps wrapped in DistributedDataParallel, whose workers then exchange gradients once.
    render: the images of some of the frames; called twice for each part, it must give the same both times.
    loss_of: (loss, whatever else) of the outputs for all frames; it may gather over workers.
    parts: frames that pass through the network at a time, in order; a single part takes one pass, with no second.
    autocast: makes the context in which the network runs.
    num_counted: the first parts, that many, are what BatchNorm's running statistics take note of; None: all.

    Loss and gradients are those of one pass, if a frame's outputs do not depend on the frames beside it: BatchNorm in
    training mode takes its statistics from each part. Its running statistics move in the second pass only.
    """
    if len(parts) == 1:
        with autocast():
            outputs = network(render(parts[0]))
        loss, result = loss_of(outputs)
        backward_from(loss)
        return result
    representations = _representations(network, render, parts, autocast)
    loss, result = loss_of(representations)
    backward_from(loss)
    counted: list[Tensor] | None = None
    for number, part in enumerate(parts):
        wait = isinstance(network, DistributedDataParallel) and part is not parts[-1]
        if number == num_counted:
            counted = [buffer.clone() for buffer in network.buffers()]
        with network.no_sync() if wait else nullcontext():  # type: ignore[operator]
            with autocast():
                outputs = network(render(part))
            used = {name: value.grad for name, value in representations.items() if value.grad is not None}
            torch.autograd.backward([outputs[name] for name in used], [grad[part] for grad in used.values()])
    if counted is not None:
        _put_back(network, counted)
    return result


def cut(num_frames: int, micro_batch: int | None) -> list[slice]:
    """Parts of at most `micro_batch` frames; None makes one of all."""
    step = micro_batch or num_frames
    return [slice(start, min(start + step, num_frames)) for start in range(0, num_frames, step)]


@torch.no_grad()
def _put_back(network: nn.Module, values: Sequence[Tensor]) -> None:
    for buffer, value in zip(network.buffers(), values, strict=True):
        buffer.copy_(value)


@torch.no_grad()
def _representations(
    network: nn.Module,
    render: Callable[[slice], Tensor],
    parts: Sequence[slice],
    autocast: Callable[[], AbstractContextManager[None]],
) -> Outputs:
    """The outputs for all frames, as leaves of a new graph. Buffers (running statistics) are left as they were."""
    plain = network.module if isinstance(network, DistributedDataParallel) else network
    before = [buffer.clone() for buffer in plain.buffers()]
    collected: dict[str, list[Tensor]] = {}
    for part in parts:
        with autocast():
            for name, value in plain(render(part)).items():
                collected.setdefault(name, []).append(value)
    _put_back(plain, before)
    return {name: torch.cat(values).requires_grad_() for name, values in collected.items()}
