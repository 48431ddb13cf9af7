"""How a hand is turned towards the camera: anywhere, on the other side of a desk, or seen with its owner's own eyes.

`desk` and `egocentric` are distributions of three angles, for a right hand, in the camera frame (x right, y down, z
forward):

* bearing: direction from wrist to elbow on the picture, from straight down; positive = towards the right side.
* recession: angle of that direction against the picture's plane; positive = the elbow is farther away than the hand.
* roll: which side faces the camera, by turning about the forearm: 0 = the palm, 90 = the thumb's side, 180 = the back of
  the hand, 270 = the little finger's side.
"""

from typing import Literal, NamedTuple

import numpy as np

ViewpointName = Literal["anywhere", "desk", "egocentric"]


class _Normal(NamedTuple):
    """A normal distribution whose tails beyond `low` and `high` are drawn again; degrees."""

    mean: float
    deviation: float
    low: float
    high: float


class _Stance(NamedTuple):
    """Distributions of the three angles; degrees."""

    bearing: _Normal
    recession: _Normal
    facing: tuple[float, float, float, float]
    """Shares of palm, thumb's side, back and little finger's side to the camera."""
    roll_deviation: float
    """Standard deviation of the roll around each of the four."""


STANCES = {
    # From frontal (the forearm in the picture's plane) to steep from above (it recedes, as an arm raised from a table).
    "desk": _Stance(_Normal(0, 32, -65, 65), _Normal(12, 24, -30, 65), (0.42, 0.14, 0.30, 0.14), 25),
    # The elbow is below, outwards, and nearer to the eyes than the hand.
    "egocentric": _Stance(_Normal(15, 22, -35, 60), _Normal(-14, 12, -30, 20), (0.12, 0.28, 0.55, 0.05), 22),
}


def sample_orientations(
    rng: np.random.Generator, name: ViewpointName, count: int, arm_direction: np.ndarray
) -> np.ndarray:
    """Random rotations (count, 3, 3) from the hand's rest frame to the camera frame.

    arm_direction: (3,) from wrist to elbow in the rest frame.
    """
    if name == "anywhere":
        return random_rotations(rng, count)
    stance = STANCES[name]
    bearing, recession = (np.radians(_truncated(rng, count, normal)) for normal in (stance.bearing, stance.recession))
    facing = rng.choice(4, size=count, p=stance.facing)
    roll = np.radians(90.0 * facing + stance.roll_deviation * rng.standard_normal(count))
    arm = np.stack([np.sin(bearing) * np.cos(recession), np.cos(bearing) * np.cos(recession), np.sin(recession)], -1)
    # With the fingers up and the palm to the camera, a right hand's thumb is on the right.
    to_camera = _across(np.array([0.0, 0.0, -1.0]), arm)
    palm = np.cos(roll)[:, None] * to_camera + np.sin(roll)[:, None] * np.cross(arm, to_camera)
    return _frame(arm, palm) @ _frame(arm_direction, _across(np.array([0.0, 0.0, -1.0]), arm_direction)).T


def _truncated(rng: np.random.Generator, count: int, normal: _Normal) -> np.ndarray:
    values = np.empty(0)
    while len(values) < count:
        drawn = normal.mean + normal.deviation * rng.standard_normal(2 * count)
        values = np.concatenate([values, drawn[(drawn >= normal.low) & (drawn <= normal.high)]])
    return values[:count]


def _across(vectors: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """The part of vectors (..., 3) that is perpendicular to an axis (..., 3), made unit."""
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    part = vectors - (vectors * axis).sum(-1, keepdims=True) * axis
    return part / np.linalg.norm(part, axis=-1, keepdims=True)


def _frame(arm: np.ndarray, palm: np.ndarray) -> np.ndarray:
    """Rotations (..., 3, 3) whose columns are the forearm's direction, the palm's and their cross product."""
    arm = arm / np.linalg.norm(arm, axis=-1, keepdims=True)
    return np.stack([arm, palm, np.cross(arm, palm)], -1)


def random_rotations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Uniformly distributed rotations (count, 3, 3), from normalised normal quaternions."""
    quaternions = rng.standard_normal((count, 4))
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return np.stack(rows, -1).reshape(count, 3, 3)
