"""What sources of still images share: reading them, and turning the hands of a folder's images into tracks."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Settings
from pipeline.frames.crop import box_fault
from pipeline.frames.image_file import read_image
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, SampledSettings, Unit
from pipeline.frames.sources.video import sample
from pipeline.frames.track import link
from pipeline.storage import join

_SAME_SHAPE = 0.01  # width / height may differ by this fraction, by rounding, between two resolutions of a picture


class StillsSettings(SampledSettings):
    """Of kinds whose images may be frames in their order."""

    image_rate: float | None = Field(default=None, gt=0)
    """Rate at which the images of a folder were taken, in images a second. none leaves timestamps empty."""

    @field_validator("image_rate")
    @classmethod
    def _known_for_fps(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None and info.data.get("fps"):
            raise ValueError("fps needs to know the rate of the images")
        return value

    def sampled(self, num_images: int) -> list[tuple[int, float | None]]:
        """(index, time in seconds where the rate is known) of the images to take of a folder's."""
        times = [index / (self.image_rate or 1.0) for index in range(num_images)]
        return [(i, times[i] if self.image_rate else None) for i in sample(times, self.fps, self.stride)]


class DefaultHandSettings(Settings):
    """Of kinds whose labels need not say which hand it is."""

    default_hand: Literal["right", "left"] = "right"
    """Which hand it is where nothing says so. Left hands are stored mirrored."""


def folder_units(uri: str, entries: Iterable[dict[str, Any]]) -> list[Unit]:
    """One unit a folder, folders and images in the order of the entries: {"file": below `uri`, ...}, with "boxes" where known."""
    folders: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        folder, _, file = entry["file"].rpartition("/")
        folders.setdefault(folder, []).append({**entry, "file": file})
    return [
        Unit(
            name=folder or "images",
            uri=join(uri, folder) if folder else uri,
            num_frames=sum(len(entry["boxes"]) if "boxes" in entry else 1 for entry in members),
            entries=members,
        )
        for folder, members in folders.items()
    ]


def open_stills(
    unit: Unit,
    sampled: Iterable[tuple[int, float | None]],
    hands_of: Callable[[dict[str, Any], str], list[Hand] | None],
    rejects: Rejects,
) -> OpenUnit:
    """A unit of images: `unit.entries` are {"file", "size": [width, height] | None, ...}, in their order.

    sampled: (index, time in seconds or None) of the images to take, ascending. hands_of(entry, name): the hands of an image (their tracks do not matter), or None where that is counted already. They are
    linked into tracks by overlap and nearness, right and left hands apart, however far a hand moves between images.
    """
    times: dict[int, float | None] = {}
    chosen: list[tuple[int, list[Hand]]] = []
    for index, time_s in sampled:
        name = image_name(unit, index)
        hands = hands_of(entry_of(unit, index), name)
        if hands:
            times[index] = time_s
            chosen.append((index, hands))
        elif hands is not None:
            rejects.add("no_hand", name)
    frames = [FrameHands(index, times[index], hands) for (index, _), hands in zip(chosen, tracked(chosen), strict=True)]
    return OpenUnit(frames, partial(read_images, unit, rejects))


def open_boxed(
    unit: Unit, sampled: Iterable[tuple[int, float | None]], default_hand: str, rejects: Rejects
) -> OpenUnit:
    """See open_stills; entries also have "boxes" and "hands" ("right", "left" or None for default_hand)."""
    return open_stills(
        unit,
        sampled,
        lambda entry, name: boxed_hands(entry["boxes"], entry["hands"], default_hand, name, rejects),
        rejects,
    )


def tracked(images: Sequence[tuple[int, list[Hand]]]) -> list[list[Hand]]:
    """The hands of each image, numbered; tracks count up from 0 in order of first sighting."""
    result: list[list[Hand]] = [[] for _ in images]
    numbers: dict[tuple[str, int], int] = {}
    by_side = {}
    for side in ("right", "left"):
        boxes = [[hand.box for hand in hands if hand.hand == side] for _, hands in images]
        by_side[side] = link([index for index, _ in images], boxes, float("inf"), float("inf"))
    for position, (_, hands) in enumerate(images):
        left_over = {side: iter(tracks[position]) for side, tracks in by_side.items()}
        for hand in hands:
            track = numbers.setdefault((hand.hand, next(left_over[hand.hand])), len(numbers))
            result[position].append(replace(hand, track=track))
    return result


def boxed_hands(
    boxes: Sequence[Any], sides: Sequence[str | None], default: str, name: str, rejects: Rejects
) -> list[Hand] | None:
    """Hands of boxes x0, y0, x1, y1; whether they lie in the image shows once it is open.

    What is no box is counted; None where nothing is left of some boxes.
    """
    hands = []
    for box, side in zip(boxes, sides, strict=True):
        if fault := box_fault(box):
            rejects.add(fault, name)
        else:
            x0, y0, x1, y1 = box
            hands.append(Hand(0, side or default, (x0, y0, x1, y1)))
    return hands if hands or not boxes else None


def image_name(unit: Unit, index: int) -> str:
    """The name under which an image of a unit is counted."""
    entry = entry_of(unit, index)
    return str(entry.get("name") or f"{unit.name}/{entry['file']}")


def entry_of(unit: Unit, index: int) -> dict[str, Any]:
    """An image's entry, by its index in the folder (of which the unit may be a piece)."""
    return (unit.entries or [])[index - unit.first]


def clip_names(files: Sequence[str]) -> list[str]:
    """A name for each of several images that are clips of their own: without suffix, where that tells them apart."""
    stems = Counter(file.rpartition(".")[0] for file in files)
    return [stem if stems[stem := file.rpartition(".")[0]] == 1 else file for file in files]


def read_images(unit: Unit, rejects: Rejects, indexes: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    """Images of a unit's entries by index, upright RGB, of the entry's size where it has one; those that cannot be used are
    counted."""
    for index in indexes:
        entry = entry_of(unit, index)
        name = image_name(unit, index)
        image = read_image(join(unit.uri, entry["file"]), name, rejects)
        if image is not None and entry.get("size"):
            image = _fitted(image, *entry["size"])
            if image is None:
                rejects.add("wrong_size", name)
        if image is not None:
            yield index, image


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image | None:
    """The image in the size that its labels are for; None where that would change its shape."""
    if image.size == (width, height):
        return image
    if abs(image.width * height / (image.height * width) - 1) > _SAME_SHAPE:
        return None
    return image.resize((width, height), Image.Resampling.BICUBIC)
