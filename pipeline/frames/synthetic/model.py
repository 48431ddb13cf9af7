"""The hand model: a skinned mesh of a right hand and forearm with 12 directions of body shape.

Rest frame: wrist at the origin, x towards the middle knuckle, y towards the thumb's side, z out of the back of the hand.
One unit is the length from wrist to middle fingertip. A left hand is the mirror image of a right one (see clip.py).

The model was baked once from MakeHuman's body (bake/, NOTICE); nothing but NumPy and PyTorch is needed to use it.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.frames.synthetic.anatomy import (
    BONE_INDEX,
    BONE_PARENTS,
    BONES,
    LONG_FINGERS,
    NUM_POSE_PARAMETERS,
    POSE_INDEX,
    REST_DEG,
    finger_bones,
)
from pipeline.hands import FINGERS, NUM_JOINTS

MODEL_FILE = Path(__file__).with_name("hand_model.npz")

FINGERTIP_VERTICES = (782, 29, 221, 413, 605)
"""One surface vertex at each fingertip, thumb to pinky, as MANO does it."""

_HEAD_JOINTS = [joint for joint in range(NUM_JOINTS) if joint == 0 or joint % 4]
_HEAD_BONES = [BONE_INDEX["wrist"], *(bone for finger in FINGERS for bone in finger_bones(finger))]
_TIP_JOINTS = [4, 8, 12, 16, 20]


@dataclass(frozen=True)
class HandModel:
    """The baked model. V vertices, F faces, K shape directions, 21 bones (anatomy.BONES)."""

    vertices: Tensor
    """(V, 3) mean shape at rest, in hand lengths."""
    vertex_shapes: Tensor
    """(K, V, 3) how one standard deviation of each shape coefficient moves the vertices."""
    bone_heads: Tensor
    """(21, 3) where each bone begins, in the mean shape."""
    bone_head_shapes: Tensor
    """(K, 21, 3) how the shape coefficients move the bone heads."""
    faces: Tensor
    """(F, 3) int64 vertex indices, counter-clockwise seen from outside."""
    skin_weights: Tensor
    """(V, 21) how much each vertex follows each bone; rows sum to one."""
    bone_directions: Tensor
    """(21, 3) unit vectors along the bones at rest."""
    dorsal_axes: Tensor
    """(21, 3) unit vectors out of the back of each finger bone at rest; zero for other bones."""
    nail: Tensor
    """(V,) 0..1, one on the fingernails."""
    subjects: Tensor
    """(S, K) shape coefficients of plausible adults."""
    rotation_axes: Tensor
    """(21, 3, 3) up to three axes that each bone turns about, applied last to first; see `local_rotations`."""
    pose_to_rotation: Tensor
    """(25, 63) pose angles -> angle about each of the 21 x 3 axes (linear)."""


@lru_cache(maxsize=4)
def load_hand_model(device: str | torch.device = "cpu") -> HandModel:
    """The baked hand model, read once for each device."""
    with np.load(MODEL_FILE) as file:
        data = dict(file)

    def floats(name: str) -> Tensor:
        return torch.from_numpy(data[name].astype(np.float32)).to(device)

    num_vertices = len(data["vertices"])
    weights = data["skin_weights"].astype(np.float64)
    weights /= weights.sum(1, keepdims=True)
    skin_weights = np.zeros((num_vertices, len(BONES)), np.float32)
    np.put_along_axis(skin_weights, data["skin_bones"].astype(np.int64), weights.astype(np.float32), axis=1)
    axes, angles = _pose_tables(data["flexion_axes"], data["dorsal_axes"], data["bone_directions"])
    return HandModel(
        vertices=floats("vertices"),
        vertex_shapes=floats("vertex_shapes"),
        bone_heads=floats("bone_heads"),
        bone_head_shapes=floats("bone_head_shapes"),
        faces=torch.from_numpy(data["faces"].astype(np.int64)).to(device),
        skin_weights=torch.from_numpy(skin_weights).to(device),
        bone_directions=floats("bone_directions"),
        dorsal_axes=floats("dorsal_axes"),
        nail=floats("nail") / 255,
        subjects=floats("subjects"),
        rotation_axes=torch.from_numpy(axes).to(device),
        pose_to_rotation=torch.from_numpy(angles).to(device),
    )


def _pose_tables(flexion: np.ndarray, dorsal: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How the pose angles turn the bones: axes (21, 3, 3) and a linear map (25, 63) from pose angles to angles about them.

    flexion, dorsal, direction: (21, 3) unit vectors of each bone at rest.
    """
    axes = np.tile(np.eye(3, dtype=np.float32)[0], (len(BONES), 3, 1))
    angles = np.zeros((NUM_POSE_PARAMETERS, len(BONES), 3), np.float32)
    x, y, z = np.eye(3)

    def turn(bone: int, order: int, axis: np.ndarray, **gains: float) -> None:
        axes[bone, order] = axis / np.linalg.norm(axis)
        for parameter, gain in gains.items():
            angles[POSE_INDEX[parameter], bone, order] = gain

    for finger in LONG_FINGERS:
        knuckle, middle_joint, end_joint = finger_bones(finger)
        splay = {f"{finger}_splay": 1.0, "middle_splay": 1.0}  # the others' splay is relative to the middle finger's
        turn(knuckle, 0, dorsal[knuckle], **splay)
        turn(knuckle, 1, flexion[knuckle], **{f"{finger}_flexion": 1.0})
        turn(middle_joint, 0, flexion[middle_joint], **{f"{finger}_pip": 1.0})
        turn(end_joint, 0, flexion[end_joint], **{f"{finger}_dip": 1.0})
    base, thumb_mcp, thumb_ip = finger_bones("thumb")
    turn(base, 0, z, thumb_extension=1.0)
    turn(base, 1, np.cross(z, direction[base]), thumb_abduction=1.0)
    turn(base, 2, direction[base], thumb_pronation=1.0)
    turn(thumb_mcp, 0, flexion[thumb_mcp], thumb_mcp=1.0)
    turn(thumb_ip, 0, flexion[thumb_ip], thumb_ip=1.0)
    for metacarpal, share in (("ring_0", 0.5), ("pinky_0", 1.0)):
        turn(BONE_INDEX[metacarpal], 0, y, cupping=share)
        turn(BONE_INDEX[metacarpal], 1, x, cupping=-0.8 * share)
    # The hand is the root, so the forearm makes the inverse of the wrist's motion, and half of the pronation: the other
    # half happens nearer the elbow.
    forearm = BONE_INDEX["forearm"]
    turn(forearm, 0, y, wrist_flexion=-1.0)
    turn(forearm, 1, z, wrist_deviation=-1.0)
    turn(forearm, 2, np.array([-1.0, 0.13, -0.03]), forearm_pronation=0.5)
    return axes, angles.reshape(NUM_POSE_PARAMETERS, -1)


def _bone_levels() -> list[list[int]]:
    """Bones grouped by their distance from the root, so that each group's transforms can be found at once."""
    depth: dict[int, int] = {}
    for bone in (BONE_INDEX["wrist"], *range(len(BONES))):
        parent = BONE_PARENTS[bone]
        depth[bone] = 0 if parent < 0 else depth[parent] + 1
    return [[bone for bone in range(len(BONES)) if depth[bone] == level] for level in range(1, max(depth.values()) + 1)]


_LEVELS = _bone_levels()


def subject_shape(model: HandModel, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """One person's hand at rest: coefficients (K,) -> vertices (V, 3) and bone heads (21, 3), in hand lengths."""
    vertices = model.vertices + torch.einsum("k,kvx->vx", coefficients, model.vertex_shapes)
    return vertices, model.bone_heads + torch.einsum("k,kbx->bx", coefficients, model.bone_head_shapes)


def rotation_matrices(axes: Tensor, angles: Tensor) -> Tensor:
    """Rodrigues' formula: unit axes (..., 3) and angles (...) in radians -> (..., 3, 3)."""
    axes, angles = torch.broadcast_tensors(axes, angles[..., None])
    x, y, z = axes.unbind(-1)
    sine, cosine = angles[..., 0].sin(), angles[..., 0].cos()
    versine = 1 - cosine
    rows = [
        *(cosine + x * x * versine, x * y * versine - z * sine, x * z * versine + y * sine),
        *(y * x * versine + z * sine, cosine + y * y * versine, y * z * versine - x * sine),
        *(z * x * versine - y * sine, z * y * versine + x * sine, cosine + z * z * versine),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def local_rotations(model: HandModel, poses: Tensor) -> Tensor:
    """Rotation of every bone against its parent: poses (B, 25) in degrees -> (B, 21, 3, 3).

    The axes are fixed in the rest frame, not carried along by the parents.
    """
    rest = torch.as_tensor(REST_DEG, dtype=torch.float32, device=poses.device)
    angles = torch.deg2rad(poses.float() - rest) @ model.pose_to_rotation
    turns = rotation_matrices(model.rotation_axes, angles.view(len(poses), len(BONES), 3))
    return turns[:, :, 0] @ turns[:, :, 1] @ turns[:, :, 2]


def bone_transforms(bone_heads: Tensor, rotations: Tensor) -> Tensor:
    """Forward kinematics: where each bone takes the points that it carries.

    bone_heads: (21, 3) at rest. rotations: (B, 21, 3, 3) of `local_rotations`.
    Returns (B, 21, 3, 4): rotation and translation from the rest pose to the posed hand.
    """
    shift = bone_heads - torch.einsum("bnij,nj->bni", rotations, bone_heads)
    local = torch.cat([rotations, shift[..., None]], -1)
    transforms = local.clone()
    for bones in _LEVELS:
        parents = transforms[:, [BONE_PARENTS[bone] for bone in bones]]
        moved = parents[..., :3] @ local[:, bones]
        moved[..., 3] += parents[..., 3]
        transforms[:, bones] = moved
    return transforms


def joint_positions(model: HandModel, vertices: Tensor, bone_heads: Tensor, transforms: Tensor) -> Tensor:
    """The 21 joints in FreiHAND order: rest vertices (V, 3), bone heads (21, 3), transforms (B, 21, 3, 4) -> (B, 21, 3).

    Fingertips are points of the skin, all others are bone heads.
    """
    tips = list(FINGERTIP_VERTICES)
    joints = bone_heads.new_empty(len(transforms), NUM_JOINTS, 3)
    heads = transforms[:, _HEAD_BONES]
    joints[:, _HEAD_JOINTS] = torch.einsum("bnij,nj->bni", heads[..., :3], bone_heads[_HEAD_BONES]) + heads[..., 3]
    joints[:, _TIP_JOINTS] = skin(vertices[tips], model.skin_weights[tips], transforms)
    return joints


def skin(vertices: Tensor, weights: Tensor, transforms: Tensor) -> Tensor:
    """Linear blend skinning: rest vertices (V, 3), weights (V, 21), transforms (B, 21, 3, 4) -> (B, V, 3)."""
    blended = torch.einsum("vk,bkij->bvij", weights, transforms)
    return torch.einsum("bvij,vj->bvi", blended[..., :3], vertices) + blended[..., 3]
