"""A sleeve for the forearm: a loose tube whose cuff hides where the arm's mesh ends."""

import math

import numpy as np
import torch
from torch import Tensor

_AROUND, _RINGS = 28, 12
NUM_SLEEVE_VERTICES = _AROUND * _RINGS
_FAR_END = 2.6
"""Where the sleeve ends, in hand lengths from the wrist: beyond the picture in every viewpoint that is accepted."""


def forearm_axis(x: Tensor) -> Tensor:
    """Points (..., 3) of the forearm's middle line at rest, for positions x (...) <= 0 along it, in hand lengths."""
    return torch.stack([x, -0.13 * x, -0.012 + 0.03 * x.clamp(-1.2, 0)], -1)


def sleeve_faces() -> Tensor:
    """Triangles (F, 3) between the sleeve's vertices, counter-clockwise seen from outside."""
    ring, around = np.divmod(np.arange((_RINGS - 1) * _AROUND), _AROUND)
    near = ring * _AROUND + around
    near_next = ring * _AROUND + (around + 1) % _AROUND
    far, far_next = near + _AROUND, near_next + _AROUND
    triangles = np.stack([np.stack([near, far, near_next], 1), np.stack([near_next, far, far_next], 1)], 1)
    return torch.from_numpy(triangles.reshape(-1, 3))


def sample_sleeve(rng: np.random.Generator, cuff: float) -> Tensor:
    """A random sleeve at rest: vertices (NUM_SLEEVE_VERTICES, 3), ring by ring from the cuff's inner lip.

    cuff: distance from the wrist to the cuff, in hand lengths.
    """
    looseness, flare = rng.uniform(1.12, 1.3), rng.uniform(0, 0.15)
    behind_cuff = 0.06 + np.linspace(0, 1, _RINGS - 3) ** 1.4 * (_FAR_END - cuff)
    x = -cuff - np.concatenate([[0.012, 0.0, 0.02], behind_cuff])
    widening = looseness + flare * np.exp(-(((x + cuff) / 0.12) ** 2))
    widening[0] = 0.5  # the lip turns inwards, so that one never looks into an empty tube
    widening[1] -= 0.03 * looseness
    angle = np.arange(_AROUND) * (2 * math.pi / _AROUND)
    folds = 0.05 * rng.standard_normal((_RINGS, 1)) * np.cos(2 * angle + rng.uniform(0, 2 * math.pi, (_RINGS, 1)))
    folds[:3] = 0
    towards_elbow = np.clip(-x, 0, 1.1) / 1.1
    radius_y = (0.145 + 0.055 * towards_elbow) * widening
    radius_z = (0.120 + 0.070 * towards_elbow) * widening
    rings = np.stack(
        [
            np.broadcast_to(0.02 * np.cos(angle), folds.shape),
            radius_y[:, None] * np.cos(angle) * (1 + folds),
            radius_z[:, None] * np.sin(angle) * (1 + folds),
        ],
        -1,
    )
    centres = forearm_axis(torch.from_numpy(x))[:, None]
    return (torch.from_numpy(rings) + centres).float().view(-1, 3)


def tuck_in(vertices: Tensor, forearm_weights: Tensor, cuff: float) -> Tensor:
    """Draw the forearm in where the sleeve covers it, so that skin never comes through the cloth.

    vertices (V, 3) at rest, forearm_weights (V,) their share of the forearm bone -> (V, 3).
    """
    x = vertices[:, 0]
    depth = ((-x - cuff - 0.03) / 0.05).clamp(0, 1) * forearm_weights
    return vertices + (forearm_axis(x) - vertices) * (0.35 * depth)[:, None]
