"""BatchNorm over workers on CPUs equals one worker's BatchNorm over all rows, with real processes."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pipeline.training.sync_norm import GlobalBatchNorm, synchronise_batch_norm
from tests.training.gloo import process_group


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6)
    )
    with torch.no_grad():
        next(model[1].parameters()).uniform_()
    return model.double()


def images(total: int) -> torch.Tensor:
    return torch.randn(total, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return (output * torch.linspace(-1, 2, 6, dtype=torch.float64)).tanh().square().sum()


def gradients_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _worker(rank: int, counts: list[int], port: int, folder: str) -> None:
    with process_group(rank, len(counts), port):
        model = synchronise_batch_norm(network(), torch.device("cpu"))
        start = sum(counts[:rank])
        loss_of(model(images(sum(counts))[start : start + counts[rank]])).backward()
        gradients = gradients_of(model)
        dist.all_reduce(gradients)
        if rank == 0:
            torch.save(
                {"gradients": gradients, "buffers": dict(model.named_buffers())}, os.path.join(folder, "result.pt")
            )


@pytest.mark.parametrize("counts", [[4, 4], [6, 1]], ids=str)
def test_statistics_and_gradients_are_those_of_one_worker(counts, tmp_path, free_port):
    model = network()
    loss_of(model(images(sum(counts)))).backward()
    mp.start_processes(_worker, (counts, free_port, str(tmp_path)), nprocs=len(counts), start_method="spawn")
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.testing.assert_close(result["gradients"], gradients_of(model), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result["buffers"], dict(model.named_buffers()))


def test_alone_or_in_evaluation_it_is_the_plain_layer():
    plain, model = network(), synchronise_batch_norm(network(), torch.device("cpu"))
    assert isinstance(model.get_submodule("1"), GlobalBatchNorm)
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(model(images(5)), plain(images(5)))
    torch.testing.assert_close(model.eval()(images(5)), plain.eval()(images(5)))
