"""Folders of images and one boxes file. Each folder is a clip, its images in the order of their names (of the numbers in them).

The boxes file is a JSON list of
    {"file": "seq_00/00000.jpg", "boxes_xyxy": [[x0, y0, x1, y1], ...], "hands": ["right", ...]}
with files relative to the source's URI, boxes in pixels, and "hands" optional. Images that it does not name are not used. How a
file may be written: see Listing.find.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pydantic

from pipeline.config import Uri
from pipeline.errors import DataError
from pipeline.frames.listing import IMAGE_SUFFIXES, check_below, list_inputs, natural, nothing_here
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.images import DefaultHandSettings, StillsSettings, folder_units, open_boxed
from pipeline.storage import read_bytes
from pipeline.text_files import parse_json


class BoxedImagesSettings(DefaultHandSettings, StillsSettings, SourceSettings):
    """Folders of images and one boxes file."""

    kind: Literal["boxed_images"] = "boxed_images"
    boxes: Uri
    """URI of the boxes file."""

    def reader(self) -> "BoxedImages":
        """See the file's docstring."""
        return BoxedImages(self)


class ImageBoxes(pydantic.BaseModel):
    """One entry of a boxes file. Boxes are checked when they are used, so that a bad one costs its hand only."""

    file: str
    boxes_xyxy: list[list[Any]]
    hands: list[Literal["right", "left"]] | None = None

    @pydantic.field_validator("file")
    @classmethod
    def _is_below(cls, value: str) -> str:
        return check_below(value)


_BOXES_FILE = pydantic.TypeAdapter(list[ImageBoxes])


class BoxedImages:
    """See the file's docstring."""

    def __init__(self, settings: BoxedImagesSettings) -> None:
        self.settings = settings

    def list_files(self) -> dict[str, int]:
        """The images and the boxes file."""
        return file_sizes(self.settings.uri, IMAGE_SUFFIXES) | file_sizes(self.settings.boxes, ("",))

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a folder. Raises DataError where the boxes file is not valid, or there are no images."""
        settings = self.settings
        listing = list_inputs(settings.uri, IMAGE_SUFFIXES, known=(settings.boxes,))
        if not listing.sizes:
            raise nothing_here(settings.uri, "image", IMAGE_SUFFIXES, listing)
        rejects.notes += listing.notes
        images: dict[str, dict[str, Any]] = {}
        for entry in self._read_boxes():
            path, hint = listing.find(entry.file)
            merged = images.setdefault(path, {"file": path, "boxes": [], "hands": []})
            if hint:
                merged["name"] = f"{path} (there is '{hint}')"
            merged["boxes"] += entry.boxes_xyxy
            merged["hands"] += entry.hands if entry.hands is not None else [None] * len(entry.boxes_xyxy)
        paths = sorted(images, key=lambda path: (path.rpartition("/")[0], natural(path)))
        return folder_units(settings.uri, [images[path] for path in paths])

    def _read_boxes(self) -> list[ImageBoxes]:
        try:
            entries = _BOXES_FILE.validate_python(parse_json(read_bytes(self.settings.boxes)))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            said = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{self.settings.boxes}: not a valid boxes file ({where}: {said})") from None
        except ValueError as error:
            raise DataError(f"{self.settings.boxes}: not a valid boxes file (not valid JSON: {error})") from None
        for entry in entries:
            if entry.hands is not None and len(entry.hands) != len(entry.boxes_xyxy):
                raise DataError(f"{self.settings.boxes}: {entry.file} has more or fewer hands than boxes")
        if not entries:
            raise DataError(f"{self.settings.boxes}: names no images")
        return entries

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """See open_boxed."""
        sampled = self.settings.sampled(len(unit.entries or []))
        yield open_boxed(unit, sampled, self.settings.default_hand, rejects)
