"""Hands of coloured dots for tests of sources: 21 dots, each of a colour of its own, so that swapped joints show.

Nothing of the pipeline is used here. Images are drawn the way the data sets' own scripts draw: the centre of the first pixel
is (0, 0).
"""

import colorsys
import io

import numpy as np
from PIL import Image

FINGERS = ("thumb", "index", "middle", "ring", "pinky")
PARTS = ("mcp", "pip", "dip", "tip")
FREIHAND = ["wrist", *(f"{finger}_{part}" for finger in FINGERS for part in PARTS)]
COLOURS = {"wrist": np.array([255.0, 255.0, 255.0])} | {
    f"{finger}_{part}": 255 * np.array(colorsys.hsv_to_rgb(number / 5, 1.0, level))
    for number, finger in enumerate(FINGERS)
    for part, level in zip(PARTS, (0.55, 0.7, 0.85, 1.0), strict=True)
}
BACKGROUND = 20.0


def hand(side: str, number: int, depth: float = 0.6, x: float = 0.0, y: float = 0.0) -> dict[str, np.ndarray]:
    """{joint name: (3,) metres in an OpenCV camera frame}: about 0.1 m of well separated joints, moving with `number`."""
    sign = 1.0 if side == "right" else -1.0
    joints = {"wrist": np.array([0.0, 0.05, 0.0])}
    for column, finger in enumerate(FINGERS):
        for row, part in enumerate(PARTS):
            joints[f"{finger}_{part}"] = np.array([0.024 * (column - 2), 0.022 - 0.022 * row, 0.004 * (row - column)])
    shift = np.array([x + 0.002 * number, y + 0.001 * number, depth])
    return {name: joint * [sign, 1.0, 1.0] + shift for name, joint in joints.items()}


def pixels_of(joints: dict[str, np.ndarray], camera: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (2,)} by the camera as it is published."""
    projected = {name: camera @ joint for name, joint in joints.items()}
    return {name: point[:2] / point[2] for name, point in projected.items()}


def draw(
    hands: list[dict[str, np.ndarray]], camera: np.ndarray, width: int, height: int, radius: float = 7.0
) -> Image.Image:
    """An image with a dot at each joint's projection."""
    image = np.full((height, width, 3), BACKGROUND)
    for joints in hands:
        for name, (u, v) in pixels_of(joints, camera).items():
            left, top = (max(int(c - radius) - 1, 0) for c in (u, v))
            window = image[top : int(v + radius) + 3, left : int(u + radius) + 3]
            x, y = np.meshgrid(left + np.arange(window.shape[1]), top + np.arange(window.shape[0]))
            cover = np.clip(radius + 0.5 - np.hypot(x - u, y - v), 0, 1)[..., None]
            window += cover * (COLOURS[name] - window)
    return Image.fromarray(image.round().astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def check_dots(row: dict, radius: float = 7.0) -> None:
    """The joints of a row, in the image or projected with its camera, lie on the dots of its crop, each on its own."""
    crop = np.asarray(Image.open(io.BytesIO(row["jpeg"])).convert("RGB"), dtype=float)
    if row.get("joints_2d") is None:
        projected = np.asarray(row["joints_3d"]).reshape(21, 3) @ np.asarray(row["camera"]).reshape(3, 3).T
        points = projected[:, :2] / projected[:, 2:]
    else:
        points = np.asarray(row["joints_2d"]).reshape(21, 2)
    reach = radius * abs(np.ravel(row["crop"])[0])
    x, y = np.meshgrid(np.arange(crop.shape[1]) + 0.5, np.arange(crop.shape[0]) + 0.5)
    offsets = []
    for name, point in zip(FREIHAND, points, strict=True):
        distance = np.hypot(x - point[0], y - point[1])
        weight = np.where(distance < reach + 2, np.clip(crop.max(2) - 2 * BACKGROUND, 0, None), 0)
        assert weight.sum() > 0, f"no dot at {name}"
        offsets.append([(weight * x).sum() / weight.sum() - point[0], (weight * y).sum() / weight.sum() - point[1]])
        colour = crop[distance < reach / 2].mean(0)
        nearest = min(COLOURS, key=lambda other: float(np.abs(COLOURS[other] - colour).sum()))
        assert nearest == name, f"the dot at {name} has the colour of {nearest}"
    assert np.abs(offsets).max() < 0.7
    assert np.abs(np.mean(offsets, 0)).max() < 0.12, "half a pixel is lost"
