"""Videos with a `<stem>.labels.json` beside each: boxes, tracks, and where known joints and camera.

The labels file:
    {"version": 1, "fps": 15.0, "width": 128, "height": 128, "num_frames": 24, "joint_order": "freihand",
     "camera": [[3x3]] | null, "license": "CC0-1.0" | null,
     "frames": [{"index": 0, "hands": [{"track": 0, "hand": "right", "box": [x0, y0, x1, y1],
                                        "joints_3d": [[x, y, z] x 21] | null}]}]}
Boxes are in pixels, joints in metres in the camera frame. joint_order is one of those in pipeline/hands.py.
"""

import math
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pydantic

from pipeline.errors import DataError, MissingError, RefusedError
from pipeline.frames.listing import VIDEO_SUFFIXES, list_inputs
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SampledSettings, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.video import (
    declared_times,
    facts,
    find_videos,
    open_piece,
    read_frames,
    sample,
)
from pipeline.storage import absolute, as_local_file, is_file, read_bytes
from pipeline.text_files import parse_json

LABELS_SUFFIX = ".labels.json"
_READERS = 16


class LabelledVideoSettings(SampledSettings, SourceSettings):
    """Videos with a <stem>.labels.json beside each."""

    kind: Literal["labelled_video"] = "labelled_video"

    def reader(self) -> "LabelledVideo":
        """See the file's docstring."""
        return LabelledVideo(self)


class HandLabel(pydantic.BaseModel):
    """One hand of one frame. Numbers are checked when they are used, so that a bad one costs its hand only."""

    track: int = 0
    hand: Literal["right", "left"]
    box: list[Any]
    joints_3d: list[Any] | None = None


class FrameLabel(pydantic.BaseModel):
    """The hands of one frame."""

    index: int
    hands: list[HandLabel]


class VideoLabels(pydantic.BaseModel):
    """A labels file."""

    version: Literal[1]
    fps: float | None = None
    width: int
    height: int
    num_frames: int
    joint_order: str = "freihand"
    camera: list[Any] | None = None
    frames: list[FrameLabel]


class LabelledVideo:
    """See the file's docstring."""

    def __init__(self, settings: LabelledVideoSettings) -> None:
        self.settings = settings

    def list_files(self) -> dict[str, int]:
        """The videos and the labels files."""
        uri = self.settings.uri
        beside = file_sizes(labels_uri(uri), ()) if is_file(uri) else {}
        return file_sizes(uri, (*VIDEO_SUFFIXES, LABELS_SUFFIX)) | beside

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a video that has labels. Raises DataError where there is no video, or not one with labels."""
        videos = find_videos(self.settings.uri, rejects, beside=(LABELS_SUFFIX, "synthesize.json"))
        labelled = self._with_labels(videos, rejects)
        for name in videos.keys() - labelled.keys():
            rejects.add("missing_labels", name)
        if not labelled:
            hint = "".join(f"; {note}" for note in rejects.notes if LABELS_SUFFIX in note)
            raise DataError(
                f"{self.settings.uri}: none of {len(videos)} videos has a <stem>{LABELS_SUFFIX} beside it; "
                f"kind detected_video finds hands without labels{hint}"
            )
        with ThreadPoolExecutor(_READERS) as pool:
            lengths = dict(zip(labelled, pool.map(self._lengths, labelled.values()), strict=True))
        rejects.notes += [f"{labels_uri(labelled[name])}: {fault}" for name, (_, _, fault) in lengths.items() if fault]
        return [
            Unit(name, labelled[name], num_hands, length=length) for name, (num_hands, length, _) in lengths.items()
        ]

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Check that labels and video belong together."""
        with as_local_file(unit.uri) as path:
            info, part = open_piece(path, unit)
            if part is None:
                rejects.add("unreadable_video", unit.name)
            if info is None or part is None:
                yield None
                return
            try:
                labels = read_labels(unit.uri)
            except ValueError:  # noted when it was listed
                rejects.add("labels_mismatch", unit.name)
                yield None
                return
            times = declared_times(info)
            if labels.num_frames == len(info.times_s):
                times = info.times_s  # the container only claims that there are more
            if (labels.num_frames, labels.width, labels.height) != (
                len(times),
                info.width,
                info.height,
            ):
                rejects.add("labels_mismatch", unit.name)
                yield None
                return
            frames = self._select(labels, times, part, rejects)
            yield OpenUnit(
                frames, lambda indexes: read_frames(path, info, indexes, unit.name, rejects), part, facts(info)
            )

    def _select(self, labels: VideoLabels, times: list[float], unit: Unit, rejects: Rejects) -> list[FrameHands]:
        by_index: dict[int, list[HandLabel]] = {}
        for frame in labels.frames:
            if not 0 <= frame.index < labels.num_frames:
                if unit.has(frame.index):
                    rejects.add("missing_frame_label", f"{unit.name}/{frame.index:06d}")
            else:
                by_index.setdefault(frame.index, []).extend(frame.hands)
        selected = []
        for index in sample(times, self.settings.fps, self.settings.stride):
            hands = by_index.get(index)
            if hands:
                selected.append(FrameHands(index, times[index], [_hand(label, labels) for label in hands]))
            elif unit.has(index):
                rejects.add("no_hand", f"{unit.name}/{index:06d}")
        return selected

    def _with_labels(self, videos: dict[str, str], rejects: Rejects) -> dict[str, str]:
        """The videos that have labels beside them; notes names that differ from those of videos in upper and lower case."""
        root = absolute(self.settings.uri)
        there = list_inputs(root.rpartition("/")[0] if is_file(root) else root, (LABELS_SUFFIX,))
        labelled = {}
        for name, uri in videos.items():
            path, hint = there.find(labels_uri(uri)[len(there.root) + 1 :])
            if path in there.sizes:
                labelled[name] = uri
            elif hint:
                rejects.notes.append(f"{uri}: has no {path}; '{hint}' differs from it in upper and lower case")
        return labelled

    def _lengths(self, uri: str) -> tuple[int, int, str]:
        """(hands that the video is expected to give, its frames, what is wrong with its labels file)"""
        try:
            labels = read_labels(uri)
        except (MissingError, RefusedError):  # counted when the clip is opened
            return 0, 0, ""
        except ValueError as error:
            return 0, 0, str(error)
        fps = self.settings.fps
        rate = min(1.0, fps / labels.fps) if fps and labels.fps else 1.0 / self.settings.stride
        return math.ceil(sum(len(frame.hands) for frame in labels.frames) * rate), labels.num_frames, ""


def labels_uri(video_uri: str) -> str:
    """Where the labels of a video lie."""
    return video_uri.rpartition(".")[0] + LABELS_SUFFIX


def read_labels(video_uri: str) -> VideoLabels:
    """The labels beside a video, also where the two names differ in Unicode normalisation.

    Raises ValueError that says why it is no valid labels file, and MissingError or RefusedError.
    """
    folder, _, name = labels_uri(video_uri).rpartition("/")
    forms = dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))])
    uris = [f"{folder}/{form}" for form in forms]
    uri = next(filter(is_file, uris), uris[0]) if len(uris) > 1 else uris[0]
    try:
        labels = VideoLabels.model_validate(parse_json(read_bytes(uri)))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the labels'}: {first['msg']}") from None
    if labels.joint_order != "freihand":
        from pipeline.hands import JOINT_ORDERS

        if labels.joint_order not in JOINT_ORDERS:
            raise ValueError(f"joint_order '{labels.joint_order}' is none of {', '.join(JOINT_ORDERS)}")
    return labels


def _hand(label: HandLabel, labels: VideoLabels) -> Hand:
    joints: Any = label.joints_3d
    if joints is not None and labels.joint_order != "freihand" and np.shape(joints) == (21, 3):
        from pipeline.hands import reorder

        joints = reorder(np.asarray(joints, dtype=np.float64), source=labels.joint_order, target="freihand")
    return Hand(label.track, label.hand, tuple(label.box), joints, labels.camera)
