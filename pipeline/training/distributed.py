"""Process-group helpers: gather with exact gradients, device and precision choices.

Each worker holds its own n views and contrasts them with the views of all workers, N together. DistributedDataParallel averages
parameter gradients over W workers, so a loss that is the mean over the local anchors, times n W / N, has after averaging exactly
the gradient of the global mean, as long as gradients that reach a view through other workers' losses come back to it: the
backward of the gather sums them.

The gather is written by hand because torch's differentiable all_gather (torch.distributed.nn.functional) is deprecated, and on
gloo its backward sends one scatter a worker where one all-reduce does.
"""

from typing import Any

import torch
import torch.distributed as dist


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.counts = counts
        longest = max(counts)
        if len(local) < longest:  # all send as many rows
            local = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
        everyone = local.new_empty((len(counts) * longest, *local.shape[1:]))
        dist.all_gather_into_tensor(everyone, local.contiguous())
        if min(counts) == longest:
            return everyone
        return torch.cat([part[:count] for part, count in zip(everyone.split(longest), counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)  # what every worker's loss says about my views
        return grad.split(list(ctx.counts))[world()[0]], None


def gather(local: torch.Tensor, counts: tuple[int, ...] | None = None) -> torch.Tensor:
    """Rows of all workers, in order of rank; gradients from every worker's use of a row reach the row's owner.

    local: (n, ...). counts: n of every worker; None: the same on all.
    """
    size = world()[1]
    return local if size == 1 else _Gather.apply(local, counts or (len(local),) * size)


def gather_values(values: torch.Tensor) -> torch.Tensor:
    """A vector of each worker -> (workers, length), without gradients, on the CPU."""
    if world()[1] == 1:
        return values[None].cpu()
    parts = [torch.empty_like(values) for _ in range(world()[1])]
    dist.all_gather(parts, values)
    return torch.stack(parts).cpu()


def gather_objects(value: Any) -> list[Any]:
    """A picklable value of each worker."""
    if world()[1] == 1:
        return [value]
    everyone: list[Any] = [None] * world()[1]
    dist.all_gather_object(everyone, value)
    return everyone


def share_buffers(model: torch.nn.Module) -> None:
    """Give every worker rank 0's buffers (running statistics), which are those that a checkpoint keeps.

    DistributedDataParallel would do it before every step, for a tenth of a small network's time.
    """
    if world()[1] > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def device_for(use_gpu: bool) -> torch.device:
    """This process's GPU, by its number (some functions of torch.cuda take no other), or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu else torch.device("cpu")


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 autocast is faster than float32: CUDA from Ampere on, CPUs with AMX or AVX-512 bf16 instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False
