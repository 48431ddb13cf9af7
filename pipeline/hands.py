"""The 21 joints of a hand: names, the orders that the field uses, bones, and colours for drawing.

Everything inside Equihand is in FreiHAND order (= OpenPose, MediaPipe, COCO-WholeBody, DexYCB): the wrist, then thumb,
index, middle, ring and pinky, each from its base to its tip. Orders are tables of joint names, so maps between them
follow from the names.
"""

from typing import TypeVar

import numpy as np
import torch

ArrayT = TypeVar("ArrayT", torch.Tensor, np.ndarray)

NUM_JOINTS = 21
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
_PARTS = ("mcp", "pip", "dip", "tip")

_MANO_FINGERS = ("index", "middle", "pinky", "ring", "thumb")

JOINT_ORDERS: dict[str, tuple[str, ...]] = {
    "freihand": ("wrist", *(f"{finger}_{part}" for finger in FINGERS for part in _PARTS)),
    # PeCLR's own order (from the Advanced Interactive Technologies lab): part by part instead of finger by finger.
    "ait": ("wrist", *(f"{finger}_{part}" for part in _PARTS for finger in FINGERS)),
    # MANO's 16 skeleton joints, then the five tips, which are vertices of the mesh.
    "mano": (
        "wrist",
        *(f"{finger}_{part}" for finger in _MANO_FINGERS for part in _PARTS[:3]),
        *(f"{finger}_tip" for finger in FINGERS),
    ),
    # One hand of InterHand2.6M: every finger from its tip to its base, the wrist last.
    "interhand": (*(f"{finger}_{part}" for finger in FINGERS for part in reversed(_PARTS)), "wrist"),
}
"""Joint names in the order that each data set stores them. The thumb's joints are named like a finger's (CMC: mcp)."""

JOINTS = JOINT_ORDERS["freihand"]
"""Joint names in FreiHAND order, the order of every array in this project."""

WRIST = JOINTS.index("wrist")
MIDDLE_MCP = JOINTS.index("middle_mcp")
MIDDLE_PIP = JOINTS.index("middle_pip")

FINGER_JOINTS: dict[str, tuple[int, ...]] = {
    finger: tuple(i for i, name in enumerate(JOINTS) if name.startswith(finger)) for finger in FINGERS
}
"""The four joints of each finger, base to tip (FreiHAND order)."""

BONES: tuple[tuple[int, int], ...] = tuple(
    bone for chain in FINGER_JOINTS.values() for bone in zip((WRIST, *chain[:-1]), chain, strict=True)
)
"""The 20 bones as (parent, child) joint numbers, finger by finger, each from the wrist outwards."""

FINGER_COLOURS: dict[str, tuple[int, int, int]] = {
    "thumb": (230, 75, 60),
    "index": (245, 170, 40),
    "middle": (80, 180, 90),
    "ring": (60, 140, 220),
    "pinky": (155, 95, 200),
}
"""RGB colours, 0-255, by which drawings tell the fingers apart."""

WRIST_COLOUR = (120, 120, 120)
"""RGB colour, 0-255, of the wrist joint in drawings."""

MANO_TIP_VERTICES: dict[str, int] = {"thumb": 744, "index": 320, "middle": 443, "ring": 555, "pinky": 672}
"""Vertices of the 778-vertex hand mesh that stand for the finger tips."""


def joint_index(source: str, target: str) -> list[int]:
    """Where the joints of order `target` stand in order `source`: reordered[k] = joints[index[k]].

    Orders: "freihand", "ait", "mano", "interhand". Raises ValueError for another name.
    """
    for order in (source, target):
        if order not in JOINT_ORDERS:
            raise ValueError(f"unknown joint order '{order}'; known are {', '.join(JOINT_ORDERS)}")
    names = JOINT_ORDERS[source]
    return [names.index(name) for name in JOINT_ORDERS[target]]


def reorder(joints: ArrayT, source: str = "freihand", target: str = "ait") -> ArrayT:
    """Joints (..., 21, C) from one order into another; same shape and type (tensor or array).

    Orders: "freihand", "ait", "mano", "interhand". Raises ValueError for another name or another number of joints.
    """
    if joints.ndim < 2 or joints.shape[-2] != NUM_JOINTS:
        raise ValueError(f"joints must be (..., {NUM_JOINTS}, C), not {tuple(joints.shape)}")
    return joints[..., joint_index(source, target), :]


def joints_from_mesh(vertices: np.ndarray, regressor: np.ndarray) -> np.ndarray:
    """Joints (..., 21, C) in MANO order from mesh vertices (..., 778, C).

    regressor: (16, 778), a linear map to the skeleton's 16 joints (MANO's own is under MANO's licence and not part of
    this project).
    """
    return np.concatenate([regressor @ vertices, vertices[..., list(MANO_TIP_VERTICES.values()), :]], axis=-2)
