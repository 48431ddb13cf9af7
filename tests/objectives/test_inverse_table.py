"""What each inverse recovers, on small and large crops; `pytest -s` on this file prints the table.

The experiment: a perfectly equivariant projection (the 2D joints themselves) of two random views of the same hand.
Views turn by +-45 degrees and are cut out as the published code does it: margin 0.9 to 1.5, moved by 0 to 14 SOURCE
pixels, then resized to 128 px. How similar are the two latents when only the rotation, only the translation, or both
are undone? 1 is perfect.

The published crop is centred on the mean of the joints, so that the image turns about the same point as the latent.
Crops here are centred on the hand's box: that is the last case.
"""

from typing import NamedTuple

import pytest
import torch

from pipeline.geometry import similarity_matrix, transform_points
from pipeline.objectives import ObjectiveSettings, latent
from pipeline.views import CROP_MARGIN, Views, identity_views

NUM_HANDS = 4000
INVERSES = ("reference", "exact-units", "similarity")
UNDONE = ("nothing", "rotation", "translation", "both")
MEAN_MARGIN = 1.2


class Crop(NamedTuple):
    """Where the experiment's crops come from."""

    side: float
    """Source pixels across a view at the mean margin."""
    centred_on: str


CROPS = {
    "147 px (FreiHAND)": Crop(147.0, "joints"),
    "497 px (HD video)": Crop(497.0, "joints"),
    "147 px, centred on the box": Crop(147.0, "box"),
}


def uniform(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def flat_hands(num: int, seed: int, centred_on: str = "joints") -> torch.Tensor:
    """2D joints (num, 21, 2) of random open and closed hands in any orientation, filling 1 / 1.5 of the crop.

    Coordinates are centred on the crop, its side is the unit. centred_on: "joints" (their mean) or "box".
    """
    generator = torch.Generator().manual_seed(seed)
    fan = torch.tensor([-0.9, -0.35, -0.1, 0.12, 0.35], dtype=torch.float64) + 0.2 * (uniform(generator, num, 5) - 0.5)
    base = torch.tensor([0.45, 1.0, 1.0, 0.95, 0.9], dtype=torch.float64)[:, None]
    steps = torch.tensor([0.0, 0.4, 0.65, 0.85], dtype=torch.float64)
    length = base + steps * (0.2 + 0.8 * uniform(generator, num, 5, 1))
    direction = torch.stack([torch.sin(fan), -torch.cos(fan)], -1)
    fingers = direction[:, :, None] * length[..., None]
    joints = torch.cat([torch.zeros(num, 1, 2, dtype=torch.float64), fingers.flatten(1, 2)], 1)
    turn = 2 * torch.pi * uniform(generator, num)
    still = torch.zeros(num, 2, dtype=torch.float64)
    joints = transform_points(similarity_matrix(turn, still, torch.ones_like(turn)), joints)
    low, high = joints.amin(1, keepdim=True), joints.amax(1, keepdim=True)
    joints = joints - (joints.mean(1, keepdim=True) if centred_on == "joints" else (low + high) / 2)
    return joints / joints.abs().amax((1, 2), keepdim=True) * (0.5 / CROP_MARGIN)


def published_views(num: int, crop: Crop, seed: int) -> Views:
    """Views as the published code draws them."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.deg2rad((uniform(generator, num) * 90 - 45).floor())
    scale = CROP_MARGIN / (0.9 + 0.6 * uniform(generator, num))
    jitter = -(uniform(generator, num, 2) * 15).floor()  # the box moves right and down, its content left and up
    covered = stored_side(crop) / scale
    return identity_views(num)._replace(angle=angle, translation=jitter / covered[:, None], scale=scale)


def stored_side(crop: Crop) -> float:
    """Source pixels across the stored crop, which has a margin of 1.5."""
    return crop.side * CROP_MARGIN / MEAN_MARGIN


def mean_cosine(crop: Crop, inverse: str, undone: str) -> float:
    """Mean cosine between the latents of two views of the same hands."""
    joints = flat_hands(NUM_HANDS, seed=0, centred_on=crop.centred_on)
    settings = ObjectiveSettings.model_validate(
        {"name": "simclr" if undone == "nothing" else "peclr", "inverse": inverse}
    )
    latents = []
    for seed in (1, 2):
        views = published_views(NUM_HANDS, crop, seed)
        projections = transform_points(similarity_matrix(*views[:3]), joints).flatten(1)
        known = views._replace(
            angle=views.angle * (undone in ("rotation", "both")),
            translation=views.translation * (undone in ("translation", "both")),
        )
        latents.append(latent(projections, known, settings, stored_side(crop), view_size=128))
    return float((latents[0] * latents[1]).sum(1).mean())


def inverse_table() -> dict[tuple[str, str, str], float]:
    """{(crop, inverse, what is undone): mean cosine}."""
    return {
        (name, inverse, undone): mean_cosine(crop, inverse, undone)
        for name, crop in CROPS.items()
        for inverse in INVERSES
        for undone in UNDONE
    }


@pytest.fixture(scope="module")
def table():
    return inverse_table()


def test_table(table):
    lines = [f"{'crop':<28}{'inverse':<13}" + "".join(f"{undone:>12}" for undone in UNDONE)]
    for crop in CROPS:
        for inverse in INVERSES:
            figures = "".join(f"{table[crop, inverse, undone]:>12.4f}" for undone in UNDONE)
            lines.append(f"{crop:<28}{inverse:<13}{figures}")
    print("\n" + "\n".join(lines))
    for crop in CROPS:
        for inverse in INVERSES:
            assert table[crop, inverse, "nothing"] < 0.9 < table[crop, inverse, "rotation"]


def test_similarity_is_perfect_everywhere(table):
    assert all(table[crop, "similarity", "both"] > 0.9999 for crop in CROPS)


def test_all_inverses_are_good_on_small_crops(table):
    small = "147 px (FreiHAND)"
    assert all(table[small, inverse, "both"] > 0.99 for inverse in INVERSES)
    assert all(table[small, inverse, "both"] > table[small, inverse, "rotation"] for inverse in INVERSES[:2])


def test_published_units_do_harm_on_large_crops(table):
    large = "497 px (HD video)"
    assert table[large, "reference", "both"] < table[large, "reference", "rotation"]
    assert table[large, "exact-units", "both"] > table[large, "exact-units", "rotation"]
    assert table[large, "exact-units", "both"] > 0.999
