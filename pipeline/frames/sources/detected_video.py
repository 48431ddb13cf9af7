"""Videos without labels: hands are found with a detector, linked into tracks, and their boxes smoothed in time.

Detection takes most of the time, so in an ingest it is a stage of its own (see detect_stage.py), shared among workers also
within one video; tracks are then made of what was found in all of it, so they do not know where its pieces end. The video
is decoded twice, first to find the hands and then, once a track's box and handedness are settled, to cut them
out; decoding is cheap beside detection, and no pixels have to be kept.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pipeline.errors import MissingError, RefusedError, SettingsError
from pipeline.frames.detect import require_mediapipe, shared_detector
from pipeline.frames.listing import VIDEO_SUFFIXES
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import (
    DetectorKindSettings,
    FrameHands,
    Hand,
    OpenUnit,
    SampledSettings,
    SourceSettings,
    Unit,
    file_sizes,
)
from pipeline.frames.sources.video import (
    VideoInfo,
    declared_times,
    expected_frames,
    facts,
    find_videos,
    open_piece,
    read_frames,
    sample,
)
from pipeline.frames.track import Detection, TrackSettings, link, smooth_boxes, vote_hand
from pipeline.storage import as_local_file, preflight, read_json

_READERS = 16


class DetectedVideoSettings(DetectorKindSettings, SampledSettings, SourceSettings):
    """Videos, hands found with MediaPipe (make setup installs it)."""

    usual_reject_fraction = 0.9  # hands may be seen too briefly to be trusted

    kind: Literal["detected_video"] = "detected_video"

    def reader(self) -> "DetectedVideo":
        """See the file's docstring."""
        return DetectedVideo(self)


class DetectedVideo:
    """See the file's docstring."""

    def __init__(self, settings: DetectedVideoSettings) -> None:
        """Raises SettingsError where no detector model is named."""
        if settings.detector.model is None:
            raise SettingsError(
                "setting 'source.detector.model' is required for detected_video: the URI of MediaPipe's hand_landmarker.task"
            )
        self.settings = settings
        self._model = settings.detector.model

    def list_files(self) -> dict[str, int]:
        """The videos and the detector's model."""
        return file_sizes(self.settings.uri, VIDEO_SUFFIXES) | file_sizes(self._model, ("",))

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a video. Raises DataError where there is no video, or no detector to run."""
        require_mediapipe()
        preflight(self._model)
        videos = find_videos(self.settings.uri, rejects)
        rejects.notes += self.settings.notes()
        fps, stride = self.settings.fps, self.settings.stride
        with ThreadPoolExecutor(_READERS) as pool:
            counts = pool.map(lambda video: expected_frames(video, fps, stride), videos.values())
            return [
                Unit(name, uri, sampled, length=count)
                for (name, uri), (sampled, count) in zip(videos.items(), counts, strict=True)
            ]

    def detect(self, unit: Unit) -> dict[str, Any]:
        """What the detector finds in a unit's sampled frames, for `open`; plain JSON values.

        {"first": of the unit, "seen": [[index, [Detection.to_json(), ...]], ...], "rejects": frames that do not decode, or show
        no hand}; an empty mapping where the video cannot be read.
        """
        try:
            with as_local_file(unit.uri) as path:
                info, part = open_piece(path, unit)
                return {} if info is None or part is None else self._detect(path, info, part)
        except (MissingError, RefusedError):
            return {}  # counted when the unit is opened

    def _detect(self, path: str, info: VideoInfo, unit: Unit) -> dict[str, Any]:
        detector = shared_detector(self._model, self.settings.detector)
        sampled = sample(declared_times(info), self.settings.fps, self.settings.stride)
        wanted = [index for index in sampled if unit.has(index)]
        rejects = Rejects()
        seen = []
        for index, image in read_frames(path, info, wanted, unit.name, rejects):
            detections = detector(image, self.settings.labels is not None)
            seen.append([index, [detection.to_json() for detection in detections]])
            if not detections:
                rejects.add("no_hand", f"{unit.name}/{index:06d}")
        return {"first": unit.first, "seen": seen, "rejects": rejects.to_json()}

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Link what the detector has found in the whole video, or finds now, into tracks."""
        with as_local_file(unit.uri) as path:
            info, part = open_piece(path, unit)
            if part is None:
                rejects.add("unreadable_video", unit.name)
            if info is None or part is None:
                yield None
                return
            found = [self._detect(path, info, part)] if unit.found is None else read_found(unit.found)
            seen = detections_in(found, part, rejects)
            frames = settle(seen, info.times_s, self.settings.track, part, rejects)
            yield OpenUnit(
                frames, lambda indexes: read_frames(path, info, indexes, unit.name, rejects), part, facts(info)
            )


def read_found(places: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """What `detect` gave for each piece (see Unit.found)."""
    return [read_json(uri)[place] for uri, place in places]


def detections_in(found: Sequence[dict[str, Any]], unit: Unit, rejects: Rejects) -> list[tuple[int, list[Detection]]]:
    """(index, detections) of all frames that show hands, of all pieces; counts what `detect` has rejected in this one."""
    for part in found:
        if part.get("first") == unit.first:
            rejects.merge(Rejects.from_json(part["rejects"]))
    return [
        (index, [Detection.from_json(values) for values in hands])
        for part in found
        for index, hands in part.get("seen", [])
        if hands
    ]


def detected_hand(track: int, detection: Detection) -> Hand:
    """A hand as it was detected."""
    return Hand(
        track,
        detection.hand,
        detection.box,
        joints_3d=detection.joints_3d,
        camera=detection.camera,
        confidence=detection.score,
    )


def settle(
    seen: Sequence[tuple[int, list[Detection]]],
    times_s: Sequence[float],
    settings: TrackSettings,
    unit: Unit,
    rejects: Rejects,
) -> list[FrameHands]:
    """Detections of single frames -> hands with track, smoothed box and voted handedness.

    seen: (frame index, detections), ascending. times_s: of all frames of the video. Tracks that are kept count from 0.
    """
    times = [times_s[index] for index, _ in seen]
    numbers = link(times, [[d.box for d in found] for _, found in seen], settings.max_gap_s, settings.max_shift)
    members: dict[int, list[tuple[int, Detection]]] = {}
    for (index, found), frame_numbers in zip(seen, numbers, strict=True):
        for detection, number in zip(found, frame_numbers, strict=True):
            members.setdefault(number, []).append((index, detection))
    by_frame: dict[int, list[Hand]] = {}
    num_kept = 0
    for _, track in sorted(members.items()):
        if len(track) < settings.min_frames:
            for index in (index for index, _ in track if unit.has(index)):
                rejects.add("short_track", f"{unit.name}/{index:06d}")
            continue
        hand = vote_hand([detection for _, detection in track])
        track_times = [times_s[index] for index, _ in track]
        boxes = smooth_boxes(track_times, np.array([d.box for _, d in track]), settings.smoothing_s)
        for (index, detection), box in zip(track, boxes.tolist(), strict=True):
            if detection.joints_3d is not None and detection.hand != hand:
                # Of the other hand the same picture has other depths.
                if unit.has(index):
                    rejects.add("other_hand", f"{unit.name}/{index:06d}")
                continue
            by_frame.setdefault(index, []).append(
                detected_hand(num_kept, replace(detection, box=tuple(box), hand=hand))
            )
        num_kept += 1
    return [FrameHands(index, times_s[index], hands) for index, hands in sorted(by_frame.items())]
