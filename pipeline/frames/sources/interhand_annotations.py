"""InterHand2.6M's annotation files, read from front to back and kept in columns (they are gigabytes of JSON)."""

import re
from array import array
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.errors import DataError
from pipeline.frames.listing import check_below
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.json_stream import open_json

HANDS = ("right", "left")
"""In the order of the 42 joints; also the hands' track numbers."""
HAND_TYPES = (*HANDS, "interacting")

FRAME = np.dtype(
    [
        ("frame", "<i4"),
        ("digits", "u1"),
        ("hands", "u1"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("valid", "<u8"),
        ("box", "<f4", 4),
    ]
)
"""What is kept of an image: its number and how many digits its name has, index into HAND_TYPES, size in pixels, one bit for
each usable joint, and the box (x, y, width, height)."""


def read_data(uri: str) -> tuple["Images", "Annotations"]:
    """One pass over <split>_data.json. Raises DataError, naming the key, where it is not as published."""
    images, annotations = Images(uri), Annotations(uri)
    with open_json(uri) as stream:
        for key in stream.members():
            if key == "images":
                for number, _ in enumerate(stream.elements()):
                    images.add(number, stream.value())
            elif key == "annotations":
                for number, _ in enumerate(stream.elements()):
                    annotations.add(number, stream.value())
            else:
                stream.value()
    return images, annotations


class Images:
    """The "images" of data.json, in columns."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.folders: dict[str, dict[str, str]] = {}
        """{"Capture0/<sequence>/cam<id>": {"capture", "camera", "subject"}}"""
        self.ids = array("q")
        self.folder = array("q")
        self.frame = array("q")
        self.digits = array("B")
        self.width = array("H")
        self.height = array("H")
        self._numbers: dict[str, int] = {}

    def add(self, number: int, image: Any) -> None:
        """Raises DataError, naming the key, where the image is not described as published."""
        try:
            folder, _, file = image["file_name"].rpartition("/")
            digits = re.fullmatch(r"image(\d+)\.jpg", file)
            frame = int(image["frame_idx"])
            if digits is None or int(digits[1]) != frame:
                raise ValueError("file_name is not .../image<frame_idx>.jpg")
            check_below(f"{folder}/{file}")
            capture = str(image["capture"])
            info = {"capture": capture, "camera": str(image["camera"]), "subject": str(image.get("subject", capture))}
            if self.folders.setdefault(folder, info) != info:
                raise ValueError(f"{folder} has images of two cameras or subjects")
            self.ids.append(image["id"])
            self.folder.append(self._numbers.setdefault(folder, len(self._numbers)))
            self.frame.append(frame)
            self.digits.append(len(digits[1]))
            self.width.append(image["width"])
            self.height.append(image["height"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{self.uri}: images[{number}]: {_why(error)}") from None


class Annotations:
    """The "annotations" of data.json, in columns."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.image_ids = array("q")
        self.hands = array("B")
        self.valid = array("Q")
        self.box = array("f")

    def add(self, number: int, annotation: Any) -> None:
        """Raises DataError, naming the key, where the annotation is not as published."""
        try:
            valid = np.ravel(annotation["joint_valid"]).astype(bool)
            if len(valid) != 42:
                raise ValueError(f"joint_valid has {len(valid)} joints, not 42")
            if len(annotation["bbox"]) != 4:
                raise ValueError("bbox has not four numbers")
            self.image_ids.append(annotation["image_id"])
            self.hands.append(HAND_TYPES.index(annotation["hand_type"]))
            self.valid.append(sum(1 << int(joint) for joint in np.flatnonzero(valid)))
            self.box.extend(annotation["bbox"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{self.uri}: annotations[{number}]: {_why(error)}") from None


def _why(error: Exception) -> str:
    return f"has no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def join_columns(images: Images, annotations: Annotations, rejects: Rejects) -> dict[str, np.ndarray]:
    """{folder: (N,) FRAME, ascending} of the images that have an annotation; the others are counted."""
    table = np.zeros(len(images.ids), FRAME)
    for column in ("frame", "digits", "width", "height"):
        table[column] = getattr(images, column)
    folder, ids = np.asarray(images.folder), np.asarray(images.ids)
    names = list(images.folders)
    by_id = np.argsort(ids, kind="stable")
    wanted = np.asarray(annotations.image_ids)
    place = np.searchsorted(ids, wanted, sorter=by_id)
    known = place < len(ids)
    known[known] = ids[by_id[place[known]]] == wanted[known]
    if not known.all():
        number = int(np.flatnonzero(~known)[0])
        raise DataError(f"{images.uri}: annotations[{number}]: image_id {wanted[number]} is no image's id")
    row = by_id[place]
    _, first = np.unique(row, return_index=True)
    for again in np.setdiff1d(np.arange(len(row)), first):
        rejects.add("duplicate_hand", f"{names[folder[row[again]]]}/{table['frame'][row[again]]:06d}")
    row = row[first]
    table["hands"][row] = np.asarray(annotations.hands)[first]
    table["valid"][row] = np.asarray(annotations.valid)[first]
    table["box"][row] = np.asarray(annotations.box).reshape(-1, 4)[first]
    for bare in np.setdiff1d(np.arange(len(ids)), row):
        rejects.add("no_hand", f"{names[folder[bare]]}/{table['frame'][bare]:06d}")
    row = row[np.lexsort((table["frame"][row], folder[row]))]
    pieces = np.split(table[row], np.flatnonzero(np.diff(folder[row])) + 1) if len(row) else []
    starts = np.unique(folder[row])
    return {names[number]: piece for number, piece in zip(starts, pieces, strict=True)}


def count_hands(frames: np.ndarray) -> int:
    return len(frames) + int((frames["hands"] == HAND_TYPES.index("interacting")).sum())


@lru_cache(maxsize=1)
def read_joints(uri: str, num_bytes: int) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """{capture: {frame: ((42, 3) float32 world coordinates in millimetres, (42,) bool annotated)}} of joint_3d.json.

    num_bytes: the file's size, so that another file of the same name is read again. Raises DataError, naming the key, where
    an entry is not as published.
    """
    result: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    with open_json(uri) as stream:
        for capture in stream.members():
            frames = result.setdefault(capture, {})
            for frame in stream.members():
                entry = stream.value()
                try:
                    world = np.asarray(entry["world_coord"], dtype=np.float32)
                    valid = np.asarray(entry["joint_valid"], dtype=bool)
                    # 42 x 1 in the files; descriptions of the format also say "Jx3"
                    if world.shape != (42, 3) or valid.size not in (42, 3 * 42):
                        raise ValueError("world_coord and joint_valid are not of 42 joints")
                    frames[int(frame)] = (world, np.all(valid.reshape(42, -1), axis=1))
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(f"{uri}: {capture}.{frame}: {_why(error)}") from None
    return result
