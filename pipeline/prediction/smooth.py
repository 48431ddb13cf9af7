"""Steady joints in video: the one-euro filter (Casiez, Roussel and Vogel, CHI 2012)."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from pipeline.config import Settings


class SmoothSettings(Settings):
    """The one-euro filter. It looks back only, so it also fits live video; fast motion is smoothed less."""

    min_cutoff_hz: float = Field(default=1.5, gt=0)
    """Cutoff frequency of a hand at rest, Hz; lower is steadier."""
    beta: float = Field(default=0.5, ge=0)
    """Growth of the cutoff with speed, Hz for one hand size a second; higher lags less."""
    speed_cutoff_hz: float = Field(default=1.0, gt=0)
    """Cutoff frequency of the speed's own filter, Hz (1 in the paper)."""


def one_euro(times_s: Sequence[float] | np.ndarray, values: np.ndarray, settings: SmoothSettings) -> np.ndarray:
    """Filtered values (n, D) at ascending times (n,), seconds; every column for itself.

    The speed that opens the filter is in units of the values a second. Two values of one time: the later one is taken.
    """
    result = np.array(values, dtype=np.float64)
    speed = np.zeros(result.shape[1:])
    for i in range(1, len(result)):
        step = float(times_s[i] - times_s[i - 1])
        if step <= 0:
            continue
        speed += _weight(settings.speed_cutoff_hz, step) * ((values[i] - result[i - 1]) / step - speed)
        cutoff = settings.min_cutoff_hz + settings.beta * np.abs(speed)
        result[i] = result[i - 1] + _weight(cutoff, step) * (values[i] - result[i - 1])
    return result


def _weight(cutoff_hz: float | np.ndarray, step_s: float) -> np.ndarray:
    """Share of the new value in an exponential filter of this cutoff."""
    rate = 2 * math.pi * np.asarray(cutoff_hz) * step_s
    return rate / (rate + 1)


def smooth_track(
    times_s: np.ndarray, joints_2d: np.ndarray, joints_3d: np.ndarray, camera: np.ndarray, settings: SmoothSettings
) -> tuple[np.ndarray, np.ndarray]:
    """One hand through time, steadied: joints_2d (n, 21, 2) pixels and joints_3d (n, 21, 3) in lengths of a bone.

    camera: (n, 3, 3). What is filtered is 2.5D, pixels in hand sizes and depths in bone lengths, and 3D is computed from it,
    so that joints_2d remains the projection of joints_3d.
    """
    size = float(np.median((joints_2d.max(1) - joints_2d.min(1)).max(1))) or 1.0
    depth = joints_3d[..., 2]
    values = np.concatenate([joints_2d.reshape(len(joints_2d), -1) / size, depth], axis=1)
    filtered = one_euro(times_s, values, settings)
    pixels, depth = filtered[:, :42].reshape(-1, 21, 2) * size, filtered[:, 42:]
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1)
    rays = homogeneous @ np.linalg.inv(camera).transpose(0, 2, 1)
    return pixels, rays * depth[..., None]
