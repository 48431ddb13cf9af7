"""Which frames of a video can be trusted where packets are damaged or lost.

Decoders go on behind damage and make up what they lack. They say so by a packet that does not decode, or by a flag on a
frame; containers say where bytes are missing. All frames that may be predicted from there are left out: those that are
decoded later, up to the next key frame, and those that are shown before that key frame but decoded after it.

That follows from the order of the packets, so it does not matter at which key frame the decoding began.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Packet(NamedTuple):
    """What the container says of a coded frame."""

    pts: int
    is_key: bool
    is_corrupt: bool


@dataclass
class _Group:
    """A key frame and all that may be predicted from it; the next key frame is in both groups."""

    first: float
    """Time stamp of the key frame."""
    last: float
    """Time stamp of what is shown last, of all packets so far."""
    damaged_from: float = math.inf
    """Position of the first damaged packet."""


class Damage:
    """What is known of a video's damage; grows while it is decoded."""

    def __init__(self, packets: Iterable[Packet]) -> None:
        """packets: in the order of decoding."""
        self._frames: dict[int, tuple[int, float, list[_Group]]] = {}
        """By time stamp: (position, time stamp of what is shown last of all that it may be predicted from, its groups)."""
        before = group = _Group(-math.inf, -math.inf)
        corrupt = []
        for position, packet in enumerate(packets):
            if packet.is_key:
                before, group = group, _Group(packet.pts, packet.pts)
                groups = [group, before]
            else:
                groups = [group if packet.pts > group.first else before]
            for joined in groups:
                joined.last = max(joined.last, packet.pts)
            self._frames[packet.pts] = (position, groups[0].last, groups)
            if packet.is_corrupt:
                corrupt.append(packet.pts)
        for pts in corrupt:
            self.add(pts)

    def add(self, pts: int | None) -> None:
        """A packet that does not decode, or a frame that is flagged."""
        if pts in self._frames:
            position, _, groups = self._frames[pts]
            for group in groups:
                group.damaged_from = min(group.damaged_from, position)

    def is_key(self, pts: int) -> bool:
        """Whether a frame is a key frame."""
        return self._frames[pts][2][0].first == pts

    def sound(self, frames: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """Frames by time stamp, as they come from the decoder, without those that damage costs.

        They come a little later: what a frame is predicted from may be shown, and turn out to be damaged, after it.
        """
        waiting: deque[tuple[int, T]] = deque()  # no more than the codec reorders
        for pts, frame in frames:
            waiting.append((pts, frame))
            while waiting and self._frames[waiting[0][0]][1] <= pts:
                yield from self._spared(*waiting.popleft())
        for pts, frame in waiting:
            yield from self._spared(pts, frame)

    def _spared(self, pts: int, frame: T) -> Iterator[tuple[int, T]]:
        position, _, groups = self._frames[pts]
        if position < groups[0].damaged_from:
            yield pts, frame
