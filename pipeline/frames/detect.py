"""Find hands in an image with the MediaPipe Hand Landmarker (extra `detect`).

Zhang et al. 2020, "MediaPipe Hands: On-device Real-time Hand Tracking". The model file (hand_landmarker.task) is given by
URI and never downloaded from here.
"""

import importlib.util
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, one_line
from pipeline.frames.crop import assumed_camera, joints_on_rays
from pipeline.frames.track import Detection, overlap
from pipeline.storage import read_bytes

_SAME_HAND_OVERLAP = 0.6


class DetectorSettings(Settings):
    """Which hands the detector reports."""

    model: Uri | None = None
    """URI of MediaPipe's hand_landmarker.task."""
    max_hands: int = Field(default=2, ge=1, le=20)
    """Largest number of hands in a frame."""
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    """Detections and landmarks with a lower confidence are dropped."""


class HandDetector:
    """A loaded Hand Landmarker. Frames are looked at one by one, so results do not depend on the frames before."""

    def __init__(self, model_uri: str, settings: DetectorSettings) -> None:
        """Raises DataError where mediapipe, one of its system libraries or the model is missing."""
        require_mediapipe()
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
        except (ImportError, OSError) as error:
            raise DataError(f"mediapipe does not start: {one_line(error)}") from None
        options = vision.HandLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=read_bytes(model_uri)),
            num_hands=settings.max_hands,
            min_hand_detection_confidence=settings.min_confidence,
            min_hand_presence_confidence=settings.min_confidence,
        )
        try:
            with _quiet_stderr():
                self._landmarker = vision.HandLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            reason = one_line(error, 160)
            raise DataError(f"{model_uri}: not a usable Hand Landmarker model ({reason})") from None
        # mediapipe closes a model in a thread pool, which is gone when atexit's callbacks run; threading's run before that.
        threading._register_atexit(self.close)  # type: ignore[attr-defined]
        self._is_open = True
        self._to_image = lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)

    def __call__(self, image: Image.Image, with_joints: bool = False) -> list[Detection]:
        """Hands of an upright RGB image. A box is tight around the 21 landmarks, in pixels. with_joints: also joints in 3D, by the
        landmarks in the image and MediaPipe's metric ones ("world landmarks", about the hand's centre).

        `hand` is what is seen in the image: the Tasks API of mediapipe 1.x reports it so (checked on rendered right hands
        and on real ones; older solutions took every image for a mirrored selfie). The score is the handedness score,
        the only one that the detector gives.
        """
        result = self._detect(image)
        found: list[Detection] = []
        for points, metric, handedness in zip(
            _points(result, image), result.hand_world_landmarks, result.handedness, strict=True
        ):
            x0, y0 = points.min(0).tolist()
            x1, y1 = points.max(0).tolist()
            hand = handedness[0].category_name.lower()
            detection = Detection((x0, y0, x1, y1), hand, min(float(handedness[0].score), 1.0))
            if with_joints:
                camera = assumed_camera(*image.size)
                joints = joints_on_rays(points, np.array([(p.x, p.y, p.z) for p in metric]), camera)
                detection = replace(detection, joints_3d=joints.round(6).tolist(), camera=camera.tolist())
            found.append(detection)
        return _without_duplicates(found)

    def central_hand(self, image: Image.Image) -> np.ndarray | None:
        """The 21 landmarks (21, 2), pixels, FreiHAND order, of the hand nearest to the middle of a crop; None without one.

        MediaPipe's landmarks come in FreiHAND's order: the wrist, then each finger from the thumb on, base to tip.
        """
        middle = np.array(image.size) / 2
        hands = _points(self._detect(image), image)
        return min(hands, key=lambda points: float(np.abs(points.mean(0) - middle).sum()), default=None)

    def _detect(self, image: Image.Image) -> Any:
        pixels = np.ascontiguousarray(image)
        with _quiet_stderr():
            return self._landmarker.detect(self._to_image(pixels))

    def close(self) -> None:
        """Free the model; also done when the process ends."""
        if self._is_open:
            self._is_open = False
            self._landmarker.close()


def _points(result: Any, image: Image.Image) -> list[np.ndarray]:
    return [np.array([(p.x, p.y) for p in landmarks]) * image.size for landmarks in result.hand_landmarks]


@lru_cache(maxsize=1)
def shared_detector(model_uri: str, settings: DetectorSettings) -> HandDetector:
    """The detector of this process: a worker loads it once for all the videos that it gets."""
    return HandDetector(model_uri, settings)


def require_mediapipe() -> None:
    """Raises DataError where mediapipe is not installed."""
    if importlib.util.find_spec("mediapipe") is None:
        raise DataError("finding hands in video needs mediapipe: pip install -e '.[detect]'")


def _without_duplicates(found: list[Detection]) -> list[Detection]:
    """The detector now and then reports one hand twice; keep the surer one. Left to right, for a stable order."""
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda d: -d.score):
        if all(overlap(detection.box, other.box) < _SAME_HAND_OVERLAP for other in kept):
            kept.append(detection)
    return sorted(kept, key=lambda d: d.box)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silence the C++ library, which writes to file descriptor 2 whatever its logging settings say."""
    saved = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
