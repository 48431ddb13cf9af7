"""The face that every source of hand images has: what its settings and its reader share with all others.

A reader lists the source's units (a video, a folder of images), each small enough to be described in a message. A worker opens a
unit and gets, first, where the hands are in which frames, and then the pixels of the frames that it asks for. So memory
does not grow with the length of a video, and every source shares cropping, grouping and writing (see ingest.py).
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Settings, Uri, uris_in
from pipeline.errors import DataError
from pipeline.frames.detect import DetectorSettings
from pipeline.frames.listing import list_inputs
from pipeline.frames.rejects import Rejects
from pipeline.frames.track import TrackSettings
from pipeline.storage import absolute

_ALWAYS_RECORDED: dict[str, Any] = {
    "boxes": None,
    "fps": None,
    "stride": 1,
    "image_rate": None,
    "default_hand": "right",
    "detector": DetectorSettings().model_dump(mode="json"),
    "track": TrackSettings().model_dump(mode="json"),
}
"""Recorded of kinds that have no such settings too: the records of frame sets hold them, and are compared with new ones."""


class SourceSettings(Settings):
    """What the settings of every kind have. A kind adds `kind`, a Literal of its name, and what it needs besides."""

    usual_reject_fraction: ClassVar[float] = 0.1
    """The limit where `max_reject_fraction` sets none."""

    kind: str
    uri: Uri
    """URI of the folder with the source's files (searched recursively), or of one video."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of this source inside the frame set. none takes the last part of `uri`."""
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)
    """Largest fraction of the clips or of the frames that may be left out. Above it the job stops and publishes
    nothing. none takes 0.1 for given labels and boxes; 0.9 for a detector, whose hands may be seen too briefly to be
    trusted; and 0.5 or 0.9 for published sets in which much is known to be missing. Frames in which a detector finds no
    hand do not count."""

    @abstractmethod
    def reader(self) -> "Reader":
        """What reads a source of this kind. Raises SettingsError where settings contradict each other."""

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the rows, as plain values, URIs and name made absolute."""
        own = self.model_dump(mode="json", exclude={"max_reject_fraction"})
        # None is left out: a setting may be newer than a frame set that was made without it.
        values = _ALWAYS_RECORDED | {key: value for key, value in own.items() if value is not None}
        return (
            values
            | {key: absolute(uri) for key, uri in uris_in(self) if key in values}
            | {"name": self.resolved_name()}
        )

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
        """The limit in force."""
        return self.usual_reject_fraction if self.max_reject_fraction is None else self.max_reject_fraction


class SampledSettings(Settings):
    """Of kinds whose frames have times, or at least an order."""

    fps: float | None = Field(default=None, gt=0)
    """Largest number of frames to take from a second. none takes all. Not together with `stride`."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame."""

    @field_validator("stride")
    @classmethod
    def _one_way_to_sample(cls, value: int, info: ValidationInfo) -> int:
        if value != 1 and info.data.get("fps") is not None:
            raise ValueError("give fps or stride, not both")
        return value


class DetectorKindSettings(Settings):
    """Of kinds that find the hands themselves."""

    detector: DetectorSettings = DetectorSettings()
    """Finds the hands."""
    track: TrackSettings = TrackSettings()
    """How detections become clips (of images: with an image_rate)."""
    labels: Literal["detector"] | None = None
    """Where joints come from. detector: MediaPipe's own in 3D, with an assumed camera. They are a model's answers, good enough to
    train on where there is nothing better, but no ground truth. none: frames without labels."""

    def notes(self) -> list[str]:
        """What is worth saying of what is asked for."""
        return [] if self.labels is None else ["joints are answers of the detector, not ground truth (source.labels)"]


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
    split: str | None = None
    """The split that the source gives it; None: as the settings say."""
    length: int | None = None
    """Frames of a video, or images of a folder, as far as is known, of which ranges can be read for themselves; None: only the
    whole unit can."""
    first: int = 0
    """Of a piece of such a unit: its first frame. `entries` are those of the piece."""
    end: int | None = None
    """One past its last frame; None: whatever there is."""
    found: list[tuple[str, int]] | None = None
    """What a detector has found in the pieces of the video, in order: URIs of files and places in them; None: it is still to
    run."""

    def has(self, index: int) -> bool:
        """Whether a frame belongs to the unit, and not to another piece of the same video."""
        return (self.first == 0 or index >= self.first) and (self.end is None or index < self.end)


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
    margin: float | None = None
    """Side of the crop in boxes; None: as the settings say."""
    joints_2d: Any = None
    """(21, 2) pixels of the image, FreiHAND order, or None. Where joints_3d and camera are known, it is not needed."""
    name: str | None = None
    """Under which it is counted where box or labels cannot be used; None: its frame id."""
    outside: str = "box_outside_image"
    """Why it is left out where more than half of its box lies outside the image (rejects.REASONS)."""


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
    """Ascending. Only frames with hands; the others are already counted as rejects. Of a piece of a video too all frames of
    the whole, because they decide the names of clips; `read` is asked for those of the piece."""
    read: Callable[[Sequence[int]], Iterator[tuple[int, Image.Image]]]
    """RGB images of frames by index (ascending). Frames that cannot be read are counted as rejects and left out."""
    unit: Unit | None = None
    """What was opened, where that is another part of the video than was asked for (see video.open_piece)."""
    video: dict[str, str | int] | None = None
    """Of a video: how it is shown and timed (see video.facts)."""


class Reader(Protocol):
    """What reads a kind of source; SourceSettings.reader gives it."""

    def list_files(self) -> dict[str, int]:
        """URI and size of all input files, by which a change of the source is noticed."""

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """All units, in an order that only depends on names. Raises DataError where there are none."""

    def open(self, unit: Unit, rejects: Rejects) -> AbstractContextManager[OpenUnit | None]:
        """Open a unit in a worker; None where the whole unit is rejected (and counted)."""


def file_sizes(uri: str, suffixes: tuple[str, ...]) -> dict[str, int]:
    """{URI: bytes} of a file, or of the files below a folder with one of these suffixes (see listing.py)."""
    return list_inputs(uri, suffixes).uris()
