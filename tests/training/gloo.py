"""A process group among processes that a test has spawned."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def process_group(rank: int, world_size: int, port: int) -> Iterator[None]:
    """One of the group's members, with a thread of its own. The process ends with the block.

    It ends at once: where the interpreter took its time to end, gloo's threads have outlived their objects, once in a hundred
    runs or so ("terminate called without an active exception").
    """
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    yield
    dist.barrier()  # nobody goes while somebody else still listens to it
    os._exit(0)
