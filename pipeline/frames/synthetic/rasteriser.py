"""A small z-buffer rasteriser for triangle meshes in plain PyTorch, batched over frames of one mesh.

Each visible triangle lists the pixels of its bounding box, pixels outside the triangle are dropped, and the nearest
fragment of each pixel is found with one scatter. There is no near clipping: triangles that reach nearer than MIN_DEPTH
are left out. Points are stored vertex by vertex, (V, B, 3), so that looking up a corner copies contiguous memory.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_DEPTH = 0.05
"""Triangles with a corner nearer than this are not drawn, in the unit of depth (metres)."""

_MIN_AREA = 1e-9


class Fragments(NamedTuple):
    """The visible surface: one entry for each pixel that shows the mesh, in order of frame, row, column."""

    pixel: Tensor
    """(N,) int64 index into the flattened (B, H, W) images."""
    face: Tensor
    """(N,) int64 index of the triangle seen."""
    weights: Tensor
    """(N, 3) barycentric weights of the triangle's corners at the surface point (perspective-correct)."""
    depth: Tensor
    """(N,) depth of the surface point."""


class _Candidates(NamedTuple):
    """Pixel centres that lie inside a triangle which faces the camera, nearest or not."""

    pixel: Tensor
    """(M,) index into the flattened images."""
    triangle: Tensor
    """(M,) row in the tables of drawn triangles below."""
    weight_0: Tensor
    """(M,) weight of corner 0 on the screen."""
    weight_1: Tensor
    """(M,) weight of corner 1 on the screen."""
    inverse_depth: Tensor
    """(M,)"""
    face: Tensor
    """(T,) index of each drawn triangle in the mesh."""
    corner_inverse_depth: Tensor
    """(T, 3)"""


def rasterise(points: Tensor, faces: Tensor, height: int, width: int) -> Fragments:
    """The nearest surface at the centre of every pixel.

    points: (V, B, 3) pixel coordinates x (right), y (down) and depth of V vertices in B frames; the centre of pixel i is
    at i + 0.5. faces: (F, 3) int64, counter-clockwise seen from outside; back faces are not drawn.
    """
    candidates = _covered_pixels(points, faces, height, width)
    num_pixels = points.shape[1] * height * width
    # Nearest fragment by one scatter: the bits of positive floats sort like the floats, and the candidate's own number in
    # the low half settles ties the same way every time.
    order = torch.arange(len(candidates.pixel), device=points.device)
    key = (candidates.inverse_depth.view(torch.int32).long() << 32) | order
    nearest = torch.zeros(num_pixels, dtype=torch.int64, device=points.device)
    nearest.scatter_reduce_(0, candidates.pixel, key, "amax")
    pixel = _where(nearest > 0)
    winner = nearest.index_select(0, pixel) & 0xFFFFFFFF
    triangle = candidates.triangle.index_select(0, winner)
    depth = 1 / candidates.inverse_depth.index_select(0, winner)
    corners = candidates.corner_inverse_depth.index_select(0, triangle)
    weight_0 = candidates.weight_0.index_select(0, winner) * corners[:, 0] * depth
    weight_1 = candidates.weight_1.index_select(0, winner) * corners[:, 1] * depth
    weights = torch.stack([weight_0, weight_1, (1 - weight_0 - weight_1).clamp_min(0)], 1)
    return Fragments(pixel, candidates.face.index_select(0, triangle), weights, depth)


def depth_map(points: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    """Depth of the nearest surface at every pixel centre (B, H, W), infinite where there is none.

    Arguments as in `rasterise`.
    """
    candidates = _covered_pixels(points, faces, height, width)
    nearest = points.new_zeros(points.shape[1] * height * width)
    nearest.scatter_reduce_(0, candidates.pixel, candidates.inverse_depth, "amax")
    return nearest.reciprocal().view(-1, height, width)


def _covered_pixels(points: Tensor, faces: Tensor, height: int, width: int) -> _Candidates:
    num_frames = points.shape[1]
    corners = [points.index_select(0, faces[:, k]) for k in range(3)]  # 3 x (F, B, 3)
    (x0, y0, z0), (x1, y1, z1), (x2, y2, z2) = (corner.unbind(2) for corner in corners)
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    # Pixel centres within the bounding box: columns left..right, rows top..bottom.
    left = (torch.minimum(torch.minimum(x0, x1), x2) - 0.5).ceil().clamp(0, width)
    right = (torch.maximum(torch.maximum(x0, x1), x2) - 0.5).floor().clamp(-1, width - 1)
    top = (torch.minimum(torch.minimum(y0, y1), y2) - 0.5).ceil().clamp(0, height)
    bottom = (torch.maximum(torch.maximum(y0, y1), y2) - 0.5).floor().clamp(-1, height - 1)
    # y points down, so faces that are counter-clockwise from outside have a negative area when seen from the front.
    drawn = (area < -_MIN_AREA) & (right >= left) & (bottom >= top)
    drawn &= torch.minimum(torch.minimum(z0, z1), z2) > MIN_DEPTH
    index = _where(drawn.view(-1))
    face, frame = index // num_frames, index % num_frames

    def chosen(values: Tensor) -> Tensor:
        return values.reshape(-1).index_select(0, index)

    left, right, top, bottom, area = (chosen(values) for values in (left, right, top, bottom, area))
    (x0, y0, z0), (x1, y1, z1), (x2, y2, z2) = (
        corner.view(-1, 3).index_select(0, index).unbind(1) for corner in corners
    )
    columns = (right - left + 1).long()
    num_pixels = columns * (bottom - top + 1).long()
    total = int(num_pixels.sum())
    triangle = torch.repeat_interleave(num_pixels, output_size=total)
    position = torch.arange(total, device=points.device) - (num_pixels.cumsum(0) - num_pixels).index_select(0, triangle)

    # Weights of corners 0 and 1 are linear in the pixel's offset from corner 2.
    scale = area.reciprocal()
    table = torch.stack([left, top, left + 0.5 - x2, top + 0.5 - y2], 1)
    gradients = torch.stack([(y1 - y2) * scale, (x2 - x1) * scale, (y2 - y0) * scale, (x0 - x2) * scale], 1)
    table = torch.cat([table, gradients], 1).index_select(0, triangle)
    width_of = columns.index_select(0, triangle)
    row = torch.div(position, width_of, rounding_mode="floor")
    column = position - row * width_of
    left_of, top_of, dx, dy, dw0_dx, dw0_dy, dw1_dx, dw1_dy = table.unbind(1)
    dx = dx + column
    dy = dy + row
    weight_0 = dw0_dx * dx + dw0_dy * dy
    weight_1 = dw1_dx * dx + dw1_dy * dy
    inside = _where((weight_0 >= 0) & (weight_1 >= 0) & (weight_0 + weight_1 <= 1))
    triangle = triangle.index_select(0, inside)
    weight_0, weight_1 = weight_0.index_select(0, inside), weight_1.index_select(0, inside)
    inverse = torch.stack([z0, z1, z2], 1).reciprocal()
    i0, i1, i2 = inverse.index_select(0, triangle).unbind(1)
    inverse_depth = i2 + weight_0 * (i0 - i2) + weight_1 * (i1 - i2)
    y = (top_of + row).index_select(0, inside).long() + (frame * height).index_select(0, triangle)
    pixel = y * width + (left_of + column).index_select(0, inside).long()
    return _Candidates(pixel, triangle, weight_0, weight_1, inverse_depth, face, inverse)


def _where(mask: Tensor) -> Tensor:
    """Indices of the true elements of a mask (N,); NumPy finds them ten times faster than PyTorch on a CPU."""
    return mask.nonzero()[:, 0] if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))
