import itertools
import math

import pytest
import torch
from torch import nn

from pipeline.training.optim import (
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


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_groups_may_scale_the_schedule(name):
    model = nn.Linear(2, 2)
    groups = [
        {"params": [model.weight], "weight_decay": 0.0, "lr_scale": 0.1},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    optimiser = build_optimiser(model, OptimiserSettings(name=name), groups)
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.5]
