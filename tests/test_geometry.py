import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import geometry
from pipeline.hands import reorder
from tests.conftest import golden

DTYPES = [(torch.float64, "f64", 1e-9), (torch.float32, "f32", 1e-4)]

seeds = st.integers(0, 2**31 - 1)


def tensors(vectors, dtype=torch.float64):
    return {k: torch.from_numpy(v).to(dtype) for k, v in vectors.items() if v.dtype.kind == "f"}


def random_hands(seed, *batch):
    """Hand-like joints (*batch, 21, 3) in metres, 0.3 to 1 m away, and cameras (*batch, 3, 3), float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    joints = draw(21, 3) * 0.04
    joints[..., 2] += 0.3 + 0.7 * torch.rand(*batch, 1, generator=generator, dtype=torch.float64)
    # The reference bone has the length of a real one, so that the root's depth stays within the model's limits.
    bone = draw(3) * torch.tensor([1.0, 1.0, 0.3])
    joints[..., 10, :] = joints[..., 9, :] + 0.035 * bone / bone.norm(dim=-1, keepdim=True)
    camera = torch.zeros(*batch, 3, 3, dtype=torch.float64)
    camera[..., 0, 0], camera[..., 1, 1], camera[..., 2, 2] = 480.0, 470.0, 1.0
    camera[..., 0, 2], camera[..., 1, 2] = 112.0, 110.0
    return joints, camera


class TestReferenceOpenCode:
    """Root = wrist, bone = wrist to index MCP; the vectors are in AIT order, where the index MCP is joint 2."""

    @pytest.mark.parametrize(("dtype", "tag", "tolerance"), DTYPES)
    def test_there_and_back(self, dtype, tag, tolerance):
        v = golden("c_root_depth_wrist_indexmcp")
        joints, camera = torch.from_numpy(v["joints3d"]).to(dtype), torch.from_numpy(v["K"]).to(dtype)
        joints_25d, scale = geometry.to_25d(joints, camera, root=0, bone=(0, 2))
        assert joints_25d.dtype == dtype
        np.testing.assert_allclose(joints_25d, v[f"joints25d_{tag}"], rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(scale, v[f"scale_{tag}"], rtol=tolerance)
        depth = geometry.root_depth(joints_25d, camera, bone=(0, 2))
        np.testing.assert_allclose(depth, v[f"zroot_norm_{tag}"], rtol=tolerance)
        back = geometry.from_25d(joints_25d, scale, camera, bone=(0, 2))
        np.testing.assert_allclose(back, v[f"joints3d_recon_{tag}"], rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize(("dtype", "tag", "tolerance"), DTYPES)
    def test_noisy_and_degenerate(self, dtype, tag, tolerance):
        v = golden("c_root_depth_wrist_indexmcp")
        camera = torch.from_numpy(v["K"]).to(dtype)
        noisy = torch.from_numpy(v[f"joints25d_noisy_{tag}"])
        depth = geometry.root_depth(noisy, camera, bone=(0, 2))
        np.testing.assert_allclose(depth, v[f"zroot_norm_noisy_{tag}"], rtol=tolerance)
        back = geometry.from_25d(noisy, torch.from_numpy(v[f"scale_{tag}"]), camera, bone=(0, 2))
        np.testing.assert_allclose(back, v[f"joints3d_recon_noisy_{tag}"], rtol=tolerance, atol=tolerance)
        degenerate = geometry.root_depth(torch.from_numpy(v[f"joints25d_degenerate_{tag}"]), camera[:2], bone=(0, 2))
        np.testing.assert_allclose(degenerate, v[f"zroot_norm_degenerate_{tag}"], rtol=tolerance)

    def test_names_mean_the_same_bone_in_freihand_order(self):
        v = tensors(golden("c_root_depth_wrist_indexmcp"))
        joints = reorder(v["joints3d"], "ait", "freihand")
        joints_25d, scale = geometry.to_25d(joints, v["K"], root="wrist", bone="wrist-index")
        np.testing.assert_allclose(reorder(joints_25d), v["joints25d_f64"], atol=1e-9)
        depth = geometry.root_depth(joints_25d, v["K"], bone="wrist-index")
        np.testing.assert_allclose(depth, v["zroot_norm_f64"], rtol=1e-9)
        np.testing.assert_allclose(scale, v["scale_f64"])


class TestReferenceReleasedModel:
    """Root = palm (in joint 0's place), bone = middle MCP to PIP (AIT 3 to 8), clamps of the released model."""

    @pytest.mark.parametrize("tag", ["exact", "noisy"])
    def test_root_depth_and_refinement(self, tag):
        v = tensors(golden("c2_root_depth_palm_middle_refine_mlp"))
        joints_25d = torch.cat([v[f"kp2d_{tag}"], v[f"zrel_{tag}"][..., None]], -1)
        depth = geometry.root_depth(joints_25d, v["K"], bone=(3, 8))
        np.testing.assert_allclose(depth, v[f"zroot_clamped_{tag}"].flatten(), rtol=1e-9)
        rays = geometry.rays(joints_25d[..., :2], v["K"])
        np.testing.assert_allclose(rays, v[f"kp3d_unnorm_{tag}"], rtol=1e-9, atol=1e-12)
        inputs = torch.cat([v[f"zrel_{tag}"], rays[..., :2].flatten(1), depth[:, None]], 1)
        np.testing.assert_allclose(inputs, v[f"mlp_input_{tag}"], rtol=1e-9, atol=1e-12)
        refined = depth + refine(inputs, v)
        np.testing.assert_allclose(refined, v[f"zroot_refined_{tag}"].flatten(), rtol=1e-9)
        for root_depth, name in ((refined, "kp3d_scale_normalised"), (None, "kp3d_scale_normalised_no_mlp")):
            joints = geometry.from_25d(joints_25d, 1.0, v["K"], bone=(3, 8), root_depth=root_depth)
            np.testing.assert_allclose(joints, v[f"{name}_{tag}"], rtol=1e-9, atol=1e-9)

    def test_labels(self):
        v = tensors(golden("c2_root_depth_palm_middle_refine_mlp"))
        joints_25d, scale = geometry.to_25d(v["joints3d_palm_root"], v["K"], root=0, bone=(3, 8))
        np.testing.assert_allclose(joints_25d[..., :2], v["kp2d_exact"], rtol=1e-9)
        np.testing.assert_allclose(joints_25d[..., 2], v["zrel_exact"], atol=1e-9)
        np.testing.assert_allclose(scale, v["bone_len"], rtol=1e-9)
        # The same root from joints whose joint 0 is the wrist: in AIT order the palm lies between joints 0 and 3.
        with_wrist, _ = geometry.to_25d(v["joints3d_wrist_root"], v["K"], root=(0, 3), bone=(3, 8))
        np.testing.assert_allclose(with_wrist[:, 1:], joints_25d[:, 1:], atol=1e-9)

    def test_limits(self):
        v = tensors(golden("c2_root_depth_palm_middle_refine_mlp"))
        joints_25d = torch.cat([v["kp2d_clampcase"], v["zrel_clampcase"][..., None]], -1)
        depth = geometry.root_depth(joints_25d, v["K"][:2], bone=(3, 8))
        np.testing.assert_array_equal(depth, v["zroot_clamped_clampcase"].flatten())
        free = geometry.root_depth(joints_25d, v["K"][:2], bone=(3, 8), limits=(-math.inf, math.inf))
        assert free[0] > 50
        assert free[1] < 4


def refine(inputs, v):
    """The released model's refinement perceptron in evaluation mode."""
    x = inputs
    for linear, norm in (("mlp_0", "mlp_1"), ("mlp_3", "mlp_4")):
        x = F.linear(x, v[f"{linear}_weight"], v[f"{linear}_bias"])
        running = (v[f"{norm}_running_mean"], v[f"{norm}_running_var"])
        x = F.leaky_relu(F.batch_norm(x, *running, v[f"{norm}_weight"], v[f"{norm}_bias"]), 0.01)
    return F.linear(x, v["mlp_6_weight"], v["mlp_6_bias"])[:, 0]


@given(seeds, st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=30, deadline=None)
def test_25d_round_trip(seed, batch):
    joints, camera = random_hands(seed, *batch)
    joints_25d, scale = geometry.to_25d(joints, camera)
    assert joints_25d.shape == (*batch, 21, 3)
    assert scale.shape == batch
    # The larger root of the quadratic cannot suit a bone that points at the camera, but it is never too small.
    truth = joints[..., [0, 9], 2].mean(-1) / scale
    np.testing.assert_allclose(
        geometry.from_25d(joints_25d, scale, camera, root_depth=truth), joints, rtol=1e-9, atol=1e-12
    )
    found = geometry.root_depth(joints_25d, camera, limits=(0, math.inf))
    placed = geometry.from_25d(joints_25d, scale, camera, root_depth=found)
    bone = (placed[..., 10, :] - placed[..., 9, :]).norm(dim=-1)
    np.testing.assert_allclose(bone, scale, rtol=1e-6)
    assert (found >= truth - 1e-6).all()


def test_root_depth_has_gradients():
    joints, camera = random_hands(0, 4)
    joints_25d = geometry.to_25d(joints, camera)[0].requires_grad_()
    geometry.root_depth(joints_25d, camera).sum().backward()
    assert joints_25d.grad is not None
    assert joints_25d.grad.isfinite().all()


def test_half_precision_is_raised():
    joints, camera = random_hands(0, 4)
    joints_25d, scale = geometry.to_25d(joints.bfloat16(), camera.float())
    assert joints_25d.dtype == scale.dtype == torch.float32


def test_collapsed_bone_gives_no_nan():
    joints = torch.ones(2, 21, 3)
    joints_25d, scale = geometry.to_25d(joints, torch.eye(3).expand(2, 3, 3))
    assert joints_25d.isfinite().all()
    assert (scale == 0).all()


def test_unknown_names_are_refused():
    joints, camera = random_hands(0)
    with pytest.raises(ValueError, match="unknown bone 'thumb'"):
        geometry.to_25d(joints, camera, bone="thumb")
    with pytest.raises(ValueError, match="unknown joint 'elbow'"):
        geometry.to_25d(joints, camera, root="elbow")


class TestTransforms:
    @given(st.floats(-math.pi, math.pi), st.floats(-1, 1), st.floats(-1, 1), st.floats(0.2, 5), seeds)
    @settings(max_examples=30, deadline=None)
    def test_composition_and_inverse(self, angle, dx, dy, scale, seed):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(2, 7, 2, generator=generator, dtype=torch.float64)
        other = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
        first = geometry.similarity_matrix(
            torch.tensor([angle, 0.3], dtype=torch.float64),
            torch.tensor([[dx, dy], [0.1, 0.2]], dtype=torch.float64),
            torch.tensor([scale, 1.1], dtype=torch.float64),
        )
        in_steps = geometry.transform_points(other, geometry.transform_points(first, points))
        at_once = geometry.transform_points(geometry.compose(other, first), points)
        torch.testing.assert_close(at_once, in_steps, rtol=1e-9, atol=1e-9)
        there = geometry.transform_points(first, points)
        torch.testing.assert_close(geometry.transform_points(geometry.invert_affine(first), there), points)

    def test_rotation_is_opencvs(self):
        cv2 = pytest.importorskip("cv2")
        expected = cv2.getRotationMatrix2D((0, 0), 30, 1.5)
        found = geometry.similarity_matrix(torch.tensor(math.radians(30)), torch.zeros(2), torch.tensor(1.5))
        np.testing.assert_allclose(found, expected, atol=1e-6)

    @given(seeds)
    @settings(max_examples=20, deadline=None)
    def test_camera_follows_the_image(self, seed):
        joints, camera = random_hands(seed, 3)
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)
        moved = geometry.project(joints, geometry.transform_camera(matrix, camera))
        expected = geometry.transform_points(matrix, geometry.project(joints, camera))
        np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-6)
        # The rays of the moved pixels are still those of the original camera frame.
        new_camera = geometry.transform_camera(matrix, camera)
        np.testing.assert_allclose(geometry.rays(moved, new_camera), joints / joints[..., 2:], rtol=1e-6, atol=1e-7)


class TestProcrustes:
    def test_reference_proper_rotation(self):
        v = tensors(golden("d_metrics"))
        aligned = geometry.procrustes_align(v["pred"], v["gt"])
        np.testing.assert_allclose(aligned, v["pa_pred"], atol=1e-9)
        by_hand = v["pa_scale"] * v["pred"] @ v["pa_R"] + v["pa_translation"]
        np.testing.assert_allclose(aligned, by_hand, atol=1e-9)

    def test_reference_with_reflection(self):
        v = tensors(golden("d_metrics"))
        aligned = geometry.procrustes_align(v["pred"], v["gt"], allow_reflection=True)
        np.testing.assert_allclose(aligned, v["fh_aligned_pred"], atol=1e-9)
        mirrored = lambda points: (points[7] - v["gt"][7]).norm(dim=-1).mean() * 1000  # noqa: E731
        assert mirrored(aligned) == pytest.approx(2.8, abs=0.05)
        assert mirrored(geometry.procrustes_align(v["pred"], v["gt"])) == pytest.approx(36.8, abs=0.05)

    def test_float32(self):
        v = tensors(golden("d_metrics"), torch.float32)
        np.testing.assert_allclose(geometry.procrustes_align(v["pred"], v["gt"]), v["pa_pred"], atol=1e-5)

    @given(seeds)
    @settings(max_examples=20, deadline=None)
    def test_scipy_agrees(self, seed):
        rng = np.random.default_rng(seed)
        pred, target = rng.normal(size=(2, 21, 3))
        a, b = pred - pred.mean(0), target - target.mean(0)
        orthogonal, strength = scipy.linalg.orthogonal_procrustes(a, b)
        expected = a @ orthogonal * strength / (a**2).sum() + target.mean(0)
        found = geometry.procrustes_align(torch.from_numpy(pred), torch.from_numpy(target), allow_reflection=True)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        rotation, _ = scipy.spatial.transform.Rotation.align_vectors(b, a)
        turned = rotation.apply(a)
        expected = turned * (turned * b).sum() / (a**2).sum() + target.mean(0)
        found = geometry.procrustes_align(torch.from_numpy(pred), torch.from_numpy(target))
        np.testing.assert_allclose(found, expected, atol=1e-9)

    @given(seeds, st.floats(0.01, 100), st.booleans())
    @settings(max_examples=30, deadline=None)
    def test_similarity_transforms_make_no_difference(self, seed, scale, mirror):
        rng = np.random.default_rng(seed)
        pred, target = torch.from_numpy(rng.normal(size=(2, 4, 21, 3)))
        rotation = torch.from_numpy(scipy.spatial.transform.Rotation.random(rng=rng).as_matrix())
        moved = scale * (pred * torch.tensor([-1.0 if mirror else 1.0, 1, 1])) @ rotation.T + 3
        plain = geometry.procrustes_align(pred, target, allow_reflection=mirror)
        np.testing.assert_allclose(geometry.procrustes_align(moved, target, allow_reflection=mirror), plain, atol=1e-6)
        if not mirror:
            back = geometry.procrustes_align(moved, pred)
            np.testing.assert_allclose(back, pred, atol=1e-9)

    @pytest.mark.parametrize("allow_reflection", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_degenerate_input_gives_no_nan(self, allow_reflection, dtype):
        spread = torch.randn(21, 3, dtype=dtype)
        point = torch.ones(21, 3, dtype=dtype)
        line = torch.linspace(0, 1, 21, dtype=dtype)[:, None] * torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
        plane = spread * torch.tensor([1.0, 1.0, 0.0], dtype=dtype)
        for pred in (spread, point, line, plane, point * 0):
            for target in (spread, point, line, plane, point * 0):
                aligned = geometry.procrustes_align(pred, target, allow_reflection)
                assert aligned.isfinite().all()
                if pred is point:
                    torch.testing.assert_close(aligned, target.mean(0).expand_as(target))

    def test_leading_dimensions(self):
        pred, target = torch.randn(2, 3, 21, 3), torch.randn(2, 3, 21, 3)
        together = geometry.procrustes_align(pred, target)
        torch.testing.assert_close(together[1, 2], geometry.procrustes_align(pred[1, 2], target[1, 2]))
        torch.testing.assert_close(
            geometry.procrustes_align(pred, target[0, 0]),
            geometry.procrustes_align(pred, target[:1, :1].expand(2, 3, 21, 3)),
        )
