"""What frozen features know: ridge regression to the pose, retrieval of similar poses, equivariance of the latent.

The ridge is written by hand: scikit-learn's RidgeCV gives the same penalties and figures, and takes 7 to 14 times as long.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import hands
from pipeline.evaluation.metrics import MM, joint_errors
from pipeline.evaluation.yardsticks import Constant, skill
from pipeline.geometry import at_least_float32, procrustes_align, rotation_2d

_ALPHAS = torch.logspace(-4, 6, 41, dtype=torch.float64)
_QUERIES_AT_ONCE = 1024


class Ridge(NamedTuple):
    """A linear map of standardised features, fitted with an L2 penalty."""

    mean: Tensor
    """(F,) of the training features."""
    scale: Tensor
    """(F,) standard deviations of the training features; 1 for constant features."""
    weights: Tensor
    """(F, K)."""
    bias: Tensor
    """(K,)."""
    alpha: float
    """The penalty."""

    def predict(self, features: Tensor) -> Tensor:
        """Targets (N, K) from features (N, F), float64."""
        return (features.double().cpu() - self.mean) / self.scale @ self.weights + self.bias


def fit_ridge(features: Tensor, targets: Tensor, alpha: float | None = None) -> Ridge:
    """Ridge regression in closed form, float64, from features (N, F) to targets (N, K).

    alpha: the penalty on the squared weights of standardised features; None takes the best of 41 between 1e-4 and 1e6
    by generalised cross-validation (Golub, Heath & Wahba 1979), which needs no held-out data. Raises ValueError for
    fewer than 2 rows.
    """
    features, targets = features.detach().double().cpu(), targets.detach().double().cpu()
    num = len(features)
    if num < 2 or len(targets) != num:
        raise ValueError(f"a probe needs at least 2 rows and a target for each: {num} rows, {len(targets)} targets")
    mean, bias = features.mean(0), targets.mean(0)
    deviation = features.std(0)
    scale = torch.where(deviation > 1e-12 * (1 + mean.abs()), deviation, 1.0)
    left, singular, right = torch.linalg.svd((features - mean) / scale, full_matrices=False)
    rotated = left.T @ (targets - bias)
    if alpha is None:
        # One decomposition serves every penalty: a ridge shrinks component i by s_i^2 / (s_i^2 + alpha).
        unexplained = ((targets - bias) ** 2).sum() - (rotated**2).sum()
        left_over = _ALPHAS[:, None] / (singular**2 + _ALPHAS[:, None])
        residual = (left_over**2 @ (rotated**2).sum(1)) + unexplained.clamp_min(0)
        # Degrees of freedom that are left: N, less the mean, less the ridge's own.
        freedom = (num - 1 - (1 - left_over).sum(1)).clamp_min(1e-9)
        alpha = float(_ALPHAS[(residual / freedom**2).argmin()])
    shrunk = singular / (singular**2 + alpha) if alpha > 0 else torch.where(singular > 1e-10, 1 / singular, 0.0)
    return Ridge(mean, scale, right.T @ (shrunk[:, None] * rotated), bias, alpha)


def ridge_probe(
    features_train: Tensor,
    joints_train: Tensor,
    features_test: Tensor,
    joints_test: Tensor,
    alpha: float | None = None,
) -> dict[str, float]:
    """How well a ridge regression reads the pose off frozen features.

    features_*: (N, F). joints_*: (N, 21, 3) metres, FreiHAND order; the regression predicts them relative to the wrist.
    alpha: see `fit_ridge`. Gives, in millimetres on the test rows, epe_mm (root-relative), pa_epe_mm (after Procrustes
    alignment with a proper rotation), the same for always answering one fixed hand, the best that the training rows give
    (constant_epe_mm, constant_pa_epe_mm; see yardsticks.Constant), the share of its error that the regression removes
    (skill, pa_skill), and the penalty, alpha.
    """
    train, test = _root_relative(joints_train), _root_relative(joints_test)
    ridge = fit_ridge(features_train, train.flatten(1), alpha)
    pred = ridge.predict(features_test).view_as(test)
    aligned, relative = Constant.of(train).errors(test, "peclr")
    scores = {
        **_errors_mm("", pred, test),
        "constant_epe_mm": float(relative.mean()) * MM,
        "constant_pa_epe_mm": float(aligned.mean()) * MM,
    }
    return {
        **scores,
        "skill": skill(scores["epe_mm"], scores["constant_epe_mm"]),
        "pa_skill": skill(scores["pa_epe_mm"], scores["constant_pa_epe_mm"]),
        "alpha": ridge.alpha,
    }


def nearest_neighbours(features: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices (Q, k) of the rows of features (N, F) most similar to queries (Q, F) by cosine, the most similar first.

    k <= N. A query that is itself among the features finds itself first.
    """
    features, queries = F.normalize(at_least_float32(features), dim=-1), F.normalize(at_least_float32(queries), dim=-1)
    chunks = [(chunk @ features.T).topk(k, dim=-1).indices for chunk in queries.split(_QUERIES_AT_ONCE)]
    return torch.cat(chunks)


def retrieval_probe(
    features_train: Tensor, joints_train: Tensor, features_test: Tensor, joints_test: Tensor, k: int = 1
) -> dict[str, float]:
    """How similar the poses of the nearest training features are.

    epe_mm (root-relative) and pa_epe_mm: errors of the poses of the k nearest neighbours, mean over all of them.
    features_*: (N, F). joints_*: (N, 21, 3) metres, FreiHAND order. random_epe_mm, random_pa_epe_mm: the same for
    training poses that are taken evenly, without looking at features; a retrieval that knows nothing is as bad.
    """
    train, test = _root_relative(joints_train), _root_relative(joints_test)
    found = nearest_neighbours(features_train, features_test, k).cpu()
    some = torch.arange(found.numel()) * 7919 % len(train)  # a prime step visits the training rows evenly
    return {
        **_errors_mm("", train[found], test[:, None]),
        **_errors_mm("random_", train[some.view_as(found)], test[:, None]),
    }


def equivariance_score(plain: Tensor, turned: Tensor, angle: Tensor) -> dict[str, float]:
    """How well a known rotation of the image predicts what the projection does.

    plain, turned: projections (N, 2P) of the same crops without and with a rotation by `angle` (N,), radians,
    counter-clockwise on screen. Read as P points each, centred and normalised:

    - cosine: mean similarity of R(angle) plain with turned; 1 = the latent turns with the image.
    - cosine_unturned: of plain with turned; 1 = the latent ignores the rotation (invariance).
    - angle_error_deg: mean difference between `angle` and the best fitting rotation of plain onto turned; 90 = chance.
    """
    before, after = _unit_points(plain), _unit_points(turned)
    angle = angle.to(before)
    expected = (rotation_2d(angle)[:, None] * before[..., None, :]).sum(-1)
    # The rotation that best maps the points, from their dot and cross products; the y axis points down.
    dot = (before * after).sum((-1, -2))
    cross = (before[..., 1] * after[..., 0] - before[..., 0] * after[..., 1]).sum(-1)
    difference = torch.atan2(cross, dot) - angle
    wrapped = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
    return {
        "cosine": float((expected * after).sum((-1, -2)).mean()),
        "cosine_unturned": float(dot.mean()),
        "angle_error_deg": math.degrees(float(wrapped.abs().mean())),
    }


def _unit_points(projections: Tensor) -> Tensor:
    points = projections.detach().double().unflatten(-1, (-1, 2))
    points = points - points.mean(-2, keepdim=True)
    return F.normalize(points.flatten(-2), dim=-1).view_as(points)


def _root_relative(joints: Tensor) -> Tensor:
    joints = joints.detach().double().cpu()
    return joints - joints[:, hands.WRIST : hands.WRIST + 1]


def _errors_mm(prefix: str, pred: Tensor, target: Tensor) -> dict[str, float]:
    return {
        f"{prefix}epe_mm": float(joint_errors(pred, target).mean()) * MM,
        f"{prefix}pa_epe_mm": float(joint_errors(procrustes_align(pred, target), target).mean()) * MM,
    }
