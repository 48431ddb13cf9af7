"""DexYCB (Chao et al. 2021) as published; layout and units from its authors' toolkit (dex_ycb.py, sequence_loader.py,
hpe_eval.py).

    <uri>/<subject>/<session>/meta.yml                        serials, num_frames, mano_sides
    <uri>/<subject>/<session>/<serial>/color_000000.jpg       640 x 480
    <uri>/<subject>/<session>/<serial>/labels_000000.npz      joint_3d (1, 21, 3)
    <uri>/calibration/intrinsics/<serial>_640x480.yml         color: fx, fy, ppx, ppy

A unit is one camera of one session; splits are drawn by subject (or by session). Subjects, sessions and cameras are those whose
folders are there. joint_3d is in metres, in the camera's frame (OpenCV's axes), in FreiHAND's joint order; all of it is -1
where no hand is in sight or none is annotated. A session shows one hand, of one side.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.config import Settings
from pipeline.errors import DataError, MissingError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SourceSettings, Unit
from pipeline.frames.sources.images import StillsSettings
from pipeline.frames.sources.published import (
    continuous_camera,
    labelled_hand,
    numbers,
    read_all,
    read_stills,
    read_yaml,
)
from pipeline.storage import join, list_folders, size

IMAGE_SIZE = (640, 480)
_NO_HAND = -1.0
_READERS = 8
_NO_SUBJECTS = ("calibration", "models", "bop")


class DexYcbSection(Settings):
    """source.dexycb."""

    split_by: Literal["subject", "session"] = "subject"
    """What always stays in one split. subject: all of a person (the authors' setup s1). session: all of a session, for
    lists of splits that follow their setups s0 and s3. The cameras of a session are never spread over splits (as in
    s2)."""


class DexYcbSettings(StillsSettings, SourceSettings):
    """DexYCB as published."""

    usual_reject_fraction = 0.5  # sequences begin before the hand comes in

    kind: Literal["dexycb"] = "dexycb"
    dexycb: DexYcbSection = DexYcbSection()

    def reader(self) -> "DexYcb":
        """See the file's docstring."""
        return DexYcb(self)


class Session(NamedTuple):
    """What is there of a session."""

    meta: str
    """URI of its meta.yml."""
    num_bytes: int
    cameras: frozenset[str]
    """Names of the folders of its cameras."""


class DexYcb:
    """See the file's docstring."""

    def __init__(self, settings: DexYcbSettings) -> None:
        self.settings = settings

    def list_files(self) -> dict[str, int]:
        """The sessions' meta.yml. Images and labels are not listed, there are too many; missing ones are counted."""
        return {session.meta: session.num_bytes for session in self._sessions.values()}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a camera of a session. Raises DataError where there is no session, or meta.yml or the calibration is not
        as published."""
        if not self._sessions:
            raise DataError(f"{self.settings.uri}: no <subject>/<session>/meta.yml here")
        cameras: dict[str, list[list[float]]] = {}
        units = []
        for session, there in self._sessions.items():
            meta = _read_meta(there.meta)
            for serial in meta["serials"]:
                if serial not in there.cameras:
                    continue
                if serial not in cameras:
                    cameras[serial] = self._camera(serial)
                entry = {"camera": cameras[serial], "sides": meta["mano_sides"]}
                units.append(
                    Unit(
                        name=f"{session}/{serial}",
                        uri=join(self.settings.uri, session, serial),
                        num_frames=meta["num_frames"],
                        entries=[entry],
                        split_key=session if self.settings.dexycb.split_by == "session" else session.partition("/")[0],
                    )
                )
        if not units:
            raise DataError(f"{self.settings.uri}: no session has a folder of one of the cameras in its meta.yml")
        return units

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Reads the labels of the frames that are wanted."""
        (entry,) = unit.entries or [{}]
        wanted = self.settings.sampled(unit.num_frames)
        labels = read_all([join(unit.uri, f"labels_{index:06d}.npz") for index, _ in wanted])
        frames = []
        for (index, time_s), data in zip(wanted, labels, strict=True):
            hands = _hands(data, entry, f"{unit.name}/{index:06d}", rejects)
            if hands:
                frames.append(FrameHands(index, time_s, hands))
        files = {f.index: (join(unit.uri, f"color_{f.index:06d}.jpg"), IMAGE_SIZE) for f in frames}
        yield OpenUnit(frames, lambda indexes: read_stills(files, indexes, unit.name, rejects))

    @cached_property
    def _sessions(self) -> dict[str, Session]:
        """By "<subject>/<session>". Found from the folders alone: there are over a million files."""
        subjects = [uri for uri in list_folders(self.settings.uri) if _name(uri) not in _NO_SUBJECTS]
        with ThreadPoolExecutor(_READERS) as pool:
            sessions = [uri for found in pool.map(list_folders, subjects) for uri in found]
            metas = [join(uri, "meta.yml") for uri in sessions]
            sizes = list(pool.map(_size_if_there, metas))
            cameras = [frozenset(map(_name, found)) for found in pool.map(list_folders, sessions)]
        names = ["/".join(uri.split("/")[-2:]) for uri in sessions]
        return {
            name: Session(meta, num_bytes, of_session)
            for name, meta, num_bytes, of_session in zip(names, metas, sizes, cameras, strict=True)
            if num_bytes is not None
        }

    def _camera(self, serial: str) -> list[list[float]]:
        """Intrinsics of a camera's colour images, continuous pixels. Raises DataError, naming the key, where one is missing."""
        uri = join(self.settings.uri, "calibration/intrinsics", f"{serial}_{IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}.yml")
        colour = read_yaml(uri).get("color")
        values = [colour.get(key) if isinstance(colour, dict) else None for key in ("fx", "fy", "ppx", "ppy")]
        fx, fy, ppx, ppy = numbers(values, (4,), uri, "color.fx, fy, ppx, ppy")
        matrix: list[list[float]] = continuous_camera(np.array([[fx, 0, ppx], [0, fy, ppy], [0, 0, 1]])).tolist()
        return matrix


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _size_if_there(uri: str) -> int | None:
    try:
        return size(uri)
    except MissingError:
        return None


def _read_meta(uri: str) -> dict[str, Any]:
    """A session's meta.yml. Raises DataError, naming the key, where it is not as published."""
    meta = read_yaml(uri)
    sides, serials, num_frames = (meta.get(key) for key in ("mano_sides", "serials", "num_frames"))
    if not isinstance(sides, list) or not sides or not all(side in ("right", "left") for side in sides):
        raise DataError(f"{uri}: mano_sides is {sides}, not a list of right or left")
    if not isinstance(serials, list) or not serials:
        raise DataError(f"{uri}: serials is {serials}, not a list of cameras")
    if not isinstance(num_frames, int) or num_frames < 1:
        raise DataError(f"{uri}: num_frames is {num_frames}, not a number of frames")
    return {"mano_sides": sides, "serials": [str(serial) for serial in serials], "num_frames": num_frames}


def _hands(data: bytes | None, entry: dict[str, Any], name: str, rejects: Rejects) -> list[Hand]:
    """The hands of a label file; empty (and counted) where it is missing, damaged, or without a hand."""
    joints = None if data is None else _joints(data)
    if joints is None or joints.shape != (len(entry["sides"]), 21, 3):
        rejects.add("bad_labels", name)
        return []
    hands = []
    for track, side in enumerate(entry["sides"]):
        if (joints[track] == _NO_HAND).all():
            rejects.add("no_hand", name)
            continue
        hand = labelled_hand(track, side, joints[track], np.asarray(entry["camera"]), name, rejects)
        if hand is not None:
            hands.append(hand)
    return hands


def _joints(data: bytes) -> np.ndarray | None:
    """joint_3d of a label file, or None. Arrays of Python objects are refused, because they could run a program."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as labels:
            return np.asarray(labels["joint_3d"], dtype=np.float64)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None
