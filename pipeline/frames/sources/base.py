"""The face that every source of hand images has, and the settings that choose one.

A source lists its units (a video, a folder of images), each small enough to be described in a message. A worker opens a
unit and gets, first, where the hands are in which frames, and then the pixels of the frames that it asks for. So memory
does not grow with the length of a video, and every source shares cropping, grouping and writing (see ingest.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pyarrow.fs as pafs
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.frames.detect import DetectorSettings
from pipeline.frames.rejects import Rejects
from pipeline.frames.track import TrackSettings
from pipeline.storage import is_local, resolve

Kind = Literal["labelled_video", "boxed_images", "detected_video", "interhand", "ho3d", "dexycb"]
_MAX_REJECT_FRACTION = {"detected_video": 0.9, "interhand": 0.5, "dexycb": 0.5}
"""Where it is not 0.1: detectors find no hand, InterHand2.6M has hands with missing joints, and DexYCB's sequences begin
before the hand comes in."""
PARTS = {"interhand": ("train", "val", "test"), "ho3d": ("train", "evaluation")}
"""Kinds of which `part` chooses among published parts; the first is the default."""
_WITH_RATE = ("boxed_images", "interhand", "ho3d", "dexycb")


class SourceSettings(Settings):
    """Where hand images come from."""

    kind: Kind
    """labelled_video: videos with a <stem>.labels.json beside each; boxed_images: folders of images and one boxes file;
    detected_video: videos, hands found with MediaPipe (pip install equihand[detect]); interhand, ho3d, dexycb: these data
    sets as published (see docs/sources.md)."""
    uri: str
    """The folder (searched recursively), or one video file."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of this source inside the frame set; none takes the last part of `uri`."""
    part: str | None = None
    """Part of a published data set: interhand train, val, test; ho3d train, evaluation. None takes the first."""
    boxes: str | None = None
    """boxed_images only: URI of the boxes file."""
    fps: float | None = Field(default=None, gt=0)
    """Frames a second to take, at most; none takes them all. Not together with `stride`."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame."""
    image_rate: float | None = Field(default=None, gt=0)
    """Sources of still images only: images a second in a folder; none leaves timestamps empty."""
    default_hand: Literal["right", "left"] = "right"
    """boxed_images only: the hand where the boxes file does not say which. Left hands are stored mirrored."""
    detector: DetectorSettings = DetectorSettings()
    """detected_video only."""
    track: TrackSettings = TrackSettings()
    """detected_video only: how detections become clips."""
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)
    """Stop, without publishing anything, when a larger fraction of the clips or of the frames had to be left out. None:
    0.1 for given labels and boxes, 0.9 for a detector, whose videos may well show hands only now and then, 0.5 for interhand
    (hands with missing joints) and dexycb (sequences that begin before the hand comes in)."""

    @field_validator("stride")
    @classmethod
    def _one_way_to_sample(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("fps") is not None:
            raise ValueError("give fps or stride, not both")
        return value

    @field_validator("boxes", "image_rate")
    @classmethod
    def _only_for_images(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        kinds = ("boxed_images",) if info.field_name == "boxes" else _WITH_RATE
        if kind == "boxed_images" and info.field_name == "boxes" and value is None:
            raise ValueError("boxed_images needs the URI of a boxes file")
        if kind not in kinds and value is not None:
            raise ValueError(f"has no meaning for {kind}")
        if kind in _WITH_RATE and info.field_name == "image_rate" and value is None and info.data.get("fps"):
            raise ValueError("fps needs to know the rate of the images")
        return value

    @field_validator("part")
    @classmethod
    def _is_published(cls, value: str | None, info: ValidationInfo) -> str | None:
        parts = PARTS.get(info.data.get("kind", ""))
        if value is not None and parts is None:
            raise ValueError(f"has no meaning for {info.data.get('kind')}")
        if value is not None and parts is not None and value not in parts:
            raise ValueError(f"is one of {', '.join(parts)} for {info.data.get('kind')}")
        return value

    def resolved_name(self) -> str:
        """The source's name, made from the URI where none is set. Raises DataError where that gives none."""
        if self.name:
            return self.name
        last = self.uri.rstrip("/").rpartition("/")[2]
        stem = last.rpartition(".")[0] or last
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).lstrip("._-")
        if not name:
            raise DataError(f"{self.uri}: set source.name, this URI gives none")
        return name

    def resolved_max_reject_fraction(self) -> float:
        """The limit in force for this kind of source."""
        default = _MAX_REJECT_FRACTION.get(self.kind, 0.1)
        return default if self.max_reject_fraction is None else self.max_reject_fraction

    def resolved_part(self) -> str:
        """The part in force, of a kind that has parts."""
        return self.part or PARTS[self.kind][0]


@dataclass(frozen=True)
class Unit:
    """One piece of work: a video, or a folder of images. Plain JSON values only."""

    name: str
    """Unique in the source; the clip's name."""
    uri: str
    num_frames: int
    """Frames that it is expected to give, for planning and progress."""
    entries: list[dict[str, Any]] | None = None
    """What the source's `open` has to know; boxed_images: [{"file", "boxes", "hands"}] of the folder."""
    split_key: str | None = None
    """Units of the same key go to the same split (the cameras of one recording, say); None: the name."""


@dataclass(frozen=True)
class Hand:
    """One hand in one frame."""

    track: int
    """Number of the hand within the unit; the same hand has the same number in every frame."""
    hand: str
    """"right" | "left", as seen in the image."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels; tight around the 21 joints."""
    joints_3d: Any = None
    """(21, 3) metres, camera frame, FreiHAND order, or None. Not yet checked."""
    camera: Any = None
    """(3, 3) or None. Not yet checked."""
    confidence: float | None = None


@dataclass(frozen=True)
class FrameHands:
    """The hands of one frame."""

    index: int
    time_s: float | None
    hands: list[Hand]


@dataclass(frozen=True)
class OpenUnit:
    """A unit that a worker has opened."""

    frames: list[FrameHands]
    """Ascending. Only frames with hands; the others are already counted as rejects."""
    read: Callable[[Sequence[int]], Iterator[tuple[int, Image.Image]]]
    """RGB images of frames by index (ascending). Frames that cannot be read are counted as rejects and left out."""


class Source(Protocol):
    """What a kind of source does. Files in this folder have one each; see open_source."""

    def __init__(self, settings: SourceSettings) -> None: ...

    def list_files(self) -> dict[str, int]:
        """URI and size of all input files, by which a change of the source is noticed."""

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """All units, in an order that only depends on names. Raises DataError where there are none."""

    def open(self, unit: Unit, rejects: Rejects) -> AbstractContextManager[OpenUnit | None]:
        """Open a unit in a worker; None where the whole unit is rejected (and counted)."""


def file_sizes(uri: str, suffixes: tuple[str, ...]) -> dict[str, int]:
    """{URI: bytes} of a file, or of the files below a folder with one of these suffixes."""
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.is_file:
        return {uri: info.size}
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    prefix = "" if is_local(uri) else "s3://"
    return {prefix + f.path: f.size for f in found if f.is_file and f.path.lower().endswith(suffixes)}
