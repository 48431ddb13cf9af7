"""YouTube 3D Hands (Kulon et al. 2020), as published; layout and units from its README and load_db.py.

    <annotations>                                   youtube_train.json, youtube_val.json or youtube_test.json
        {"images": [{"name": "youtube/VIDEO/video/frames/FRAME.png", "width", "height", "id"}, ...],
         "annotations": [{"vertices": [[x, y, z] x 778], "is_left", "image_id", "id"}, ...]}
    <uri>/youtube/VIDEO/video/frames/FRAME.png      to be cut out of the videos by oneself; .jpg is found, too

A unit is a video. Vertices are those of MANO's mesh, x and y in pixels, z in the same unit: there is no camera, no depth and
no size, so there are no 3D labels. Boxes are tight around the mesh (around the joints with source.youtube3d.regressor).

What is known to be wrong with the set is taken as it comes: frames of videos that are gone are counted (missing_image);
frames in another resolution than the annotated one are resized to it, or counted (wrong_size) where they have another shape;
two ids are one and the same video, which goes to one split.

The file is large (gigabytes): the driver reads it once, from front to back, and keeps a few numbers a hand.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipeline.config import Settings, Uri
from pipeline.errors import DataError
from pipeline.frames.listing import IMAGE_SUFFIXES, list_inputs
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import Hand, OpenUnit, SourceSettings, Unit, file_sizes
from pipeline.frames.sources.images import boxed_hands, open_stills
from pipeline.frames.sources.json_stream import open_json
from pipeline.frames.sources.published import tight_box
from pipeline.storage import absolute, join, read_bytes, size
from pipeline.text_files import parse_json

NUM_VERTICES = 778
REGRESSOR_SHAPE = (16, NUM_VERTICES)
SAME_VIDEO = {"PQSjVMOaRGc": "Su0mLlax_0s"}
"""One video under two ids (an issue of its repository)."""


class YouTube3dSection(Settings):
    """source.youtube3d."""

    regressor: Uri | None = None
    """URI of MANO's joint regressor, a (16, 778) array as .npy or JSON (part of MANO, under its licence). With it,
    boxes are tight around the joints, and rows have joints in the image (joints_2d). none takes boxes around the mesh
    and gives no joints."""


class YouTube3dSettings(SourceSettings):
    """YouTube 3D Hands as published."""

    usual_reject_fraction = 0.9  # videos have vanished since

    kind: Literal["youtube3d"] = "youtube3d"
    annotations: Uri
    """URI of the annotations file (JSON)."""
    stride: int = Field(default=1, ge=1)
    """Take every n-th frame."""
    youtube3d: YouTube3dSection = YouTube3dSection()

    def reader(self) -> "YouTube3d":
        """See the file's docstring."""
        return YouTube3d(self)

    def deciding(self) -> dict[str, Any]:
        """See SourceSettings."""
        values = super().deciding()
        if self.youtube3d.regressor is not None:
            values["youtube3d"]["regressor"] = absolute(self.youtube3d.regressor)
        return values


class YouTube3d:
    """See the file's docstring."""

    def __init__(self, settings: YouTube3dSettings) -> None:
        self.settings = settings
        self.annotations = settings.annotations

    def list_files(self) -> dict[str, int]:
        """The frames, the annotations and the regressor."""
        regressor = self.settings.youtube3d.regressor
        others = [self.annotations, *([regressor] if regressor else [])]
        return file_sizes(self.settings.uri, IMAGE_SUFFIXES) | {uri: size(uri) for uri in others}

    def list_units(self, rejects: Rejects) -> list[Unit]:
        """One unit a video of which frames are there. Raises DataError where there is none, or the file is not valid."""
        images, hands = self._read(rejects)
        root = absolute(self.settings.uri)
        listing = list_inputs(root, IMAGE_SUFFIXES, known=(self.annotations, self.settings.youtube3d.regressor))
        rejects.notes += listing.notes
        there = {path.rpartition(".")[0]: listing.uri(path) for path in listing.sizes}
        videos: dict[str, list[dict[str, Any]]] = {}
        for image_id, of_image in hands.items():
            name, image_size = images[image_id]
            video, frame = _video_and_frame(name)
            uri = there.get(name.rpartition(".")[0])
            if uri is None:
                rejects.add("missing_image", f"{video}/{frame}", len(of_image))
            else:
                entry = {"file": uri.rpartition("/")[2], "size": image_size, "hands": of_image}
                videos.setdefault(name.rpartition("/")[0], []).append(entry)
        if not hands:
            raise DataError(f"{self.annotations}: annotates no hands")
        if not videos:
            raise DataError(
                f"{self.settings.uri}: not one of the {len(hands)} annotated frames of {self.annotations} is here; the first is "
                f"expected at {images[next(iter(hands))][0]}"
            )
        units = []
        for folder, entries in sorted(videos.items()):
            video = _video_and_frame(f"{folder}/x.png")[0]
            entries.sort(key=lambda entry: _frame_order(entry["file"]))
            num_hands = sum(len(entry["hands"]) for entry in entries)
            key = SAME_VIDEO.get(video, video)
            units.append(Unit(video, join(root, folder), num_hands, entries, split_key=key))
        return units

    @contextmanager
    def open(self, unit: Unit, rejects: Rejects) -> Iterator[OpenUnit | None]:
        """See open_stills."""
        sampled = [(index, None) for index in range(0, len(unit.entries or []), self.settings.stride)]
        yield open_stills(unit, sampled, lambda entry, name: _hands(entry, name, rejects), rejects)

    def _read(self, rejects: Rejects) -> tuple[dict[int, tuple[str, list[int]]], dict[int, list[dict[str, Any]]]]:
        """({image id: (name, [width, height])}, {image id: hands as {"hand", "box" | "joints"}})."""
        regressor = read_regressor(self.settings.youtube3d.regressor)
        images: dict[int, tuple[str, list[int]]] = {}
        hands: dict[int, list[dict[str, Any]]] = {}
        with open_json(self.annotations) as stream:
            for key in stream.members():
                if key not in ("images", "annotations"):
                    stream.value()
                    continue
                for number, _ in enumerate(stream.elements()):
                    value = stream.value()
                    try:
                        if key == "images":
                            _video_and_frame(value["name"])
                            images[value["id"]] = value["name"], [int(value["width"]), int(value["height"])]
                            continue
                        hand = _compact(value["vertices"], regressor)
                        side = "left" if value["is_left"] else "right"
                        if hand is None:
                            rejects.add("bad_labels", f"{self.annotations}: annotation {value.get('id', number)}")
                        else:
                            hands.setdefault(value["image_id"], []).append({"hand": side, **hand})
                    except KeyError as error:
                        raise DataError(f"{self.annotations}: {key}[{number}] has no {error}") from None
                    except (TypeError, ValueError) as error:
                        raise DataError(f"{self.annotations}: {key}[{number}] is not as published ({error})") from None
        for image_id in hands.keys() - images.keys():
            rejects.add("bad_labels", f"{self.annotations}: image_id {image_id}", len(hands.pop(image_id)))
        return images, hands


def read_regressor(uri: str | None) -> np.ndarray | None:
    """(16, 778) from MANO's mesh to its joints, of a .npy or JSON file. Raises DataError for anything else."""
    if uri is None:
        return None
    data = read_bytes(uri)
    try:
        value = np.load(io.BytesIO(data), allow_pickle=False) if uri.endswith(".npy") else parse_json(data)
        regressor = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, EOFError, MemoryError):
        regressor = np.empty(0)
    if regressor.shape != REGRESSOR_SHAPE or not np.isfinite(regressor).all():
        raise DataError(
            f"{uri}: not an array of {REGRESSOR_SHAPE[0]} x {REGRESSOR_SHAPE[1]} finite numbers (.npy or JSON)"
        )
    return regressor


def _compact(vertices: Any, regressor: np.ndarray | None) -> dict[str, Any] | None:
    """What is kept of a mesh: {"joints": [[x, y] x 21]} in FreiHAND order, or {"box"}, in continuous pixels; None where it
    is no mesh. Published pixels count from the centre of the first one (load_db.py draws them so)."""
    try:
        mesh = np.asarray(vertices, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if mesh.shape != (NUM_VERTICES, 3) or not np.isfinite(mesh).all():
        return None
    points = mesh[:, :2] + 0.5
    if regressor is None:
        return {"box": np.concatenate([points.min(0), points.max(0)]).round(3).tolist()}
    from pipeline.hands import joints_from_mesh, reorder

    return {"joints": reorder(joints_from_mesh(points, regressor), "mano", "freihand").round(3).tolist()}


def _hands(entry: dict[str, Any], name: str, rejects: Rejects) -> list[Hand] | None:
    """With their joints in the image, where known."""
    if "box" in entry["hands"][0]:
        boxes, sides = ([hand[key] for hand in entry["hands"]] for key in ("box", "hand"))
        return boxed_hands(boxes, sides, "right", name, rejects)
    return [
        Hand(0, label["hand"], tight_box(np.asarray(label["joints"])), joints_2d=label["joints"])
        for label in entry["hands"]
    ]


def _video_and_frame(name: str) -> tuple[str, str]:
    """The ids in "youtube/VIDEO/video/frames/FRAME.png"."""
    parts = name.split("/")
    if len(parts) != 5 or ".." in parts:
        raise ValueError(f"name '{name}' is not youtube/VIDEO/video/frames/FRAME.png")
    return parts[1], parts[4].rpartition(".")[0]


def _frame_order(file: str) -> tuple[int, str]:
    stem = file.rpartition(".")[0]
    return (int(stem) if stem.isdecimal() else 0), stem
