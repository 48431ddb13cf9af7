"""When each frame of a video is shown, also where its container does not say so, or says it wrongly.

Stamps are taken where they are sound: they rise from frame to frame. A stamp that is missing, equals the one before, or lies
outside its neighbours is replaced by one between them. Where a container stores no presentation times (AVI), those of
decoding are given to the frames in the order in which they are shown. Where the clock starts again, as in transport streams
that were joined, time goes on by one frame.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np

_JUMP_S = 10.0
"""Of a transport stream's clock; FFmpeg takes a larger one for a new clock too."""
_DEFAULT_RATE = 25.0


class Coded(NamedTuple):
    """What the container says of a coded frame."""

    pts: int | None
    dts: int | None
    is_key: bool
    is_corrupt: bool
    is_shown: bool
    """False where it is only there for others: cut by an edit list, or never meant to be seen."""


@dataclass(frozen=True)
class Clock:
    """When the frames of a video are shown, and how that is known."""

    times_s: list[float]
    """Seconds from the first frame, ascending; the position is the frame's index."""
    source: str = "stamps"
    """"stamps", "decode times" or "frame rate"."""
    num_restarts: int = 0
    """Times that the clock starts again (in transport streams: or jumps)."""
    num_equal: int = 0
    """Frames with the stamp of the one before."""
    num_mended: int = 0
    """Frames whose stamp is missing, or not between those of their neighbours."""

    @property
    def step_s(self) -> float:
        """Between two frames, typically; 0 where there is only one."""
        return median(b - a for a, b in pairwise(self.times_s)) if len(self.times_s) > 1 else 0.0


def restarts(coded: Sequence[Coded], jump: float = float("inf")) -> list[int]:
    """Packets, by number, at which the clock starts again, or jumps ahead by more than `jump` ticks."""
    stamps = [packet.dts for packet in coded]
    if not any(stamp is not None for stamp in stamps):
        stamps = [packet.pts for packet in coded if packet.is_key]  # the others are out of order
        keys = [number for number, packet in enumerate(coded) if packet.is_key]
    else:
        keys = list(range(len(coded)))
    found = []
    last: list[int] = []
    for number, stamp in zip(keys, stamps, strict=True):
        if stamp is None:
            continue
        # Behind both of the last two: a single stamp that is far off is not the end of a clock.
        if last and (stamp < min(last) or stamp - max(last) > jump):
            found.append(number)
            last = []
        last = [*last[-1:], stamp]
    return found


def read_clock(
    coded: Sequence[Coded],
    numbers: Sequence[int | None],
    time_base: Fraction,
    rate: Fraction | None,
    may_jump: bool = False,
) -> Clock:
    """The times of frames that are shown in an order.

    coded: all packets as they are decoded. numbers: the packet of each frame, as they are shown; None where it is not known.
    may_jump: whether a clock that jumps ahead has started again, as in transport streams.
    """
    begins = restarts(coded, _JUMP_S / float(time_base) if may_jump else float("inf"))
    parts: list[list[int | None]] = [[]]
    newest = 0
    for number in numbers:
        part = newest if number is None else bisect_right(begins, number)
        if part > newest:  # a frame that is shown late belongs to those around it
            parts.append([])
            newest = part
        parts[-1].append(number)
    times: list[float] = []
    sources = []
    num_equal = num_mended = 0
    for members in filter(None, parts):
        stamps, source, equal = _sound_stamps(coded, members)
        sources.append(source)
        num_equal += equal
        if source == "stamps":
            num_mended += stamps.count(None) - equal
        own, step_s = _seconds(stamps, time_base, rate)
        times += own if not times else [times[-1] + step_s + time for time in own]
    source = next((name for name in ("frame rate", "decode times") if name in sources), "stamps")
    return Clock(times, source, max(0, sum(map(bool, parts)) - 1), num_equal, num_mended)


def _sound_stamps(coded: Sequence[Coded], members: Sequence[int | None]) -> tuple[list[int | None], str, int]:
    """(stamps that rise, None for those that do not; where they come from; how many equal the one before)"""
    stamps = [None if number is None else coded[number].pts for number in members]
    numbers = [number for number in members if number is not None]
    if _are_of_decoding([coded[number].pts for number in numbers], numbers):
        times = [coded[number].dts for number in numbers]
        if None in times:
            times = [coded[number].pts for number in numbers]
        if None in times:
            return [None] * len(members), "frame rate", 0
        ordered = iter(sorted(time for time in times if time is not None))
        stamps, source = [None if number is None else next(ordered) for number in members], "decode times"
    else:
        source = "stamps"
    known = [stamp for stamp in stamps if stamp is not None]
    rising = _longest_rise(stamps)
    sound = [stamp if place in rising else None for place, stamp in enumerate(stamps)]
    return sound, source, sum(a == b for a, b in pairwise(known))


def _are_of_decoding(stamps: Sequence[int | None], numbers: Sequence[int]) -> bool:
    """Whether stamps of packets, in the order of display, are none, or rise in the order of decoding though that differs."""
    if all(stamp is None for stamp in stamps):
        return True
    given = [stamp for stamp in stamps if stamp is not None]
    if len(given) < len(stamps):
        return False
    decoded = [stamp for _, stamp in sorted(zip(numbers, given, strict=True))]
    return decoded != given and all(a < b for a, b in pairwise(decoded))


def _longest_rise(stamps: Sequence[int | None]) -> set[int]:
    """Positions of as many stamps as may be that rise strictly."""
    ends: list[int] = []  # the lowest stamp at which a rise of this length can end
    places: list[int] = []
    before: list[int | None] = [None] * len(stamps)
    for place, stamp in enumerate(stamps):
        if stamp is None:
            continue
        length = bisect_left(ends, stamp)
        if ends[length : length + 1] == [stamp]:  # of equal stamps the first is kept
            continue
        before[place] = places[length - 1] if length else None
        ends[length : length + 1] = [stamp]
        places[length : length + 1] = [place]
    rise = set()
    last = places[-1] if places else None
    while last is not None:
        rise.add(last)
        last = before[last]
    return rise


def _seconds(stamps: Sequence[int | None], time_base: Fraction, rate: Fraction | None) -> tuple[list[float], float]:
    """(seconds from the first frame; those between two frames, typically). Frames without a stamp lie between the others."""
    given = [(place, stamp) for place, stamp in enumerate(stamps) if stamp is not None]
    if not given:
        step = 1 / float(rate or _DEFAULT_RATE)
        return [place * step for place in range(len(stamps))], step
    known = [place for place, _ in given]
    at = [(stamp - given[0][1]) * time_base.numerator / time_base.denominator for _, stamp in given]
    steps = [(b - a) / (j - i) for (i, a), (j, b) in pairwise(zip(known, at, strict=True))]
    step = median(steps) if steps else 1 / float(rate or _DEFAULT_RATE)
    if len(known) == len(stamps):
        return at, step
    places = np.arange(len(stamps), dtype=np.float64)
    seconds = np.interp(places, known, at)
    seconds += step * (np.minimum(places - known[0], 0) + np.maximum(places - known[-1], 0))
    return (seconds - seconds[0]).tolist(), step
