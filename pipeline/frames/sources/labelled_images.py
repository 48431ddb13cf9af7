"""Images of any size and one file of labels: joints in 3D or in the image.

The file (source.annotations) is a JSON list with an entry a hand:
    {"file": "a/0.jpg",                          relative to the source's URI
     "hand": "right" | "left",                   else source.default_hand
     "joints_3d": [[x, y, z] x 21],              metres (or source.labelled_images.unit) in the camera's frame: x right, y down, z forward
     "joints_2d": [[u, v] x 21],                 pixels of the image as displayed; instead of joints_3d
     "camera": [[3x3]] | [fx, fy, cx, cy] | {"fx", "fy", "cx", "cy"},      pixels; may be missing with joints_2d
     "box_xyxy": [x0, y0, x1, y1],               pixels, optional: else the box is tight around the joints
     "clip": "...", "subject": "...",            optional: what stays together in a split
     "split": "train" | "val" | "test"}          optional: else as the settings of the ingest say
Joints are in the order of source.labelled_images.joint_order. An image with two hands has two entries. Images that the file
does not name are not used; other keys of an entry are ignored.

A unit is the clip that the entries name, else the image's folder (or the image: source.labelled_images.clips), with its images
in the order of their names, numbers by their value. Of one subject all clips are in one split.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pydantic

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError
from pipeline.frames.crop import MIN_BOX_SIDE, box_fault
from pipeline.frames.listing import IMAGE_SUFFIXES, check_below, list_inputs, natural
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import Hand, OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.images import DefaultHandSettings, StillsSettings, clip_names, open_stills
from pipeline.frames.sources.published import continuous_camera, project, tight_box
from pipeline.storage import absolute, is_file, read_bytes, size
from pipeline.text_files import parse_json

HAND_SPAN_M = (0.01, 1.0)
"""Joints that span less or more are in another unit."""
_METRES = {"m": 1.0, "mm": 1e-3}
_MAX_DISAGREEMENT = 0.1  # of joints in 2D with those in 3D: mean distance, in sides of the hand's box
_LABELS = ("joints_3d", "joints_2d", "camera", "box_xyxy", "hand")


class LabelledImagesSection(Settings):
    """source.labelled_images."""

    clips: Literal["folder", "image"] = "folder"
    """What stays together in a split, where the entry of an image names no clip. folder: each folder, where it holds
    the frames of a video. image: each image alone, for unrelated photographs."""
    joint_order: Literal["freihand", "ait", "mano", "interhand"] = "freihand"
    """Order of the 21 joints in the labels (pipeline/hands.py has all orders). freihand is also that of OpenPose,
    MediaPipe, COCO-WholeBody and DexYCB."""
    unit: Literal["m", "mm"] = "m"
    """Unit of `joints_3d`: metres or millimetres."""
    first_pixel: Literal["corner", "centre"] = "corner"
    """Which point is (0, 0) for `joints_2d` and the camera: the corner of the image, or the centre of its first pixel,
    as in OpenCV's calibration."""


class LabelledImagesSettings(DefaultHandSettings, StillsSettings, SourceSettings):
    """Images and one file of joints in 3D or 2D."""

    kind: Literal["labelled_images"] = "labelled_images"
    annotations: Uri
    """URI of the annotations file (JSON)."""
    labelled_images: LabelledImagesSection = LabelledImagesSection()

    def reader(self) -> "LabelledImages":
        """See the file's docstring."""
        return LabelledImages(self)


class ImageLabel(pydantic.BaseModel):
    """One entry. Numbers are checked when they are used, so that bad ones cost their hand only."""

    file: str
    hand: Literal["right", "left"] | None = None
    joints_3d: Any = None
    joints_2d: Any = None
    camera: Any = None
    box_xyxy: Any = None
    clip: str | None = pydantic.Field(default=None, min_length=1, coerce_numbers_to_str=True)
    subject: str | None = pydantic.Field(default=None, min_length=1, coerce_numbers_to_str=True)
    split: Literal["train", "val", "test"] | None = None

    @pydantic.field_validator("file")
    @classmethod
    def _is_relative(cls, value: str) -> str:
        return check_below(value)

    @pydantic.field_validator("hand", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _has_joints(self) -> "ImageLabel":
        if not self.model_fields_set & {"joints_3d", "joints_2d"}:
            raise ValueError("has neither joints_3d nor joints_2d")
        return self


_LABEL = pydantic.TypeAdapter(ImageLabel)


class LabelledImages:
    """See the file's docstring."""

    def __init__(self, settings: LabelledImagesSettings) -> None:
        """Raises SettingsError where settings contradict each other."""
        if settings.image_rate is not None and settings.labelled_images.clips == "image":
            raise SettingsError(
                "setting 'source.image_rate' has no meaning where source.labelled_images.clips is image"
            )
        self.settings = settings
        self.annotations = settings.annotations

    def list_files(self) -> dict[str, int]:
        """The images and the labels; these by their content, as a corrected number does not change a file's size."""
        content = hashlib.blake2b(read_bytes(self.annotations), digest_size=16).hexdigest()
        return file_sizes(self.settings.uri, IMAGE_SUFFIXES) | {f"{self.annotations}#{content}": size(self.annotations)}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a clip. Raises DataError where the labels are not of the expected form, or contradict each other."""
        if is_file(self.settings.uri):
            raise DataError(f"{self.settings.uri}: a file; labelled_images needs the folder of the images")
        listing = list_inputs(self.settings.uri, IMAGE_SUFFIXES, known=(self.annotations,))
        rejects.notes += listing.notes
        labels = self._read()
        hints = {}
        for label in labels:
            label.file, hint = listing.find(label.file)
            hints[label.file] = f"{label.file} (there is '{hint}')" if hint else label.file
        files = sorted(hints, key=natural)
        clip_of = dict(zip(files, self._own_clips(files), strict=True))
        clip_of |= self._agreed(labels, [label.file for label in labels], "image", "clip")
        clips_of_labels = [clip_of[label.file] for label in labels]
        subjects = self._agreed(labels, clips_of_labels, "clip", "subject")
        splits = self._agreed(labels, clips_of_labels, "clip", "split")
        images: dict[str, dict[str, Any]] = {file: {"file": file, "name": hints[file], "hands": []} for file in files}
        for number, label in enumerate(labels):
            hand = {key: getattr(label, key) for key in _LABELS}
            images[label.file]["hands"].append({**hand, "name": f"{label.file}, entry {number}"})
        clips: dict[str, list[dict[str, Any]]] = {}
        for file in files:
            clips.setdefault(clip_of[file], []).append(images[file])
        return [
            Unit(
                name=clip,
                uri=absolute(self.settings.uri),
                num_frames=sum(len(image["hands"]) for image in entries),
                entries=entries,
                split_key=subjects.get(clip),
                split=splits.get(clip),
            )
            for clip, entries in sorted(clips.items())
        ]

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """See open_stills."""

        def hands_of(entry: dict[str, Any], name: str) -> list[Hand] | None:
            hands = [self._hand(label, rejects) for label in entry["hands"]]
            return [hand for hand in hands if hand is not None] or None

        yield open_stills(unit, self.settings.sampled(len(unit.entries or [])), hands_of, rejects)

    def _read(self) -> list[ImageLabel]:
        try:
            entries = parse_json(read_bytes(self.annotations))
        except ValueError as error:
            raise DataError(f"{self.annotations}: not valid JSON ({error})") from None
        if not isinstance(entries, list):
            raise DataError(
                f"{self.annotations}: not a list of labels, one a hand (kind coco reads files in COCO's format)"
            )
        if not entries:
            raise DataError(f"{self.annotations}: an empty list")
        labels = []
        for number, entry in enumerate(entries):
            try:
                labels.append(_LABEL.validate_python(entry))
            except pydantic.ValidationError as error:
                raise DataError(f"{self.annotations}: {_what_is_wrong(number, entry, error)}") from None
        return labels

    def _own_clips(self, files: Sequence[str]) -> list[str]:
        """The clip of each image whose entries name none."""
        if self.settings.labelled_images.clips == "image":
            return clip_names(files)
        return [file.rpartition("/")[0] or "images" for file in files]

    def _agreed(self, labels: Sequence[ImageLabel], keys: Sequence[str], what: str, field: str) -> dict[str, str]:
        """{key: value of `field`} of the entries that give one. Raises DataError where two of one key (a `what`) differ."""
        given: dict[str, int] = {}
        for number, (label, key) in enumerate(zip(labels, keys, strict=True)):
            if (value := getattr(label, field)) is None:
                continue
            first = given.setdefault(key, number)
            if value != (other := getattr(labels[first], field)):
                raise DataError(
                    f"{self.annotations}: entry {number} ({label.file}) has the {field} '{value}', but entry {first} "
                    f"({labels[first].file}), of the same {what}, has '{other}'"
                )
        return {key: getattr(labels[number], field) for key, number in given.items()}

    def _hand(self, label: dict[str, Any], rejects: Rejects) -> Hand | None:
        """The hand of an entry; None (and counted) where it cannot be used."""
        try:
            return self._checked_hand(label)
        except _UnusableError as error:
            rejects.add(str(error), label["name"])
            return None

    def _checked_hand(self, label: dict[str, Any]) -> Hand:
        settings = self.settings.labelled_images
        shift = 0.5 if settings.first_pixel == "centre" else 0.0
        camera = None if label["camera"] is None else _camera(label["camera"])
        if camera is not None and shift:
            camera = continuous_camera(camera)
        joints = points = None
        if label["joints_2d"] is not None:
            points = _joints(label["joints_2d"], 2, settings.joint_order) + shift
            if np.ptp(points, axis=0).max() < MIN_BOX_SIDE:
                raise _UnusableError("wrong_unit")
        if label["joints_3d"] is not None:
            joints = _joints(label["joints_3d"], 3, settings.joint_order) * _METRES[settings.unit]
            if not HAND_SPAN_M[0] <= np.ptp(joints, axis=0).max() <= HAND_SPAN_M[1]:
                raise _UnusableError("wrong_unit")
            if joints[:, 2].min() <= 0:
                raise _UnusableError("joints_behind_camera")
            if camera is None:
                raise _UnusableError("missing_camera")
            seen = project(joints, camera)
            if points is not None:
                error = np.linalg.norm(points - seen, axis=1).mean()
                if error > _MAX_DISAGREEMENT * np.ptp(seen, axis=0).max():
                    raise _UnusableError("labels_disagree")
                points = None
        elif points is None:
            raise _UnusableError("bad_labels")
        else:
            seen = points
        box = tight_box(seen) if label["box_xyxy"] is None else label["box_xyxy"]
        if fault := box_fault(box):
            raise _UnusableError(fault)
        if not _mostly_inside(seen, box):
            raise _UnusableError("joints_outside_box")
        return Hand(
            track=0,
            hand=label["hand"] or self.settings.default_hand,
            box=tuple(box),
            joints_3d=joints,
            camera=camera,
            joints_2d=points,
            name=label["name"],
            outside="joints_outside_image",
        )


class _UnusableError(Exception):
    """An entry's labels cannot be used; says why, by a name of rejects.FRAME_REASONS."""


def _joints(value: Any, num_numbers: int, order: str) -> np.ndarray:
    """(21, num_numbers) float64 in FreiHAND order."""
    joints = _numbers(value)
    if joints.shape != (21, num_numbers) or not np.isfinite(joints).all():
        raise _UnusableError("bad_joints")
    if order == "freihand":
        return joints
    from pipeline.hands import reorder

    return reorder(joints, order, "freihand")


def _camera(value: Any) -> np.ndarray:
    """(3, 3) of a matrix, of [fx, fy, cx, cy], or of an object with these keys."""
    camera = _numbers([value.get(key) for key in ("fx", "fy", "cx", "cy")] if isinstance(value, dict) else value)
    if camera.shape == (4,):
        fx, fy, cx, cy = camera
        camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if (
        camera.shape != (3, 3)
        or not np.isfinite(camera).all()
        or min(camera[0, 0], camera[1, 1]) <= 0
        or camera[2].tolist() != [0, 0, 1]
    ):
        raise _UnusableError("bad_camera")
    return camera


def _numbers(value: Any) -> np.ndarray:
    """As float64; without elements where it is something else, also numbers in quotes."""
    try:
        array = np.asarray(value)
    except ValueError:  # of unequal lengths
        return np.empty(0)
    return array.astype(np.float64) if array.dtype.kind in "iuf" else np.empty(0)


def _mostly_inside(points: np.ndarray, box: Sequence[float]) -> bool:
    """Whether at least half of the points (21, 2) lie in a box x0, y0, x1, y1."""
    inside = (points >= np.array(box[:2])) & (points <= np.array(box[2:]))
    return bool(inside.all(1).mean() >= 0.5)


def _what_is_wrong(number: int, entry: Any, error: pydantic.ValidationError) -> str:
    """Such as "entry 3 (a/0.jpg): hand: Input should be 'right' or 'left'"."""
    first = error.errors()[0]
    where = "".join(f"{part}: " for part in first["loc"])
    file = f" ({entry['file']})" if isinstance(entry, dict) and isinstance(entry.get("file"), str) else ""
    keys = f"; its keys are {', '.join(map(str, entry))}" if isinstance(entry, dict) and not where else ""
    return f"entry {number}{file}: {where}{first['msg'].removeprefix('Value error, ')}{keys}"
