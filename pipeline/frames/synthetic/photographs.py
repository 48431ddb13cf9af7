"""Backgrounds from a folder of photographs."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline import storage
from pipeline.errors import DataError
from pipeline.frames.image_file import decode_image
from pipeline.frames.listing import IMAGE_SUFFIXES, list_inputs

_MEMORY_BYTES = 256 * 2**20
"""What a worker keeps of a folder; of a larger one, it takes photographs evenly spread over the sorted names."""


def photograph(rng: np.random.Generator, folder: str, size: int) -> Tensor:
    """A random part of a random photograph (3, size, size), linear RGB, mirrored half of the time.

    Raises DataError where the folder (URI) has no images, or one cannot be read.
    """
    names = photograph_uris(folder, size)
    picture = _shrunk(names[rng.integers(len(names))], size)
    height, width = picture.shape[:2]
    side = int(rng.uniform(0.6, 1) * min(height, width))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    part = Image.fromarray(picture).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    pixels = np.array(part)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1].copy()
    return (torch.from_numpy(pixels).permute(2, 0, 1).contiguous() / 255) ** 2.2


@lru_cache(maxsize=16)
def photograph_uris(folder: str, size: int) -> list[str]:
    """The photographs of a folder that backgrounds of `size` pixels are taken from. Raises DataError where there is none."""
    names = sorted(list_inputs(folder, IMAGE_SUFFIXES).uris())
    if not names:
        raise DataError(
            f"{folder}: no photographs here ({', '.join(IMAGE_SUFFIXES)}) for setting 'background.photographs'"
        )
    wanted = min(len(names), max(1, _MEMORY_BYTES // (3 * _stored_side(size) ** 2 * 2)))
    return [names[index * len(names) // wanted] for index in range(wanted)]


def _stored_side(size: int) -> int:
    """Shorter side that is kept of each photograph."""
    return size + size // 2


@lru_cache(maxsize=4096)
def _shrunk(uri: str, size: int) -> np.ndarray:
    """A photograph (H, W, 3) uint8 whose shorter side is as small as it may be."""
    try:
        image = decode_image(storage.read_bytes(uri))
    except ValueError as error:
        raise DataError(f"{uri}: {error}; remove it from the folder of 'background.photographs'") from None
    scale = _stored_side(size) / min(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    longest = 2 * _stored_side(size)  # of a panorama, the middle
    image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return np.array(image.crop((left, top, min(width, left + longest), min(height, top + longest))))
