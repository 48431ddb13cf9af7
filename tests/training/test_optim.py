import itertools
import math

import pytest
import torch
from torch import nn

from pipeline.training.optim import (
    AdamInLars,
    OptimiserSettings,
    build_optimiser,
    learning_rate_at,
    parameter_groups,
    peak_learning_rate,
    set_learning_rate,
)


def test_no_weight_decay_on_biases_and_norm_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    decayed, exempt = parameter_groups(model, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 1, 1), (2, 4)]
    assert len(exempt["params"]) == 6
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    model[0].weight.requires_grad_(False)
    assert len(parameter_groups(model, 0.1)[0]["params"]) == 1


def test_schedule_warms_up_and_falls_to_zero():
    settings = OptimiserSettings(warmup_fraction=0.1)
    rates = [learning_rate_at(step, 100, settings, 2.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 <= rates[-1] < 2e-3
    # torch's own cosine schedule is the peer.
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=90)
    for step in range(10, 100):
        assert rates[step] == pytest.approx(peer.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        peer.step()


def test_peak_follows_the_global_batch():
    assert peak_learning_rate(OptimiserSettings(learning_rate=1.0), 1024) == 1.0
    assert peak_learning_rate(OptimiserSettings(learning_rate=1.0, scale_by_batch="linear"), 1024) == 4.0
    # PeCLR: 1e-4 * sqrt(2048) = 4.525e-3
    peclr = OptimiserSettings(learning_rate=1e-4, scale_by_batch="sqrt", reference_batch=1)
    assert peak_learning_rate(peclr, 2048) == pytest.approx(1e-4 * math.sqrt(2048))


def test_adam_in_lars_is_the_published_nesting():
    """One tensor at a time and in plain words, against the batched one; a tensor of zeros and one without gradient too."""
    torch.manual_seed(0)
    shapes, rate, decay, trust = [(3, 4), (5,), (2, 2), (2, 2)], 0.05, 0.3, 0.02
    start = [torch.randn(shape) for shape in shapes]
    start[2].zero_()
    ours = [nn.Parameter(p.clone()) for p in start]
    groups = [{"params": [ours[0], *ours[2:]], "weight_decay": decay}, {"params": [ours[1]], "weight_decay": 0.0}]
    optimiser = AdamInLars(groups, lr=rate, trust_coefficient=trust)
    peers = [nn.Parameter(p.clone()) for p in start]
    adam = torch.optim.Adam(peers, lr=rate)
    clipped = False
    for _ in range(3):
        # Small gradients for the first tensor, so that its ratio is clipped at 1.
        gradients = [torch.randn(shape) * scale for shape, scale in zip(shapes, [1e-4, 1, 1, 0], strict=True)]
        for index, (own, peer, gradient) in enumerate(zip(ours, peers, gradients, strict=True)):
            own.grad, peer.grad = gradient.clone(), gradient.clone()
            size, slope, wd = peer.detach().norm(), gradient.norm(), 0.0 if index == 1 else decay
            if size > 0 and slope > 0:
                ratio = min((trust * size / (slope + wd * size + 1e-8) / rate).item(), 1.0)
                clipped = clipped or ratio == 1.0
                peer.grad = ratio * (gradient + wd * peer.detach())
        optimiser.step()
        adam.step()
        for own, peer in zip(ours, peers, strict=True):
            torch.testing.assert_close(own, peer)
    assert clipped
    assert [group["weight_decay"] for group in optimiser.param_groups] == [decay, 0.0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lamb", "adam-in-lars"])
def test_every_optimiser_learns_and_goes_on_from_its_state(name, tmp_path):
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.randn(4, 3)
    settings = OptimiserSettings(name=name, learning_rate=0.03, trust_coefficient=1.0, weight_decay=1e-4)

    def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> float:
        for _ in range(steps):
            optimiser.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            loss.backward()
            optimiser.step()
        return loss.item()

    model = nn.Linear(4, 3)
    optimiser = build_optimiser(model, settings)
    first = train(model, optimiser, 1)
    train(model, optimiser, 9)
    torch.save(optimiser.state_dict(), tmp_path / "state.pt")
    again = nn.Linear(4, 3)
    again.load_state_dict(model.state_dict())
    resumed = build_optimiser(again, settings)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    losses = train(model, optimiser, 60), train(again, resumed, 60)
    assert losses[0] < first / 3
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars", "lamb", "adam-in-lars"])
def test_groups_may_scale_the_schedule(name):
    model = nn.Linear(2, 2)
    groups = [
        {"params": [model.weight], "weight_decay": 0.0, "lr_scale": 0.1},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    optimiser = build_optimiser(model, OptimiserSettings(name=name), groups)
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.5]
