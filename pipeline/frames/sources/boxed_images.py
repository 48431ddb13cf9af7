"""Folders of images and one boxes file. Each folder is a clip, its images in the order of their names.

The boxes file is a JSON list of
    {"file": "seq_00/00000.jpg", "boxes_xyxy": [[x0, y0, x1, y1], ...], "hands": ["right", ...]}
with files relative to the source's URI, boxes in pixels, and "hands" optional. Images that it does not name are not used.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import pydantic
from PIL import Image, ImageOps

from pipeline.errors import DataError, StorageError
from pipeline.frames.crop import is_box
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.video import sample
from pipeline.frames.track import link
from pipeline.storage import exists, join, list_files, read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


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
        """Boxes are linked into tracks by overlap and nearness, however far a hand moves from image to image."""
        entries = unit.entries or []
        rate = self.settings.image_rate
        times = [index / rate if rate else float(index) for index in range(len(entries))]
        chosen = []
        for index in sample(times, self.settings.fps, self.settings.stride):
            name = f"{unit.name}/{entries[index]['file']}"
            good = self._hands_with_boxes(entries[index], name, rejects)
            if good:
                chosen.append((index, good))
            elif not entries[index]["boxes"]:
                rejects.add("no_hand", name)
        boxes = [[box for box, _ in good] for _, good in chosen]
        tracks = link([times[index] for index, _ in chosen], boxes, float("inf"), float("inf"))
        frames = [
            FrameHands(
                index,
                times[index] if rate else None,
                [Hand(t, hand, box) for t, (box, hand) in zip(numbers, good, strict=True)],
            )
            for (index, good), numbers in zip(chosen, tracks, strict=True)
        ]
        yield OpenUnit(frames, partial(read_images, unit, rejects))

    def _hands_with_boxes(
        self, entry: dict[str, Any], name: str, rejects: Rejects
    ) -> list[tuple[tuple[float, float, float, float], str]]:
        """Boxes that can be compared with others; whether they lie in the image shows once it is open."""
        good = []
        for box, hand in zip(entry["boxes"], entry["hands"], strict=True):
            if not is_box(box):
                rejects.add("bad_box", name)
            else:
                good.append((tuple(box), hand or self.settings.default_hand))
        return good


def read_images(unit: Unit, rejects: Rejects, indexes: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """Images by index, upright RGB; those that are missing or broken are counted."""
    for index in indexes:
        file = (unit.entries or [])[index]["file"]
        name = f"{unit.name}/{file}"
        uri = join(unit.uri, file)
        try:
            data = read_bytes(uri)
        except StorageError:
            if exists(uri):
                raise
            rejects.add("missing_image", name)
            continue
        try:
            with Image.open(io.BytesIO(data)) as image:
                upright = _to_rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            rejects.add("unreadable_image", name)
            continue
        yield index, upright


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; PIL would clip instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
