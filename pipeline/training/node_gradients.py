"""Gradients averaged through memory that the workers of one machine share.

Between processes of one machine, gloo sends gradients through TCP. Here each worker writes its gradients into shared memory, adds
up a part of everybody's, and reads the sum of all. Only the workers' waiting for each other still goes through gloo, so a
worker that is lost ends the others' step as before.
"""

import os
import tempfile
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.distributed import gather_objects, gather_values, world

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - mkstemp makes the file, for this user alone
_AT_A_TIME = 2**23
"""Gradients that are exchanged together, so that large networks do not take more memory."""
_MOST_OF_IT = 0.04
"""Ray's object store may claim 95 % of that memory, which it takes as it fills."""


def average_on_one_machine(network: DistributedDataParallel) -> bool:
    """Average gradients through shared memory from now on, where all workers can reach the same; every worker calls it.

    They have to be on CPUs and float32. Whether it is so: otherwise (several machines, no memory left) it stays as it was. The
    average of two workers is to the bit what gloo makes of it; that of more is added up in order of rank.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if world()[1] == 1 or any(each.dtype != torch.float32 or each.device.type != "cpu" for each in parameters):
        return False
    shared = _shared_memory(min(sum(parameter.numel() for parameter in parameters), _AT_A_TIME))
    if shared is None:
        return False
    network.register_comm_hook(shared, _average)
    return True


def _average(shared: Tensor, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """A bucket's gradients: this worker's -> the average. shared: (workers + 1, n), the last row for sums."""
    gradients = bucket.buffer()
    for part in gradients.split(shared.shape[1]):
        _average_part(shared[:, : len(part)], part)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def _average_part(rows: Tensor, own: Tensor) -> None:
    """own: (n,), this worker's, which becomes the average. rows: (workers + 1, n), shared."""
    rank, size = world()
    torch.div(own, size, out=rows[rank])  # as DistributedDataParallel does it, before the sum
    dist.barrier()
    mine = slice(len(own) * rank // size, len(own) * (rank + 1) // size)
    torch.add(rows[0, mine], rows[1, mine], out=rows[size, mine])
    for other in range(2, size):
        rows[size, mine] += rows[other, mine]
    dist.barrier()
    # The next sums are written only after all workers have come to their first barrier, so after this copy.
    own.copy_(rows[size])


def _shared_memory(length: int) -> Tensor | None:
    """float32 (workers + 1, length), the same memory in all workers; None in all of them where one cannot reach it.

    Its file has no name any more once all have it, so it goes with the last process, however that ends.
    """
    rank, size = world()
    num_bytes = 4 * (size + 1) * length
    path, memory = None, None
    with suppress(OSError):
        if rank == 0 and num_bytes <= _MOST_OF_IT * _size_of(SHARED_MEMORY):
            handle, path = tempfile.mkstemp(prefix="equihand-gradients-", dir=SHARED_MEMORY)
            try:
                # A write into memory that is not there would end the process.
                os.posix_fallocate(handle, 0, num_bytes)
            finally:
                os.close(handle)
    told = gather_objects(path)[0]
    with suppress(OSError, RuntimeError):
        if told is not None and os.path.getsize(told) == num_bytes:
            memory = torch.from_file(told, shared=True, size=(size + 1) * length, dtype=torch.float32)
    everyone = gather_values(torch.tensor([float(memory is not None)]))
    if path is not None:
        with suppress(OSError):
            os.unlink(path)
    return memory.view(size + 1, length) if memory is not None and bool(everyone.all()) else None


def _size_of(folder: str) -> int:
    """Bytes that its file system holds in all."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize
