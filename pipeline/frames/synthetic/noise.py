"""Cached noise: a solid texture for skin and cloth, and sensor noise."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 48
_SPARE = 1 << 16


@lru_cache(maxsize=4)
def _solid_noise(device: torch.device) -> Tensor:
    """One tile of band-limited noise, wrapped by one cell: (n^3, 4), value of unit variance and gradient; x runs fastest."""
    generator = torch.Generator().manual_seed(7)
    k = torch.fft.fftfreq(_TILE) * _TILE
    frequency = torch.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None] ** 2)
    amplitude = torch.where((frequency > 1.5) & (frequency < 20), frequency.clamp_min(1) ** -1.3, 0.0)
    spectrum = torch.fft.fftn(torch.randn(_TILE, _TILE, _TILE, generator=generator)) * amplitude
    value = torch.fft.ifftn(spectrum).real
    axes = (k[None, None], k[None, :, None], k[:, None, None])
    slopes = [torch.fft.ifftn(spectrum * (2j * math.pi * axis)).real for axis in axes]
    volume = torch.stack([value, *slopes])[None] / value.std()
    wrapped = F.pad(volume, (0, 1, 0, 1, 0, 1), mode="circular")[0]
    return wrapped.flatten(1).T.contiguous().to(device)


def solid_noise(points: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth noise in space: points (3, N) in tiles -> value (N,), gradient (3, N) for one tile of distance.

    Trilinear interpolation, as a weighted sum of eight rows of a table.
    """
    cells = (points - points.floor()) * _TILE
    first = cells.floor().clamp_max(_TILE - 1)
    share = cells - first
    x, y, z = first.long()
    row = _TILE + 1
    near_corner = (z * row + y) * row + x
    steps = [(dz * row + dy) * row + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]
    along_x, along_y, along_z = torch.stack([1 - share, share]).unbind(1)  # 3 x (2, N)
    weights = along_z[:, None, None] * along_y[:, None] * along_x
    corners = near_corner[:, None] + torch.tensor(steps, device=points.device)
    table = _solid_noise(points.device)
    sampled = F.embedding_bag(corners, table, per_sample_weights=weights.view(8, -1).T.contiguous(), mode="sum").T
    return sampled[0].contiguous(), sampled[1:].contiguous()


@lru_cache(maxsize=4)
def _normal_table(num_values: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randn(num_values + _SPARE, generator=generator).to(device)


def sensor_noise(offsets: list[int], image_size: int, device: torch.device) -> Tensor:
    """Normal noise (B, 3, S, S) of unit variance for B frames: windows of one table, which begin at `offsets`."""
    num_values = 3 * image_size * image_size
    table = _normal_table(num_values, device)
    windows = [table[offset % _SPARE :][:num_values] for offset in offsets]
    return torch.stack(windows).view(-1, 3, image_size, image_size)
