"""Reads pickles of plain values and numpy arrays, and nothing else.

A pickle can name any function and have it called while it is read. This reader knows the handful of names that numpy
arrays are made of; a file that asks for another one is refused before anything is called.
"""

import io
import pickle
from typing import Any

import numpy as np
from numpy._core import multiarray, numeric

from pipeline.errors import DataError


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into the pickle protocols that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


_CORES = ("numpy.core", "numpy._core")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{
        (f"{core}.multiarray", name): getattr(multiarray, name)
        for core in _CORES
        for name in ("_reconstruct", "scalar")
    },
    **{(f"{core}.numeric", "_frombuffer"): getattr(numeric, "_frombuffer") for core in _CORES},  # noqa: B009 (not in stubs)
}


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # arrays of Python 2 are text otherwise
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise DataError(
                f"{self._name}: this pickle asks for {module}.{name}; only plain values and numpy arrays are read, because "
                "anything else could run a program. Is it the published file?"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to another file")


def load_plain(data: bytes, name: str) -> Any:
    """The value of a pickle, written by Python 2 or 3; None where it is damaged.

    name: for the error. Raises DataError where the pickle asks for anything but plain values and numpy arrays.
    """
    try:
        return _PlainUnpickler(data, name).load()
    except DataError:
        raise
    except Exception:  # whatever a damaged stream makes pickle and numpy raise
        return None
