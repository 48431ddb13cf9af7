"""Hands drawn over a frame and seen from the side: the prediction in the colours of the fingers, the label in white."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pipeline.hands import BONES, FINGER_COLOURS, FINGER_JOINTS, NUM_JOINTS, WRIST_COLOUR

_FINGER_OF = {joint: finger for finger, joints in FINGER_JOINTS.items() for joint in joints}

JOINT_COLOURS = tuple(FINGER_COLOURS[_FINGER_OF[j]] if j in _FINGER_OF else WRIST_COLOUR for j in range(NUM_JOINTS))
"""RGB colour, 0-255, of each joint; a bone takes the colour of its outer joint."""

_OVERSAMPLING = 3  # drawn this many times larger and shrunk: smooth lines
_INK = (24, 28, 33)
_WHITE = (255, 255, 255)


def skeleton_overlay(image: Any, joints: Any, true_joints: Any = None, size: int = 256) -> npt.NDArray[np.uint8]:
    """The frame with a hand drawn over it: the prediction in the colours of the fingers, the label in white below.

    image: (3, S, S) uint8. joints, true_joints: (21, 2) pixels of the image. Returns (size, size, 3) uint8.
    """
    large = size * _OVERSAMPLING
    picture = to_picture(image).resize((large, large), Image.Resampling.BICUBIC)
    factor = large / np.asarray(image).shape[-1]
    draw = ImageDraw.Draw(picture)
    width = max(1.0, size / 100) * _OVERSAMPLING
    if true_joints is not None:
        draw_skeleton(draw, np.asarray(true_joints, dtype=float) * factor, width, plain=True)
    draw_skeleton(draw, np.asarray(joints, dtype=float) * factor, width)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def draw_skeleton(draw: ImageDraw.ImageDraw, joints: npt.NDArray[Any], width: float, plain: bool = False) -> None:
    """Draw a hand, joints (21, 2) in pixels; plain: in white. Joints that are not finite draw nothing.

    A dark rim keeps every line readable on skin, on white and on black.
    """
    if not np.isfinite(joints).all():
        return
    points = [(float(x), float(y)) for x, y in joints]
    # The label is drawn wider than the prediction, so that it stays visible where both agree.
    line = width * (2.6 if plain else 1.3)
    for a, b in BONES:
        draw.line((points[a], points[b]), fill=_INK, width=round(line + width))
    for a, b in BONES:
        colour = _WHITE if plain else JOINT_COLOURS[b]
        draw.line((points[a], points[b]), fill=colour, width=round(line))
    radius = width * (1.3 if plain else 1.5)
    for joint, (x, y) in enumerate(points):
        colour = _WHITE if plain else JOINT_COLOURS[joint]
        rim = _INK if not plain else colour
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=rim, width=round(width / 2))


def side_view(predicted: Any, true: Any, size: int) -> npt.NDArray[np.uint8]:
    """Both hands from the side (camera to the left, y down): shows the error in depth, which the frame hides."""
    hands = [np.asarray(joints, dtype=float)[:, [2, 1]] for joints in (true, predicted)]
    large = size * _OVERSAMPLING
    picture = Image.new("RGB", (large, large), (58, 63, 70))
    centre = (hands[0].min(axis=0) + hands[0].max(axis=0)) / 2
    reach = max(float(np.abs(hand - centre).max()) for hand in hands) if np.isfinite(hands).all() else 1.0
    draw = ImageDraw.Draw(picture)
    for hand, plain in zip(hands, (True, False), strict=True):
        points = (hand - centre) / max(reach, 1e-9) * 0.44 * large + large / 2
        draw_skeleton(draw, points, max(1.0, size / 100) * _OVERSAMPLING, plain)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))


def to_picture(frame: Any) -> Image.Image:
    """A Pillow picture of one frame, (3, S, S) uint8."""
    array = np.asarray(frame)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] != 3:
        raise ValueError(f"a frame must be uint8 of shape (3, S, S), got {array.dtype} of shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
