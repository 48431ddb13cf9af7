"""Gradient caching: a loss over a large batch whose forward passes hold only a part of it (Gao et al. 2021, GradCache).

The loss needs all representations at once, but they are small; what fills the memory is what the network keeps to compute
gradients. So the batch goes through the network twice: first in parts, keeping nothing but the representations, of which
the loss gives the gradients; then in parts again, each carrying its share of those gradients back through the network.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Outputs = dict[str, Tensor]
"""What the network gives, each tensor with one row a frame."""

ResultT = TypeVar("ResultT")


def backward(
    network: nn.Module,
    render: Callable[[slice], Tensor],
    loss_of: Callable[[Outputs], tuple[Tensor, ResultT]],
    num_frames: int,
    micro_batch: int | None = None,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ResultT:
    """Add the gradients of the loss over `num_frames` frames to the parameters; gives what `loss_of` gives besides.

    network: images -> outputs, perhaps wrapped in DistributedDataParallel, whose workers then exchange gradients once.
    render: the images of some of the frames; called twice for each part, it must give the same both times.
    loss_of: (loss, whatever else) of the outputs for all frames; it may gather over workers.
    micro_batch: frames that pass through the network at a time; None takes all in one pass, with no second.
    autocast: makes the context in which the network runs.

    Loss and gradients are those of one pass, if a frame's outputs do not depend on the frames beside it: BatchNorm in
    training mode takes its statistics from each micro-batch. Its running statistics move in the second pass only.
    """
    if micro_batch is None or micro_batch >= num_frames:
        with autocast():
            outputs = network(render(slice(0, num_frames)))
        loss, result = loss_of(outputs)
        loss.backward()
        return result
    parts = [slice(start, min(start + micro_batch, num_frames)) for start in range(0, num_frames, micro_batch)]
    representations = _representations(network, render, parts, autocast)
    loss, result = loss_of(representations)
    loss.backward()
    for part in parts:
        wait = isinstance(network, DistributedDataParallel) and part is not parts[-1]
        with network.no_sync() if wait else nullcontext():  # type: ignore[operator]
            with autocast():
                outputs = network(render(part))
            used = {name: value.grad for name, value in representations.items() if value.grad is not None}
            torch.autograd.backward([outputs[name] for name in used], [grad[part] for grad in used.values()])
    return result


@torch.no_grad()
def _representations(
    network: nn.Module,
    render: Callable[[slice], Tensor],
    parts: list[slice],
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
    for buffer, value in zip(plain.buffers(), before, strict=True):
        buffer.copy_(value)
    return {name: torch.cat(values).requires_grad_() for name, values in collected.items()}
