"""Folders of images and nothing else. What is a hand is decided by source.image_folder.hands:

* detector: MediaPipe finds the hands. Images with an image_rate are frames of a video, and hands are linked, smoothed and
  left out as in video; without one every image stands for itself.
* whole_image: each image is one hand already. It becomes the crop as it is, whatever box_margin says.

A unit is a folder, with its images in the order of their names (of the numbers in them), or an image
(source.image_folder.clips).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from PIL import Image

from pipeline.config import Settings
from pipeline.errors import DataError, SettingsError
from pipeline.frames.detect import require_mediapipe, shared_detector
from pipeline.frames.image_file import read_image
from pipeline.frames.listing import IMAGE_SUFFIXES, list_inputs, nothing_here
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import (
    DetectorKindSettings,
    FrameHands,
    Hand,
    OpenUnit,
    SourceSettings,
    Unit,
    file_sizes,
)
from pipeline.frames.sources.detected_video import detected_hand, detections_in, read_found, settle
from pipeline.frames.sources.images import (
    DefaultHandSettings,
    StillsSettings,
    clip_names,
    folder_units,
    image_name,
    open_stills,
    read_images,
    tracked,
)
from pipeline.storage import absolute, is_file, join, preflight, resolve

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap width and height


class ImageFolderSection(Settings):
    """source.image_folder."""

    hands: Literal["detector", "whole_image"] = "detector"
    """How hands are found. detector: MediaPipe finds them, as in video (needs `detector.model`). whole_image: each
    image shows one hand and becomes the crop as it is, with black bars where it is not square."""
    clips: Literal["folder", "image"] = "folder"
    """What stays together in a split, and which images are neighbours. folder: each folder, where it holds the frames
    of a video. image: each image alone, for unrelated photographs."""


class ImageFolderSettings(DetectorKindSettings, DefaultHandSettings, StillsSettings, SourceSettings):
    """Folders of images alone."""

    usual_reject_fraction = 0.9  # hands may be seen too briefly to be trusted

    kind: Literal["image_folder"] = "image_folder"
    image_folder: ImageFolderSection = ImageFolderSection()

    def reader(self) -> "WholeImages | DetectedImages":
        """See the file's docstring."""
        return DetectedImages(self) if self.image_folder.hands == "detector" else WholeImages(self)

    def resolved_max_reject_fraction(self) -> float:
        """The limit in force."""
        if self.max_reject_fraction is None and self.image_folder.hands == "whole_image":
            return SourceSettings.usual_reject_fraction
        return super().resolved_max_reject_fraction()


class ImageFolder:
    """What both ways share. See the file's docstring."""

    def __init__(self, settings: ImageFolderSettings) -> None:
        """Raises SettingsError where settings contradict each other."""
        if settings.image_rate is not None and settings.image_folder.clips == "image":
            raise SettingsError("setting 'source.image_rate' has no meaning where source.image_folder.clips is image")
        self.settings = settings

    def list_files(self) -> dict[str, int]:
        """The images."""
        return file_sizes(self.settings.uri, IMAGE_SUFFIXES)

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a folder, or an image. Raises DataError where there is no image."""
        root = absolute(self.settings.uri)
        if is_file(root):
            raise DataError(f"{self.settings.uri}: a file; image_folder needs a folder")
        listing = list_inputs(self.settings.uri, IMAGE_SUFFIXES)
        if not listing.sizes:
            raise nothing_here(self.settings.uri, "image", IMAGE_SUFFIXES, listing)
        rejects.notes += listing.notes
        files = list(listing.sizes)
        if self.settings.image_folder.clips == "image":
            return [Unit(n, root, 1, [{"file": f}]) for n, f in zip(clip_names(files), files, strict=True)]
        by_folder = sorted(files, key=lambda file: file.rpartition("/")[0])
        return folder_units(root, [{"file": file} for file in by_folder])


class WholeImages(ImageFolder):
    """Each image is a hand."""

    def __init__(self, settings: ImageFolderSettings) -> None:
        """Raises SettingsError where there is no detector to give the labels that are asked for."""
        super().__init__(settings)
        if settings.labels is not None:
            raise SettingsError("setting 'source.labels' = detector needs source.image_folder.hands = detector")

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Look at the images' sizes."""
        sampled = self.settings.sampled(len(unit.entries or []))
        yield open_stills(unit, sampled, partial(self._whole_image, unit, rejects), rejects)

    def _whole_image(self, unit: Unit, rejects: Rejects, entry: dict[str, Any], name: str) -> list[Hand] | None:
        uri = join(unit.uri, entry["file"])
        size = _size_of_header(uri)
        if size is None:
            image = read_image(uri, name, rejects)  # says what is wrong
            if image is None:
                return None
            size = image.size
        return [Hand(0, self.settings.default_hand, (0.0, 0.0, float(size[0]), float(size[1])), margin=1.0)]


class DetectedImages(ImageFolder):
    """Hands are found with MediaPipe; in an ingest by a stage of its own (see detect_stage.py)."""

    def __init__(self, settings: ImageFolderSettings) -> None:
        """Raises SettingsError where no detector model is named."""
        super().__init__(settings)
        if settings.detector.model is None:
            raise SettingsError(
                "setting 'source.detector.model' is required for image_folder: the URI of MediaPipe's hand_landmarker.task. "
                "Where each image is a hand already, set source.image_folder.hands to whole_image; where boxes are known, use "
                "boxed_images or coco"
            )
        self._model = settings.detector.model

    def list_files(self) -> dict[str, int]:
        """The images and the detector's model."""
        return super().list_files() | file_sizes(self._model, ("",))

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a folder, or an image. Raises DataError where there is no image, or no detector to run."""
        require_mediapipe()
        preflight(self._model)
        rejects.notes += self.settings.notes()
        return [replace(unit, length=unit.num_frames) for unit in super().list_units(rejects)]

    def detect(self, unit: Unit) -> dict[str, Any]:
        """What the detector finds in a unit's sampled images, for `open`; plain JSON values.

        {"first": of the unit, "seen": [[index, [Detection.to_json(), ...]], ...], "rejects": images that cannot be read, or show
        no hand}.
        """
        detector = shared_detector(self._model, self.settings.detector)
        sampled = self.settings.sampled(_num_images(unit))
        rejects = Rejects()
        seen = []
        for index, image in read_images(unit, rejects, [index for index, _ in sampled if unit.has(index)]):
            detections = detector(image, self.settings.labels is not None)
            seen.append([index, [detection.to_json() for detection in detections]])
            if not detections:
                rejects.add("no_hand", image_name(unit, index))
        return {"first": unit.first, "seen": seen, "rejects": rejects.to_json()}

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """Link what the detector has found in the whole folder, or finds now, into tracks."""
        found = [self.detect(unit)] if unit.found is None else read_found(unit.found)
        seen = detections_in(found, unit, rejects)
        rate = self.settings.image_rate
        if rate is not None:
            times = [index / rate for index in range(_num_images(unit))]
            frames = settle(seen, times, self.settings.track, unit, rejects)
        else:
            hands = [(i, [detected_hand(0, detection) for detection in detections]) for i, detections in seen]
            frames = [FrameHands(i, None, linked) for (i, _), linked in zip(hands, tracked(hands), strict=True)]
        yield OpenUnit(frames, partial(read_images, unit, rejects))


def _num_images(unit: Unit) -> int:
    """Of the whole folder, of which the unit may be a piece."""
    return unit.length or len(unit.entries or [])


def _size_of_header(uri: str) -> tuple[int, int] | None:
    """(width, height) as displayed, from an image's first bytes; None where they do not say."""
    filesystem, path = resolve(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with filesystem.open_input_file(path) as file, Image.open(file) as image:
                # Pillow gives the size of a TIFF as displayed already.
                turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED and image.format != "TIFF"
                return image.size[::-1] if turned else image.size
    except Exception:  # whatever it is shows, and is counted, when the image is read
        return None
