"""The pose head: golden vectors of the released model, round trips of labels, conventions."""

import re

import numpy as np
import pytest
import torch

from pipeline.geometry import default_camera, transform_camera
from pipeline.hands import reorder
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.weights import released_refinement
from tests.conftest import golden


def tiny_model(**settings) -> PoseModel:
    torch.manual_seed(0)
    return PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings(**settings)).eval()


def released_model_vectors() -> dict[str, torch.Tensor]:
    vectors = golden("c2_root_depth_palm_middle_refine_mlp")
    return {name: torch.from_numpy(np.asarray(array)) for name, array in vectors.items()}


def hands_and_cameras(num: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    joints = 0.05 * torch.randn(num, 21, 3, generator=generator, dtype=torch.float64)
    joints[:, 10] = joints[:, 9] + 0.03 * torch.nn.functional.normalize(joints[:, 9], dim=-1)
    joints[:, :, 2] += 0.5
    camera = torch.tensor([[150.0, 0.0, 64.0], [0.0, 155.0, 60.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return joints, camera.expand(num, 3, 3)


@pytest.mark.parametrize("tag", ["exact", "noisy"])
def test_full_chain_equals_the_released_model(tag):
    data = released_model_vectors()
    model = tiny_model().double()
    layers = {name: value for name, value in data.items() if re.match(r"mlp_\d_", name)}
    state = {name.removeprefix("mlp_").replace("_", ".", 1): value for name, value in layers.items()}
    assert model.refinement is not None
    model.refinement.load_state_dict(released_refinement(state))

    joints_25d = torch.cat([data[f"kp2d_{tag}"], data[f"zrel_{tag}"][..., None]], dim=-1)
    with torch.no_grad():
        output = model.lift(reorder(joints_25d, "ait", "freihand"), data["K"])
    torch.testing.assert_close(output.root_depth, data[f"zroot_refined_{tag}"].flatten(), rtol=1e-9, atol=1e-9)
    joints_3d = reorder(output.joints_3d, "freihand", "ait")
    torch.testing.assert_close(joints_3d, data[f"kp3d_scale_normalised_{tag}"], rtol=1e-9, atol=1e-9)


def test_metric_joints_with_the_wrist_equal_the_golden_hands():
    data = released_model_vectors()
    model = tiny_model(refine_root=False)
    joints_25d = torch.cat([data["kp2d_exact"], data["zrel_exact"][..., None]], dim=-1)
    output = model.lift(reorder(joints_25d, "ait", "freihand"), data["K"])
    joints = model.metric_joints(output, data["bone_len"])
    torch.testing.assert_close(reorder(joints, "freihand", "ait"), data["joints3d_wrist_root"], rtol=1e-9, atol=1e-9)


def test_clamps_equal_the_released_model():
    data = released_model_vectors()
    joints_25d = torch.cat([data["kp2d_clampcase"], data["zrel_clampcase"][..., None]], dim=-1)
    output = tiny_model(refine_root=False).lift(reorder(joints_25d, "ait", "freihand"), data["K"][:2])
    assert output.root_depth.tolist() == [50.0, 4.0]


@pytest.mark.parametrize("root", ["palm", "wrist"])
def test_targets_lift_back_to_the_labels(root):
    joints, camera = hands_and_cameras()
    model = tiny_model(root=root, refine_root=False)
    model.convention = type(model.convention)(model.convention.bone, (0.0, 1000.0))
    targets = model.targets(joints, camera)
    assert torch.equal(targets.joints_25d[:, 0, 2], torch.zeros(len(joints), dtype=torch.float64))
    output = model.lift(targets.joints_25d, camera)
    torch.testing.assert_close(output.root_depth, targets.root_depth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.metric_joints(output, targets.bone_length), joints, rtol=1e-6, atol=1e-8)


def test_labels_stay_when_the_image_is_transformed():
    """K' = T K: rotation, shift and scale of the image move u, v and leave depths as they are."""
    joints, camera = hands_and_cameras()
    model = tiny_model(refine_root=False)
    angle = torch.tensor(0.6, dtype=torch.float64)
    cos, sin = 1.3 * angle.cos(), 1.3 * angle.sin()
    transform = torch.stack([torch.stack([cos, sin, cos * 0 + 7]), torch.stack([-sin, cos, cos * 0 - 4])])
    before = model.targets(joints, camera)
    after = model.targets(joints, transform_camera(transform.expand(len(joints), 2, 3), camera))
    torch.testing.assert_close(after.joints_25d[..., 2], before.joints_25d[..., 2])
    torch.testing.assert_close(after.root_depth, before.root_depth)
    moved = before.joints_25d[..., :2] @ transform[:, :2].T + transform[:, 2]
    torch.testing.assert_close(after.joints_25d[..., :2], moved)


@pytest.mark.parametrize("kind", ["peclr", "spatial", "kinematic"])
def test_forward_gives_pixels_of_any_view_size_and_root_depth_zero(kind):
    model = tiny_model(kind=kind)
    with torch.no_grad():
        for layer in [""] if kind == "peclr" else ["maps.", "together.3."]:
            model.head.get_parameter(f"{layer}weight").zero_()
            model.head.get_parameter(f"{layer}bias").zero_()
        for side in (64, 128):
            output = model(torch.randn(2, 3, side, side))
            # All joints in the middle, of a kinematic head the root, as bones have lengths whatever the features say.
            middle = output.joints_25d[:, :1, :2] if kind == "kinematic" else output.joints_25d[..., :2]
            torch.testing.assert_close(middle, torch.full_like(middle, side / 2))
            assert torch.equal(output.joints_25d[:, 0, 2], torch.zeros(2))
            assert output.joints_3d.shape == (2, 21, 3)


def test_autocast_leaves_the_geometry_in_full_precision():
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = model(torch.randn(2, 3, 64, 64), default_camera(2, 64))
    assert {tensor.dtype for tensor in output} == {torch.float32}


def test_no_gradient_through_the_bone_equation():
    model = tiny_model().double()
    joints, camera = hands_and_cameras()
    joints_25d = model.targets(joints, camera).joints_25d.requires_grad_()
    root_depth = model.lift(joints_25d, camera).root_depth
    assert root_depth.requires_grad  # through the refinement's weights,
    assert torch.autograd.grad(root_depth.sum(), joints_25d, allow_unused=True) == (None,)  # not through its input


def test_unknown_scale_takes_the_mean_bone():
    model = tiny_model()
    model.mean_bone_length.fill_(0.04)
    with torch.no_grad():
        output = model(torch.randn(3, 3, 64, 64))
        given = model.metric_joints(output, torch.full((3,), 0.04))
        assert torch.equal(model.metric_joints(output), given)
