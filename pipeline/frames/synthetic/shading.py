"""The colour of each visible point of skin and cloth, in linear light.

Everything here is a list of N visible points with one contiguous row for each coordinate or colour channel, (3, N),
because that is what elementwise operations are fastest on.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.frames.synthetic.appearance import Cloth, Lights, Skin
from pipeline.frames.synthetic.noise import solid_noise


class Surface(NamedTuple):
    """N visible points."""

    position: Tensor
    """(3, N) camera frame, metres."""
    normal: Tensor
    """(3, N) unit, camera frame."""
    rest: Tensor
    """(3, N) position on the hand at rest, in hand lengths: what the texture sticks to."""
    palm: Tensor
    """(N,) 0..1; likewise the next three."""
    redness: Tensor
    crease: Tensor
    nail: Tensor
    is_cloth: Tensor
    """(N,) bool."""


class Material(NamedTuple):
    """What light meets at N points."""

    albedo: Tensor
    """(3, N)"""
    normal: Tensor
    """(3, N) with the texture's bumps."""
    specular: Tensor
    """(N,) strength of the highlights."""
    sharpness: Tensor
    """(N,) exponent of the highlights."""


def dot(vectors: Tensor, others: Tensor) -> Tensor:
    """Dot products (N,) of (3, N) with (3, N), or with one vector (3,)."""
    return (vectors * (others[:, None] if others.dim() == 1 else others)).sum(0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors (3, N) of length one."""
    return vectors * dot(vectors, vectors).clamp_min(1e-20).rsqrt()


def surface_material(surface: Surface, skin: Skin, cloth: Cloth, texture_offset: float) -> Material:
    """Procedural skin (tone, palms, knuckles, creases, nails, pores) and cloth.

    texture_offset: where in the solid noise this clip's texture lies.
    """
    coarse, coarse_slope = solid_noise(surface.rest * 3.1 + texture_offset)
    fine, fine_slope = solid_noise(surface.rest * 11.0 + texture_offset)
    palm = ((surface.palm - 0.5) * 1.6 + 0.5).clamp(0, 1)
    nail = ((surface.nail - 0.35) * 4).clamp(0, 1)

    mottling = skin.roughness * (0.035 * coarse + 0.012 * fine)
    blood = surface.redness * (0.35 * skin.redness) + 0.06 * coarse
    creases = 1 - 0.16 * surface.crease * (1 - 0.5 * fine.clamp(-1, 1))
    red_shift = blood.new_tensor([0.25, -0.35, -0.25])
    tone = skin.back[:, None] + (skin.palm - skin.back)[:, None] * palm
    tone = tone * (mottling + red_shift[:, None] * blood).exp() * creases
    tone = tone + (skin.nail[:, None] - tone) * (0.75 * nail)

    in_second_ring = torch.sin(surface.rest[0] * (cloth.stripes * 2 * math.pi)) <= 0
    fabric = torch.where(in_second_ring, cloth.colours[1][:, None], cloth.colours[0][:, None]) * (0.12 * fine).exp()

    # The bumps' slope is known in the rest frame; the posed rotation is left out, as the noise looks alike in all directions.
    roughness = torch.where(surface.is_cloth, 2.2, skin.roughness) * (1 - nail)
    slope = (coarse_slope * 0.0013 + fine_slope * 0.0008) * roughness
    normal = unit(surface.normal * (1 + dot(slope, surface.normal)) - slope)
    return Material(
        albedo=torch.where(surface.is_cloth, fabric, tone),
        normal=normal,
        specular=torch.where(surface.is_cloth, cloth.gloss, 0.35 * skin.gloss * (1 + 1.6 * nail)),
        sharpness=torch.where(nail > 0.5, 60.0, 22.0),
    )


def illuminate(surface: Surface, material: Material, lights: Lights, lit: Tensor, open_to_sky: Tensor) -> Tensor:
    """Light that reaches the camera from N points (3, N).

    lit: (N,) share of the key light that is not shadowed. open_to_sky: (N,) share of the surroundings that a point sees.
    """
    view = -unit(surface.position)
    normal = material.normal
    # Light wraps round skin, most of all red light, which travels farthest in flesh.
    wrap = torch.where(surface.is_cloth, 0.1, normal.new_tensor([[0.38], [0.20], [0.14]]))
    softness = 1 / (1 + wrap)
    wrap = wrap * softness

    from_above = 0.45 + 0.55 * (0.5 + 0.5 * dot(normal, lights.up))
    key_cosine, fill_cosine = dot(normal, lights.key_direction), dot(normal, lights.fill_direction)
    light = lights.ambient_colour[:, None] * (from_above * open_to_sky)
    lit_by_channel = torch.stack([lit**0.75, lit, lit])  # red light leaks into the shadow's edge
    light += (key_cosine * softness + wrap).clamp_min(0) * lit_by_channel * (0.8 * lights.key_colour)[:, None]
    light += (fill_cosine * softness + wrap).clamp_min(0) * open_to_sky * (0.8 * lights.fill_colour)[:, None]
    colour = material.albedo * light

    strength = material.specular * (material.sharpness + 8) * (2.2 / 25)
    for direction, light_colour, cosine, visible in (
        (lights.key_direction, lights.key_colour, key_cosine, lit),
        (lights.fill_direction, lights.fill_colour, fill_cosine, open_to_sky),
    ):
        half = unit(view + direction[:, None])
        lobe = (dot(normal, half).clamp_min(1e-6).log() * material.sharpness).exp()
        fresnel = 0.04 + 0.96 * (1 - dot(view, half).clamp(0, 1)) ** 5
        colour += (strength * visible * lobe * cosine.clamp_min(0) * fresnel) * light_colour[:, None]
    rim = (1 - dot(normal, view).clamp(0, 1)) ** 3
    return colour + (0.05 * rim * open_to_sky) * lights.ambient_colour[:, None]
