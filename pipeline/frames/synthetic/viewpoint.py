"""Where the camera is: a random viewpoint that follows the hand loosely, as a person filming by hand would."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.frames.synthetic.model import rotation_matrices
from pipeline.frames.synthetic.orientation import ViewpointName, sample_orientations
from pipeline.frames.synthetic.pose import smooth_noise

_CENTRE_JOINTS = [0, 5, 9, 17, 4, 8, 12, 16, 20]
FOREARM_DIRECTION = np.array([-1.0, 0.13, 0.0])
"""From the wrist to the elbow, at rest."""
FOREARM_FAR_END = np.array([-2.55, 0.33, -0.04])
"""A point near the sleeve's far end, at rest, in hand lengths."""

_CANDIDATES, _ROUNDS = 8, 100
_FITTINGS = 6
"""Rounds of moving the camera until the joints fill the picture as wanted, fingers that point at it included."""


@dataclass(frozen=True)
class Viewpoint:
    """Camera and motion of the hand before it, for T frames."""

    camera: np.ndarray
    """(3, 3) pinhole camera, pixels."""
    to_camera: np.ndarray
    """(T, 3, 4) from the hand's rest frame (hand lengths) to the camera frame (metres): rotation, scale, translation."""
    distance: float
    """Mean distance of the hand from the camera, metres."""


def sample_viewpoint(
    rng: np.random.Generator,
    times_s: np.ndarray,
    joints: np.ndarray,
    forearm: np.ndarray,
    hand_length: float,
    image_size: int,
    name: ViewpointName,
    fill: tuple[float, float],
    off_centre: np.ndarray,
) -> Viewpoint:
    """A random viewpoint of the kind `name`, in which the joints fill a share of the picture within `fill` over the clip.

    times_s: (T,) from zero. joints: (T, 21, 3) in hand lengths. forearm: (T, 3, 4) transform of the forearm's bone.
    hand_length: metres from wrist to middle fingertip. off_centre: (2,) where the hand is on average, from the picture's
    middle, as a fraction of its side. Viewpoints are drawn again where the forearm points at the camera or the sleeve's
    far end would be seen.
    """
    focal = rng.uniform(1.2, 3.0) * image_size
    filled = rng.uniform(*fill)
    wobble = 0.22 * smooth_noise(rng, times_s, 3, period_s=1.0)
    drift = smooth_noise(rng, times_s, 3, period_s=1.2) * (0.035, 0.035, 0.05)
    drift[:, :2] += off_centre
    wobble_rotation = _rotation_from_vectors(wobble)

    centre = joints[:, _CENTRE_JOINTS].mean(1, keepdims=True)
    centre = 0.35 * centre + 0.65 * centre.mean(0, keepdims=True)
    relative = joints - centre
    arm_direction = forearm[:, :, :3] @ FOREARM_DIRECTION
    arm_end = forearm[:, :, :3] @ FOREARM_FAR_END + forearm[:, :, 3] - centre[:, 0]

    for _ in range(_ROUNDS):
        orientations = sample_orientations(rng, name, _CANDIDATES, arm_direction.mean(0))
        rotation = orientations[:, None] @ wobble_rotation  # (C, T, 3, 3)
        turned = np.einsum("ctij,tkj->ctki", rotation, relative) * hand_length
        distance = np.ptp(turned[..., :2], axis=(1, 2)).max(1) * focal / (filled * image_size)
        middle = np.zeros((_CANDIDATES, 2))
        for _ in range(_FITTINGS):
            depth = distance[:, None] * (1 + drift[None, :, 2])
            across = turned[..., :2] - middle[:, None, None]
            seen = across / np.maximum(turned[..., 2:] + depth[..., None, None], 0.05) * (focal / image_size)
            low, high = seen.min((1, 2)), seen.max((1, 2))
            middle += (low + high) / 2 * (distance * image_size / focal)[:, None]
            distance *= np.sqrt((high - low).max(1) / filled)  # the whole step overshoots where fingers are near
        shift = drift[None, :, :2] * (distance * image_size / focal)[:, None, None] - middle[:, None]
        depth = distance[:, None] * (1 + drift[None, :, 2])
        translation = np.concatenate([shift, depth[..., None]], -1)  # (C, T, 3)

        towards = np.einsum("ctj,tj->ct", rotation[:, :, 2], arm_direction).min(1)
        end = np.einsum("ctij,tj->cti", rotation, arm_end) * hand_length + translation
        off_centre = np.abs(end[..., :2]).max(-1) / np.maximum(end[..., 2], 0.05) * focal
        end_seen = ((off_centre < 0.56 * image_size) & (end[..., 2] > 0.05)).any(1)
        accepted = np.flatnonzero((towards > -0.55) & ~end_seen)
        if len(accepted):
            chosen = accepted[0]
            scaled = rotation[chosen] * hand_length
            offset = translation[chosen] - np.einsum("tij,tj->ti", scaled, centre[:, 0])
            camera = np.array([[focal, 0, image_size / 2], [0, focal, image_size / 2], [0, 0, 1]])
            return Viewpoint(camera, np.concatenate([scaled, offset[..., None]], -1), float(distance[chosen]))
    raise RuntimeError(f"no viewpoint hides the end of the forearm after {_ROUNDS * _CANDIDATES} tries")


def _rotation_from_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rotation vectors (T, 3), axis times angle in radians -> (T, 3, 3)."""
    angles = np.maximum(np.linalg.norm(vectors, axis=-1), 1e-8)
    return rotation_matrices(torch.from_numpy(vectors / angles[:, None]), torch.from_numpy(angles)).numpy()
