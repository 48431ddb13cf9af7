import math

import pytest
import torch

from pipeline.objectives import NegativeSettings, PairWeights, nt_xent, nt_xent_global
from pipeline.objectives.relations import (
    Members,
    adaptive_factor,
    joint_distances,
    key,
    negative_log_weights,
    temporal_partners,
)


def clip(names, times, frames=None):
    """Members from letters for clips and seconds."""
    frames = list(range(len(times))) if frames is None else frames
    return Members(
        torch.tensor(frames),
        torch.tensor([key(name) for name in names]),
        torch.tensor([math.nan if time is None else time for time in times], dtype=torch.float64),
        torch.empty(len(times), 0, 2),
    )


def test_partners_are_near_in_the_same_clip_and_each_view_is_used_once():
    clips = [name for name in "abc" for _ in range(4)] + ["d", "e", "e"]
    times = [0.0, 0.2, 0.4, 0.6] * 3 + [0.0, 0.0, 9.0]
    seen = set()
    for seed in range(20):
        partner = temporal_partners(clips, times, 0.6, torch.Generator().manual_seed(seed))
        assert sorted(partner.tolist()) == list(range(15))
        for frame, other in enumerate(partner.tolist()):
            assert clips[frame] == clips[other]
            assert abs(times[frame] - times[other]) <= 0.6
            assert (frame == other) == (frame >= 12)  # alone in the clip, or too far apart
        seen.add(tuple(partner.tolist()))
    assert len(seen) > 10
    again = [temporal_partners(clips, times, 0.6, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


def test_an_odd_frame_steps_into_a_pair():
    for seed in range(10):
        partner = temporal_partners("aaa", [0.0, 0.1, 0.2], 0.5, torch.Generator().manual_seed(seed))
        assert sorted(partner.tolist()) == [0, 1, 2]
        assert (partner != torch.arange(3)).all()
    # The third is near the second only, so one frame keeps itself; no time, no partner.
    partner = temporal_partners("aaab", [0.0, 0.5, 1.0, None], 0.5, torch.Generator().manual_seed(0))
    assert (partner == torch.arange(4)).sum() == 2


def test_the_window_allows_for_rounded_times():
    assert temporal_partners("aa", [0.0, 0.5003], 0.5).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "same_clip_near", "same_clip_far", "no_time"),
    [
        (NegativeSettings(), 0.0, 0.0, 0.0),
        (NegativeSettings(same_clip="mask"), -math.inf, -math.inf, -math.inf),
        (NegativeSettings(same_clip="weight", weight=0.25), math.log(0.25), math.log(0.25), math.log(0.25)),
        (NegativeSettings(same_clip="beyond", beyond_seconds=1.0), -math.inf, 0.0, -math.inf),
    ],
)
def test_negatives_of_the_same_clip(settings, same_clip_near, same_clip_far, no_time):
    anchors = clip("a", [0.0], [7])
    columns = clip("aaaab", [0.0, 0.8, 5.0, None, 0.1], [7, 1, 2, 3, 4])
    found = negative_log_weights(anchors, columns, settings)
    expected = torch.tensor([[-math.inf, same_clip_near, same_clip_far, no_time, 0.0]])
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float32


def weighted_naively(view_1, view_2, temperature, weights):
    """The loss of every anchor by its definition, one term at a time."""
    views = torch.nn.functional.normalize(torch.cat([view_1, view_2]), dim=-1)
    num, count = len(view_1), len(views)
    total = 0.0
    for i in range(count):
        partner = (i + num) % count
        denominator = 0.0
        for j in range(count):
            if j != i:
                cosine = float(views[i] @ views[j]) * float(weights.factor[i, j])
                weight = 1.0 if j == partner else math.exp(float(weights.log_weight[i, j]))
                denominator += weight * math.exp(cosine / temperature)
        positive = float(views[i] @ views[partner]) * float(weights.positive_factor[i])
        total += math.log(denominator) - positive / temperature
    return total / count


def random_weights(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_weight = torch.randn(2 * num, 2 * num, generator=generator)
    log_weight[torch.rand(2 * num, 2 * num, generator=generator) < 0.3] = -math.inf
    factor = torch.rand(2 * num, 2 * num, generator=generator)
    return PairWeights(log_weight, factor, torch.rand(2 * num, generator=generator))


def part_of(weights):
    return lambda rows: PairWeights(*(field[rows] for field in weights))


def test_weighted_loss_by_a_naive_loop():
    view_1, view_2 = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = random_weights(6)
    found = nt_xent_global(view_1, view_2, view_1, view_2, 0, 0.3, weights_of=part_of(weights))
    assert found.item() == pytest.approx(weighted_naively(view_1, view_2, 0.3, weights), rel=1e-6)
    plain = PairWeights(torch.zeros(12, 12), torch.ones(12, 12), torch.ones(12))
    same = nt_xent_global(view_1, view_2, view_1, view_2, 0, 0.3, weights_of=part_of(plain))
    torch.testing.assert_close(same, nt_xent(view_1, view_2, 0.3))


@pytest.mark.parametrize("max_rows", [1, 5, 8, 24, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_of_logits_change_nothing(max_rows, weighted):
    first, second = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights_of = part_of(random_weights(12)) if weighted else None
    results = []
    for rows in (None, max_rows):
        view_1, view_2 = first.clone().requires_grad_(), second.clone().requires_grad_()
        local = slice(3, 9)
        loss = nt_xent_global(
            view_1[local], view_2[local], view_1, view_2, 3, 0.2, weights_of=weights_of, max_rows=rows
        )
        loss.backward()
        results.append((loss.detach(), view_1.grad, view_2.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


def test_adaptive_factor_of_joint_distances():
    joints = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]], [[math.nan] * 2] * 2])
    distances = joint_distances(joints, joints)
    torch.testing.assert_close(distances[:2, :2], torch.tensor([[0.0, 2.5], [2.5, 0.0]]))
    # Linear from 1 for the nearest to 0 for the furthest; unknown joints leave cosines alone.
    torch.testing.assert_close(adaptive_factor(distances[0], 0.0, 2.5), torch.tensor([1.0, 0.0, 1.0]))
    assert adaptive_factor(torch.zeros(2), 0.0, 0.0).isfinite().all()


def test_keys_tell_names_apart():
    assert key("a/b") == key("a/b") != key("a/c")
    assert 0 <= key("a/b") < 2**63
