"""Steps whose loss or gradients are not finite: they change nothing on any worker.

All workers decide alike, and no device is waited for. A loss that is not finite makes its worker's gradients so; those of all
workers are averaged; and the norm of that average, which is the same on every worker, says whether the step is taken. A step
that is taken is to the bit what it would be without this.
"""

import torch
from torch import Tensor, nn


def backward_from(loss: Tensor) -> None:
    """loss.backward(), with gradients that are not finite wherever the loss is not."""
    loss.backward(torch.ones_like(loss).masked_fill(~torch.isfinite(loss.detach()), torch.nan))


class GuardedStep:
    """Optimiser steps that are only taken on finite gradients."""

    def __init__(self, optimiser: torch.optim.Optimizer, network: nn.Module, gradient_clip: float | None) -> None:
        """network: as it is trained. gradient_clip: largest norm of the gradients of all its parameters."""
        self._optimiser, self._network, self._gradient_clip = optimiser, network, gradient_clip
        self._before = torch.empty(0)

    def begin(self) -> None:
        """Before the forward pass, which moves the running statistics of norm layers."""
        buffers = self._buffers()
        self._before = torch.cat([buffer.flatten() for buffer in buffers]) if buffers else torch.empty(0)

    def take(self) -> Tensor:
        """After the backward pass: the step, or nothing. Gives () bool, on the device: whether it was taken."""
        parameters = [parameter for parameter in self._network.parameters() if parameter.grad is not None]
        if self._gradient_clip is None:
            norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        else:
            norm = nn.utils.clip_grad_norm_(parameters, self._gradient_clip)
        finite = torch.isfinite(norm)
        if finite.device.type != "cpu":
            step_where(finite, self._optimiser)
            self._restore_where(~finite)
        elif finite:
            self._optimiser.step()
        else:
            self._restore_where(~finite)
        return finite

    def _buffers(self) -> list[Tensor]:
        return [buffer for buffer in self._network.buffers() if buffer.dtype == torch.float32]

    @torch.no_grad()
    def _restore_where(self, bad: Tensor) -> None:
        """The running statistics as they were at `begin`, where () bad is true."""
        buffers = self._buffers()
        if buffers:
            now = torch.cat([buffer.flatten() for buffer in buffers])
            chosen = torch.where(bad, self._before, now).split([buffer.numel() for buffer in buffers])
            for buffer, values in zip(buffers, chosen, strict=True):
                buffer.copy_(values.view_as(buffer))


@torch.no_grad()
def step_where(wanted: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """optimiser.step() where () wanted is true, without asking the device; elsewhere parameters and state stay as they are.

    Counts of steps that an optimiser keeps on the CPU go on all the same.
    """
    if optimiser.defaults.get("fused"):
        # What a GradScaler tells it: the kernel then leaves everything as it is.
        optimiser.found_inf = (~wanted).float()  # type: ignore[attr-defined]
        optimiser.step()
        return
    parameters = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    before = [parameter.clone() for parameter in parameters]
    state_before = [_state(optimiser, parameter, wanted.device) for parameter in parameters]
    state_before = [{name: value.clone() for name, value in state.items()} for state in state_before]
    optimiser.step()
    for parameter, old, old_state in zip(parameters, before, state_before, strict=True):
        parameter.copy_(torch.where(wanted, parameter, old))
        for name, value in _state(optimiser, parameter, wanted.device).items():
            # What the first step makes begins at zero.
            value.copy_(torch.where(wanted, value, old_state.get(name, torch.zeros_like(value))))


def _state(optimiser: torch.optim.Optimizer, parameter: Tensor, device: torch.device) -> dict[str, Tensor]:
    """An optimiser's tensors for a parameter that lie on the device."""
    state = optimiser.state.get(parameter, {})
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and value.device == device}
