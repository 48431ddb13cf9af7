import numpy as np
import pytest
import torch

from pipeline.evaluation.probes import (
    equivariance_score,
    fit_ridge,
    nearest_neighbours,
    retrieval_probe,
    ridge_probe,
)
from pipeline.evaluation.yardsticks import Constant
from pipeline.geometry import similarity_matrix, transform_points


def make(num, num_features=40, num_factors=6, noise=0.0, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and joints that share a few hidden factors."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    factors = torch.randn(num, num_factors, generator=generator)
    features = factors @ torch.randn(num_factors, num_features, generator=fixed) * 5 + 3
    features = features + noise * torch.randn(num, num_features, generator=generator)
    joints = (factors @ torch.randn(num_factors, 63, generator=fixed) * 0.02).view(num, 21, 3) + 0.5
    return features, joints


@pytest.mark.parametrize("shape", [(50, 8), (20, 60)])
@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_ridge_solves_the_normal_equations(shape, alpha):
    features, targets = torch.randn(*shape, dtype=torch.float64), torch.randn(shape[0], 3, dtype=torch.float64)
    ridge = fit_ridge(features, targets, alpha)
    x = (features - features.mean(0)) / features.std(0)
    expected = torch.linalg.solve(x.T @ x + alpha * torch.eye(shape[1]), x.T @ (targets - targets.mean(0)))
    torch.testing.assert_close(ridge.weights, expected.double())


def test_scikit_learn_agrees():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets = np.random.default_rng(0).normal(size=(30, 5)), np.random.default_rng(1).normal(size=(30, 2))
    x = (features - features.mean(0)) / features.std(0, ddof=1)
    expected = linear_model.Ridge(alpha=2.0).fit(x, targets).predict(x)
    found = fit_ridge(torch.from_numpy(features), torch.from_numpy(targets), 2.0)
    np.testing.assert_allclose(found.predict(torch.from_numpy(features)), expected, atol=1e-10)


def test_scikit_learn_chooses_the_same_penalty():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, joints = make(300, noise=8.0)
    x = ((features - features.mean(0)) / features.std(0)).double().numpy()
    expected = linear_model.RidgeCV(np.logspace(-4, 6, 41)).fit(x, joints.flatten(1).double().numpy())
    assert fit_ridge(features, joints.flatten(1)).alpha == pytest.approx(expected.alpha_)


def test_cross_validation_penalises_noise():
    features, joints = make(100, noise=0.01)
    clean = fit_ridge(features, joints.flatten(1))
    generator = torch.Generator().manual_seed(0)
    noise = fit_ridge(torch.randn(100, 60, generator=generator), torch.randn(100, 3, generator=generator))
    assert clean.alpha < 1
    assert noise.alpha > 100


def test_cross_validation_is_near_the_best_penalty():
    train, test = make(60, noise=8.0), make(400, noise=8.0, seed=1)
    chosen = ridge_probe(*train, *test)
    tried = [ridge_probe(*train, *test, 10.0**power)["epe_mm"] for power in range(-3, 6)]
    assert chosen["epe_mm"] < 1.05 * min(tried)


def test_probe_reads_a_linear_pose_and_beats_the_constant():
    scores = ridge_probe(*make(200), *make(100, seed=1))
    assert scores["epe_mm"] < 0.1
    assert scores["constant_epe_mm"] > 20
    assert scores["skill"] == pytest.approx(1 - scores["epe_mm"] / scores["constant_epe_mm"])
    assert scores["pa_skill"] > 0.99
    assert scores["pa_epe_mm"] <= scores["epe_mm"] + 1e-9


def test_probe_is_root_relative():
    features, joints = make(80)
    moved = joints + torch.randn(80, 1, 3)
    expected = ridge_probe(features[:60], joints[:60], features[60:], joints[60:])
    found = ridge_probe(features[:60], moved[:60], features[60:], moved[60:])
    assert found["epe_mm"] == pytest.approx(expected["epe_mm"], abs=1e-2)


def test_constant_features_and_more_features_than_rows():
    features, joints = make(20, num_features=100)
    features[:, 3] = 7.0
    scores = ridge_probe(features, joints, features, joints)
    assert all(np.isfinite(list(scores.values())))
    useless = ridge_probe(torch.ones(20, 4), joints, torch.ones(5, 4), joints[:5])
    # Features that know nothing leave the plain mean, to which the constant is superior.
    constant = Constant.of(joints).errors_mm(joints[:5], "peclr")
    assert useless["constant_epe_mm"] == pytest.approx(constant["constant_mpjpe_mm"])
    assert useless["constant_pa_epe_mm"] == pytest.approx(constant["constant_pa_epe_mm"])
    plain = joints - joints[:, :1]
    error = (plain.mean(0) - plain[:5]).norm(dim=-1).mean().item()
    assert useless["epe_mm"] == pytest.approx(1000 * error, rel=1e-5)


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        fit_ridge(torch.ones(1, 3), torch.ones(1, 3))


def test_nearest_neighbours():
    features = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [10, 1]])
    found = nearest_neighbours(features, torch.tensor([[3.0, 0.01], [0.1, 0.5]]), 3)
    assert found.tolist() == [[0, 3, 1], [1, 3, 0]]
    many = torch.randn(2500, 8)
    assert torch.equal(nearest_neighbours(many, many, 1)[:, 0], torch.arange(2500))


def test_retrieval_prefers_similar_poses():
    scores = retrieval_probe(*make(500), *make(100, seed=1), 3)
    assert scores["epe_mm"] < 0.8 * scores["random_epe_mm"]
    assert scores["pa_epe_mm"] < scores["random_pa_epe_mm"]


class TestEquivariance:
    angle = torch.linspace(-3, 3, 50)

    def turned(self, latents, angle):
        zero = torch.zeros(len(angle))
        matrix = similarity_matrix(angle, torch.stack([zero, zero], -1) + 0.3, 2 + zero)
        return transform_points(matrix, latents.unflatten(1, (-1, 2))).flatten(1)

    def test_equivariant_latent(self):
        latents = torch.randn(50, 32)
        score = equivariance_score(latents, self.turned(latents, self.angle), self.angle)
        assert score["cosine"] == pytest.approx(1, abs=1e-5)
        assert score["angle_error_deg"] < 0.01
        assert score["cosine_unturned"] < 0.5

    def test_invariant_latent(self):
        latents = torch.randn(50, 32)
        score = equivariance_score(latents, latents, self.angle)
        assert score["cosine_unturned"] == pytest.approx(1)
        assert score["angle_error_deg"] == pytest.approx(torch.rad2deg(self.angle.abs().mean()).item(), rel=1e-4)

    def test_unrelated_latent(self):
        generator = torch.Generator().manual_seed(0)
        plain, other = torch.randn(2, 2000, 32, generator=generator)
        score = equivariance_score(plain, other, torch.rand(2000, generator=generator) * 3)
        assert abs(score["cosine"]) < 0.05
        assert score["angle_error_deg"] == pytest.approx(90, abs=5)
