"""Random hand poses: gestures and their blends within anatomical limits, no finger through another, smooth in time."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.frames.synthetic.anatomy import (
    CLOSED_SPLAY_DEG,
    FINGER_COLUMNS,
    HIGH_DEG,
    LOW_DEG,
    NUM_POSE_PARAMETERS,
    POSE_INDEX,
    POSE_PARAMETERS,
    constrain,
)
from pipeline.frames.synthetic.model import (
    HandModel,
    bone_transforms,
    joint_positions,
    local_rotations,
)
from pipeline.hands import FINGERS, NUM_JOINTS

Degrees = float | Sequence[float]

THUMB_COLUMNS = [POSE_INDEX[f"thumb_{part}"] for part in ("abduction", "extension", "pronation", "mcp", "ip")]
WRIST_COLUMNS = [POSE_INDEX[name] for name in ("wrist_flexion", "wrist_deviation", "forearm_pronation", "cupping")]


def gesture(
    flexion: Degrees,
    pip: Degrees,
    dip: Degrees | None = None,
    splay: Sequence[float] = (6, -2, -4, -10),
    thumb: Sequence[float] = (0, 0, 0, 10, 10),
    cupping: float = 0,
) -> np.ndarray:
    """A pose vector (25,) in degrees from one value, or four, for index to pinky.

    dip: 55 % of `pip` where not given. thumb: abduction, extension, pronation, mcp, ip. The wrist is straight.
    """
    pose = np.zeros(NUM_POSE_PARAMETERS)
    pose[FINGER_COLUMNS["flexion"]] = flexion
    pose[FINGER_COLUMNS["splay"]] = splay
    pose[FINGER_COLUMNS["pip"]] = pip
    pose[FINGER_COLUMNS["dip"]] = 0.55 * np.asarray(pip) if dip is None else dip
    pose[THUMB_COLUMNS] = thumb
    pose[POSE_INDEX["cupping"]] = cupping
    return pose


_CLOSED = CLOSED_SPLAY_DEG
GESTURES = {
    "flat": gesture(0, 4, 2, _CLOSED, (-8, -8, 0, 5, 0)),
    "spread": gesture(-5, 4, 2, (18, -2, -12, -26), (0, 12, 0, 0, -5)),
    "relaxed": gesture((18, 24, 28, 32), (28, 32, 36, 36), None, (5, -3, -4, -8), (10, 0, 5, 15, 15)),
    "fist": gesture((78, 80, 80, 78), (95, 98, 98, 92), (55, 58, 58, 55), _CLOSED, (-4, -27, -10, 43, 52), 8),
    "loose_fist": gesture((60, 62, 64, 66), (75, 78, 78, 72), None, _CLOSED, (-4, -24, -8, 22, 28), 6),
    "point": gesture((5, 72, 75, 74), (6, 92, 95, 90), None, _CLOSED, (-6, -34, -10, 39, 32)),
    "peace": gesture((0, 2, 74, 74), (5, 5, 95, 90), None, (14, 3, -2, -4), (-12, -34, -10, 52, 40)),
    "three": gesture((0, 0, 0, 74), (5, 5, 6, 92), None, (10, -2, -8, -6), (-6, -34, -10, 52, 55)),
    "rock": gesture((0, 76, 76, 2), (5, 95, 95, 8), None, (8, -3, -2, -18), (-7, -34, -10, 35, 46)),
    "call": gesture((74, 76, 74, 5), (92, 94, 92, 8), None, (3, -3, -2, -20), (-4, 12, 0, 0, -6)),
    "thumbs_up": gesture((76, 78, 78, 76), (94, 96, 96, 92), None, _CLOSED, (-10, 12, -5, 0, -8)),
    "gun": gesture((2, 72, 74, 74), (4, 92, 94, 90), None, _CLOSED, (-6, 12, 0, 0, -8)),
    "pinch": gesture((55, 22, 16, 10), (50, 26, 20, 18), (26, 14, 10, 10), (2, -3, -6, -12), (10, -19, 6, 30, 35)),
    "ok": gesture((57, 5, 2, 0), (53, 8, 8, 8), (25, 5, 5, 5), (2, -2, -9, -20), (12, -12, 4, 35, 38)),
    "tripod": gesture((59, 57, 62, 66), (52, 63, 70, 70), (29, 26, 38, 38), (2, -4, -3, -4), (33, 10, -2, 37, 45)),
    "cylinder": gesture((38, 42, 45, 48), (48, 52, 54, 52), None, (6, -3, -5, -10), (24, -6, 4, 22, 24), 6),
    "ball": gesture((18, 20, 22, 24), (34, 36, 36, 34), (22, 24, 24, 24), (16, -2, -11, -24), (28, 6, 12, 10, 15), 10),
    "hook": gesture((2, 2, 2, 2), (88, 90, 90, 84), (50, 50, 50, 50), _CLOSED, (0, -6, 4, 10, 12)),
    "claw": gesture((-8, -8, -8, -6), (55, 58, 58, 52), (35, 38, 38, 34), (16, -2, -11, -24), (14, 8, 6, 8, 40)),
    "lumbrical": gesture((70, 72, 74, 72), (8, 8, 8, 10), 4, _CLOSED, (16, -10, 4, 15, 10)),
}
_BESIDE, _ACROSS, _OUT = (-6, -34, -10, 52, 50), (4, -34, -4, 45, 40), (-8, 12, 0, 0, -6)
"""Thumbs: folded before the palm, across the fingers, stretched out."""
MORE_GESTURES = {
    # Counting and pointing.
    "one_and_thumb_in": gesture((0, 82, 84, 82), (2, 100, 102, 98), None, _CLOSED, _BESIDE),
    "two_and_thumb": gesture((0, 0, 78, 78), (4, 4, 98, 95), None, (12, 0, -2, -4), _OUT),
    "four": gesture((0, 0, 0, 0), (4, 4, 4, 4), None, (10, -2, -8, -16), _BESIDE),
    "middle_three": gesture((0, 0, 0, 80), (4, 4, 4, 98), None, (10, -2, -8, -6), _BESIDE),
    "ring_down": gesture((0, 0, 72, 0), (4, 4, 92, 6), None, (10, -2, -4, -18), (10, -26, 4, 40, 40)),
    "middle_down": gesture((0, 70, 0, 0), (4, 92, 4, 4), None, (10, -2, -8, -18), (12, -20, 4, 38, 40)),
    "pinky_up": gesture((74, 76, 74, 0), (93, 95, 93, 4), None, (3, -3, -2, -18), (-4, -27, -10, 43, 52)),
    "horns_and_thumb": gesture((0, 78, 78, 0), (4, 98, 98, 6), None, (8, -3, -2, -20), _OUT),
    "hitchhike": gesture((70, 72, 72, 70), (80, 84, 84, 78), None, _CLOSED, (-14, 14, -8, -6, -12)),
    "fist_thumb_at_side": gesture((76, 78, 78, 76), (94, 96, 96, 92), None, _CLOSED, (-14, -6, -8, 0, 0)),
    # Finger-spelling: hands bent and folded in many ways.
    "curved": gesture((30, 32, 34, 36), (45, 48, 50, 48), (25, 26, 26, 26), _CLOSED, (22, 4, 8, 8, 12)),
    "flat_thumb_in": gesture((-2, -2, -2, -2), (2, 2, 2, 2), 2, _CLOSED, (6, -36, -6, 45, 55)),
    "fingers_over_thumb": gesture((58, 60, 62, 62), (96, 98, 98, 94), (40, 42, 42, 40), _CLOSED, (12, -32, 0, 45, 60)),
    "hooked_index": gesture((20, 80, 82, 80), (85, 100, 102, 98), (45, 55, 55, 55), _CLOSED, _ACROSS),
    "hooked_two": gesture((5, 5, 80, 80), (80, 80, 100, 96), (40, 40, 55, 55), (12, 0, -2, -4), _ACROSS),
    "two_level": gesture((76, 76, 82, 82), (6, 6, 100, 96), None, _CLOSED, _ACROSS),
    "index_level": gesture((80, 84, 84, 82), (6, 100, 102, 98), None, _CLOSED, (-4, -30, -8, 20, 15)),
    "two_closed": gesture((0, 0, 80, 80), (2, 2, 98, 96), None, _CLOSED, _BESIDE),
    "two_crossed": gesture((2, 14, 80, 80), (8, 22, 98, 96), None, (0, 5, -2, -4), _BESIDE),
    "two_and_thumb_between": gesture((0, 28, 80, 80), (2, 12, 98, 96), None, (10, -4, -2, -4), (14, -22, 6, 12, 4)),
    "thumb_under_three": gesture((66, 68, 68, 80), (84, 86, 86, 98), None, _CLOSED, (16, -30, 6, 40, 30)),
    "pinched_all": gesture((58, 60, 62, 64), (44, 44, 44, 40), 22, _CLOSED, (16, -19, 2, 27, 27)),
    "beak": gesture((70, 72, 74, 74), (30, 30, 30, 28), 15, _CLOSED, (8, -23, 4, 27, 31)),
    "round": gesture((48, 50, 52, 52), (62, 64, 64, 60), 35, _CLOSED, (10, -17, 3, 30, 37)),
    # Grasps.
    "wide_grasp": gesture((8, 10, 12, 14), (48, 50, 50, 48), 30, (20, -2, -12, -28), (34, 12, 14, 4, 20)),
    "power_grasp": gesture((55, 58, 60, 62), (75, 78, 80, 78), 45, _CLOSED, (8, -5, -11, 49, 54), 10),
    "key_grasp": gesture((52, 60, 64, 66), (70, 78, 80, 78), None, _CLOSED, (-6, -16, -8, 18, 22)),
    "plate": gesture((52, 54, 56, 56), (6, 6, 6, 6), 4, _CLOSED, (26, 4, 6, 6, 0)),
    "trigger": gesture((30, 60, 64, 66), (60, 78, 80, 78), 30, _CLOSED, (18, -18, 2, 30, 34), 8),
    "lean": gesture((-20, -20, -18, -16), (30, 28, 28, 30), 20, (18, -2, -12, -26), (4, 14, 0, -4, 10)),
}

Variety = Literal["gestures", "varied"]


class _Mixture(NamedTuple):
    """What random poses are made of; what the three shares leave over are fingers curled at random."""

    templates: np.ndarray
    """(G, 25) degrees."""
    plain: float
    """Share of single gestures."""
    blend: float
    """Share of blends of two gestures."""
    independent: float
    """Share of poses whose fingers know nothing of each other."""


_MIXTURES: dict[Variety, _Mixture] = {
    "gestures": _Mixture(np.stack(list(GESTURES.values())), 0.40, 0.35, 0.0),
    "varied": _Mixture(np.stack([*GESTURES.values(), *MORE_GESTURES.values()]), 0.30, 0.05, 0.57),
}


def _jitter_deg() -> np.ndarray:
    """Standard deviation of the noise on each pose parameter (25,)."""
    jitter = np.zeros(NUM_POSE_PARAMETERS)
    for part, deviation in (("flexion", 6), ("splay", 3), ("pip", 8), ("dip", 5)):
        jitter[FINGER_COLUMNS[part]] = deviation
    jitter[THUMB_COLUMNS] = (5, 4, 4, 8, 10)
    jitter[WRIST_COLUMNS] = (16, 7, 20, 3)
    return jitter


_JITTER_DEG = _jitter_deg()


def random_poses(rng: np.random.Generator, num_poses: int, variety: Variety = "gestures") -> np.ndarray:
    """Poses (num_poses, 25) in degrees, within the limits; fingers may still pass through each other."""
    templates, plain, blend, independent = _MIXTURES[variety]
    kind = rng.random(num_poses)
    poses = templates[rng.integers(len(templates), size=num_poses)]
    others = templates[rng.integers(len(templates), size=num_poses)]
    share = np.where(kind < blend, rng.random(num_poses), 0.0)
    poses = poses + (others - poses) * share[:, None]

    curled = np.flatnonzero(kind > plain + blend + independent)
    curl = rng.beta(0.9, 1.1, (len(curled), 1)) + 0.25 * rng.standard_normal((len(curled), 4))
    curl = np.clip(curl, 0, 1.05)

    def loosely() -> np.ndarray:
        return np.clip(curl + 0.15 * rng.standard_normal(curl.shape), 0, 1)

    pip = 2 + 98 * loosely()
    poses[curled[:, None], FINGER_COLUMNS["flexion"]] = -8 + 86 * loosely()
    poses[curled[:, None], FINGER_COLUMNS["pip"]] = pip
    poses[curled[:, None], FINGER_COLUMNS["dip"]] = 0.6 * pip
    poses[curled[:, None], THUMB_COLUMNS] += rng.standard_normal((len(curled), 5)) * (10, 8, 8, 14, 18)
    if independent:
        chosen = (kind > plain + blend) & (kind <= plain + blend + independent)
        poses[chosen] = _independent_fingers(rng, int(chosen.sum()))
    return constrain(poses + rng.standard_normal(poses.shape) * _JITTER_DEG)


def _independent_fingers(rng: np.random.Generator, num_poses: int) -> np.ndarray:
    """Poses (num_poses, 25) whose fingers bend and spread each on its own, most of them nearly straight or nearly folded."""
    poses = rng.uniform(LOW_DEG, HIGH_DEG, (num_poses, NUM_POSE_PARAMETERS))
    bent = rng.beta(0.35, 0.35, (num_poses, 4))
    knuckle = np.clip(bent + 0.2 * rng.standard_normal(bent.shape), 0, 1)
    pip = 104 * np.clip(bent + 0.15 * rng.standard_normal(bent.shape), 0, 1)
    poses[:, FINGER_COLUMNS["flexion"]] = -18 + 104 * knuckle
    poses[:, FINGER_COLUMNS["pip"]] = pip
    poses[:, FINGER_COLUMNS["dip"]] = 0.55 * pip + 8 * rng.standard_normal(bent.shape)
    poses[:, WRIST_COLUMNS] = 0
    return poses


class _Spheres(NamedTuple):
    """Spheres that stand in for the hand's flesh, and the pairs of them that must not overlap."""

    weights: Tensor
    """(S, 21): centres as weighted means of the joints."""
    first: Tensor
    """(P,) one sphere of each pair."""
    second: Tensor
    """(P,) the other."""
    reach: Tensor
    """(P,) sum of both radii, in hand lengths."""


_BONE_RADII = {
    "thumb": (0.070, 0.055, 0.046),
    "index": (0.050, 0.044, 0.038),
    "middle": (0.050, 0.045, 0.038),
    "ring": (0.048, 0.042, 0.036),
    "pinky": (0.042, 0.037, 0.032),
}
_PALM_RADIUS = 0.065


def _build_spheres() -> _Spheres:
    """Four spheres along each finger bone, two along each metacarpal.

    Not paired: spheres of one finger; neighbours at the webs and the ball of the thumb, which always overlap; a finger's
    first two bones with the palm; and fingertips among each other, because pads may touch.
    """
    weights: list[np.ndarray] = []
    radii: list[float] = []
    parts: list[int] = []  # finger, or PALM
    heights: list[float] = []  # along the finger, in bones from its base
    palm = len(FINGERS)

    def add(start: int, end: int, position: float, radius: float, part: int, height: float) -> None:
        row = np.zeros(NUM_JOINTS, np.float32)
        row[start], row[end] = 1 - position, position
        weights.append(row)
        radii.append(radius)
        parts.append(part)
        heights.append(height)

    for finger, name in enumerate(FINGERS):
        base = 1 + 4 * finger
        for bone, radius in enumerate(_BONE_RADII[name]):
            last = 0.8 if bone == 2 else 1.0
            for position in (0.25, 0.5, 0.75, last):
                add(base + bone, base + bone + 1, position, radius, finger, bone + position)
        if name != "thumb":
            for position in (0.55, 0.8):
                add(0, base, position, _PALM_RADIUS, palm, 0.0)

    part, height, radius_of = np.array(parts), np.array(heights), np.array(radii, np.float32)
    first, second = np.triu_indices(len(part), k=1)
    same = part[first] == part[second]
    both_low = (height[first] < 1.3) & (height[second] < 1.3)
    with_palm = (part[first] == palm) | (part[second] == palm)
    low_on_palm = with_palm & (np.maximum(height[first], height[second]) < 2.0)
    both_tips = (height[first] > 2.4) & (height[second] > 2.4)
    kept = ~(same | both_low | low_on_palm | both_tips)
    first, second = first[kept], second[kept]
    return _Spheres(
        torch.from_numpy(np.stack(weights)),
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(radius_of[first] + radius_of[second]),
    )


_SPHERES = _build_spheres()
MAX_PENETRATION = 0.022
"""Overlap of the stand-in spheres that still passes, in hand lengths: 4 mm of an average hand, about what skin gives."""


def penetration(joints: Tensor) -> Tensor:
    """How deep fingers reach into each other or the palm: joints (B, 21, 3) in hand lengths -> (B,), negative = apart."""
    centres = torch.einsum("sj,bjx->bsx", _SPHERES.weights, joints)
    distances = (centres[:, _SPHERES.first] - centres[:, _SPHERES.second]).square().sum(-1).sqrt()
    return (_SPHERES.reach - distances).amax(1)


def valid_poses(
    rng: np.random.Generator,
    num_poses: int,
    model: HandModel,
    vertices: Tensor,
    bone_heads: Tensor,
    variety: Variety = "gestures",
) -> np.ndarray:
    """Random poses (num_poses, 25) in degrees of one subject, drawn again where fingers pass through each other.

    vertices (V, 3), bone_heads (21, 3): the subject's rest shape, on the CPU.
    """
    accepted = np.empty((0, NUM_POSE_PARAMETERS))
    while len(accepted) < num_poses:
        # About one in seven is refused; of varied poses, one in two.
        candidates = random_poses(rng, num_poses + 2 if variety == "gestures" else 2 * num_poses + 4, variety)
        transforms = bone_transforms(bone_heads, local_rotations(model, torch.from_numpy(candidates)))
        joints = joint_positions(model, vertices, bone_heads, transforms)
        passed = (penetration(joints) < MAX_PENETRATION).numpy()
        accepted = np.concatenate([accepted, candidates[passed]])
    return accepted[:num_poses]


KEY_POSE_INTERVAL_S = 0.7
_REST = 0.5
"""Share of the time that a hand rests in its pose: half-way between two, most fingers are half bent, which is no gesture."""


def pose_track(
    rng: np.random.Generator,
    times_s: np.ndarray,
    model: HandModel,
    vertices: Tensor,
    bone_heads: Tensor,
    variety: Variety = "gestures",
) -> np.ndarray:
    """A hand's motion: times (T,) in seconds from zero -> poses (T, 25) in degrees, within the limits.

    It moves from one valid pose to the next every 0.7 s and trembles a little; between varied poses it is quick and rests
    at each. Poses between the keys are not tested for penetration (0.4 % of frames go deeper than the limit by up to 5 mm).
    """
    position = times_s / KEY_POSE_INTERVAL_S
    before = position.astype(int)
    keys = valid_poses(rng, int(before[-1]) + 2, model, vertices, bone_heads, variety)
    fraction = (position - before)[:, None]
    if variety == "varied":
        fraction = np.clip((fraction - _REST / 2) / (1 - _REST), 0, 1)
    ease = fraction * fraction * (3 - 2 * fraction)
    tremor = 0.8 * smooth_noise(rng, times_s, len(POSE_PARAMETERS), period_s=0.5)
    return constrain(keys[before] * (1 - ease) + keys[before + 1] * ease + tremor)


def smooth_noise(rng: np.random.Generator, times_s: np.ndarray, num_channels: int, period_s: float) -> np.ndarray:
    """Band-limited noise: times (T,) in seconds from zero -> (T, num_channels), unit variance at the keys.

    Catmull-Rom interpolation of independent normal keys, one every `period_s`.
    """
    position = times_s / period_s + 1
    index = position.astype(int)
    u = (position - index)[:, None]
    keys = rng.standard_normal((int(index[-1]) + 3, num_channels))
    k0, k1, k2, k3 = (keys[index + offset] for offset in (-1, 0, 1, 2))
    cubic = (3 * (k1 - k2) + k3 - k0) * u**3
    return 0.5 * (2 * k1 + (k2 - k0) * u + (2 * k0 - 5 * k1 + 4 * k2 - k3) * u**2 + cubic)
