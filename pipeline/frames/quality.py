"""What makes a good crop not worth keeping: too small, too uncertain, too blurred, or seen a moment ago.

All of it is off by default, and what it leaves out is counted by reason like any reject, as a choice and not as damage
(see rejects.CHOICE_REASONS). Both measures use whole numbers only, so that every machine decides alike.
"""

from functools import cache

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.config import Settings

HASH_BITS = 64
_SIDE = 32  # of the picture that is hashed
_LOW = 8  # frequencies kept each way


class QualitySettings(Settings):
    """Which hands to leave out by choice. Each filter is off where it is none."""

    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """Leave out hands whose detection or annotation has a lower confidence. Hands without a confidence are kept. none
    keeps all."""
    min_hand_px: float | None = Field(default=None, gt=0)
    """Leave out hands whose box is smaller: its longer side, in pixels of the source. Such hands would be enlarged in
    the crop. none keeps all."""
    min_sharpness: float | None = Field(default=None, gt=0)
    """Leave out hands that are less sharp in the stored crop: the variance of the Laplacian in the hand's box. A hand
    that had to be enlarged counts as blurred as well. The value depends on `image_size`, so take it from a data card of
    the same size. none keeps all."""
    min_change: int | None = Field(default=None, ge=1, le=HASH_BITS)
    """Leave out near-duplicates: how many of the 64 bits of a perceptual hash of the crop must differ from the last
    frame kept of the clip. Measured on real frames (95 %): JPEG at quality 50 changes up to 2 bits, a box that trembles
    by 1 % up to 4, and the next picture of a sequence with moving hands at least 8. So 6 is a good value. none keeps
    all."""


def sharpness(luminance: np.ndarray, hand_fraction: float = 1.0) -> float:
    """Variance of the Laplacian (4 neighbours) of a square picture; Pech-Pacheco et al. 2000.

    luminance: (S, S) uint8. hand_fraction: the side of the middle square that counts, as a fraction of S; for a crop this is
    1 / box_margin, because a blurred hand before a sharp background is still blurred.
    """
    size = len(luminance)
    border = max(round(size * (1 - hand_fraction) / 2), 1)
    values = luminance.astype(np.int64)
    neighbours = (
        values[border - 1 : size - border - 1, border : size - border]
        + values[border + 1 : size - border + 1, border : size - border]
        + values[border : size - border, border - 1 : size - border - 1]
        + values[border : size - border, border + 1 : size - border + 1]
    )
    laplacian = neighbours - 4 * values[border : size - border, border : size - border]
    count = laplacian.size
    return float(count * int((laplacian**2).sum()) - int(laplacian.sum()) ** 2) / count**2


def perceptual_hash(luminance: Image.Image) -> int:
    """64 bits that hardly change under re-encoding, scaling and brightness: which of the 8 x 8 lowest frequencies of the
    cosine transform lie above their median ("pHash", Zauner 2010).

    luminance: mode L, any size.
    """
    small = np.asarray(luminance.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.int64)
    waves = _cosines()
    spectrum = (waves @ small @ waves.T).ravel()
    # The mean brightness (first) is much larger than the rest and would only ever give a 1.
    above = spectrum > np.median(spectrum[1:])
    return int.from_bytes(np.packbits(above).tobytes())


def hash_distance(one: int, other: int) -> int:
    """Bits that differ, 0 to 64."""
    return (one ^ other).bit_count()


@cache
def _cosines() -> np.ndarray:
    """(8, 32) int64, the DCT-II's lowest frequencies, scaled by 1024."""
    frequency, place = np.meshgrid(np.arange(_LOW), np.arange(_SIDE) + 0.5, indexing="ij")
    return np.rint(1024 * np.cos(np.pi * frequency * place / _SIDE)).astype(np.int64)
