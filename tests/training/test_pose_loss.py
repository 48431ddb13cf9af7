"""The losses of fine-tuning: the published code's numbers, joints without a label, and whole hands in 3D."""

import numpy as np
import pytest
import scipy.spatial
import torch

from pipeline.geometry import project
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseOutput, PoseSettings, PoseTargets
from pipeline.training.pose_loss import PoseLossSettings, aligned_distance, mean_l1, pose_losses
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
    settings = PoseLossSettings(weight_3d=0, weight_aligned=0)
    camera = torch.eye(3, dtype=dtype).expand(len(true), 3, 3)  # not looked at without the losses in 3D
    output, targets = PoseOutput(noisy, root, recon), PoseTargets(true, root, scale)
    found = pose_losses(output, targets, camera, 128, settings, valid)
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


def hands_in_view(num: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    joints = 0.05 * torch.randn(num, 21, 3, generator=generator, dtype=torch.float64)
    joints[..., 2] += 0.5
    camera = torch.tensor([[150.0, 0, 64], [0, 155, 60], [0, 0, 1]], dtype=torch.float64)
    return joints, camera.expand(num, 3, 3)


def test_losses_in_3d_are_distances_in_bone_lengths():
    joints, camera = hands_in_view()
    model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings(root="wrist", refine_root=False))
    targets = model.targets(joints, camera)
    noise = 0.1 * torch.randn(5, 21, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise[:, 0] = 0
    moved = joints / targets.bone_length[:, None, None] + noise
    uv = project(moved, camera)
    predicted = torch.cat([uv, moved[..., 2:] - targets.root_depth[:, None, None]], -1)
    output = PoseOutput(predicted, targets.root_depth, moved)
    losses = pose_losses(output, targets, camera, 128, PoseLossSettings())
    assert losses.loss_3d.item() == pytest.approx(noise.norm(dim=-1).mean().item(), rel=1e-6)
    # The alignment of scipy: predicted and true standardised there, brought back to the true hand's size here.
    errors = []
    for found, true in zip(moved.numpy(), (joints / targets.bone_length[:, None, None]).numpy(), strict=True):
        standard, aligned, _ = scipy.spatial.procrustes(true, found)
        size = np.linalg.norm(true - true.mean(0))
        errors.append(np.linalg.norm((aligned - standard) * size, axis=-1).mean())
    assert losses.loss_aligned.item() == pytest.approx(np.mean(errors), rel=1e-6)
    weights = PoseLossSettings(weight_2d=0, weight_depth=0, weight_root=0, weight_3d=2, weight_aligned=3)
    total = pose_losses(output, targets, camera, 128, weights).total
    assert total.item() == pytest.approx(2 * losses.loss_3d.item() + 3 * losses.loss_aligned.item())


def test_the_aligned_loss_sees_no_similarity_and_no_mirror_image_as_equal():
    joints, _ = hands_in_view()
    turned = 1.7 * joints @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    if torch.linalg.det(torch.linalg.lstsq(joints[0], turned[0]).solution) < 0:
        turned = turned * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert aligned_distance(turned + 3, joints).item() == pytest.approx(0, abs=1e-8)
    assert aligned_distance(joints * torch.tensor([-1.0, 1, 1], dtype=torch.float64), joints).item() > 0.01


def test_the_aligned_loss_has_finite_gradients_where_hands_coincide_or_collapse():
    joints, _ = hands_in_view()
    for predicted in (joints.clone(), torch.zeros_like(joints), joints[:, :1].expand(5, 21, 3).clone()):
        predicted.requires_grad_()
        aligned_distance(predicted, joints).backward()
        assert predicted.grad is not None
        assert predicted.grad.isfinite().all()


@pytest.mark.parametrize("some", [[True, False, True, False, False], [False] * 5])
def test_rows_without_depth_teach_their_places_in_the_image_only(some):
    """The losses in 3D are those of the other rows alone, and 0 without any; made-up depths, even infinite ones, do nothing."""
    joints, camera = hands_in_view()
    has_3d = torch.tensor(some)
    model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings(refine_root=False))
    targets = model.targets(joints, camera)
    noise = torch.randn(5, 21, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    predicted = (targets.joints_25d + 0.1 * noise).requires_grad_()
    root = (targets.root_depth + noise[:, 0, 0]).requires_grad_()
    made_up = targets._replace(
        joints_25d=torch.where(
            has_3d[:, None, None], targets.joints_25d, targets.joints_25d * torch.tensor([1.0, 1, 9])
        ),
        root_depth=torch.where(has_3d, targets.root_depth, torch.inf),
    )
    output = PoseOutput(predicted, root, joints)
    found = pose_losses(output, made_up, camera, 64, PoseLossSettings(), has_3d=has_3d)
    every = pose_losses(output, targets, camera, 64, PoseLossSettings())
    assert found.loss_2d.item() == pytest.approx(every.loss_2d.item())
    if any(some):
        known = PoseOutput(*(t[has_3d] for t in output)), PoseTargets(*(t[has_3d] for t in targets))
        alone = pose_losses(*known, camera[has_3d], 64, PoseLossSettings())
        for name in ("loss_depth", "loss_root", "loss_3d", "loss_aligned"):
            assert getattr(found, name).item() == pytest.approx(getattr(alone, name).item()), name
    else:
        assert [loss.item() for loss in found[2:]] == [0] * 4
    found.total.backward()
    assert predicted.grad is not None
    assert root.grad is not None
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[~has_3d][..., 2] == 0).all()
    assert (predicted.grad[~has_3d][..., :2] != 0).all()
    assert (root.grad[~has_3d] == 0).all()
