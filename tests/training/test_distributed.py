"""One loss on W workers x N frames equals one worker x W N frames: with real processes and gloo."""

import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from pipeline.objectives import nt_xent, nt_xent_global
from pipeline.training.distributed import device_for, gather, gather_values, share_buffers
from tests.training.gloo import process_group


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)).double()


def _frames(total: int) -> torch.Tensor:
    return torch.randn(2, total, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _worker(rank: int, workers: int, port: int, folder: str) -> None:
    with process_group(rank, workers, port):
        count = 12 // workers
        start = rank * count
        frames = _frames(12)[:, start : start + count]
        network = nn.parallel.DistributedDataParallel(_model())
        first, second = network(frames.reshape(2 * count, 6)).chunk(2)
        everyone = gather(torch.stack([first, second], dim=1))
        loss = nt_xent_global(first, second, everyone[:, 0], everyone[:, 1], start, 0.1)
        loss.backward()
        losses = gather_values(loss.detach()[None])
        if rank == 0:
            gradients = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
            torch.save({"loss": losses.mean(), "gradients": gradients}, os.path.join(folder, "result.pt"))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_loss_and_gradients_are_those_of_one_worker(workers, tmp_path, free_port):
    model = _model()
    frames = _frames(12)
    loss = nt_xent(model(frames[0]), model(frames[1]), 0.1)
    loss.backward()
    mp.start_processes(_worker, (workers, free_port, str(tmp_path)), nprocs=workers, start_method="spawn")
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-12, atol=0)
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(result["gradients"], expected, rtol=1e-10, atol=1e-14)


def test_without_a_process_group_a_gather_changes_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather(rows) is rows
    assert gather_values(torch.ones(2)).shape == (1, 2)


def _norm_of(rank: int) -> nn.Module:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3, generator=torch.Generator().manual_seed(rank)))
    return norm


def _sharing_worker(rank: int, port: int, folder: str) -> None:
    with process_group(rank, 2, port):
        norm = _norm_of(rank)
        share_buffers(norm)
        torch.save(norm.state_dict(), os.path.join(folder, f"{rank}.pt"))


def test_workers_measure_with_the_first_ones_running_statistics(tmp_path, free_port):
    mp.start_processes(_sharing_worker, (free_port, str(tmp_path)), nprocs=2, start_method="spawn")
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in _norm_of(0).state_dict().items():
            assert torch.equal(state[name], value)


def test_a_process_names_its_gpu_by_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert device_for(True) == torch.device("cuda", 2)
    assert device_for(False) == torch.device("cpu")
