"""What the published, calibrated data sets of still images have in common."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import DataError, MissingError
from pipeline.frames.image_file import read_image
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import Hand
from pipeline.frames.sources.json_stream import open_json
from pipeline.storage import read_bytes
from pipeline.text_files import parse_yaml

_READERS = 8


def continuous_camera(camera: np.ndarray) -> np.ndarray:
    """(3, 3) intrinsics for continuous pixels, from intrinsics for which the first pixel's centre is (0, 0).

    That is how OpenCV, which most data sets are made and drawn with, and Intel's RealSense cameras ("Projection in RealSense
    SDK 2.0", Pixel Coordinates) count.
    """
    shifted = np.array(camera, dtype=np.float64)
    shifted[:2, 2] += 0.5
    return shifted


def labelled_hand(track: int, hand: str, joints: Any, camera: np.ndarray, name: str, rejects: Rejects) -> Hand | None:
    """A hand whose box is tight around its 21 projected joints; None (and counted) where they cannot be projected.

    joints: (21, 3) metres, camera frame, FreiHAND order. camera: (3, 3), continuous pixels.
    """
    try:
        points = np.asarray(joints, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.shape != (21, 3) or not np.isfinite(points).all() or points[:, 2].min() <= 0:
        rejects.add("bad_joints", name)
        return None
    if not np.isfinite(camera).all():
        rejects.add("bad_camera", name)
        return None
    return Hand(track, hand, tight_box(project(points, camera)), points, camera)


def project(joints: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """(21, 2) pixels of joints (21, 3) in the camera's frame."""
    pixels = joints @ camera.T
    return pixels[:, :2] / pixels[:, 2:]


def tight_box(points: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 around points (21, 2)."""
    (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
    return x0, y0, x1, y1


def read_all(uris: Sequence[str]) -> Iterator[bytes | None]:
    """The bytes of many small files, in order; None for one that is not there."""
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(_read_if_there, uris)


def _read_if_there(uri: str) -> bytes | None:
    try:
        return read_bytes(uri)
    except MissingError:
        return None


def read_stills(
    files: Mapping[int, tuple[str, tuple[int, int]]], indexes: Sequence[int], unit: str, rejects: Rejects
) -> Iterator[tuple[int, Image.Image]]:
    """RGB images by number; those that are missing, broken or of another size are counted.

    files: {number: (URI, (width, height) that the labels are for)}.
    """
    for index in indexes:
        uri, size = files[index]
        name = f"{unit}/{index:06d}"
        image = read_image(uri, name, rejects)
        if image is None:
            continue
        if image.size == size:
            yield index, image
        else:
            rejects.add("wrong_size", name)


def read_array(uri: str, shape: tuple[int, ...]) -> np.ndarray:
    """A JSON list of arrays as (N, *shape) float64, element by element; elements of another form become NaN."""
    elements = []
    with open_json(uri) as stream:
        for _ in stream.elements():
            elements.append(_numbers_or_nan(stream.value(), shape))
    if not elements:
        raise DataError(f"{uri}: an empty list")
    result = np.stack(elements)
    if np.isnan(result.reshape(len(result), -1)).any(1).all():
        raise DataError(f"{uri}: not one of {len(result)} elements is {' x '.join(map(str, shape)) or 'a number'}")
    return result


def _numbers_or_nan(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    # Published scales are numbers, or lists of one.
    return array.reshape(shape) if array.size == np.prod(shape, dtype=int) else np.full(shape, np.nan)


def read_yaml(uri: str) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises DataError where it is not one, StorageError where it cannot be read."""
    try:
        value = parse_yaml(read_bytes(uri))
    except ValueError as error:
        raise DataError(f"{uri}: not valid YAML ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{uri}: not a YAML mapping")
    return value


def numbers(value: Any, shape: tuple[int, ...], uri: str, key: str) -> np.ndarray:
    """A value of a file as float64 of a shape. Raises DataError, naming file and key, where it is something else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"{uri}: {key} is not {' x '.join(map(str, shape))} finite numbers")
    return array
