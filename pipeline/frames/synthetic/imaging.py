"""What a camera makes of a picture: blur, noise, contrast, and the loss of JPEG."""

import math
from typing import Annotated, NamedTuple, TypeVar

import numpy as np
import pydantic
import simplejpeg
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings

_STEPS = 11
"""Moments while the shutter is open, of which a blurred picture is the mean."""

Quality = Annotated[int, Field(ge=1, le=100)]
Number = TypeVar("Number", int, float)


def rising(ends: tuple[Number, Number]) -> tuple[Number, Number]:
    """The ends of a range, for validators. Raises ValueError where the first is above the second."""
    if ends[0] > ends[1]:
        raise ValueError("give the lower end first")
    return ends


class ImagingSettings(Settings):
    """The camera's faults."""

    motion_blur: float = Field(default=0.0, ge=0, le=1)
    """Share of clips with motion blur."""
    shutter_s: float = Field(default=0.05, gt=0, le=0.5)
    """Longest exposure in seconds, in clips with motion blur."""
    defocus: float = Field(default=0.0, ge=0, le=1)
    """Share of clips that are out of focus."""
    defocus_radius: float = Field(default=0.012, gt=0, le=0.05)
    """Largest standard deviation of the blur out of focus, as a fraction of the picture's side."""
    noise: float = Field(default=0.02, ge=0, le=0.3)
    """Largest standard deviation of the sensor's noise, for colour values between 0 and 1."""
    tone: float = Field(default=0.0, ge=0, le=1)
    """How much contrast and saturation vary: standard deviation of their logarithms."""
    jpeg: float = Field(default=0.0, ge=0, le=1)
    """Share of clips whose frames were JPEG files before they became a video."""
    jpeg_quality: tuple[Quality, Quality] = (25, 95)
    """Smallest and largest quality of these JPEG files."""

    @pydantic.field_validator("jpeg_quality")
    @classmethod
    def _rising(cls, quality: tuple[int, int]) -> tuple[int, int]:
        return rising(quality)


class Imaging(NamedTuple):
    """One clip's camera."""

    noise: float
    """Standard deviation of the sensor's noise, of a picture in 0..1."""
    defocus: float = 0.0
    """Standard deviation of the blur, pixels; 0 = sharp."""
    contrast: float = 1.0
    saturation: float = 1.0
    jpeg_quality: int | None = None


def sample_imaging(rng: np.random.Generator, settings: ImagingSettings, noise: float, image_size: int) -> Imaging:
    """A random camera."""
    radius = rng.uniform(0.2, 1) * settings.defocus_radius * image_size
    contrast, saturation = np.exp(settings.tone * rng.standard_normal(2))
    quality = int(rng.integers(settings.jpeg_quality[0], settings.jpeg_quality[1] + 1))
    is_blurred, is_jpeg = rng.random(2) < (settings.defocus, settings.jpeg)
    return Imaging(
        noise, radius if is_blurred else 0.0, float(contrast), float(saturation), quality if is_jpeg else None
    )


def take(pictures: Tensor, imaging: Imaging, noise: Tensor) -> Tensor:
    """Sharp pictures (B, 3, S, S) in 0..1 -> what the sensor gives; noise of unit variance, of the same shape."""
    if imaging.defocus:
        blur = _gaussian_matrix(pictures.shape[-1], imaging.defocus).to(pictures.device)
        pictures = blur @ pictures @ blur.T
    if (imaging.contrast, imaging.saturation) != (1, 1):
        middle = 0.45
        pictures = middle + (pictures - middle) * imaging.contrast
        grey = pictures.mean(1, keepdim=True)
        pictures = grey + (pictures - grey) * imaging.saturation
    return pictures + imaging.noise * noise


def through_jpeg(pictures: Tensor, quality: int) -> Tensor:
    """Frames uint8 (B, 3, S, S) as they come back from JPEG files (4:2:0 chroma)."""
    frames = pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    files = [simplejpeg.encode_jpeg(frame, quality=quality, colorsubsampling="420") for frame in frames]
    decoded = np.stack([simplejpeg.decode_jpeg(file) for file in files])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).contiguous().to(pictures.device)


def longest_shift(image_size: int) -> int:
    """Pixels; faster motion is drawn as if it were as fast as this."""
    return math.ceil(0.1 * image_size)


def smear(pixel: Tensor, colour: Tensor, shift: Tensor, size: int, num_frames: int) -> Tensor:
    """A moving surface while the shutter is open.

    pixel: (N,) index of each visible point into (B, size, size) pictures. colour: (3, N). shift: (2, N) pixels by which
    the point moves while the shutter is open, with `pixel` half-way.
    Returns (4, B * size * size): colour times coverage, and coverage in 0..1.
    """
    in_frame = pixel % (size * size)
    frame_start = pixel - in_frame
    row = torch.div(in_frame, size, rounding_mode="floor")
    column = in_frame - row * size
    painted = torch.cat([colour, torch.ones_like(colour[:1])])
    layers = colour.new_zeros(4, num_frames * size * size)
    for step in range(_STEPS):
        moved = shift * ((step + 0.5) / _STEPS - 0.5)
        x, y = (column + moved[0]).round().long(), (row + moved[1]).round().long()
        inside = ((x >= 0) & (x < size) & (y >= 0) & (y < size)).to(painted.dtype)
        target = frame_start + y.clamp(0, size - 1) * size + x.clamp(0, size - 1)
        layers.index_add_(1, target, painted * inside)
    coverage = layers[3] / _STEPS
    colours = layers[:3] / layers[3].clamp_min(1e-6)
    coverage = (coverage * 1.1).clamp_max(1.0)  # where points part, nothing shows through the gaps
    return torch.cat([colours * coverage, coverage[None]])


def _gaussian_matrix(size: int, deviation: float) -> Tensor:
    """(size, size): weights of neighbours; rows sum to one, so borders are not dark."""
    places = torch.arange(size, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / deviation) ** 2)
    return weights / weights.sum(1, keepdim=True)
