"""BatchNorm over all workers on any device. torch's own SyncBatchNorm runs on GPUs only."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(
    network: nn.Module, device: torch.device, group: dist.ProcessGroup | None = None
) -> nn.Module:
    """The network with batch statistics over all workers, or a group of them; parameters and buffers are the same tensors as
    before."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network, group)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, GlobalBatchNorm.of(child, group))
    return network


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm (any number of spatial dimensions) whose training statistics cover all workers of a group (None: all that there
    are), however many rows each has."""

    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, layer: _BatchNorm, group: dist.ProcessGroup | None = None) -> "GlobalBatchNorm":
        """One that shares the parameters, buffers and mode of a plain layer."""
        new = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        new.weight, new.bias = layer.weight, layer.bias
        new._buffers.update(layer._buffers)
        new.group = group
        return new.train(layer.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any shape (N, C, ...) will do."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.BatchNorm*d`. Statistics in float32 at least, in two passes, so that they do not cancel."""
        if not self.training or not dist.is_initialized() or dist.get_world_size(self.group) == 1:
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        dims = [dim for dim in range(values.ndim) if dim != 1]
        shape = [1, -1] + [1] * (values.ndim - 2)
        count = _SumOverWorkers.apply(values.new_tensor([values.numel() / self.num_features]), self.group)
        mean = _SumOverWorkers.apply(values.sum(dims), self.group) / count
        centred = values - mean.view(shape)
        variance = _SumOverWorkers.apply(centred.square().sum(dims), self.group) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)  # type: ignore[arg-type]
                self.running_mean.lerp_(mean.to(self.running_mean), momentum)
                unbiased = variance * count / (count - 1).clamp_min(1)
                self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)


class _SumOverWorkers(torch.autograd.Function):
    """The sum over workers; its gradient is the sum of the gradients with respect to it over workers."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = local.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
