"""The constant pose and its errors, against scipy, naive loops, and what must not matter."""

import json

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipeline.errors import DataError
from pipeline.evaluation.metrics import pose_metrics
from pipeline.evaluation.yardsticks import (
    Constant,
    geometric_median,
    procrustes_mean,
    random_poses,
    skills,
)
from pipeline.geometry import procrustes_align

seeds = st.integers(0, 2**31 - 1)


def hands_seen_from_anywhere(seed: int, num: int, spread: float = 0.015) -> torch.Tensor:
    """Poses (N, 21, 3) about one hand, turned, scaled and placed at random."""
    rng = np.random.default_rng(seed)
    poses = rng.normal(scale=0.04, size=(21, 3)) + rng.normal(scale=spread, size=(num, 21, 3))
    poses = poses @ Rotation.random(num, rng=rng).as_matrix()
    return torch.from_numpy(rng.uniform(0.7, 1.3, (num, 1, 1)) * poses + rng.normal(size=(num, 1, 3)))


def naive_procrustes_mean(poses: np.ndarray) -> np.ndarray:
    """One pose after the other through scipy, many times."""
    mean = poses[0]
    for _ in range(200):
        mean = np.mean([scipy.spatial.procrustes(mean, pose)[1] for pose in poses], axis=0)
    size = np.mean([np.linalg.norm(pose - pose.mean(0)) for pose in poses])
    return mean * size / np.linalg.norm(mean)


def same_shape(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    return torch.allclose(procrustes_align(one, other), other, atol=tolerance, rtol=0)


def test_the_procrustes_mean_is_scipys():
    poses = hands_seen_from_anywhere(0, 12)
    found = procrustes_mean(poses)
    assert torch.linalg.matrix_norm(found) == pytest.approx(
        np.mean([np.linalg.norm(pose - pose.mean(0)) for pose in poses.numpy()])
    )
    assert same_shape(found, torch.from_numpy(naive_procrustes_mean(poses.numpy())), 1e-7)


def test_poses_with_nothing_in_common_have_a_mean_with_extent():
    """Their mean shrinks and turns for many iterations, in which no rounding error may grow."""
    poses = torch.randn(10, 21, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = procrustes_mean(poses)
    assert mean.mean(0).abs().max() < 1e-12
    assert torch.linalg.svdvals(mean)[-1] > 0.1
    # A stationary point: another round gives the same shape.
    again = procrustes_align(poses, mean).mean(0)
    assert same_shape(again, mean, 1e-6)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_turning_scaling_and_moving_each_pose_does_not_change_its_shape(seed):
    poses = hands_seen_from_anywhere(seed, 8)
    rng = np.random.default_rng(seed)
    rotation = torch.from_numpy(Rotation.random(8, rng=rng).as_matrix())
    scale, shift = torch.from_numpy(rng.uniform(0.2, 5, (8, 1, 1))), torch.from_numpy(rng.normal(size=(8, 1, 3)))
    found, moved = procrustes_mean(poses), procrustes_mean(scale * poses @ rotation + shift)
    assert same_shape(moved, found, 1e-6)


def test_no_nearby_hand_has_a_smaller_procrustes_distance():
    """The mean is a least-squares answer: every small change of it is worse."""
    poses = hands_seen_from_anywhere(3, 40)
    unit = poses - poses.mean(1, keepdim=True)
    unit = unit / torch.linalg.matrix_norm(unit, keepdim=True)
    mean = procrustes_mean(poses)

    def loss(hand: torch.Tensor) -> float:
        return float(((procrustes_align(hand, unit) - unit) ** 2).sum())

    generator = torch.Generator().manual_seed(0)
    changes = 0.002 * torch.randn(30, 21, 3, generator=generator, dtype=torch.float64)
    assert all(loss(mean + change) > loss(mean) for change in changes)


@pytest.mark.parametrize("num", [1, 2, 5, 30])
def test_the_median_has_the_least_mean_distance(num):
    points = np.random.default_rng(num).gamma(1.0, 0.05, size=(num, 4, 3))
    found = geometric_median(torch.from_numpy(points)).numpy()
    for joint in range(4):

        def mean_distance(point: np.ndarray, joint: int = joint) -> float:
            return float(np.linalg.norm(points[:, joint] - point, axis=-1).mean())

        options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 5000}
        best = scipy.optimize.minimize(mean_distance, points[:, joint].mean(0), method="Nelder-Mead", options=options)
        assert mean_distance(found[joint]) <= best.fun + 1e-7


def test_the_median_leaves_a_point_that_it_starts_on():
    """The mean of these is one of them, where Weiszfeld's weights are without bound; their median is another."""
    points = torch.tensor([[-3.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.float64)[:, None]
    torch.testing.assert_close(geometric_median(points)[0], points[-1, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("protocol", ["freihand", "peclr"])
def test_errors_are_those_of_answering_it_every_time(protocol):
    constant = Constant.of(hands_seen_from_anywhere(0, 60))
    target = hands_seen_from_anywhere(0, 25) * torch.tensor([1.0, 1, -1 if protocol == "freihand" else 1])
    found, mean = constant.metrics(target, protocol), constant.procrustes_mean.expand(25, 21, 3)
    expected = pose_metrics(mean, target, protocol)
    for name in ("pa_epe_mm", "pa_auc", "pa_pck", "pa_per_joint_mm", "thresholds"):
        assert found[name] == expected[name], name
    relative = (target - target[:, :1]) - constant.median
    assert found["mpjpe_mm"] == pytest.approx(1000 * relative.norm(dim=-1).mean().item())
    assert "epe_mm" not in found  # it has no place
    assert "auc" not in found
    assert constant.errors_mm(target, protocol) == {
        "constant_pa_epe_mm": pytest.approx(expected["pa_epe_mm"]),
        "constant_mpjpe_mm": pytest.approx(found["mpjpe_mm"]),
    }
    json.dumps(found)


def test_it_beats_the_plain_mean_and_a_pose_taken_blindly():
    """Over all viewpoints the plain mean is a hand that has collapsed: nothing to be measured against."""
    train, target = hands_seen_from_anywhere(1, 400), hands_seen_from_anywhere(1, 200)
    constant = Constant.of(train).errors_mm(target)
    plain = (train - train[:, :1]).mean(0).expand_as(target)
    blind = pose_metrics(random_poses(train, len(target)), target)
    assert constant["constant_pa_epe_mm"] < 0.8 * pose_metrics(plain, target)["pa_epe_mm"]
    assert constant["constant_pa_epe_mm"] < 0.8 * blind["pa_epe_mm"]
    assert constant["constant_mpjpe_mm"] < 0.8 * blind["mpjpe_mm"]


def test_random_poses_are_training_poses_and_the_same_every_time():
    train = hands_seen_from_anywhere(0, 50)
    drawn = random_poses(train, 400)
    assert torch.equal(drawn, random_poses(train, 400))
    assert not torch.equal(drawn, random_poses(train, 400, seed=1))
    rows = torch.cdist(drawn.flatten(1), train.flatten(1)).argmin(1)
    assert torch.equal(train[rows], drawn)
    assert len(rows.unique()) == 50


def test_skill_is_the_share_of_the_constants_error_that_is_gone():
    constant = {"constant_pa_epe_mm": 15.0, "constant_mpjpe_mm": 106.0}
    assert skills({"pa_epe_mm": 12.0, "mpjpe_mm": 26.5, **constant}) == {
        "pa_skill": pytest.approx(0.2),
        "mpjpe_skill": pytest.approx(0.75),
    }
    assert skills({"pa_epe_mm": 22.5, "mpjpe_mm": 106.0, **constant}) == {"pa_skill": -0.5, "mpjpe_skill": 0}
    nothing = {"constant_pa_epe_mm": 0.0, "constant_mpjpe_mm": 0.0}
    assert np.isfinite(list(skills({"pa_epe_mm": 1.0, "mpjpe_mm": 0.0, **nothing}).values())).all()


def test_json_brings_it_back():
    constant = Constant.of(hands_seen_from_anywhere(0, 30))
    text = json.dumps(constant.to_json())
    again = Constant.from_json(json.loads(text))
    assert len(text) < 3000  # it lies in every checkpoint
    assert again.num_poses == 30
    torch.testing.assert_close(again.procrustes_mean, constant.procrustes_mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(again.median, constant.median, atol=1e-6, rtol=0)
    assert again.to_json() == constant.to_json()
    for wrong in ({}, {"num_poses": 3, "procrustes_mean": [[0, 0, 0]], "median": [[0, 0, 0]]}, {"num_poses": None}):
        with pytest.raises(DataError):
            Constant.from_json(wrong)


def test_many_poses_are_thinned_evenly_and_few_or_bad_ones_are_handled():
    one = hands_seen_from_anywhere(0, 1)
    alone = Constant.of(one)
    assert alone.errors_mm(one)["constant_pa_epe_mm"] < 1e-3
    assert alone.errors_mm(one)["constant_mpjpe_mm"] < 1e-3
    many = one.expand(20_001, 21, 3).clone()
    many[1::2] += 1.0  # moved only
    assert Constant.of(many).num_poses == 20_001
    assert same_shape(Constant.of(many).procrustes_mean, alone.procrustes_mean, 1e-8)
    assert Constant.of(torch.zeros(3, 21, 3)).errors_mm(one)["constant_pa_epe_mm"] > 0  # hands without extent: no NaN
    with pytest.raises(DataError, match="training poses must be"):
        Constant.of(torch.zeros(0, 21, 3))
    with pytest.raises(DataError, match="training poses: 1 of 2 samples are not finite"):
        Constant.of(torch.stack([torch.zeros(21, 3), torch.full((21, 3), torch.nan)]))
