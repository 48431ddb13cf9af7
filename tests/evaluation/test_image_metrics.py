"""Errors in the image against naive loops, and what they do not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.evaluation.image_metrics import frame_errors_2d, hand_sizes, image_metrics, mean_joints_2d
from pipeline.hands import JOINTS


def hands(num: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted and true joints, and the size of a pixel."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(20, 140, size=(num, 21, 2)) * rng.uniform(0.3, 1, size=(num, 1, 1))
    pred = true + rng.normal(scale=8, size=true.shape)
    return torch.from_numpy(pred), torch.from_numpy(true), torch.from_numpy(rng.uniform(0.5, 4, size=num))


def test_metrics_by_naive_loops():
    pred, true, pixel_size = hands()
    found = image_metrics(pred, true, pixel_size)
    pixels, sizes = [], []
    for p, t in zip(pred.numpy(), true.numpy(), strict=True):
        pixels.append([np.hypot(*(a - b)) for a, b in zip(p, t, strict=True)])
        sizes.append(max(t[:, 0].max() - t[:, 0].min(), t[:, 1].max() - t[:, 1].min()))
    errors = np.array(pixels) / np.array(sizes)[:, None]
    assert found["epe_2d"] == pytest.approx(errors.mean())
    assert found["epe_2d_crop_px"] == pytest.approx(np.mean(pixels))
    assert found["epe_2d_px"] == pytest.approx((np.array(pixels) * pixel_size.numpy()[:, None]).mean())
    for percent in (5, 10, 20):
        assert found[f"pck_2d_{percent:02d}"] == np.mean(errors <= percent / 100)
    curve = [np.mean(errors <= threshold) for threshold in np.linspace(0, 0.2, 101)]
    np.testing.assert_allclose(found["pck_2d"], curve)
    assert found["auc_2d"] == pytest.approx(np.trapezoid(curve, np.linspace(0, 1, 101)))
    assert found["per_joint_2d"] == pytest.approx(dict(zip(JOINTS, errors.mean(0), strict=True)))
    np.testing.assert_allclose(frame_errors_2d(pred, true), errors.mean(1))


def test_perfect_answers():
    _, true, pixel_size = hands()
    found = image_metrics(true, true, pixel_size)
    assert (found["epe_2d"], found["epe_2d_px"], found["auc_2d"], found["pck_2d_05"]) == (0, 0, 1, 1)


@given(st.floats(0.2, 5), st.floats(-300, 300), st.booleans())
@settings(max_examples=30, deadline=None)
def test_scale_place_and_mirroring_do_not_count(scale, shift, mirrored):
    pred, true, pixel_size = hands()
    sign = torch.tensor([-1.0 if mirrored else 1.0, 1.0], dtype=torch.float64)
    before = image_metrics(pred, true, pixel_size)
    after = image_metrics(scale * sign * pred + shift, scale * sign * true + shift, pixel_size / scale)
    for name in ("epe_2d", "epe_2d_px", "pck_2d_10", "auc_2d"):
        assert after[name] == pytest.approx(before[name], rel=1e-6, abs=1e-9)
    assert after["epe_2d_crop_px"] == pytest.approx(scale * before["epe_2d_crop_px"])


def test_a_hand_without_extent_has_the_size_of_a_pixel():
    true = torch.full((1, 21, 2), 5.0)
    assert hand_sizes(true).tolist() == [1.0]
    assert image_metrics(true + 1, true, torch.ones(1))["epe_2d"] == pytest.approx(2**0.5)


def test_the_constant_is_the_mean():
    _, true, _ = hands(50)
    np.testing.assert_allclose(mean_joints_2d(true.numpy()), true.numpy().sum(0) / 50)


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (torch.zeros(2, 21, 3), r"pred must be \(N, 21, 2\)"),
        (torch.zeros(0, 21, 2), "with N > 0"),
        (torch.full((3, 21, 2), torch.nan), "3 of 3 samples are not finite"),
        (torch.zeros(4, 21, 2), "differ in shape"),
    ],
)
def test_bad_input_is_named(pred, message):
    with pytest.raises(DataError, match=message):
        image_metrics(pred, torch.zeros(3, 21, 2), torch.ones(3))
