"""Cut the square crop of a hand out of a frame, and carry camera and joints along.

Coordinates are continuous: (0, 0) is the top-left corner of the top-left pixel, the centre of pixel i is i + 0.5.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

FOCAL_FACTOR = 1.2
"""Focal length in longer image sides where it is not known: COLMAP's default too, a field of view of 45 degrees. Webcams
and phones are usually wider (0.7 to 0.9)."""
MIN_BOX_SIDE = 2.0
MIN_BOX_INSIDE = 0.5
_MAX_FRACTION = 1.01  # fractions of the image are rounded
_FILTER_RADIUS = 2.0  # of PIL's bicubic filter, in output pixels


def is_box(box: Sequence[Any]) -> bool:
    """Whether a value is four finite numbers x0, y0, x1, y1 that span at least MIN_BOX_SIDE pixels each way."""
    try:
        values = np.asarray(box)
    except ValueError:  # of unequal lengths
        return False
    if values.shape != (4,) or values.dtype.kind not in "iuf":  # numbers in quotes become numbers nowhere else
        return False
    x0, y0, x1, y1 = values.astype(np.float64)
    return bool(np.isfinite([x0, y0, x1, y1]).all() and min(x1 - x0, y1 - y0) >= MIN_BOX_SIDE)


def box_fault(box: Sequence[Any]) -> str | None:
    """Why a value is not such a box, by a name of rejects.FRAME_REASONS; None where it is one."""
    if is_box(box):
        return None
    try:
        x0, y0, x1, y1 = (float(value) for value in box)
    except (TypeError, ValueError):
        return "bad_box"
    of_fractions = 0 <= x0 < x1 <= _MAX_FRACTION and 0 <= y0 < y1 <= _MAX_FRACTION
    return "fraction_box" if of_fractions else "bad_box"


def is_inside(box: Sequence[float], width: int, height: int) -> bool:
    """Whether at least half of a box's area (MIN_BOX_INSIDE) lies in the image.

    Hands that merely reach over the border are kept; the crop is black there.
    """
    x0, y0, x1, y1 = box
    inside = max(min(x1, width) - max(x0, 0.0), 0.0) * max(min(y1, height) - max(y0, 0.0), 0.0)
    return inside >= MIN_BOX_INSIDE * (x1 - x0) * (y1 - y0)


def assumed_camera(width: int, height: int, focal_factor: float = FOCAL_FACTOR) -> np.ndarray:
    """(3, 3) of an image whose camera is unknown: square pixels, the principal point in the middle."""
    focal = focal_factor * max(width, height)
    return np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def joints_on_rays(joints_2d: np.ndarray, shape: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """(21, 3) joints in the frame of a camera (3, 3) that projects them exactly to joints_2d (21, 2), pixels.

    shape: (21, 3) the joints around any centre, axes as the camera's, in the unit of the result. Their depths are kept, and the
    hand is as far away as makes it as large in the image (weak perspective).
    """
    rays = np.column_stack([joints_2d, np.ones(len(joints_2d))]) @ np.linalg.inv(camera).T
    centred, seen = shape - shape.mean(0), rays[:, :2] - rays[:, :2].mean(0)
    distance = np.linalg.norm(centred[:, :2]) / np.linalg.norm(seen)
    return np.asarray(rays * (distance + centred[:, 2:]))


def crop_matrix(box: Sequence[float], image_size: int, margin: float, mirrored: bool) -> np.ndarray:
    """(2, 3) float64 matrix from source pixels to the pixels of the square crop.

    The square's side is `margin` times the longer side of the box (x0, y0, x1, y1), its centre the box's centre.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    side = margin * max(x1 - x0, y1 - y0)
    scale = image_size / side
    matrix = np.array(
        [[scale, 0.0, -scale * ((x0 + x1 - side) / 2)], [0.0, scale, -scale * ((y0 + y1 - side) / 2)]], dtype=np.float64
    )
    if mirrored:
        matrix[0] = -matrix[0]
        matrix[0, 2] += image_size
    return matrix


def cut(image: Image.Image, matrix: np.ndarray, image_size: int) -> Image.Image:
    """The square crop that `matrix` (from crop_matrix) describes, antialiased; black where it leaves the image."""
    mirrored = matrix[0, 0] < 0
    scale = abs(matrix[0, 0])
    side = image_size / scale
    left = (matrix[0, 2] - image_size) / scale if mirrored else -matrix[0, 2] / scale
    top = -matrix[1, 2] / scale
    # A whole-pixel piece with room for the resampling filter, so that the border is as exact as the middle.
    reach = math.ceil(_FILTER_RADIUS * max(1.0, 1.0 / scale)) + 1
    x0, y0 = math.floor(left) - reach, math.floor(top) - reach
    x1, y1 = math.ceil(left + side) + reach, math.ceil(top + side) + reach
    piece = image.crop((x0, y0, x1, y1))
    square = piece.resize(
        (image_size, image_size),
        Image.Resampling.BICUBIC,
        box=(left - x0, top - y0, left - x0 + side, top - y0 + side),
    )
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else square


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """The crop as JPEG bytes (4:2:0 chroma, no metadata)."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def crop_camera(camera: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(3, 3) intrinsics of the crop: matrix @ camera.

    For a mirrored crop they are those of the mirrored scene (x negated), so that focal lengths stay positive and joints
    mirrored with `mirror_joints` project onto the crop's pixels.
    """
    full = np.vstack([matrix, [0.0, 0.0, 1.0]])
    result = full @ np.asarray(camera, dtype=np.float64)
    if matrix[0, 0] < 0:
        result[:, 0] = -result[:, 0]
    return result


def mirror_joints(joints_3d: np.ndarray) -> np.ndarray:
    """(21, 3) camera-frame joints of the mirrored scene: a left hand becomes a right hand."""
    return np.asarray(joints_3d) * [-1.0, 1.0, 1.0]
