"""Pictures of a run as PNG bytes: view pairs, nearest neighbours, contact sheets, skeletons.

Pictures of frames are made with Pillow, on a transparent ground, so that they look right on a light and on a dark page.
Frames are uint8, (N, 3, S, S), RGB, as torch tensors on the CPU or as NumPy arrays. Joints are in pixels of their frame
(continuous coordinates: the centre of pixel i is i + 0.5) and in FreiHAND order.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.drawing.skeleton import side_view, skeleton_overlay, to_picture

Frames = Any
"""(N, 3, S, S) uint8, RGB: a torch tensor on the CPU or a NumPy array."""

_GAP = 3
_CHIP = (16, 18, 22, 190)


def view_pairs(views_1: Frames, views_2: Frames, max_pairs: int = 24, pairs_per_row: int = 4) -> bytes:
    """The two views of each frame side by side, as the network sees them. views: (N, 3, S, S) uint8, the same N."""
    first, second = _tiles(views_1), _tiles(views_2)
    if len(first) != len(second):
        raise ValueError(f"view pairs need as many first as second views, got {len(first)} and {len(second)}")
    pairs = [
        np.concatenate([one, np.zeros((one.shape[0], 1, 4), np.uint8), two], axis=1)
        for one, two in zip(first[:max_pairs], second[:max_pairs], strict=True)
    ]
    return _png(_grid(pairs, columns=pairs_per_row, gap=3 * _GAP))


def neighbours(queries: Frames, results: Frames, tile: int = 112) -> bytes:
    """One row a query: the query, then its nearest neighbours in feature space, nearest first.

    queries: (Q, 3, S, S) uint8. results: (Q, K, 3, S, S) uint8. tile: side of one picture, pixels.
    """
    num_results = len(results[0]) if len(results) else 0
    rows = []
    for query, found in zip(_tiles(queries, tile), results, strict=True):
        row = Image.new("RGBA", (tile + 5 * _GAP + num_results * (tile + _GAP) - _GAP, tile))
        row.paste(Image.fromarray(query), (0, 0))
        for rank, picture in enumerate(_tiles(found, tile)):
            row.paste(Image.fromarray(picture), (tile + 5 * _GAP + rank * (tile + _GAP), 0))
        # A bar beside the query sets it apart from what was found.
        ImageDraw.Draw(row).rectangle((tile + 2 * _GAP, 0, tile + 2 * _GAP + 2, tile), fill=(15, 118, 110, 255))
        rows.append(np.asarray(row))
    return _png(_grid(rows, columns=1, gap=_GAP))


def contact_sheet(frames: Frames, columns: int = 12, tile: int = 84, max_frames: int = 96) -> bytes:
    """Many frames at a glance. tile: side of one picture, pixels."""
    return _png(_grid(_tiles(frames[:max_frames], tile), columns=columns, gap=2))


@dataclass
class Case:
    """One frame with its predicted and, where known, its true hand."""

    image: Any
    """(3, S, S) uint8."""
    predicted: Any
    """(21, 2) predicted joints, pixels of the image."""
    true: Any = None
    """(21, 2) labelled joints, pixels of the image."""
    predicted_3d: Any = None
    """(21, 3) predicted joints, camera frame; with `true_3d`, in the same unit, both are also drawn from the side."""
    true_3d: Any = None
    """(21, 3) labelled joints."""
    label: str = ""
    """Short text drawn on the picture, such as "7.2 mm"."""


@dataclass
class CaseGroups:
    """Which frames to show: the indices of good, median and worst predictions, best first in each."""

    good: list[int] = field(default_factory=list)
    median: list[int] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)


def pick_cases(errors: npt.ArrayLike, num: int = 6) -> CaseGroups:
    """Good (around the 5th percentile), median and worst frames by their error. errors: (N,), smaller is better.

    The very best frames are often chance hits, so "good" is taken around the 5th percentile. A frame is shown
    once only; with few frames the groups get shorter. Frames whose error is not a number are left out.
    """
    values = np.asarray(errors, dtype=float)
    order = [int(i) for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    num = min(num, len(order) // 3)
    if num == 0:
        return CaseGroups(median=order)
    start = max(0, min(round(0.05 * len(order)) - num // 2, len(order) // 3 - num))
    middle = min(max((len(order) - num) // 2, start + num), len(order) - 2 * num)
    return CaseGroups(order[start : start + num], order[middle : middle + num], order[-num:])


def overlays(cases: Sequence[Case], columns: int = 6, tile: int = 224) -> bytes:
    """A grid of predicted (coloured) and true (white) hands; with 3D joints, also of both hands from the side."""
    return _png(_grid([_drawn(case, tile) for case in cases], columns=columns, gap=2 * _GAP))


def side_by_side(frames: Sequence[Sequence[Case]], tiles_per_row: int = 6, tile: int = 224) -> bytes:
    """The same frames as several models answer them: a block for each frame, with its cases, one a model, beside each other."""
    blocks = [
        np.asarray(_grid([_drawn(case, tile) for case in cases], columns=len(cases), gap=_GAP)) for cases in frames
    ]
    num_rows = -(-len(blocks) // max(1, tiles_per_row // len(frames[0])))
    return _png(_grid(blocks, columns=-(-len(blocks) // num_rows), gap=7 * _GAP))


def _drawn(case: Case, tile: int) -> npt.NDArray[np.uint8]:
    picture = skeleton_overlay(case.image, case.predicted, case.true, tile)
    if case.predicted_3d is not None and case.true_3d is not None:
        picture = np.concatenate([picture, side_view(case.predicted_3d, case.true_3d, tile)], axis=0)
    return _label(picture, case.label)


def _tiles(frames: Frames, side: int | None = None) -> list[npt.NDArray[np.uint8]]:
    """Frames as (side, side, 4) pictures; at their own size where no side is given."""
    pictures = [to_picture(frame).convert("RGBA") for frame in np.asarray(frames)]
    if side is not None:
        pictures = [p if p.size == (side, side) else p.resize((side, side), Image.Resampling.LANCZOS) for p in pictures]
    return [np.asarray(p) for p in pictures]


def _grid(pictures: Sequence[npt.NDArray[np.uint8]], columns: int, gap: int) -> Image.Image:
    """Pictures of one size (height, width, 3 or 4) in rows, on a transparent ground."""
    if not pictures:
        return Image.new("RGBA", (1, 1))
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGBA", (columns * (width + gap) - gap, rows * (height + gap) - gap))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(picture), (column * (width + gap), row * (height + gap)))
    return sheet


def _label(picture: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    image = Image.fromarray(picture).convert("RGBA")
    if text:
        chip = Image.new("RGBA", image.size)
        draw = ImageDraw.Draw(chip)
        font = ImageFont.load_default(size=max(11, image.width // 14))
        left, top, right, bottom = draw.textbbox((10, 8), text, font=font)
        draw.rounded_rectangle((left - 5, top - 4, right + 5, bottom + 4), radius=4, fill=_CHIP)
        draw.text((10, 8), text, font=font, fill=(255, 255, 255, 255))
        image = Image.alpha_composite(image, chip)
    return np.asarray(image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
