import math

import pytest
import torch

from pipeline.objectives import GEOMETRY, PairwiseHead, pairwise_loss, relative_transform
from pipeline.views import ViewSettings, exchange_colour, generator_for, identity_views, sample_views


def two_batches(num=64):
    return [sample_views(ViewSettings(), num, generator_for(0, rank=rank)) for rank in range(2)]


def test_relative_transform_is_antisymmetric_and_zero_for_equal_views():
    first, second = two_batches()
    there, back = relative_transform(first, second), relative_transform(second, first)
    for name, value in there.items():
        torch.testing.assert_close(back[name], -value)
        assert not relative_transform(first, first)[name].any()
    assert {name: value.shape[1] for name, value in there.items()} == {
        "rotation": 1,
        "translation": 2,
        "scale": 1,
        "colour": 4,
    }


def test_rotation_does_not_jump():
    """170 and -170 degrees are 20 apart; the published target (modulo 360) would say 340 or 20."""
    plain = identity_views(2)
    first = plain._replace(angle=torch.tensor([math.radians(170), 0.1]))
    second = plain._replace(angle=torch.tensor([math.radians(-170), 0.05]))
    turn = relative_transform(first, second)["rotation"][:, 0]
    torch.testing.assert_close(turn, torch.tensor([math.radians(20), -0.05]))


def test_loss_by_hand():
    predictions = {"rotation": torch.tensor([[1.0], [3.0]]), "scale": torch.tensor([[0.5], [0.5]])}
    targets = {"rotation": torch.tensor([[0.0], [1.0]]), "scale": torch.zeros(2, 1), "colour": torch.ones(2, 4)}
    log_scales = {"rotation": torch.tensor(0.5), "scale": torch.tensor(-1.0)}
    expected = 1.5 * math.exp(-0.5) + 0.5 + 0.5 * math.exp(1.0) - 1.0
    assert pairwise_loss(predictions, targets, log_scales).item() == pytest.approx(expected)
    a_row_each = {name: scale.expand(2) for name, scale in log_scales.items()}
    assert pairwise_loss(predictions, targets, a_row_each).item() == pytest.approx(expected)


def test_head_learns_the_transform():
    torch.manual_seed(0)
    first, second = two_batches(256)
    targets = relative_transform(first, second)
    features = [torch.stack([v.angle, *v.translation.unbind(1), v.scale.log()], 1) for v in (first, second)]
    head = PairwiseHead(4, targets=GEOMETRY, hidden=32)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = pairwise_loss(head(*features), targets, head.log_scales)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    assert (head(*features)["rotation"] - targets["rotation"]).abs().mean() < targets["rotation"].abs().mean() / 3


def test_views_of_the_hybrid_differ_in_colour_or_in_geometry():
    first, second = two_batches(8)
    turned = exchange_colour(geometry_of=second, colour_of=first)
    recoloured = exchange_colour(geometry_of=first, colour_of=second)
    assert not relative_transform(first, turned)["colour"].any()
    assert not any(relative_transform(first, recoloured)[name].any() for name in GEOMETRY)
