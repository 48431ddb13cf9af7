"""Procedural backgrounds: walls, wood, blobs, cluttered rooms and checked cloth, more or less out of focus."""

import math
from functools import lru_cache

import numpy as np
import pydantic
import torch
from pydantic import Field
from torch import Tensor

from pipeline import storage
from pipeline.config import Settings, Uri
from pipeline.frames.synthetic.appearance import linear
from pipeline.frames.synthetic.photographs import photograph

Image = np.ndarray
"""(H, W, 3) float32, linear RGB."""


class BackgroundSettings(Settings):
    """What is behind the hand."""

    photographs: Uri | None = None
    """URI of a folder of photographs to use as backgrounds, best without hands in them. none draws every background."""
    photograph_share: float = Field(default=1.0, ge=0, le=1)
    """Share of clips that have a photograph as background, where `photographs` is given."""
    collage: float = Field(default=0.0, ge=0, le=1)
    """Share of the drawn backgrounds that are put together from several, like a furnished room behind a hand."""

    @pydantic.field_validator("photographs")
    @classmethod
    def _from_everywhere(cls, photographs: str | None) -> str | None:
        """Workers run in other folders than the command."""
        return None if photographs is None else storage.absolute(photographs)


def sample_background(rng: np.random.Generator, size: int) -> Tensor:
    """A random background (3, size, size), linear RGB in 0..2."""
    kinds = (_wall, _wood, _blobs, _room, _checks)
    image = kinds[rng.integers(len(kinds))](rng, size)
    picture = torch.from_numpy(image.clip(0, 2).astype(np.float32)).permute(2, 0, 1).contiguous()
    radius = int(rng.integers(0, 4))
    if radius:
        blur = _blur_matrix(size, radius)
        picture = blur @ picture @ blur.T
    return picture


def vary_background(rng: np.random.Generator, plain: Tensor, settings: BackgroundSettings) -> Tensor:
    """The background, or a photograph or a collage in its place, as the settings want; (3, size, size) linear RGB."""
    size = plain.shape[-1]
    if settings.photographs is not None and rng.random() < settings.photograph_share:
        return photograph(rng, settings.photographs, size) * float(rng.uniform(0.5, 1.4))
    if rng.random() < settings.collage:
        return _collage(rng, plain)
    return plain


def _collage(rng: np.random.Generator, picture: Tensor) -> Tensor:
    """Parts of other backgrounds laid over one: half planes, boxes and ellipses, with hard edges or soft ones."""
    size = picture.shape[-1]
    x, y = (torch.from_numpy(axis) for axis in _grid(size))
    for _ in range(rng.integers(1, 4)):
        angle, (centre_x, centre_y) = rng.uniform(0, 2 * math.pi), rng.uniform(0, 1, 2)
        across = (x - centre_x) * math.cos(angle) + (y - centre_y) * math.sin(angle)
        down = (y - centre_y) * math.cos(angle) - (x - centre_x) * math.sin(angle)
        width, height = rng.uniform(0.06, 0.5, 2)
        kind = rng.integers(3)
        if kind == 0:
            inside = across
        elif kind == 1:
            inside = torch.minimum(width - across.abs(), height - down.abs())
        else:
            inside = (1 - (across / width).square() - (down / height).square()) * min(width, height) / 2
        share = (inside * (size / rng.uniform(0.7, 6)) + 0.5).clamp(0, 1)
        picture = picture + (sample_background(rng, size) * float(rng.uniform(0.4, 2.0)) - picture) * share
    return picture.clamp(0, 3)


@lru_cache(maxsize=16)
def _blur_matrix(size: int, radius: int) -> Tensor:
    """(size, size): the mean over 2 radius + 1 neighbours, taken twice; the border is repeated."""
    columns = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    mean = torch.zeros(size, size).scatter_add_(1, columns.clamp(0, size - 1), torch.ones(columns.shape))
    mean /= 2 * radius + 1
    return mean @ mean


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Column (1, size) and row (size, 1) coordinates in 0..1."""
    steps = np.arange(size, dtype=np.float32) / size
    return steps[None], steps[:, None]


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A natural colour (3,), linear: mostly muted."""
    value, saturation = rng.uniform(0.08, 0.9), rng.uniform(0.05, 0.7)
    return linear(value * (1 - saturation + saturation * rng.random(3))).astype(np.float32)


def _fractal(
    rng: np.random.Generator, size: int, exponent: float, stretch_x: float = 1, stretch_y: float = 1
) -> np.ndarray:
    """Noise (size, size) of unit variance whose spectrum falls with frequency to the power of -exponent."""
    ky = np.fft.fftfreq(size)[:, None] * (size / stretch_y)
    kx = np.fft.rfftfreq(size)[None] * (size / stretch_x)
    amplitude = ((np.sqrt(kx * kx + ky * ky) + 1) ** -exponent).astype(np.float32)
    amplitude[0, 0] = 0
    white = rng.standard_normal((size, size), dtype=np.float32)
    noise = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(size, size))
    return noise / noise.std()


def _textured(image: Image, grain: np.ndarray) -> Image:
    """Brightness multiplied by exp(grain), grain (size, size)."""
    return image * np.exp(grain)[..., None]


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> Image:
    """From colour or image `first` to `second` by `share` (size, size) in 0..1."""
    return first + (second - first) * share[..., None]


def _wall(rng: np.random.Generator, size: int) -> Image:
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * math.pi)
    ramp = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    ramp = (ramp - ramp.min()) / np.ptp(ramp)
    return _textured(_blend(_colour(rng), _colour(rng), ramp), 0.08 * _fractal(rng, size, 1.5))


def _wood(rng: np.random.Generator, size: int) -> Image:
    _, y = _grid(size)
    wander = _fractal(rng, size, 1.6, stretch_x=rng.uniform(6, 14))
    rings = np.sin((y * np.float32(rng.uniform(6, 16)) + 0.35 * wander) * np.float32(2 * math.pi)) * 0.5 + 0.5
    light = (linear([0.62, 0.44, 0.28]) * rng.uniform(0.3, 1.1)).astype(np.float32)
    dark = light * np.float32(rng.uniform(0.4, 0.75))
    return _textured(_blend(light, dark, rings), 0.12 * _fractal(rng, size, 0.7, stretch_x=12))


def _blobs(rng: np.random.Generator, size: int) -> Image:
    first, second = (1 / (1 + np.exp(-4 * _fractal(rng, size, rng.uniform(1.25, 2.1)))) for _ in range(2))
    image = _blend(_blend(_colour(rng), _colour(rng), first), _colour(rng), 0.7 * second)
    return _textured(image, 0.1 * _fractal(rng, size, 0.8))


def _room(rng: np.random.Generator, size: int) -> Image:
    """Wall and floor behind boxes and discs."""
    x, y = _grid(size)
    image = np.empty((size, size, 3), np.float32)
    image[:] = _colour(rng)
    image[int(rng.uniform(0.45, 0.8) * size) :] = _colour(rng)
    for _ in range(rng.integers(5, 18)):
        colour = _colour(rng)
        centre_x, centre_y = rng.uniform(-0.1, 1.1, 2)
        half_width, half_height = rng.uniform(0.04, 0.3), rng.uniform(0.04, 0.4)
        across = (x - np.float32(centre_x)) / np.float32(half_width)
        down = (y - np.float32(centre_y)) / np.float32(half_height)
        if rng.random() < 0.6:
            covered = (np.abs(across) < 1) & (np.abs(down) < 1)
        else:
            covered = across**2 + down**2 < 1
        shade = np.broadcast_to(1 + 0.3 * across, covered.shape)
        image[covered] = colour * shade[covered][:, None]
    return _textured(image, 0.08 * _fractal(rng, size, 1.0))


def _checks(rng: np.random.Generator, size: int) -> Image:
    x, y = _grid(size)
    columns, rows = rng.uniform(3, 24, 2) * (2 * math.pi)
    stripes = (np.sin(x * columns) > rng.uniform(-0.6, 0.6)) * np.float32(0.5)
    cells = stripes + (np.sin(y * rows) > rng.uniform(-0.6, 0.6)) * np.float32(0.5)
    weave = 0.1 * _fractal(rng, size, 0.5) + 0.15 * _fractal(rng, size, 1.8)
    return _textured(_blend(_colour(rng), _colour(rng), cells), weave)
