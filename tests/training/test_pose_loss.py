"""The L1 losses of fine-tuning: the published code's numbers, and joints without a label."""

import numpy as np
import pytest
import torch

from pipeline.models.pose import PoseOutput, PoseTargets
from pipeline.training.pose_loss import PoseLossSettings, mean_l1, pose_losses
from tests.conftest import golden


@pytest.mark.parametrize(("dtype", "tag", "tolerance"), [(torch.float64, "f64", 1e-9), (torch.float32, "f32", 1e-4)])
def test_reference(dtype, tag, tolerance):
    v = golden("c_root_depth_wrist_indexmcp")
    data = {name: torch.from_numpy(array) for name, array in v.items() if name.endswith(tag)}
    noisy, true, scale = data[f"joints25d_noisy_{tag}"], data[f"joints25d_{tag}"], data[f"scale_{tag}"]
    recon, joints = data[f"joints3d_recon_noisy_{tag}"], torch.from_numpy(v["joints3d"]).to(dtype)
    valid = data[f"joints_valid_{tag}"][..., 0]
    assert valid.min() == 0
    root = data[f"zroot_norm_{tag}"]
    found = pose_losses(PoseOutput(noisy, root, recon), PoseTargets(true, root, scale), 128, PoseLossSettings(), valid)
    assert found.total.dtype == dtype
    np.testing.assert_allclose(found.loss_2d, v[f"loss_2d_{tag}"], rtol=tolerance)
    np.testing.assert_allclose(found.loss_depth, v[f"loss_z_{tag}"], rtol=tolerance)
    np.testing.assert_allclose(found.total, v[f"loss_2d_{tag}"] + 5 * v[f"loss_z_{tag}"], rtol=tolerance)
    metres = scale[:, None, None]
    depth = mean_l1(noisy[..., 2:] * metres, true[..., 2:] * metres, valid)
    np.testing.assert_allclose(depth, v[f"loss_z_unscaled_{tag}"], rtol=tolerance)
    np.testing.assert_allclose(mean_l1(recon, joints, valid), v[f"loss_3d_{tag}"], rtol=tolerance)


def test_joints_without_a_label_teach_nothing():
    predicted = torch.randn(3, 21, 2, requires_grad=True)
    true, valid = torch.randn(3, 21, 2), torch.ones(3, 21)
    true[1, 5:9], valid[1, 5:9] = torch.nan, 0
    loss = mean_l1(predicted, true, valid)
    loss.backward()
    known = [(n, j) for n in range(3) for j in range(21) if valid[n, j]]
    errors = [abs(float(predicted[n, j, c].detach() - true[n, j, c])) for n, j in known for c in range(2)]
    assert loss.item() == pytest.approx(np.mean(errors))
    assert predicted.grad is not None
    assert (predicted.grad[1, 5:9] == 0).all()
    assert predicted.grad.isfinite().all()
    assert mean_l1(predicted, true, torch.zeros(3, 21)).item() == 0


def test_all_joints_valid_is_the_plain_mean():
    predicted, true = torch.randn(2, 3, 21, 3)
    torch.testing.assert_close(mean_l1(predicted, true, torch.ones(3, 21)), mean_l1(predicted, true))
