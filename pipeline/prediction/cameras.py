"""Cameras of the input, given in a file. Where none is, frames/crop.py assumes one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.frames.listing import Listing, unknown_names
from pipeline.storage import read_json


class Cameras:
    """Cameras from a JSON file: one 3x3 matrix for all, or {name of the image or video: 3x3 matrix}."""

    def __init__(self, uri: str | None) -> None:
        """Raises DataError where the file holds something else."""
        self._common: np.ndarray | None = None
        self._by_name: dict[str, np.ndarray] = {}
        self._names = Listing("", {})
        self._uri = uri
        if uri is None:
            return
        content = read_json(uri)
        if isinstance(content, dict):
            self._by_name = {str(name): _checked(value, f"{uri}: '{name}'") for name, value in content.items()}
            self._names = Listing("", dict.fromkeys(self._by_name, 0))
        else:
            self._common = _checked(content, uri)

    def find(self, name: str) -> np.ndarray | None:
        """The camera of an image or video, or None where the file does not give it."""
        return self._by_name.get(self._names.find(name)[0], self._common)

    def unused(self, names: Sequence[str]) -> list[str]:
        """Notes on cameras whose images or videos are not among these."""
        return unknown_names(str(self._uri), self._by_name, names)


def _checked(value: Any, where: str) -> np.ndarray:
    try:
        camera = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        camera = np.zeros(0)
    good = camera.shape == (3, 3) and bool(np.isfinite(camera).all()) and min(camera[0, 0], camera[1, 1]) > 0
    if not good or camera[2].tolist() != [0, 0, 1]:
        raise DataError(f"{where} is not a camera: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    return camera
