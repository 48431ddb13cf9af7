"""The face that every source of hand images has, and the settings that choose one.

A source lists its units (a video, a folder of images), each small enough to be described in a message. A worker opens a
unit and gets, first, where the hands are in which frames, and then the pixels of the frames that it asks for. So memory
does not grow with the length of a video, and every source shares cropping, grouping and writing (see ingest.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.frames.detect import DetectorSettings
from pipeline.frames.listing import list_inputs
from pipeline.frames.rejects import Rejects
from pipeline.frames.track import TrackSettings
from pipeline.storage import absolute

Kind = Literal[
    "labelled_video",
    "detected_video",
    "labelled_images",
    "boxed_images",
    "image_folder",
    "coco",
    "freihand",
    "youtube3d",
    "interhand",
    "ho3d",
    "dexycb",
]
_MAX_REJECT_FRACTION = {"detected_video": 0.9, "image_folder": 0.9, "youtube3d": 0.9, "interhand": 0.5, "dexycb": 0.5}
"""Where it is not 0.1: detectors find hands for moments only, videos of YouTube 3D Hands have vanished since, InterHand2.6M has hands with
missing joints, and DexYCB's sequences begin before the hand comes in."""
PARTS = {"freihand": ("training", "evaluation"), "interhand": ("train", "val", "test"), "ho3d": ("train", "evaluation")}
"""Kinds of which `part` chooses among published parts; the first is the default."""
_WITH_RATE = ("labelled_images", "boxed_images", "image_folder", "interhand", "ho3d", "dexycb")
_UNORDERED = ("coco", "freihand")
_ANNOTATED = ("labelled_images", "coco", "youtube3d")
_SECTIONS = ("labelled_images", "image_folder", "coco", "freihand", "youtube3d", "dexycb")

FreiHandVersion = Literal["gs", "hom", "sample", "auto"]


class LabelledImagesSettings(Settings):
    """Of kind labelled_images."""

    clips: Literal["folder", "image"] = "folder"
    """What stays together in a split, of images whose entry names no clip: folder, for frames of video in a folder each; image,
    for unrelated photographs."""
    joint_order: Literal["freihand", "ait", "mano", "interhand"] = "freihand"
    """Order of the 21 joints (pipeline/hands.py): freihand (also OpenPose, MediaPipe, COCO-WholeBody, DexYCB), mano, ..."""
    unit: Literal["m", "mm"] = "m"
    """Of joints_3d: metres or millimetres."""
    first_pixel: Literal["corner", "centre"] = "corner"
    """What (0, 0) is for joints_2d and camera: the image's corner, or the centre of its first pixel, as OpenCV calibrates."""


class ImageFolderSettings(Settings):
    """Of kind image_folder."""

    hands: Literal["detector", "whole_image"] = "detector"
    """detector: MediaPipe finds the hands, as in video (needs detector.model). whole_image: each image is a hand already; it
    becomes the crop as it is, with black bars where it is not square."""
    clips: Literal["folder", "image"] = "folder"
    """What stays together in a split, and which images are neighbours: folder, for frames of video in a folder each; image,
    for unrelated photographs."""


class CocoSettings(Settings):
    """Of kind coco."""

    clips: Literal["image", "folder"] = "image"
    """What stays together in a split, and which frames are neighbours: image, for unrelated photographs; folder, for
    frames of video in a folder each."""
    categories: tuple[str, ...] | None = None
    """Names of the categories that are hands. None takes those called hand, left hand, right_hand and the like."""


class FreiHandSettings(Settings):
    """Of kind freihand."""

    versions: tuple[FreiHandVersion, ...] | None = None
    """Backgrounds of the training images to take: green screen, harmonised, coloured with and without sample points. None
    takes those that are there."""

    @field_validator("versions")
    @classmethod
    def _some(cls, value: tuple[FreiHandVersion, ...] | None) -> tuple[FreiHandVersion, ...] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name at least one version, each once")
        return value


class YouTube3dSettings(Settings):
    """Of kind youtube3d."""

    regressor: str | None = None
    """URI of MANO's joint regressor, a (16, 778) array as .npy or JSON (part of MANO, under its licence). With it boxes are
    tight around the joints and rows have joints in the image (joints_2d). None takes boxes around the mesh, and no joints."""


class DexYcbSettings(Settings):
    """Of kind dexycb."""

    split_by: Literal["subject", "session"] = "subject"
    """What a split takes whole. subject: nobody is in two splits (the authors' setup s1). session: for lists of splits after
    their setups s0 and s3. A session's cameras are never shared out (as in s2)."""


class SourceSettings(Settings):
    """Where hand images come from."""

    kind: Kind
    """labelled_video: videos with a <stem>.labels.json beside each; detected_video: videos, hands found with MediaPipe (pip
    install equihand[detect]); labelled_images: images and one file of joints in 3D or 2D; boxed_images: folders of images and one boxes file; image_folder: folders of images alone;
    coco: images and a file of boxes in COCO's or COCO-WholeBody's format; freihand, youtube3d, interhand, ho3d, dexycb:
    these data sets as published (see docs/sources.md)."""
    uri: str
    """The folder (searched recursively), or one video file."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of this source inside the frame set; none takes the last part of `uri`."""
    part: str | None = None
    """Part of a published data set: freihand training, evaluation; interhand train, val, test; ho3d train, evaluation.
    None takes the first."""
    boxes: str | None = None
    """boxed_images only: URI of the boxes file."""
    annotations: str | None = None
    """labelled_images, coco and youtube3d: URI of the annotations file (JSON)."""
    fps: float | None = Field(default=None, gt=0)
    """Frames a second to take, at most; none takes them all. Not together with `stride`."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame."""
    image_rate: float | None = Field(default=None, gt=0)
    """Sources of still images only: images a second in a folder; none leaves timestamps empty."""
    default_hand: Literal["right", "left"] = "right"
    """labelled_images, boxed_images, coco, whole images: the hand where nothing says which. Left hands are stored mirrored."""
    labelled_images: LabelledImagesSettings = LabelledImagesSettings()
    """labelled_images only."""
    image_folder: ImageFolderSettings = ImageFolderSettings()
    """image_folder only."""
    coco: CocoSettings = CocoSettings()
    """coco only."""
    freihand: FreiHandSettings = FreiHandSettings()
    """freihand only."""
    youtube3d: YouTube3dSettings = YouTube3dSettings()
    """youtube3d only."""
    dexycb: DexYcbSettings = DexYcbSettings()
    """dexycb only."""
    detector: DetectorSettings = DetectorSettings()
    """detected_video and image_folder."""
    track: TrackSettings = TrackSettings()
    """detected_video, and image_folder with an image_rate: how detections become clips."""
    max_reject_fraction: float | None = Field(default=None, ge=0, le=1)
    """Stop, without publishing anything, when a larger fraction of the clips or of the frames had to be left out. None:
    0.1 for given labels and boxes, 0.9 for a detector, whose hands may be seen too briefly to be trusted, and for
    youtube3d (videos that are no longer to be had), 0.5 for interhand (hands with missing joints) and dexycb (sequences that
    begin before the hand comes in). Frames in which a
    detector finds no hand do not count."""

    @field_validator("fps", "stride")
    @classmethod
    def _one_way_to_sample(cls, value: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("kind")
        given = value is not None if info.field_name == "fps" else value != 1
        if given and (kind in _UNORDERED or (kind == "youtube3d" and info.field_name == "fps")):
            raise ValueError(f"has no meaning for {kind}, whose images have no known times")
        if given and info.field_name == "stride" and info.data.get("fps") is not None:
            raise ValueError("give fps or stride, not both")
        return value

    @field_validator("boxes", "annotations", "image_rate")
    @classmethod
    def _only_for_images(cls, value: Any, info: ValidationInfo) -> Any:
        kind, field = info.data.get("kind", ""), info.field_name
        kinds = {"boxes": ("boxed_images",), "annotations": _ANNOTATED, "image_rate": _WITH_RATE}[field or ""]
        if kind not in kinds and value is not None:
            raise ValueError(f"has no meaning for {kind}")
        if kind in kinds and value is None and field != "image_rate":
            raise ValueError(f"{kind} needs the URI of {'a boxes' if field == 'boxes' else 'an annotations'} file")
        if kind in kinds and value is None and info.data.get("fps"):
            raise ValueError("fps needs to know the rate of the images")
        return value

    @field_validator(*_SECTIONS)
    @classmethod
    def _only_for_its_kind(cls, value: Settings, info: ValidationInfo) -> Settings:
        kind = info.data.get("kind")
        if kind != info.field_name and value != type(value)():
            raise ValueError(f"has no meaning for {kind}")
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

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the rows, as plain values: no section of another kind, URIs and name made absolute."""
        values = self.model_dump(mode="json", exclude={"max_reject_fraction"} | (set(_SECTIONS) - {self.kind}))
        for key in ("annotations", "part"):
            if values[key] is None:  # settings that are newer than some frame sets
                del values[key]
        values["name"] = self.resolved_name()
        for section, key in (
            (values, "uri"),
            (values, "boxes"),
            (values, "annotations"),
            (values.get("youtube3d"), "regressor"),
        ):
            if section and section.get(key) is not None:
                section[key] = absolute(section[key])
        return values

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
        whole = self.kind == "image_folder" and self.image_folder.hands == "whole_image"
        default = 0.1 if whole else _MAX_REJECT_FRACTION.get(self.kind, 0.1)
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
    """{URI: bytes} of a file, or of the files below a folder with one of these suffixes (see listing.py)."""
    return list_inputs(uri, suffixes).uris()
