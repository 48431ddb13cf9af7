"""HO-3D, versions 2 and 3 (Hampali et al. 2020, 2021), as published; layout and units from its authors' scripts
(vis_HO3D.py, utils/vis_utils.py, pred.py).

    <uri>/train.txt, evaluation.txt       the annotated frames, "<sequence>/<frame>" a line
    <uri>/<part>/<sequence>/rgb/0000.png  (.jpg in version 3), 640 x 480
    <uri>/<part>/<sequence>/meta/0000.pkl
    <uri>/evaluation_xyz.json             joints of the frames of evaluation.txt, in its order; published after the challenge

A unit is a sequence. Hands are right hands. Joints are in metres, in MANO's joint order, in OpenGL's camera frame: y points
up and z backwards. The label files of the evaluation part give only the wrist and handBoundingBox: without
evaluation_xyz.json its rows have no joints.

Sequences of one hand and object have the same letters, whatever their cameras: ABF10 ... ABF14 are five cameras of one
recording, and so are SB10 ... SB14, of which SB11 and SB13 are published as evaluation. Splits are drawn by the letters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SourceSettings, Unit
from pipeline.frames.sources.images import StillsSettings
from pipeline.frames.sources.plain_pickle import load_plain
from pipeline.frames.sources.published import continuous_camera, labelled_hand, read_all, read_array, read_stills
from pipeline.storage import exists, join, list_files, read_bytes, size
from pipeline.text_files import decode_text

IMAGE_SIZE = (640, 480)
_OPENGL_TO_OPENCV = np.array([1.0, -1.0, -1.0])


class Ho3dSettings(StillsSettings, SourceSettings):
    """HO-3D v2 or v3 as published."""

    kind: Literal["ho3d"] = "ho3d"
    part: Literal["train", "evaluation"] | None = None
    """Part of the data set. None takes train."""

    def reader(self) -> "Ho3d":
        """See the file's docstring."""
        return Ho3d(self)


class Ho3d:
    """See the file's docstring."""

    def __init__(self, settings: Ho3dSettings) -> None:
        self.settings = settings
        self.part = settings.part or "train"
        self.list_uri = join(settings.uri, f"{self.part}.txt")
        self.joints_uri = join(settings.uri, "evaluation_xyz.json") if self.part == "evaluation" else None

    def list_files(self) -> dict[str, int]:
        """The list of frames, and their joints where they have a file. What the list names is not listed; files that are missing
        are counted as rejects."""
        joints = [self.joints_uri] if self.joints_uri and exists(self.joints_uri) else []
        return {uri: size(uri) for uri in (self.list_uri, *joints)}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a sequence. Raises DataError where the list of frames is not valid, or the file of joints is not for it."""
        sequences: dict[str, dict[str, int]] = {}
        try:
            lines = decode_text(read_bytes(self.list_uri)).split()
        except ValueError as error:
            raise DataError(f"{self.list_uri}: not a text file ({error})") from None
        for number, line in enumerate(lines, 1):
            sequence, _, frame = line.partition("/")
            if not sequence or not frame.isdecimal():
                raise DataError(f"{self.list_uri}: line {number}: '{line}' is not <sequence>/<frame>")
            sequences.setdefault(sequence, {}).setdefault(frame, number - 1)
        if not sequences:
            raise DataError(f"{self.list_uri}: names no frames")
        joints = self._joints()
        if joints is not None and len(joints) != len(lines):
            raise DataError(
                f"{self.joints_uri}: joints of {len(joints)} frames, but {self.list_uri} names {len(lines)}"
            )
        return [
            Unit(
                name=f"{self.part}/{sequence}",
                uri=join(self.settings.uri, self.part, sequence),
                num_frames=len(frames),
                entries=[{"frames": sorted(frames.items(), key=lambda item: int(item[0]))}],
                split_key=sequence.rstrip("0123456789") or sequence,
            )
            for sequence, frames in sorted(sequences.items())
        ]

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Reads the labels of the frames that are wanted. Raises DataError for a label file that is not plain data."""
        listed, lines = zip(*(unit.entries or [{}])[0]["frames"], strict=True)
        joints = self._joints()
        wanted = self.settings.sampled(len(listed))
        suffixes = {uri.rpartition("/")[2]: uri for uri in list_files(join(unit.uri, "rgb"), (".jpg", ".png"))}
        uris = [join(unit.uri, "meta", f"{listed[index]}.pkl") for index, _ in wanted]
        frames, files = [], {}
        for (index, time_s), uri, data in zip(wanted, uris, read_all(uris), strict=True):
            stem, number = listed[index], int(listed[index])
            known = None if joints is None else joints[lines[index]]
            hand = _hand(data, known, uri, f"{unit.name}/{number:06d}", rejects)
            if hand is not None:
                frames.append(FrameHands(number, time_s, [hand]))
                image = suffixes.get(f"{stem}.jpg") or join(unit.uri, "rgb", f"{stem}.png")
                files[number] = (image, IMAGE_SIZE)
        yield OpenUnit(frames, lambda indexes: read_stills(files, indexes, unit.name, rejects))

    def _joints(self) -> np.ndarray | None:
        """(N, 21, 3) of the frames in the order of their list, where they have a file of their own."""
        if self.joints_uri is None or not exists(self.joints_uri):
            return None
        return read_joints(self.joints_uri, size(self.joints_uri))


@lru_cache(maxsize=1)
def read_joints(uri: str, num_bytes: int) -> np.ndarray:
    """num_bytes: the file's size, so that another file of the same name is read again."""
    return read_array(uri, (21, 3))


def _hand(data: bytes | None, known: np.ndarray | None, uri: str, name: str, rejects: Rejects) -> Hand | None:
    """The hand of a label file; None (and counted) where it is missing, damaged, or without a hand.

    known: its joints, where they are not in the label file.
    """
    meta: Any = None if data is None else load_plain(data, uri)
    if not isinstance(meta, dict):
        rejects.add("bad_labels", name)
        return None
    if known is None and meta.get("handJoints3D") is None:
        rejects.add("no_hand", name)
        return None
    try:
        camera = continuous_camera(np.asarray(meta["camMat"], dtype=np.float64).reshape(3, 3))
        joints = np.asarray(meta["handJoints3D"], dtype=np.float64) if known is None else known
    except (KeyError, TypeError, ValueError):
        rejects.add("bad_labels", name)
        return None
    if joints.size == 3:  # the wrist alone: evaluation
        return Hand(0, "right", _published_box(meta), None, camera)
    if joints.shape != (21, 3):
        rejects.add("bad_labels", name)
        return None
    from pipeline.hands import reorder

    return labelled_hand(0, "right", reorder(joints * _OPENGL_TO_OPENCV, "mano", "freihand"), camera, name, rejects)


def _published_box(meta: dict[str, Any]) -> tuple[float, float, float, float]:
    """handBoundingBox: x0, y0, x1, y1. What is no box is counted when it is used."""
    try:
        x0, y0, x1, y1 = (float(value) for value in np.ravel(meta["handBoundingBox"]))
    except (KeyError, TypeError, ValueError):
        return (0.0, 0.0, 0.0, 0.0)
    return x0, y0, x1, y1
