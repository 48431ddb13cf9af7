"""Tiny labelled photographs: dots at the joints, images of several sizes, some that end just around the hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.frames.sources.labelled_images import LabelledImagesSettings
from tests.frames.sources.dots import draw, hand, jpeg, pixels_of

LABELS = ("joints_3d", "joints_2d")
SIDES = ("right", "left")
RADIUS = 5.0


def camera_of(width: int, height: int, focal: float = 420.0) -> np.ndarray:
    """Intrinsics for which the centre of the first pixel is (0, 0), as dots.draw draws."""
    return np.array([[focal, 0, width / 2], [0, 1.01 * focal, height / 2], [0, 0, 1]])


def photograph(number: int, side: str) -> tuple[list[dict[str, np.ndarray]], np.ndarray, int, int]:
    """(hands, camera, width, height) of an image; every third ends where the outer dots end."""
    width, height = ((320, 240), (200, 300), (640, 360))[number % 3]
    camera = camera_of(width, height)
    joints = hand(side, number)
    if number % 3 == 1:
        points = np.array(list(pixels_of(joints, camera).values()))
        (x0, y0), (x1, y1) = np.floor(points.min(0)) - RADIUS, np.ceil(points.max(0)) + RADIUS + 1
        camera[:2, 2] -= [x0, y0]
        width, height = int(x1 - x0), int(y1 - y0)
    return [joints], camera, width, height


def entry_of(file: str, side: str, joints: dict[str, np.ndarray], camera: np.ndarray, kind: str) -> dict[str, Any]:
    """An entry of the labels file, with joints in 3D or in 2D."""
    values = joints if kind == "joints_3d" else pixels_of(joints, camera)
    entry = {"file": file, "hand": side, kind: [point.tolist() for point in values.values()]}
    return entry | ({"camera": camera.tolist()} if kind == "joints_3d" else {})


def write_photographs(root: Path, files: list[str], kind: str, sides: tuple[str, ...] = ("right",)) -> Path:
    """<root>/images and <root>/labels.json; the hands of image i are of sides[i % len(sides)]. Gives the root."""
    entries = []
    for number, file in enumerate(files):
        side = sides[number % len(sides)]
        hands, camera, width, height = photograph(number, side)
        path = root / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(draw(hands, camera, width, height, RADIUS)))
        entries.append(entry_of(file, side, hands[0], camera, kind))
    (root / "labels.json").write_text(json.dumps(entries))
    return root


def settings(
    root: Path, change: Callable[[list[dict[str, Any]]], Any] | None = None, **changes
) -> LabelledImagesSettings:
    """Of the photographs in a folder. change: what is done to their entries before."""
    labels = root / "labels.json"
    if change is not None:
        entries = json.loads(labels.read_text())
        change(entries)
        labels.write_text(json.dumps(entries))
    values = {"uri": str(root / "images"), "annotations": str(labels), **changes}
    values["labelled_images"] = {"first_pixel": "centre", **changes.get("labelled_images", {})}
    return LabelledImagesSettings.model_validate(values)
