"""What a clip looks like: skin, cloth and lights, drawn at random. Colours are linear RGB."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings

_BACK_OF_HAND_TONES = np.array(
    [
        [0.995, 0.895, 0.840],
        [0.965, 0.820, 0.730],
        [0.930, 0.740, 0.620],
        [0.850, 0.640, 0.500],
        [0.745, 0.530, 0.390],
        [0.600, 0.405, 0.285],
        [0.430, 0.285, 0.205],
        [0.300, 0.195, 0.145],
        [0.185, 0.125, 0.100],
    ]
)
_PALM_TONES = np.array(
    [
        [0.990, 0.835, 0.790],
        [0.970, 0.770, 0.700],
        [0.945, 0.715, 0.620],
        [0.900, 0.660, 0.545],
        [0.850, 0.610, 0.500],
        [0.790, 0.570, 0.470],
        [0.700, 0.490, 0.400],
        [0.620, 0.430, 0.350],
        [0.520, 0.355, 0.300],
    ]
)
"""Display colours from light to dark skin; palms vary less than the backs of hands. The ends are for `wide` only."""

SkinRange = Literal["usual", "wide"]


class LightSettings(Settings):
    """How far the light strays from a well-lit room."""

    side_light: float = Field(default=0.0, ge=0, le=1)
    """Share of clips lit hard from one side, with little light from elsewhere."""
    backlight: float = Field(default=0.0, ge=0, le=1)
    """Share of clips with a dark hand before a bright background."""
    colour: float = Field(default=0.0, ge=0, le=1)
    """How warm or cold the lights are: standard deviation of the logarithm of red against blue light."""
    exposure_stops: float = Field(default=0.0, ge=0, le=4)
    """Clips are over- or underexposed by up to this many stops (factors of two)."""
    white_balance: float = Field(default=0.0, ge=0, le=1)
    """How wrong the camera's white is: standard deviation of the logarithm of the gain of each colour channel."""


_NAIL_TONE = (0.93, 0.74, 0.70)


def linear(colour: np.ndarray | Sequence[float]) -> np.ndarray:
    """Display colour (gamma 2.2) -> linear light."""
    return np.asarray(colour, float) ** 2.2


def _tensor(colour: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(colour, np.float32))


class Skin(NamedTuple):
    """A person's skin."""

    back: Tensor
    """(3,) colour of the back of the hand."""
    palm: Tensor
    """(3,)"""
    nail: Tensor
    """(3,)"""
    redness: float
    gloss: float
    roughness: float
    """How strong spots and wrinkles are; 1 = smooth skin."""


def sample_skin(rng: np.random.Generator, skin_range: SkinRange = "usual") -> Skin:
    """A skin tone between light and dark, with its palm and nails. `wide`: from very light to very dark, rough and smooth."""
    wide = skin_range == "wide"
    backs, palms = (tones if wide else tones[1:-1] for tones in (_BACK_OF_HAND_TONES, _PALM_TONES))
    tone = rng.random() * (len(palms) - 1)
    index = min(int(tone), len(palms) - 2)
    share = tone - index
    spread = 1.4 if wide else 1.0
    variation = 0.74 * np.exp(rng.standard_normal(3) * (0.06, 0.04, 0.05) * spread + rng.standard_normal() * 0.08)
    back, palm = (linear(tones[index] * (1 - share) + tones[index + 1] * share) * variation for tones in (backs, palms))
    darkness = tone / (len(palms) - 1)
    nail = 0.55 * palm + 0.45 * linear(_NAIL_TONE) * (1 - 0.35 * darkness)
    redness, gloss = rng.uniform(0.5, 1.3), rng.uniform(0.25, 0.55)
    if not wide:
        return Skin(_tensor(back), _tensor(palm), _tensor(nail), redness, gloss, 1.0)
    return Skin(
        _tensor(back), _tensor(palm), _tensor(nail), redness * 1.4, gloss * rng.uniform(0.5, 2.0), rng.uniform(0.8, 2.2)
    )


class Cloth(NamedTuple):
    """The sleeve's fabric: rings of two colours, which are the same on plain cloth."""

    colours: Tensor
    """(2, 3)"""
    stripes: float
    """Pairs of rings for one hand length."""
    gloss: float = 0.02


def sample_cloth(rng: np.random.Generator) -> Cloth:
    """A fabric, striped one time in three."""
    colour = linear(rng.uniform(0.05, 0.9) * (1 - rng.uniform(0.1, 0.7) * rng.random(3)))
    second = colour * rng.uniform(0.4, 1.5) if rng.random() < 0.35 else colour
    return Cloth(_tensor(np.stack([colour, second])), rng.uniform(8, 40))


class Lights(NamedTuple):
    """A key light that casts shadows, a fill light, and light from all around. Directions point to the light."""

    key_direction: Tensor
    """(3,) unit, camera frame."""
    key_colour: Tensor
    fill_direction: Tensor
    """(3,) unit, camera frame."""
    fill_colour: Tensor
    ambient_colour: Tensor
    up: Tensor
    """(3,) unit, camera frame: where most of the ambient light comes from."""


def sample_lights(rng: np.random.Generator, surroundings: Tensor) -> Lights:
    """Random lights; the ambient light takes half of its tint from the mean colour (3,) of the surroundings."""
    warmth = rng.standard_normal() * 0.12
    tint = np.array([warmth, 0, -warmth])
    key_direction = _direction(rng, 0.2, 1.25)
    key_colour = np.exp(tint) * rng.uniform(0.8, 2.1)
    fill_direction = _direction(rng, 0.6, 2.0)
    fill_colour = np.exp(-tint) * rng.uniform(0.05, 0.5)
    ambient = (0.5 * surroundings / surroundings.mean().clamp_min(0.02) + 0.5) * rng.uniform(0.25, 0.6)
    up = _tensor(np.array([0.3 * rng.standard_normal(), -1, 0.3 * rng.standard_normal()]))
    return Lights(
        _tensor(key_direction),
        _tensor(key_colour),
        _tensor(fill_direction),
        _tensor(fill_colour),
        ambient,
        F.normalize(up, dim=0),
    )


def vary_lights(rng: np.random.Generator, lights: Lights, settings: LightSettings) -> Lights:
    """Lights as the settings allow: from the side, warm or cold."""
    tint = rng.standard_normal(2) * settings.colour / 2
    key_tint, ambient_tint = (_tensor(np.exp([shift, 0, -shift])) for shift in tint)
    key, ambient, fill = lights.key_colour * key_tint, lights.ambient_colour * ambient_tint, lights.fill_colour
    direction = lights.key_direction
    if rng.random() < settings.side_light:
        direction = _tensor(_direction(rng, 1.2, 2.0))
        key, ambient, fill = key * rng.uniform(1.2, 2.0), ambient * rng.uniform(0.2, 0.6), fill * 0.4
    return lights._replace(key_direction=direction, key_colour=key, ambient_colour=ambient, fill_colour=fill)


def sample_exposure(rng: np.random.Generator, settings: LightSettings) -> tuple[np.ndarray, float]:
    """Gain of each colour channel (3,), and by how much the background is brighter than what the lights make of it."""
    gain = 2.0 ** rng.uniform(-settings.exposure_stops, settings.exposure_stops) * np.ones(3)
    gain *= np.exp(settings.white_balance * rng.standard_normal(3) * (1, 0.4, 1))
    if rng.random() < settings.backlight:
        darker = rng.uniform(0.3, 0.6) / max(1.0, gain.mean())
        return gain * darker, rng.uniform(1.5, 4) / darker
    return gain, 1.0


def _direction(rng: np.random.Generator, nearest: float, farthest: float) -> np.ndarray:
    """Unit vector (3,) at a random angle in the given range (radians) from the direction towards the camera."""
    around, away = rng.uniform(0, 2 * math.pi), rng.uniform(nearest, farthest)
    return np.array([np.cos(around) * np.sin(away), np.sin(around) * np.sin(away), -np.cos(away)])
