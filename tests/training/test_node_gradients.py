"""Gradients through shared memory, beside what torch's own exchange makes of the same: with real processes and gloo."""

import os
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline.training import node_gradients
from pipeline.training.node_gradients import average_on_one_machine
from tests.training.gloo import process_group


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(37, 301), nn.Tanh(), nn.Linear(301, 11), nn.Tanh(), nn.Linear(11, 3))


def _gradient_of(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


def _gradients(rank: int, steps: int, shared: bool, micro_batches: int = 1) -> torch.Tensor:
    # Small buckets, so that there are several, of lengths that no number of workers divides.
    network = nn.parallel.DistributedDataParallel(_model(), bucket_cap_mb=0.01)
    if shared:
        assert average_on_one_machine(network)
    every = []
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        network.zero_grad(set_to_none=True)
        for number in range(micro_batches):
            with network.no_sync() if number < micro_batches - 1 else torch.enable_grad():
                network(torch.randn(5, 37, generator=generator)).square().mean().backward()
        every.append(_gradient_of(network))
    return torch.stack(every)


def _compare(rank: int, workers: int, port: int) -> None:
    with process_group(rank, workers, port):
        for micro_batches, at_a_time in ((1, 2**23), (2, 2**23), (1, 1000)):
            setattr(node_gradients, "_AT_A_TIME", at_a_time)  # noqa: B010
            expected = _gradients(rank, 4, shared=False, micro_batches=micro_batches)
            ours = _gradients(rank, 4, shared=True, micro_batches=micro_batches)
            assert expected.abs().max() > 0.01
            if workers == 2:
                assert torch.equal(ours, expected)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
            first = ours.clone()
            dist.broadcast(first, 0)
            assert torch.equal(ours, first), "the same on all workers, to the bit"


@pytest.mark.parametrize("workers", [2, 3])
def test_averages_are_those_of_torch(workers, free_port):
    mp.start_processes(_compare, (workers, free_port), nprocs=workers, start_method="spawn")
    assert _left_behind() == []


def _nothing(_: object) -> int:
    return 0


def _without_memory(rank: int, workers: int, port: int, folder: str) -> None:
    with process_group(rank, workers, port):
        if rank == 1:  # as on another machine, or in another container
            node_gradients.os.path.getsize = _nothing  # type: ignore[assignment]
        if folder:  # as where there is no such memory at all
            node_gradients.SHARED_MEMORY = folder
        network = nn.parallel.DistributedDataParallel(_model())
        assert not average_on_one_machine(network)
        network(torch.full((5, 37), float(rank))).square().mean().backward()
        own = _gradient_of(network)
        first = own.clone()
        dist.broadcast(first, 0)
        assert torch.equal(own, first)


@pytest.mark.parametrize("folder", ["", "/no/such/folder"])
def test_workers_that_share_no_memory_exchange_as_before(folder, free_port):
    mp.start_processes(_without_memory, (2, free_port, folder), nprocs=2, start_method="spawn")
    assert _left_behind() == []


def _without_space(rank: int, workers: int, port: int) -> None:
    with process_group(rank, workers, port):

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        node_gradients.os.posix_fallocate = full
        assert not average_on_one_machine(nn.parallel.DistributedDataParallel(_model()))


def _with_little(rank: int, workers: int, port: int) -> None:
    with process_group(rank, workers, port):
        needed = 4 * (workers + 1) * sum(parameter.numel() for parameter in _model().parameters())
        for size, expected in ((20 * needed, False), (30 * needed, True)):
            setattr(node_gradients, "_size_of", lambda _, size=size: size)  # noqa: B010
            assert average_on_one_machine(nn.parallel.DistributedDataParallel(_model())) == expected


def test_most_of_the_memory_is_left_to_ray(free_port):
    mp.start_processes(_with_little, (2, free_port), nprocs=2, start_method="spawn")


def test_memory_that_is_not_there_is_found_out_before_it_is_written_to(free_port):
    mp.start_processes(_without_space, (2, free_port), nprocs=2, start_method="spawn")
    assert _left_behind() == []


def _with_other_numbers(rank: int, workers: int, port: int) -> None:
    with process_group(rank, workers, port):
        assert average_on_one_machine(nn.parallel.DistributedDataParallel(_model()))
        assert not average_on_one_machine(nn.parallel.DistributedDataParallel(_model().double()))


def test_other_numbers_than_float32_are_exchanged_as_before(free_port):
    mp.start_processes(_with_other_numbers, (2, free_port), nprocs=2, start_method="spawn")


_LOSES_ONE = """
    import os, signal, sys, torch
    import torch.distributed as dist
    from torch import nn
    from pipeline.training.node_gradients import average_on_one_machine

    rank, port = int(sys.argv[1]), sys.argv[2]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    network = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    assert average_on_one_machine(network)
    for step in range(1000):
        if rank == 1 and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            network(torch.ones(2, 4)).sum().backward()
        except RuntimeError:
            print("lost", step, flush=True)
            os._exit(3)
"""


def test_a_worker_that_is_killed_ends_the_others_step(free_port):
    command = [sys.executable, "-c", textwrap.dedent(_LOSES_ONE)]
    workers = [
        subprocess.Popen([*command, str(rank), str(free_port)], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    try:
        out, _ = workers[0].communicate(timeout=60)
        assert workers[0].returncode == 3
        assert out.split() == ["lost", "3"]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert _left_behind() == []


def _left_behind() -> list[str]:
    deadline = time.monotonic() + 5  # other trainings of this machine may just be setting out
    while (found := _files()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def _files() -> list[str]:
    return [name for name in os.listdir(node_gradients.SHARED_MEMORY) if name.startswith("equihand-gradients-")]
