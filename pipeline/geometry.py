"""Similarity transforms, cameras, 2.5D poses and Procrustes alignment, on batches of tensors.

Image coordinates are continuous: (0, 0) is the top-left corner of the top-left pixel, the centre of pixel i is at i +
0.5; x points right and y down. Camera frames are OpenCV's (x right, y down, z forward), in metres. `angle` is in
radians, positive = counter-clockwise on screen. Everything is computed in the input's own precision, but at least in
float32.
"""

import math

import torch
from torch import Tensor

from pipeline import hands

Root = str | int | tuple[str | int, ...]
"""A root point: "palm" (midpoint of wrist and middle MCP), a joint's name (FreiHAND order), a joint number, or several
joints whose mean is meant."""

Bone = str | tuple[str | int, str | int]
"""A reference bone: "middle" (middle MCP to PIP), "wrist-index" (wrist to index MCP), or a pair of joint names
(FreiHAND order) or joint numbers (of whatever order the joints are in)."""

PALM: tuple[str, str] = ("wrist", "middle_mcp")

BONE_NAMES: dict[str, tuple[str, str]] = {
    "middle": ("middle_mcp", "middle_pip"),  # FreiHAND's scale bone, and that of the released PeCLR model
    "wrist-index": ("wrist", "index_mcp"),  # the bone of PeCLR's open training code
}

DEFAULT_FOCAL_LENGTH = 388.9 / 224
"""Focal length in view sides, taken when no camera is known: that of PeCLR's released model."""


def at_least_float32(values: Tensor) -> Tensor:
    """The tensor itself if it is float32 or float64, otherwise its float32 copy."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


# --- similarity and affine transforms


def rotation_2d(angle: Tensor) -> Tensor:
    """Rotation matrices (..., 2, 2) of angles (...), radians, positive = counter-clockwise on screen (y down)."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


def similarity_matrix(angle: Tensor, translation: Tensor, scale: Tensor) -> Tensor:
    """Affine matrices (..., 2, 3) of p -> scale * R(angle) p + translation; translation (..., 2), others (...)."""
    return torch.cat([scale[..., None, None] * rotation_2d(angle), translation[..., :, None]], -1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map (..., 2, 3) that applies `inner` first, then `outer`; both (..., 2, 3)."""
    linear = (outer[..., :, :2, None] * inner[..., None, :2, :]).sum(-2)
    shift = linear[..., 2] + outer[..., 2]
    return torch.cat([linear[..., :2], shift[..., None]], -1)


def invert_affine(matrix: Tensor) -> Tensor:
    """The inverse (..., 2, 3) of affine maps (..., 2, 3)."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    determinant = (a * d - b * c)[..., None]
    x = torch.stack([d, -b], -1) / determinant
    y = torch.stack([-c, a], -1) / determinant
    linear = torch.stack([x, y], -2)
    shift = -(linear * matrix[..., None, :, 2]).sum(-1)
    return torch.cat([linear, shift[..., None]], -1)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Points (..., P, 2) mapped by affine matrices (..., 2, 3)."""
    # Written out instead of a matrix product, so that autocast cannot lower its precision.
    linear, shift = matrix[..., None, :, :2], matrix[..., None, :, 2]
    return (linear * points[..., None, :]).sum(-1) + shift


# --- cameras


def transform_camera(matrix: Tensor, camera: Tensor) -> Tensor:
    """Intrinsics of a transformed image, K' = T K: (..., 3, 3) from K (..., 3, 3) and the map of pixels (..., 2, 3).

    3D labels stay in the camera frame in which they are: K' takes the whole image transform, rotation included.
    """
    matrix = matrix.to(camera.dtype)
    rows = (matrix[..., :, :, None] * camera[..., None, :, :]).sum(-2)
    last = camera[..., 2:, :].expand(*rows.shape[:-2], 1, 3)
    return torch.cat([rows, last], -2)


def project(points: Tensor, camera: Tensor) -> Tensor:
    """Pixels (..., P, 2) of camera-frame points (..., P, 3); camera (..., 3, 3) with last row 0, 0, 1."""
    points, camera = at_least_float32(points), at_least_float32(camera)
    return transform_points(camera[..., :2, :], points[..., :2] / points[..., 2:])


def rays(pixels: Tensor, camera: Tensor) -> Tensor:
    """Camera rays K^-1 [u, v, 1] (..., P, 3) through pixels (..., P, 2); camera (..., 3, 3) with last row 0, 0, 1."""
    pixels, camera = at_least_float32(pixels), at_least_float32(camera)
    xy = transform_points(invert_affine(camera[..., :2, :]), pixels)
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)


# --- 2.5D poses (Iqbal et al. 2018, "Hand Pose Estimation via Latent 2.5D Heatmap Regression")


def to_25d(joints_3d: Tensor, camera: Tensor, root: Root = "palm", bone: Bone = "middle") -> tuple[Tensor, Tensor]:
    """2.5D pose of camera-frame joints: (joints_25d (..., 21, 3), scale (...)).

    joints_25d holds u, v in pixels and the depth relative to the root, in lengths of the reference bone; scale is that
    length, in the unit of the joints (metres).

    joints_3d: (..., 21, 3). camera: (..., 3, 3) with last row 0, 0, 1.
    root: "palm" (default, as in the released PeCLR model), "wrist" (as in its open training code), or see `Root`.
    bone: "middle" (default, as in the released model and FreiHAND's scale files), "wrist-index" (as in the open code),
    or see `Bone`.
    Raises ValueError for unknown names.
    """
    joints_3d = at_least_float32(joints_3d)
    scale = bone_length(joints_3d, bone)
    depth = joints_3d[..., 2]
    root_z = depth[..., root_joints(root)].mean(-1, keepdim=True)
    # A bone without length has no scale: its relative depths become large, not NaN.
    relative = (depth - root_z) / scale.clamp_min(torch.finfo(scale.dtype).tiny ** 0.5)[..., None]
    return torch.cat([project(joints_3d, camera), relative[..., None]], -1), scale


def root_depth(
    joints_25d: Tensor, camera: Tensor, bone: Bone = "middle", limits: tuple[float, float] | None = None
) -> Tensor:
    """Depth (...) of the root in bone lengths, at which the reference bone gets length 1 (Iqbal et al. 2018, eqs. 6-7).

    The larger root of the quadratic; u, v go through K^-1 first. Differentiable.

    joints_25d: (..., 21, 3) as `to_25d` gives them. camera: (..., 3, 3) with last row 0, 0, 1.
    bone: the one that `to_25d` got.
    limits: range to which the result is clamped, in bone lengths. None takes what the published models do: no limits
        where the bone starts or ends at joint 0, the wrist (PeCLR's open code), [4, 50] otherwise (its released model;
        50 middle-finger bones are about 1.6 m, so pass (0, math.inf) for hands further away).
    The discriminant and the leading coefficient are kept above 1e-6 (wrist bones) or 1e-8 (others), also as published.
    """
    joints_25d = at_least_float32(joints_25d)
    start, end = bone_joints(bone)
    at_wrist = 0 in (start, end)
    smallest = 1e-6 if at_wrist else 1e-8
    if limits is None:
        limits = (-math.inf, math.inf) if at_wrist else (4.0, 50.0)

    ray = rays(joints_25d[..., [start, end], :2], camera)
    (xm, ym, _), (xn, yn, _) = ray[..., 0, :].unbind(-1), ray[..., 1, :].unbind(-1)
    zm, zn = joints_25d[..., start, 2], joints_25d[..., end, 2]
    dot = xn * xm + yn * ym
    a = (xn - xm) ** 2 + (yn - ym) ** 2
    b = 2 * (zn * (xn**2 + yn**2 - dot) + zm * (xm**2 + ym**2 - dot))
    c = (xn * zn - xm * zm) ** 2 + (yn * zn - ym * zm) ** 2 + (zn - zm) ** 2 - 1
    discriminant = (b**2 - 4 * a * c).clamp_min(smallest)
    depth = (-b + discriminant.sqrt()) / (2 * a.clamp_min(smallest))
    return depth.clamp(*limits)


def from_25d(
    joints_25d: Tensor, scale: Tensor | float, camera: Tensor, bone: Bone = "middle", root_depth: Tensor | None = None
) -> Tensor:
    """Camera-frame joints (..., 21, 3) of a 2.5D pose: K^-1 [u, v, 1] * (relative depth + root depth) * scale.

    joints_25d: (..., 21, 3). camera: (..., 3, 3) with last row 0, 0, 1.
    scale: length (...) of the reference bone in metres; 1.0 gives scale-normalised joints.
    root_depth: (...) in bone lengths; None finds it with the function `root_depth` and its default limits.
    """
    joints_25d = at_least_float32(joints_25d)
    if root_depth is None:
        root_depth = _root_depth(joints_25d, camera, bone)
    depth = joints_25d[..., 2] + root_depth[..., None]
    scale = torch.as_tensor(scale, dtype=depth.dtype, device=depth.device)
    return rays(joints_25d[..., :2], camera) * (depth * scale[..., None])[..., None]


_root_depth = root_depth  # `from_25d` has an argument of that name


def bone_length(joints_3d: Tensor, bone: Bone) -> Tensor:
    """Length (...) of a reference bone of joints (..., 21, 3), in their unit. Raises ValueError for an unknown name."""
    start, end = bone_joints(bone)
    return torch.linalg.vector_norm(joints_3d[..., end, :] - joints_3d[..., start, :], dim=-1)


def root_joints(root: Root) -> list[int]:
    """Joint numbers whose mean is the root point. Raises ValueError for an unknown name."""
    if root == "palm":
        root = PALM
    return [_joint(joint) for joint in ((root,) if isinstance(root, (str, int)) else root)]


def bone_joints(bone: Bone) -> tuple[int, int]:
    """Joint numbers of the two ends of a reference bone. Raises ValueError for an unknown name."""
    if isinstance(bone, str):
        if bone not in BONE_NAMES:
            raise ValueError(f"unknown bone '{bone}'; give {', '.join(map(repr, BONE_NAMES))} or a pair of joints")
        bone = BONE_NAMES[bone]
    start, end = bone
    return _joint(start), _joint(end)


def _joint(joint: str | int) -> int:
    if isinstance(joint, int):
        return joint
    if joint not in hands.JOINTS:
        raise ValueError(f"unknown joint '{joint}'; known are {', '.join(hands.JOINTS)}")
    return hands.JOINTS.index(joint)


# --- Procrustes


def procrustes_align(pred: Tensor, target: Tensor, allow_reflection: bool = False) -> Tensor:
    """`pred` moved, scaled and turned onto `target` with least squared error; both (..., P, D), broadcast.

    allow_reflection: False turns by a proper rotation (PeCLR's and most PA-MPJPE figures); True by any orthogonal
        matrix, as the official FreiHAND scorer does, including the 1e-8 that it adds to norms: a mirrored hand then
        aligns well.
    Points that coincide, in either argument, give the target's centroid or any rotation, never NaN.
    """
    pred, target = at_least_float32(pred), at_least_float32(target)
    pred_mean, target_mean = pred.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    pred, target = pred - pred_mean, target - target_mean
    # The norms are taken out before the decomposition: its rotation then keeps its precision whatever the unit.
    pred_norm = torch.linalg.matrix_norm(pred, keepdim=True)
    target_norm = torch.linalg.matrix_norm(target, keepdim=True)
    if allow_reflection:
        pred_norm, target_norm = pred_norm + 1e-8, target_norm + 1e-8
    else:
        smallest = torch.finfo(pred.dtype).tiny ** 0.5
        pred_norm, target_norm = pred_norm.clamp_min(smallest), target_norm.clamp_min(smallest)
    turn, overlap = procrustes_turn(pred / pred_norm, target / target_norm, allow_reflection)
    return (pred / pred_norm) @ turn * overlap * target_norm + target_mean


def procrustes_turn(pred: Tensor, target: Tensor, allow_reflection: bool = False) -> tuple[Tensor, Tensor]:
    """The rotation (..., D, D) and factor (..., 1, 1) with which factor * pred @ rotation is nearest to target.

    pred, target: (..., P, D), centred and of norm 1, broadcast. allow_reflection: see `procrustes_align`.
    """
    with torch.autocast(pred.device.type, enabled=False):
        u, singular, vh = torch.linalg.svd(target.mT @ pred)
        if not allow_reflection:
            # The weakest direction is flipped where the best orthogonal matrix would mirror.
            sign = torch.where(torch.linalg.det(u) * torch.linalg.det(vh) < 0, -1.0, 1.0).to(pred.dtype)
            flip = torch.cat([torch.ones_like(singular[..., :-1]), sign[..., None]], -1)
            u, singular = u * flip[..., None, :], singular * flip
        return (u @ vh).mT, singular.sum(-1)[..., None, None]


def default_camera(batch_size: int, side: int, device: torch.device | None = None) -> Tensor:
    """(B, 3, 3) camera of a `side` px view whose real camera is unknown: an ordinary lens, centred on the view."""
    focal, centre = DEFAULT_FOCAL_LENGTH * side, side / 2
    camera = torch.tensor([[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]], device=device)
    return camera.expand(batch_size, 3, 3)
