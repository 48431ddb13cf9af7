"""What keeps light from a point: the cast shadow of the key light, and the closeness of other surfaces."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.frames.synthetic.rasteriser import depth_map

_BIAS = 0.003
"""Metres by which a surface must lie behind another to be in its shadow; hides the map's own steps."""
_NORMAL_OFFSET = 0.0025
"""Metres by which points are lifted off the surface before the test, for the same reason."""
_LIGHT_DISTANCE = 2.0
"""Depth of the map's centre, metres; any value that keeps all of the mesh before the light will do."""


class ShadowMap(NamedTuple):
    """Depth of the mesh as the key light sees it, without perspective."""

    depth: Tensor
    """(B, n, n) metres."""
    axes: Tensor
    """(3, 3) rows: right, down and forward for the light, in the camera frame."""
    centre: Tensor
    """(3,) camera frame, metres."""
    radius: float
    """Half the side of the square that the map covers, metres."""


def cast_shadows(
    points: Tensor, faces: Tensor, light_direction: Tensor, centre: Tensor, radius: float, resolution: int
) -> ShadowMap:
    """The shadow map of a mesh: points (V, B, 3) in the camera frame, faces (F, 3), light_direction (3,) to the light."""
    forward = -light_direction
    helper = torch.eye(3, device=points.device)[1 if abs(float(forward[1])) < 0.9 else 0]
    right = F.normalize(torch.linalg.cross(forward, helper), dim=0)
    axes = torch.stack([right, torch.linalg.cross(forward, right), forward])
    x, y, z = (points - centre).unbind(-1)
    across, down, depth = (x * axis[0] + y * axis[1] + z * axis[2] for axis in axes)
    to_pixels = resolution / (2 * radius)
    seen = torch.stack(
        [across * to_pixels + resolution / 2, down * to_pixels + resolution / 2, depth + _LIGHT_DISTANCE], -1
    )
    return ShadowMap(depth_map(seen, faces, resolution, resolution), axes, centre, radius)


def lit_share(shadows: ShadowMap, frame: Tensor, position: Tensor, normal: Tensor) -> Tensor:
    """How much of the key light reaches each point (N,), 0..1, with soft edges.

    frame: (N,) int64. position, normal: (3, N) in the camera frame. Averages 3 x 3 cells of the map around the point, with
    bilinear weights.
    """
    resolution = shadows.depth.shape[-1]
    x, y, z = position + normal * _NORMAL_OFFSET - shadows.centre[:, None]
    across, down, depth = (x * axis[0] + y * axis[1] + z * axis[2] for axis in shadows.axes)
    to_pixels = resolution / (2 * shadows.radius)
    column = across * to_pixels + (resolution / 2 - 0.5)
    row = down * to_pixels + (resolution / 2 - 0.5)
    depth = depth + (_LIGHT_DISTANCE - _BIAS)
    left, top = column.floor(), row.floor()
    column_share, row_share = column - left, row - top
    first = (frame * resolution + top.long().clamp(1, resolution - 3) - 1) * resolution
    first += left.long().clamp(1, resolution - 3) - 1
    cells = shadows.depth.view(-1)
    total = torch.zeros_like(depth)
    for i, row_weight in enumerate((1 - row_share, None, None, row_share)):
        in_row = torch.zeros_like(depth)
        for j, column_weight in enumerate((1 - column_share, None, None, column_share)):
            lit = (depth < cells.index_select(0, first + (i * resolution + j))).float()
            in_row += lit if column_weight is None else lit * column_weight
        total += in_row if row_weight is None else in_row * row_weight
    return total / 9


def openness(depth_image: Tensor, pixel: Tensor, depth: Tensor, hand_length: float) -> Tensor:
    """Ambient occlusion (N,): one where nothing near a point is nearer to the camera, less in folds and between fingers.

    depth_image: (B, S, S) metres, with a far background. pixel: (N,) index of each point into it. depth: (N,) metres.
    """
    occlusion = torch.zeros_like(depth)
    for reach, strength in ((3 / 128, 12.0), (8 / 128, 6.0)):
        radius = max(1, int(reach * depth_image.shape[-1]))
        around = _box_mean(depth_image, radius).view(-1).index_select(0, pixel)
        occlusion += ((depth - around) * (strength / hand_length)).clamp(0, 0.8)
    return (-occlusion).exp()


def _box_mean(images: Tensor, radius: int) -> Tensor:
    """Mean (B, S, S) over squares of 2 radius + 1 pixels, clipped at the border.

    Two products with a band matrix, image by image: several times faster than pooling on a CPU.
    """
    pixels = torch.arange(images.shape[-1], device=images.device)
    band = ((pixels[:, None] - pixels).abs() <= radius).float()
    band = (band / band.sum(1, keepdim=True)).expand(len(images), -1, -1)
    return torch.bmm(torch.bmm(band, images), band.mT)
