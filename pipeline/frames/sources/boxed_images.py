"""Folders of images and one boxes file. Each folder is a clip, its images in the order of their names.

The boxes file is a JSON list of
    {"file": "seq_00/00000.jpg", "boxes_xyxy": [[x0, y0, x1, y1], ...], "hands": ["right", ...]}
with files relative to the source's URI, boxes in pixels, and "hands" optional. Images that it does not name are not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pydantic

from pipeline.errors import DataError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.images import IMAGE_SUFFIXES, open_boxed
from pipeline.storage import join, list_files, read_bytes


class ImageBoxes(pydantic.BaseModel):
    """One entry of a boxes file. Boxes are checked when they are used, so that a bad one costs its hand only."""

    file: str
    boxes_xyxy: list[list[Any]]
    hands: list[Literal["right", "left"]] | None = None


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
        if not list_files(settings.uri, IMAGE_SUFFIXES):
            raise DataError(f"{settings.uri}: no image here ({', '.join(IMAGE_SUFFIXES)})")
        folders: dict[str, dict[str, dict[str, Any]]] = {}
        for entry in self._read_boxes():
            folder, _, name = entry.file.rpartition("/")
            merged = folders.setdefault(folder, {}).setdefault(name, {"file": name, "boxes": [], "hands": []})
            merged["boxes"] += entry.boxes_xyxy
            merged["hands"] += entry.hands if entry.hands is not None else [None] * len(entry.boxes_xyxy)
        return [
            Unit(
                name=folder or "images",
                uri=join(settings.uri, folder) if folder else settings.uri,
                num_frames=sum(len(image["boxes"]) for image in images.values()),
                entries=[image for _, image in sorted(images.items())],
            )
            for folder, images in sorted(folders.items())
        ]

    def _read_boxes(self) -> list[ImageBoxes]:
        assert self.settings.boxes is not None
        try:
            entries = _BOXES_FILE.validate_json(read_bytes(self.settings.boxes))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(f"{self.settings.boxes}: not a valid boxes file ({where}: {first['msg']})") from None
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
