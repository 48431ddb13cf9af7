"""InterHand2.6M (Moon et al. 2020) as published, 5 and 30 frames a second alike; layout and units from its home page and
its authors' dataset.py.

    <uri>/images/<split>/Capture<n>/<sequence>/cam<id>/image<frame>.jpg
    <uri>/annotations/<split>/InterHand2.6M_<split>_{data,camera,joint_3d}.json      (v1.0)
    <uri>/annotations/{all,machine_annot,human_annot}/InterHand2.6M_<split>_...      (v0.0; val in machine_annot only)

A unit is one camera of one sequence; the splits are drawn by subject. World coordinates are millimetres, and
X_camera = camrot (X_world - campos). Of 42 joints the first 21 are the right hand's, each finger from its tip to its base.

A hand of which all 21 joints are annotated is labelled. Of others there are no partial labels: alone in the image it becomes
an unlabelled row with the published box, beside another hand, where the published box spans both, it is left out.

The annotations are too large to be held (gigabytes): the driver reads them once, from front to back, and keeps 30 bytes an
image; workers read joint_3d.json in the same way and keep its numbers.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from pipeline.errors import DataError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SourceSettings, Unit
from pipeline.frames.sources.images import StillsSettings
from pipeline.frames.sources.interhand_annotations import (
    FRAME,
    HAND_TYPES,
    HANDS,
    count_hands,
    join_columns,
    read_data,
    read_joints,
)
from pipeline.frames.sources.published import continuous_camera, labelled_hand, numbers, read_stills
from pipeline.storage import exists, join, read_json, size

_EARLIER_FOLDERS = ("all", "machine_annot", "human_annot")


class InterHandSettings(StillsSettings, SourceSettings):
    """InterHand2.6M as published."""

    usual_reject_fraction = 0.5  # hands with missing joints

    kind: Literal["interhand"] = "interhand"
    part: Literal["train", "val", "test"] | None = None
    """Part of the data set. None takes train."""

    def reader(self) -> "InterHand":
        """See the file's docstring."""
        return InterHand(self)


class InterHand:
    """See the file's docstring."""

    def __init__(self, settings: InterHandSettings) -> None:
        self.settings = settings
        self.split = settings.part or "train"

    def list_files(self) -> dict[str, int]:
        """The three annotation files. Images are not listed, there are too many; missing ones are counted as rejects."""
        return {uri: size(uri) for uri in map(self._annotations, ("data", "camera", "joint_3d"))}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a camera of a sequence. Raises DataError where an annotation file is not the published one."""
        images, annotations = read_data(self._annotations("data"))
        cameras = read_json(self._annotations("camera"))
        units = []
        joined = join_columns(images, annotations, rejects)
        for folder, frames in sorted(joined.items()):
            info = images.folders[folder]
            entry = {
                "capture": info["capture"],
                **self._camera(cameras, info["capture"], info["camera"]),
                "frames": base64.b64encode(frames.tobytes()).decode(),
            }
            uri = join(self.settings.uri, "images", self.split, folder)
            units.append(Unit(folder, uri, count_hands(frames), [entry], split_key=f"subject{info['subject']}"))
        if not units:
            raise DataError(f"{self._annotations('data')}: annotates no images")
        return units

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Joints come from joint_3d.json, which each worker process reads once."""
        (entry,) = unit.entries or [{}]
        joints_uri = self._annotations("joint_3d")
        all_joints = read_joints(joints_uri, size(joints_uri)).get(entry["capture"], {})
        records = np.frombuffer(base64.b64decode(entry["frames"]), FRAME)
        frames, files = [], {}
        for index, time_s in self.settings.sampled(len(records)):
            record = records[index]
            number = int(record["frame"])
            name = f"{unit.name}/{number:06d}"
            hands = _hands(record, all_joints.get(number), entry, name, rejects)
            if hands:
                frames.append(FrameHands(number, time_s, hands))
                uri = join(unit.uri, f"image{number:0{record['digits']}d}.jpg")
                files[number] = (uri, (int(record["width"]), int(record["height"])))
        yield OpenUnit(frames, lambda indexes: read_stills(files, indexes, unit.name, rejects))

    def _annotations(self, kind: str) -> str:
        """URI of an annotation file: of version 1.0, else of the earlier one."""
        name = f"InterHand2.6M_{self.split}_{kind}.json"
        places = [join(self.settings.uri, "annotations", folder, name) for folder in (self.split, *_EARLIER_FOLDERS)]
        return next(filter(exists, places), places[0])

    def _camera(self, cameras: Any, capture: str, camera: str) -> dict[str, Any]:
        """{"rotation", "position", "matrix"} as plain lists. Raises DataError, naming the key, where one is not there."""
        uri = self._annotations("camera")
        found = {}
        for kind, shape in (("camrot", (3, 3)), ("campos", (3,)), ("focal", (2,)), ("princpt", (2,))):
            key = f"{capture}.{kind}.{camera}"
            try:
                value = cameras[capture][kind][camera]
            except (KeyError, TypeError):
                raise DataError(f"{uri}: has no {key}") from None
            found[kind] = numbers(value, shape, uri, key)
        matrix = np.diag([*found["focal"], 1.0])
        matrix[:2, 2] = found["princpt"]
        return {
            "rotation": found["camrot"].tolist(),
            "position": found["campos"].tolist(),
            "matrix": continuous_camera(matrix).tolist(),
        }


def _hands(
    record: np.void,
    joints: tuple[np.ndarray, np.ndarray] | None,
    entry: dict[str, Any],
    name: str,
    rejects: Rejects,
) -> list[Hand]:
    """The hands of one image; those that cannot be used are counted."""
    hand_type = HAND_TYPES[record["hands"]]
    camera = np.asarray(entry["matrix"])
    kept = []
    for track, side in enumerate(HANDS):
        if hand_type not in (side, "interacting"):
            continue
        own = _camera_joints(track, record, joints, entry)
        if own is not None:
            hand = labelled_hand(track, side, own, camera, name, rejects)
        elif hand_type == side:
            x, y, width, height = record["box"].tolist()
            hand = Hand(track, side, (x, y, x + width, y + height), None, camera)
        else:
            hand = None
            rejects.add("partial_joints", f"{name}#{track}")
        if hand is not None:
            kept.append(hand)
    return kept


def _camera_joints(
    track: int, record: np.void, joints: tuple[np.ndarray, np.ndarray] | None, entry: dict[str, Any]
) -> np.ndarray | None:
    """One hand's (21, 3) joints, metres, camera frame, FreiHAND order; None unless all of them are annotated.

    An image's own joint_valid also says 0 of joints outside the image, which are annotated nevertheless.
    """
    own = slice(21 * track, 21 * track + 21)
    if joints is None or not joints[1][own].all():
        return None
    world = joints[0][own].astype(np.float64)
    points = (world - entry["position"]) @ np.transpose(entry["rotation"]) / 1000.0
    valid = (int(record["valid"]) >> np.arange(21 * track, 21 * track + 21)) & 1
    if not valid.all() and (points[:, 2] > 0).all():
        pixels = points @ np.transpose(entry["matrix"])
        pixels = pixels[:, :2] / pixels[:, 2:]
        inside = ((pixels >= 0) & (pixels < [record["width"], record["height"]])).all(1)
        if (inside & (valid == 0)).any():
            return None
    from pipeline.hands import reorder

    return reorder(points, "interhand", "freihand")
