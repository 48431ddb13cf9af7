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

from pipeline.errors import DataError
from pipeline.frames.listing import IMAGE_SUFFIXES, check_below, list_inputs, natural, nothing_here
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.images import open_boxed
from pipeline.storage import join, read_bytes
from pipeline.text_files import parse_json


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

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings

    def list_files(self) -> dict[str, int]:
        """The images and the boxes file."""
        assert self.settings.boxes is not None
        return file_sizes(self.settings.uri, IMAGE_SUFFIXES) | file_sizes(self.settings.boxes, ("",))

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a folder. Raises DataError where the boxes file is not valid, or there are no images."""
        settings = self.settings
        listing = list_inputs(settings.uri, IMAGE_SUFFIXES, known=(settings.boxes,))
        if not listing.sizes:
            raise nothing_here(settings.uri, "image", IMAGE_SUFFIXES, listing)
        rejects.notes += listing.notes
        folders: dict[str, dict[str, dict[str, Any]]] = {}
        for entry in self._read_boxes():
            path, hint = listing.find(entry.file)
            folder, _, name = path.rpartition("/")
            merged = folders.setdefault(folder, {}).setdefault(name, {"file": name, "boxes": [], "hands": []})
            if hint:
                merged["name"] = f"{path} (there is '{hint}')"
            merged["boxes"] += entry.boxes_xyxy
            merged["hands"] += entry.hands if entry.hands is not None else [None] * len(entry.boxes_xyxy)
        return [
            Unit(
                name=folder or "images",
                uri=join(settings.uri, folder) if folder else settings.uri,
                num_frames=sum(len(image["boxes"]) for image in images.values()),
                entries=[images[name] for name in sorted(images, key=natural)],
            )
            for folder, images in sorted(folders.items())
        ]

    def _read_boxes(self) -> list[ImageBoxes]:
        assert self.settings.boxes is not None
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
        yield open_boxed(unit, self.settings, rejects)
