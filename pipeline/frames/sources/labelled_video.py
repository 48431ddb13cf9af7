"""Videos with a `<stem>.labels.json` beside each: boxes, tracks, and where known joints and camera.

The labels file:
    {"version": 1, "fps": 15.0, "width": 128, "height": 128, "num_frames": 24, "joint_order": "freihand",
     "camera": [[3x3]] | null, "license": "CC0-1.0" | null,
     "frames": [{"index": 0, "hands": [{"track": 0, "hand": "right", "box": [x0, y0, x1, y1],
                                        "joints_3d": [[x, y, z] x 21] | null}]}]}
Boxes are in pixels, joints in metres in the camera frame. joint_order is one of those in pipeline/hands.py.
"""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pydantic

from pipeline.errors import DataError, MissingError, RefusedError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.video import (
    VIDEO_SUFFIXES,
    declared_times,
    facts,
    find_videos,
    open_piece,
    read_frames,
    sample,
)
from pipeline.storage import absolute, as_local_file, is_file, list_files, read_bytes

LABELS_SUFFIX = ".labels.json"
_READERS = 16


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

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings

    def list_files(self) -> dict[str, int]:
        """The videos and the labels files."""
        uri = self.settings.uri
        beside = file_sizes(labels_uri(uri), ()) if is_file(uri) else {}
        return file_sizes(uri, (*VIDEO_SUFFIXES, LABELS_SUFFIX)) | beside

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a video that has labels. Raises DataError where there is no video, or not one with labels."""
        videos = find_videos(self.settings.uri)
        there = self._labels_there()
        labelled = {name: uri for name, uri in videos.items() if labels_uri(uri) in there}
        for name in videos.keys() - labelled.keys():
            rejects.add("missing_labels", name)
        if not labelled:
            raise DataError(
                f"{self.settings.uri}: none of {len(videos)} videos has a <stem>{LABELS_SUFFIX} beside it; "
                "kind detected_video finds hands without labels"
            )
        with ThreadPoolExecutor(_READERS) as pool:
            lengths = pool.map(self._lengths, labelled.values())
            return [
                Unit(name, uri, num_hands, length=length)
                for (name, uri), (num_hands, length) in zip(labelled.items(), lengths, strict=True)
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
            labels = _parse(read_bytes(labels_uri(unit.uri)))
            times = declared_times(info)
            if labels is not None and labels.num_frames == len(info.times_s):
                times = info.times_s  # the container only claims that there are more
            if labels is None or (labels.num_frames, labels.width, labels.height) != (
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

    def _labels_there(self) -> set[str]:
        """URIs of the labels files below the source (beside it, where it is one video)."""
        root = absolute(self.settings.uri)
        return set(list_files(root.rpartition("/")[0] if is_file(root) else root, LABELS_SUFFIX))

    def _lengths(self, uri: str) -> tuple[int, int]:
        """(hands that the video is expected to give, its frames)"""
        try:
            labels = _parse(read_bytes(labels_uri(uri)))
        except (MissingError, RefusedError):
            labels = None  # counted when the clip is opened
        if labels is None:
            return 0, 0
        fps = self.settings.fps
        rate = min(1.0, fps / labels.fps) if fps and labels.fps else 1.0 / self.settings.stride
        return math.ceil(sum(len(frame.hands) for frame in labels.frames) * rate), labels.num_frames


def labels_uri(video_uri: str) -> str:
    """Where the labels of a video lie."""
    return video_uri.rpartition(".")[0] + LABELS_SUFFIX


def _parse(data: bytes) -> VideoLabels | None:
    """A labels file, or None where it is not a valid one."""
    try:
        labels = VideoLabels.model_validate(json.loads(data))
    except ValueError:
        return None
    if labels.joint_order != "freihand":
        from pipeline.hands import JOINT_ORDERS

        if labels.joint_order not in JOINT_ORDERS:
            return None
    return labels


def _hand(label: HandLabel, labels: VideoLabels) -> Hand:
    joints: Any = label.joints_3d
    if joints is not None and labels.joint_order != "freihand" and np.shape(joints) == (21, 3):
        from pipeline.hands import reorder

        joints = reorder(np.asarray(joints, dtype=np.float64), source=labels.joint_order, target="freihand")
    return Hand(label.track, label.hand, tuple(label.box), joints, labels.camera)
