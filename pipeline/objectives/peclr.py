"""PeCLR's inverse transforms (Spurr et al. 2021): what was done to a view is undone on its projection before the loss.

A projection of 2P numbers is read as P points in the plane, x and y in turn. Three inverses:

- `exact-units` (default): the paper's. The translation is a fraction of the view's side times the range of the points.
- `reference`: what the published code does. It divides the shift in SOURCE pixels by the network's input size, which is
  right only where a crop has that many source pixels.
- `similarity`: the points are read as normalised image coordinates, and the view's whole similarity transform is
  inverted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.geometry import at_least_float32, invert_affine, rotation_2d, similarity_matrix, transform_points


def undo_transform(projections: Tensor, angle: Tensor, translation: Tensor) -> Tensor:
    """PeCLR's inverse: unit vectors (N, 2P), ready for NT-Xent, from projections (N, 2P).

    angle: (N,) rotation of the view, radians, positive = counter-clockwise on screen. translation: (N, 2) shift of the
    view's content, x right, y down, in fractions of the view's side. Steps, in the published order: normalise; move the
    points back by translation times their range in x and in y; turn them by -angle about their centroid; normalise.
    Range and centroid are constants for the gradient. Scale needs no step: the normalisation removes it.
    Computed in float32, or float64 for float64 projections.
    """
    points = _points(F.normalize(at_least_float32(projections), dim=-1))
    extent = (points.amax(-2, keepdim=True) - points.amin(-2, keepdim=True)).detach()
    points = points - translation.to(points)[..., None, :] * extent
    centroid = points.mean(-2, keepdim=True).detach()
    backwards = rotation_2d(-angle.to(points))
    turned = (backwards[..., None, :, :] * (points - centroid)[..., None, :]).sum(-1) + centroid
    return F.normalize(turned.flatten(-2), dim=-1)


def undo_similarity(projections: Tensor, angle: Tensor, translation: Tensor, scale: Tensor) -> Tensor:
    """The exact inverse: unit vectors (N, 2P) from projections (N, 2P).

    The projections are read as points in the view, the origin at its centre and its side as the unit, mapped back into
    the crop by the inverse of p -> scale * R(angle) p + translation, centred, and normalised once.
    angle, translation: as in `undo_transform`; scale: (N,), > 1 = content larger.
    Centring and normalisation make the result independent of where and how large the points are, so translation and
    scale cancel exactly instead of being undone with an error: what the loss still asks for is that the arrangement of
    the points turns with the image. Differentiable throughout, nothing is held constant.
    """
    points = _points(at_least_float32(projections))
    forward = similarity_matrix(angle.to(points), translation.to(points), scale.to(points))
    points = transform_points(invert_affine(forward), points)
    points = points - points.mean(-2, keepdim=True)
    return F.normalize(points.flatten(-2), dim=-1)


def reference_translation(translation: Tensor, scale: Tensor, crop_side: Tensor | float, view_size: int) -> Tensor:
    """The translation (N, 2) that the published code would use: shift in source pixels / network input size.

    translation: (N, 2), fraction of the view's side; scale: (N,); crop_side: side of the stored crop in source pixels,
    (N,) or one number; view_size: pixels of the network's input. A view covers crop_side / scale source pixels.
    """
    crop_side = torch.as_tensor(crop_side, dtype=translation.dtype, device=translation.device)
    return translation * (crop_side / scale / view_size)[:, None]


def _points(vectors: Tensor) -> Tensor:
    if vectors.shape[-1] % 2:
        raise ValueError(f"projections must have an even number of entries (x and y in turn), not {vectors.shape[-1]}")
    return vectors.unflatten(-1, (-1, 2))
