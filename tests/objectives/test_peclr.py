import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.geometry import rotation_2d, similarity_matrix, transform_points
from pipeline.objectives import ObjectiveSettings, latent, nt_xent, undo_transform
from pipeline.views import ViewSettings, generator_for, identity_views, sample_views
from tests.conftest import golden
from tests.objectives.test_inverse_table import flat_hands

SETTINGS = {"crop_rotate": (1, 1), "crop": (1, 0), "rotate": (0, 1), "none": (0, 0)}
STAGES = {1: "normalised", 2: "translated", 3: "rotated", 4: "normalised"}


@pytest.mark.parametrize(("dtype", "tag", "tolerance"), [(torch.float64, "f64", 1e-10), (torch.float32, "f32", 1e-5)])
@pytest.mark.parametrize("name", SETTINGS)
def test_reference(dtype, tag, tolerance, name):
    v = golden("b_peclr_inverse_and_loss")
    with_translation, with_rotation = SETTINGS[name]
    projections = torch.from_numpy(v["proj"]).to(dtype).requires_grad_()
    angle = torch.from_numpy(np.radians(v["angle_deg"])) * with_rotation
    translation = torch.from_numpy(np.stack([v["jitter_x"], v["jitter_y"]], -1) / 128) * with_translation
    z = undo_transform(projections, angle, translation)
    loss = nt_xent(z[:16], z[16:])
    loss.backward()
    assert z.dtype == dtype
    np.testing.assert_allclose(z.detach(), v[f"z_{name}_{tag}"], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loss.item(), v[f"loss_{name}_{tag}"], rtol=tolerance)
    assert projections.grad is not None
    np.testing.assert_allclose(projections.grad, v[f"grad_{name}_{tag}"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tag", "tolerance"), [(torch.float64, "f64", 1e-10), (torch.float32, "f32", 1e-5)])
def test_reference_stages(dtype, tag, tolerance):
    """Normalise, move back, turn back, normalise: every stored stage."""
    v = golden("b_peclr_inverse_and_loss")
    near = {"rtol": tolerance, "atol": tolerance}
    projections = torch.from_numpy(v["proj"]).to(dtype)
    angle = torch.from_numpy(np.radians(v["angle_deg"])).to(dtype)
    side = torch.from_numpy(v["image_size"])
    translation = torch.from_numpy(np.stack([v["jitter_x"], v["jitter_y"]], -1)).to(dtype) / side
    stage = {n: torch.from_numpy(v[f"stage{n}_{name}_{tag}"]) for n, name in STAGES.items()}
    np.testing.assert_allclose(F.normalize(projections, dim=1), stage[1], **near)
    moved = undo_transform(projections, torch.zeros_like(angle), translation)
    np.testing.assert_allclose(moved, F.normalize(stage[2].flatten(1), dim=1), **near)
    backwards = torch.from_numpy(v[f"rotmat_transposed_{tag}"]).mT  # for column vectors, as ours
    np.testing.assert_allclose(rotation_2d(-angle), backwards[..., :2], **near)
    np.testing.assert_allclose(transform_points(backwards, stage[2]), stage[3], **near)
    found = undo_transform(projections, angle, translation)
    np.testing.assert_allclose(found, F.normalize(stage[3].flatten(1), dim=1), **near)
    np.testing.assert_allclose(found, stage[4], **near)


def test_reference_setting_uses_source_pixels():
    """The published behaviour: shift in source pixels over the input size, whatever the crop covers."""
    v = golden("b_peclr_inverse_and_loss")
    num, crop_side, scale = 32, 300.0, 1.25
    covered = crop_side / scale  # source pixels across a view
    jitter = torch.from_numpy(np.stack([v["jitter_x"], v["jitter_y"]], -1)).double()
    views = identity_views(num)._replace(
        angle=torch.from_numpy(np.radians(v["angle_deg"])),
        translation=jitter / covered,
        scale=torch.full((num,), scale, dtype=torch.float64),
    )
    settings = ObjectiveSettings(inverse="reference")
    z = latent(torch.from_numpy(v["proj"]), views, settings, crop_side=crop_side, view_size=128)
    np.testing.assert_allclose(z, v["z_crop_rotate_f64"], atol=1e-10)


def test_simclr_leaves_projections_as_they_are():
    views = sample_views(ViewSettings(), 4, generator_for(0))
    projections = torch.randn(4, 10)
    z = latent(projections, views, ObjectiveSettings(name="simclr"))
    torch.testing.assert_close(z, projections / projections.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("inverse", ["exact-units", "similarity", "reference"])
def test_latents_are_unit_float32_under_autocast(inverse):
    views = sample_views(ViewSettings(), 6, generator_for(1))
    projections = torch.randn(6, 16)
    expected = latent(projections, views, ObjectiveSettings(inverse=inverse))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = latent(projections, views, ObjectiveSettings(inverse=inverse))
    assert torch.equal(found, expected)
    assert latent(projections.bfloat16(), views, ObjectiveSettings(inverse=inverse)).dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("name", ["peclr", "simclr"])
@pytest.mark.parametrize("inverse", ["exact-units", "similarity", "reference"])
def test_upright_centred_views_change_nothing_but_the_length(name, inverse):
    projections = torch.randn(5, 12)
    points = projections.view(5, 6, 2)
    centred = (points - points.mean(1, keepdim=True)).flatten(1)
    z = latent(centred, identity_views(5), ObjectiveSettings(name=name, inverse=inverse))
    torch.testing.assert_close(z, torch.nn.functional.normalize(centred, dim=1))


def test_an_odd_number_of_entries_is_refused():
    with pytest.raises(ValueError, match="even number"):
        undo_transform(torch.zeros(2, 5), torch.zeros(2), torch.zeros(2, 2))


def test_collapsed_projections_give_no_nan():
    projections = torch.zeros(3, 8, requires_grad=True)
    views = sample_views(ViewSettings(), 3, generator_for(0))
    for inverse in ("exact-units", "similarity"):
        latent(projections, views, ObjectiveSettings(inverse=inverse)).sum().backward()
    assert projections.grad is not None
    assert projections.grad.isfinite().all()


def joints_in_view(joints, views):
    """The perfectly equivariant projection (N, 42): the joints themselves, centred on the view, its side the unit."""
    matrix = similarity_matrix(views.angle, views.translation, views.scale).double()
    return transform_points(matrix, joints).flatten(1)


@pytest.mark.parametrize(("inverse", "smallest"), [("similarity", 0.999), ("exact-units", 0.99)])
def test_perfectly_equivariant_projection(inverse, smallest):
    """The joints themselves as projections: after the inverse, both views of a hand must give the same latent."""
    joints = flat_hands(512, seed=3)
    latents = []
    for rank in range(2):
        views = sample_views(ViewSettings(), 512, generator_for(7, rank=rank))
        latents.append(latent(joints_in_view(joints, views), views, ObjectiveSettings(inverse=inverse)))
    cosines = (latents[0] * latents[1]).sum(1)
    assert cosines.mean() > smallest
    if inverse == "similarity":
        assert cosines.min() > smallest


@pytest.mark.parametrize("inverse", ["exact-units", "reference"])
@pytest.mark.parametrize("undone", [(), ("rotation",), ("translation",), ("rotation", "translation")])
def test_a_part_of_the_transforms_is_undone(inverse, undone):
    """For ablations; the other part is left in, as if the view did not have it."""
    projections = torch.randn(6, 20, generator=generator_for(0), dtype=torch.float64)
    views = sample_views(ViewSettings(), 6, generator_for(1))
    settings = ObjectiveSettings(inverse=inverse, undone=undone)
    known = views._replace(
        angle=views.angle * ("rotation" in undone), translation=views.translation * ("translation" in undone)
    )
    expected = latent(projections, known, ObjectiveSettings(inverse=inverse))
    torch.testing.assert_close(latent(projections, views, settings), expected)


def test_the_whole_inverse_is_not_taken_apart():
    with pytest.raises(ValueError, match="'similarity' undoes the whole transform"):
        ObjectiveSettings(inverse="similarity", undone=("rotation",))
