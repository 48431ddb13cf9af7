"""The one-euro filter."""

import numpy as np
import pytest

from pipeline.prediction.smooth import SmoothSettings, one_euro, smooth_track
from tests.frames.clips import CAMERA, joints_at, project

TIMES = np.arange(90) / 30


def test_by_hand():
    """Two steps of the paper's formulas."""
    settings = SmoothSettings(min_cutoff_hz=1.0, beta=0.0)
    found = one_euro([0.0, 0.1, 0.2], np.array([[0.0], [1.0], [1.0]]), settings)
    alpha = 1 / (1 + 1 / (2 * np.pi * 0.1))
    np.testing.assert_allclose(found[:, 0], [0, alpha, alpha + alpha * (1 - alpha)])


def test_noise_shrinks_and_motion_does_not_lag():
    noise = np.random.default_rng(0).normal(0, 0.02, (90, 4))
    still = one_euro(TIMES, noise, SmoothSettings())
    assert still[30:].std() < 0.6 * noise[30:].std()
    ramp = np.repeat(2.0 * TIMES[:, None], 4, axis=1)
    stiff, quick = (one_euro(TIMES, ramp, SmoothSettings(beta=beta)) for beta in (0.0, 5.0))
    assert np.abs(quick - ramp)[-1].max() < 0.2 * np.abs(stiff - ramp)[-1].max()


def test_constant_and_uneven_times():
    values = np.full((4, 2), 3.0)
    np.testing.assert_array_equal(one_euro([0, 0.1, 0.1, 0.7], values, SmoothSettings()), values)
    jump = one_euro([0, 0.1, 0.1], np.array([[0.0], [0.0], [9.0]]), SmoothSettings())
    assert jump[2, 0] == 9.0  # no time has passed: the value is taken as it is
    assert one_euro([], np.zeros((0, 3)), SmoothSettings()).shape == (0, 3)


def test_a_smoothed_track_still_projects_onto_itself():
    rng = np.random.default_rng(1)
    joints = np.stack([joints_at(i) for i in range(20)]) / 0.03 + rng.normal(0, 0.2, (20, 21, 3))
    cameras = np.repeat(CAMERA[None], 20, axis=0)
    pixels = np.stack([project(hand, CAMERA) for hand in joints])
    smooth_2d, smooth_3d = smooth_track(np.arange(20) / 10, pixels, joints, cameras, SmoothSettings())
    np.testing.assert_allclose([project(hand, CAMERA) for hand in smooth_3d], smooth_2d, atol=1e-6)
    shake = [np.abs(np.diff(values, n=2, axis=0)).mean() for values in (smooth_2d, pixels)]
    assert shake[0] < 0.7 * shake[1]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="min_cutoff_hz"):
        SmoothSettings(min_cutoff_hz=0)
