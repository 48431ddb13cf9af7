"""Long videos, and large folders of images in which hands are to be found, are cut into pieces, so that several workers share
one.

A piece is a range of frames. What a frame becomes does not depend on the pieces: names, tracks and splits are those of the
whole video, frames are found by time stamp after a seek to a key frame where stamps prove
which is which (else the first piece takes the whole video), and frame groups and the search for near-duplicates
begin anew at every multiple of PIECE_FRAMES, however the work is divided.

Each piece counts for itself where the video or its labels cannot be used.
"""

from collections.abc import Iterable
from dataclasses import replace

from pipeline.frames.sources import Unit

PIECE_FRAMES = 8192
"""Frames of the video (sampled or not): 4.5 minutes at 30 a second. Shorter pieces would read the index of the video, and
from object storage the video itself, more often than it is worth."""


def in_pieces(units: Iterable[Unit]) -> list[Unit]:
    """The units, those of long videos in pieces."""
    return [piece for unit in units for piece in _pieces(unit)]


def _pieces(unit: Unit) -> list[Unit]:
    starts = range(0, unit.length or 1, PIECE_FRAMES)
    if len(starts) == 1:
        return [unit]
    pieces = []
    for first in starts:
        is_last = first == starts[-1]  # it has no end: the length is what the container claims
        end = unit.length if is_last and unit.length else first + PIECE_FRAMES
        share = [round(unit.num_frames * frame / (unit.length or 1)) for frame in (first, end)]
        entries = None if unit.entries is None else unit.entries[first:end]
        pieces.append(
            replace(unit, first=first, end=None if is_last else end, num_frames=share[1] - share[0], entries=entries)
        )
    return pieces


def pack(units: Iterable[Unit], least: int) -> list[list[Unit]]:
    """Neighbours together, until they have `least` frames."""
    packed: list[list[Unit]] = []
    filled = least
    for unit in units:
        if filled >= least:
            packed.append([])
            filled = 0
        packed[-1].append(unit)
        filled += max(unit.num_frames, 1)
    return packed


def piece_number(index: int) -> int:
    """Of the piece that a frame lies in."""
    return index // PIECE_FRAMES


def is_whole(unit: Unit) -> bool:
    """Whether no other unit is a piece of the same video."""
    return unit.first == 0 and unit.end is None
