"""Images and a file of hand boxes in the format of COCO (Lin et al. 2014) or COCO-WholeBody (Jin et al. 2020).

    {"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"image_id": 9, "category_id": 1, "bbox": [x, y, width, height], "iscrowd": 0}, ...],
     "categories": [{"id": 1, "name": "left_hand"}, ...]}

Hands are the annotations of categories called hand, left_hand, "Right Hand" and the like (or those of source.coco.categories),
and in COCO-WholeBody the lefthand_box and righthand_box of people whose lefthand_valid, righthand_valid is true. file_name
is relative to the source's URI (see Listing.find). Images without a hand are not used. Annotations of crowds are counted and left out.

The file may be large (COCO-WholeBody's has gigabytes): it is read once, from front to back, and only boxes are kept.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pipeline.config import Settings, Uri
from pipeline.errors import DataError
from pipeline.frames.listing import IMAGE_SUFFIXES, check_below, list_inputs, natural
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.images import DefaultHandSettings, clip_names, folder_units, open_boxed
from pipeline.frames.sources.json_stream import open_json
from pipeline.storage import size

_HAND = re.compile(r"(human)?(left|right)?hands?(left|right)?")
_SIDES = ("left", "right")

Boxes = list[tuple[list[Any], str | None]]
"""x0, y0, x1, y1 and, where known, the side of an image's hands."""


class CocoSection(Settings):
    """source.coco."""

    clips: Literal["image", "folder"] = "image"
    """What stays together in a split, and which frames are neighbours. image: each image alone, for unrelated
    photographs. folder: each folder, where it holds the frames of a video."""
    categories: tuple[str, ...] | None = None
    """Names of the categories that are hands. none takes those called hand, left hand, right_hand and the like."""


class CocoSettings(DefaultHandSettings, SourceSettings):
    """Images and a file of boxes in COCO's or COCO-WholeBody's format."""

    kind: Literal["coco"] = "coco"
    annotations: Uri
    """URI of the annotations file (JSON)."""
    coco: CocoSection = CocoSection()

    def reader(self) -> "Coco":
        """See the file's docstring."""
        return Coco(self)


class Coco:
    """See the file's docstring."""

    def __init__(self, settings: CocoSettings) -> None:
        self.settings = settings
        self.annotations = settings.annotations

    def list_files(self) -> dict[str, int]:
        """The images and the annotations file."""
        return file_sizes(self.settings.uri, IMAGE_SUFFIXES) | {self.annotations: size(self.annotations)}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit an image, or a folder (source.coco.clips). Raises DataError where the file is not valid or has no hands."""
        listing = list_inputs(self.settings.uri, IMAGE_SUFFIXES, known=(self.annotations,))
        rejects.notes += listing.notes
        images, boxes = self._read(rejects)
        if twice := [file for file, count in Counter(images[i][0] for i in boxes if i in images).items() if count > 1]:
            raise DataError(f"{self.annotations}: two images have the file_name '{twice[0]}'")
        by_path: dict[str, dict[str, Any]] = {}
        for image_id, of_image in boxes.items():
            if image_id not in images:
                rejects.add("bad_labels", f"{self.annotations}: image_id {image_id}", len(of_image))
                continue
            file, image_size = images[image_id]
            path, hint = listing.find(file)
            entry = by_path.setdefault(path, {"file": path, "size": image_size, "boxes": [], "hands": []})
            entry["boxes"] += [box for box, _ in of_image]
            entry["hands"] += [side for _, side in of_image]
            if hint:
                entry["name"] = f"{path} (there is '{hint}')"
        entries = [by_path[path] for path in sorted(by_path, key=natural)]
        if not entries:
            raise DataError(f"{self.annotations}: no hand in an image that it describes")
        uri = self.settings.uri
        if self.settings.coco.clips == "image":
            names = clip_names([entry["file"] for entry in entries])
            return [Unit(name, uri, len(entry["boxes"]), [entry]) for name, entry in zip(names, entries, strict=True)]
        return folder_units(uri, entries)

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """See open_boxed."""
        untimed = [(index, None) for index in range(len(unit.entries or []))]
        yield open_boxed(unit, untimed, self.settings.default_hand, rejects)

    def _read(self, rejects: Rejects) -> tuple[dict[Any, tuple[str, list[int] | None]], dict[Any, Boxes]]:
        """({image id: (file, [width, height] where given)}, {image id: boxes}), in two passes: categories come last."""
        images: dict[Any, tuple[str, list[int] | None]] = {}
        categories: dict[Any, str] = {}
        for key, number, value in self._items("images", "categories"):
            with self._checked(key, number):
                if key == "categories":
                    categories[value["id"]] = str(value["name"])
                elif value["id"] in images:
                    raise DataError(f"{self.annotations}: images[{number}]: another image has id {value['id']}")
                else:
                    images[value["id"]] = _image(value)
        sides = self._hand_categories(categories)
        boxes: dict[Any, Boxes] = {}
        whole_body = False
        for key, number, value in self._items("annotations"):
            with self._checked(key, number):
                of_person = "lefthand_box" in value or "righthand_box" in value
                whole_body |= of_person
                if not of_person and value["category_id"] not in sides:
                    continue
                found = _whole_body_boxes(value) if of_person else [(value["bbox"], sides[value["category_id"]])]
                if not found:
                    continue
                if value.get("iscrowd"):
                    rejects.add("crowd", f"{self.annotations}: annotation {value.get('id', number)}")
                else:
                    of_image = [(_corners(box), side) for box, side in found]
                    boxes.setdefault(value["image_id"], []).extend(of_image)
        if not whole_body and not sides:
            raise DataError(
                f"{self.annotations}: none of its categories ({_listed(categories)}) is called hand, and there are no "
                "lefthand_box and righthand_box; name those that are hands with source.coco.categories"
            )
        return images, boxes

    def _items(self, *keys: str) -> Iterator[tuple[str, int, Any]]:
        """(key, number, element) of some of the file's lists, in the file's order."""
        with open_json(self.annotations) as stream:
            for key in stream.members():
                if key in keys:
                    for number, _ in enumerate(stream.elements()):
                        yield key, number, stream.value()
                else:
                    stream.value()

    @contextmanager
    def _checked(self, key: str, number: int) -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            raise DataError(f"{self.annotations}: {key}[{number}] has no {error}") from None
        except (TypeError, AttributeError):
            raise DataError(f"{self.annotations}: {key}[{number}] is not of COCO's form") from None
        except ValueError as error:
            raise DataError(f"{self.annotations}: {key}[{number}]: file_name {error}") from None

    def _hand_categories(self, categories: dict[Any, str]) -> dict[Any, str | None]:
        """{category id: side where its name says it} of those that are hands."""
        wanted = self.settings.coco.categories
        if wanted is None:
            chosen = {id_: name for id_, name in categories.items() if _HAND.fullmatch(_letters(name))}
        else:
            chosen = {id_: name for id_, name in categories.items() if name in wanted}
            if unknown := sorted(set(wanted) - set(chosen.values())):
                raise DataError(
                    f"{self.annotations}: has no category '{unknown[0]}' (source.coco.categories), only {_listed(categories)}"
                )
        return {id_: next((side for side in _SIDES if side in _letters(name)), None) for id_, name in chosen.items()}


def _image(value: dict[str, Any]) -> tuple[str, list[int] | None]:
    width: Any = value.get("width")
    height: Any = value.get("height")
    known = isinstance(width, int) and isinstance(height, int) and min(width, height) > 0
    return check_below(str(value["file_name"])), [width, height] if known else None


def _whole_body_boxes(value: dict[str, Any]) -> Boxes:
    """The boxes of a person's annotated hands, as given; the other ones hold zeros."""
    return [(value[f"{side}hand_box"], side) for side in _SIDES if value.get(f"{side}hand_valid")]


def _corners(box: Any) -> list[Any]:
    """x, y, width, height -> x0, y0, x1, y1; what is no box stays as it is, to be counted when it is used."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        return list(box) if isinstance(box, list) else []
    return [x, y, x + width, y + height]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _listed(categories: dict[Any, str]) -> str:
    names = sorted(categories.values())
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "none"
