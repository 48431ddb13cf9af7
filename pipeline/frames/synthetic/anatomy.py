"""The hand's bones, the 25 angles that pose it, and how far each may go.

Pose vectors hold anatomical angles in degrees, in the order of POSE_PARAMETERS. Fingers: `flexion`, `splay` (relative to
the middle finger, positive towards the thumb; the middle finger's own splay is absolute), `pip` and `dip` flexion. Thumb:
`abduction` (palmar), `extension` (radial) and `pronation` of its base, relative to the mesh's rest pose, then `mcp` and
`ip` flexion. Wrist: `flexion` (palmar), `deviation` (radial), forearm `pronation`; `cupping` folds the palm.
"""

from typing import NamedTuple

import numpy as np

from pipeline.hands import FINGERS

BONES = (
    "forearm",
    "wrist",
    *("thumb_1", "thumb_2", "thumb_3"),
    *("index_0", "index_1", "index_2", "index_3"),
    *("middle_0", "middle_1", "middle_2", "middle_3"),
    *("ring_0", "ring_1", "ring_2", "ring_3"),
    *("pinky_0", "pinky_1", "pinky_2", "pinky_3"),
)
"""Bones of the model; `*_0` are metacarpals (the thumb's is `thumb_1`). The wrist is the root, also of the forearm."""

BONE_PARENTS = (1, -1, 1, 2, 3, 1, 5, 6, 7, 1, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19)
"""Parent of each bone; -1 = none."""

BONE_INDEX = {name: index for index, name in enumerate(BONES)}
LONG_FINGERS = FINGERS[1:]


def finger_bones(finger: str) -> tuple[int, int, int]:
    """Indices of a finger's three bones beyond the palm, from base to tip."""
    first = BONE_INDEX[f"{finger}_1"]
    return first, first + 1, first + 2


class Limit(NamedTuple):
    """Range of one pose parameter and its value in the mesh's rest pose, in degrees."""

    low: float
    high: float
    rest: float


_PARAMETERS: dict[str, Limit] = {
    "index_flexion": Limit(-20, 88, 13.2),
    "index_splay": Limit(0, 20, 16.3),
    "index_pip": Limit(-3, 105, 12.8),
    "index_dip": Limit(-8, 75, 7.0),
    "middle_flexion": Limit(-20, 88, 18.3),
    "middle_splay": Limit(-9, 5, -7.9),
    "middle_pip": Limit(-3, 105, 6.5),
    "middle_dip": Limit(-8, 75, 7.1),
    "ring_flexion": Limit(-20, 88, 16.7),
    "ring_splay": Limit(-14, 0, -10.2),
    "ring_pip": Limit(-3, 108, 7.9),
    "ring_dip": Limit(-8, 75, 6.4),
    "pinky_flexion": Limit(-20, 88, 18.0),
    "pinky_splay": Limit(-28, -1, -17.2),
    "pinky_pip": Limit(-3, 105, 10.0),
    "pinky_dip": Limit(-8, 75, -0.4),
    "thumb_abduction": Limit(-18, 35, 0),
    "thumb_extension": Limit(-36, 14, 0),
    "thumb_pronation": Limit(-14, 20, 0),
    "thumb_mcp": Limit(-8, 60, 16.1),
    "thumb_ip": Limit(-15, 78, 15.2),
    "wrist_flexion": Limit(-45, 50, 0),
    "wrist_deviation": Limit(-20, 14, 0),
    "forearm_pronation": Limit(-60, 60, 0),
    "cupping": Limit(0, 12, 0),
}

POSE_PARAMETERS = tuple(_PARAMETERS)
POSE_INDEX = {name: index for index, name in enumerate(POSE_PARAMETERS)}
NUM_POSE_PARAMETERS = len(POSE_PARAMETERS)
LOW_DEG = np.array([limit.low for limit in _PARAMETERS.values()])
HIGH_DEG = np.array([limit.high for limit in _PARAMETERS.values()])
REST_DEG = np.array([limit.rest for limit in _PARAMETERS.values()])

CLOSED_SPLAY_DEG = (2.0, -3.0, -2.0, -4.0)
"""Splay of index, middle, ring and pinky when the fingers lie side by side."""

FINGER_COLUMNS = {
    part: np.array([POSE_INDEX[f"{finger}_{part}"] for finger in LONG_FINGERS])
    for part in ("flexion", "splay", "pip", "dip")
}
"""Columns of the four long fingers in a pose vector, for each kind of angle."""


def constrain(poses: np.ndarray) -> np.ndarray:
    """Bring poses within what a hand can do: poses (..., 25) in degrees -> a new array of the same shape.

    Beyond the range of each angle: splay fades as the knuckle flexes (its ligaments tighten), down to 15 % of it at 80
    degrees, and the fingertip joint follows the middle joint (they share a tendon).
    """
    poses = np.clip(poses, LOW_DEG, HIGH_DEG)
    flexion, splay, pip, dip = (poses[..., FINGER_COLUMNS[part]] for part in ("flexion", "splay", "pip", "dip"))
    freedom = 1 - 0.85 * np.clip(flexion / 80, 0, 1)
    closed = np.array(CLOSED_SPLAY_DEG)
    poses[..., FINGER_COLUMNS["splay"]] = closed + (splay - closed) * freedom
    poses[..., FINGER_COLUMNS["dip"]] = np.clip(dip, 0.35 * pip - 12, 0.75 * pip + 12)
    return np.clip(poses, LOW_DEG, HIGH_DEG)
