"""Detections of single frames become tracks: the same hand through time, with a steady box and one handedness."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from pipeline.config import Settings


class TrackSettings(Settings):
    """How detections of single frames become tracks."""

    max_gap_s: float = Field(default=0.5, gt=0)
    """Longest gap in seconds within a track. A hand that was out of sight for longer begins a new track."""
    max_shift: float = Field(default=1.0, gt=0)
    """Largest move of the centre of a box from one sighting to the next, in sides of the box."""
    min_frames: int = Field(default=5, ge=1)
    """Tracks with fewer frames are left out (reason `short_track`), because most of them are no hands."""
    smoothing_s: float = Field(default=0.1, ge=0)
    """Standard deviation in seconds of the Gaussian that smooths boxes in time. 0 leaves them as detected."""


@dataclass(frozen=True)
class Detection:
    """One hand found in one frame."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels, tight around the joints."""
    hand: str
    """"right" | "left", as seen in the image."""
    score: float
    joints_3d: list[list[float]] | None = None
    """21 x 3 metres, FreiHAND order, in the frame of an assumed camera (crop.assumed_camera); None where they are not wanted."""
    camera: list[list[float]] | None = None
    """3 x 3, the camera that was assumed."""

    def to_json(self) -> list[Any]:
        """Plain values for `from_json`, without what is not there."""
        labels = [] if self.joints_3d is None else [self.joints_3d, self.camera]
        return [list(self.box), self.hand, self.score, *labels]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "Detection":
        """What `to_json` gave."""
        box, *rest = values
        return cls(tuple(box), *rest)


def link(
    times: Sequence[float], boxes: Sequence[Sequence[Sequence[float]]], max_gap: float, max_shift: float
) -> list[list[int]]:
    """A track number for every box of every frame; numbers count up in order of first sighting.

    times: of the frames, ascending. boxes: for each frame its boxes (x0, y0, x1, y1). In each frame the best pairs of
    live track and box are joined first: those that overlap most, then those whose centres are nearest (in mean box
    sides). A track lives for max_gap after its last sighting.
    """
    last: dict[int, tuple[float, np.ndarray]] = {}
    num_tracks = 0
    result = []
    for time, frame_boxes in zip(times, boxes, strict=True):
        current = np.asarray(frame_boxes, dtype=np.float64).reshape(-1, 4)
        last = {number: sighting for number, sighting in last.items() if time - sighting[0] <= max_gap}
        live = [(number, box) for number, (_, box) in last.items()]
        pairs = []
        if live and len(current):
            before = np.stack([box for _, box in live])
            distances = _distances(before, current)
            costs = distances - overlaps(before, current)
            near = np.argwhere(distances <= max_shift).tolist()
            pairs = sorted((costs[row, position], live[row][0], position) for row, position in near)
        numbers = [-1] * len(current)
        taken: set[int] = set()
        for _, number, position in pairs:
            if number not in taken and numbers[position] < 0:
                numbers[position] = number
                taken.add(number)
        for position, box in enumerate(current):
            if numbers[position] < 0:
                numbers[position] = num_tracks
                num_tracks += 1
            last[numbers[position]] = (time, box)
        result.append(numbers)
    return result


def overlap(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    return float(overlaps(np.asarray([a], dtype=np.float64), np.asarray([b], dtype=np.float64))[0, 0])


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) intersection over union of boxes (n, 4) and (m, 4)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = sides.clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - both
    return np.divide(both, union, out=np.zeros_like(both), where=both > 0)


def smooth_boxes(times: Sequence[float], boxes: np.ndarray, sigma_s: float) -> np.ndarray:
    """(n, 4) boxes of one track, averaged over time with a Gaussian that looks both ways, so that they do not lag."""
    if sigma_s == 0:
        return boxes
    seconds = np.asarray(times, dtype=np.float64)
    first = np.searchsorted(seconds, seconds - 3 * sigma_s, side="left")
    end = np.searchsorted(seconds, seconds + 3 * sigma_s, side="right")
    smoothed = np.empty_like(boxes, dtype=np.float64)
    for i, (a, b) in enumerate(zip(first, end, strict=True)):
        weights = np.exp(-0.5 * ((seconds[a:b] - seconds[i]) / sigma_s) ** 2)
        smoothed[i] = weights @ boxes[a:b] / weights.sum()
    return smoothed


def vote_hand(detections: Sequence[Detection]) -> str:
    """The handedness of a track: the side with the larger sum of scores ("right" when equal)."""
    balance = sum(d.score if d.hand == "right" else -d.score for d in detections)
    return "right" if balance >= 0 else "left"


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) distances between the centres of boxes (n, 4) and (m, 4), in mean box sides."""
    sides = [(boxes[:, 2:] - boxes[:, :2]).max(1) for boxes in (a, b)]
    side = (sides[0][:, None] + sides[1][None, :]) / 2
    centres = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (a, b)]
    return np.linalg.norm(centres[0][:, None] - centres[1][None, :], axis=2) / np.maximum(side, 1e-9)
