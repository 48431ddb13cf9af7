"""In which order a video's frames are shown: what gives each frame its number.

A frame's index is its place among the pictures that the decoder shows, whatever the container says of their times. Where
stamps are given, all different, and rise from key frame to key frame, and the first pictures come in their order, the
packets alone prove where each frame is shown, so that reading can begin in the middle. Else the whole video is decoded once,
and its pictures counted.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import av
import av.error
from av.container import InputContainer

from pipeline.frames.sources.damage import Packet
from pipeline.frames.sources.video_clock import Coded, restarts

NUM_CHECKED = 32
"""Pictures that are decoded to see whether they come in the order of their stamps; more than any codec reorders."""


class Picture(NamedTuple):
    """What came out of the decoder."""

    number: int | None
    """Of its packet, in the order of decoding; None where the decoder does not say."""
    frame: av.VideoFrame | None
    """None for a packet that does not decode."""


class Scan(NamedTuple):
    """A video track's packets, and its first pictures."""

    coded: list[Coded]
    pictures: list[tuple[int | None, bool | None]]
    """(packet, whether it is damaged; None for a packet that does not decode), as they come from the decoder."""
    first: av.VideoFrame | None
    is_decoded: bool
    """Whether all of it was decoded."""
    num_ready: int
    """Pictures that had come when the last packet was read; the others came out of the decoder's store."""
    num_dropped: int
    """Frames that the container counts, but has nothing for."""


class ByStamp(NamedTuple):
    """The order of a video whose stamps prove it."""

    packets: list[Packet]
    """As they are decoded. `pts` is the packet's place in the order of display, all others included."""
    index_of: dict[int, int]
    """Of a frame, by its packet's place."""
    stamps: list[int]
    """What the container calls each packet."""
    numbers: list[int]
    """The packet of each frame."""


class ByCount(NamedTuple):
    """The order of a video that was decoded to know it."""

    indexes: list[int | None]
    """Of each picture, as the decoder shows them; None where it is damaged, or damage before leaves its number open."""
    numbers: list[int | None]
    """The packet of each frame, where it is known."""


def packets_of(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """A track's packets. Those without bytes (AVI: show the last picture longer) are left out: decoders take one for the end."""
    return (packet for packet in container.demux(stream) if packet.size)


def decode(stream: av.VideoStream, packets: Iterable[tuple[int, av.Packet]]) -> Iterator[Picture]:
    """All pictures of numbered packets."""
    for number, packet in packets:
        yield from decode_packet(stream, number, packet)
    yield from decode_packet(stream, -1, None)


def decode_packet(stream: av.VideoStream, number: int, packet: av.Packet | None) -> Iterator[Picture]:
    """What the decoder gives for one more packet (None: the end). One that does not decode is no end, as in FFmpeg's tools."""
    if packet is not None:
        packet.pts = packet.dts = number  # instead of stamps, which need not tell packets apart; decoders hand it on
    try:
        frames = stream.codec_context.decode(packet)
    except av.error.FFmpegError:
        if packet is not None:
            yield Picture(number, None)
        return
    yield from (Picture(frame.pts, frame) for frame in frames)


def scan(container: InputContainer, stream: av.VideoStream, num_decoded: float = NUM_CHECKED) -> Scan:
    """Read all packets, and decode until there are so many pictures."""
    is_vp8 = stream.codec_context.name == "vp8"
    coded: list[Coded] = []
    pictures: list[tuple[int | None, bool | None]] = []
    first = None
    num_dropped = 0
    is_decoded = True

    def take(packet: av.Packet | None) -> None:
        nonlocal first
        for number, frame in decode_packet(stream, len(coded) - 1, packet):
            first = first or frame
            pictures.append((number, None if frame is None else frame.is_corrupt))

    try:
        for packet in container.demux(stream):
            if not packet.size:
                num_dropped += packet.dts is not None
                continue
            # VP8 has packets that are for reference only; their first bits say so (RFC 6386, 9.1).
            is_shown = not packet.is_discard and not (is_vp8 and not bytes(packet)[0] >> 4 & 1)
            coded.append(Coded(packet.pts, packet.dts, packet.is_keyframe, packet.is_corrupt, is_shown))
            is_decoded = len(pictures) < num_decoded
            if is_decoded:
                take(packet)
    except av.error.FFmpegError:
        pass  # the file breaks off; what is missing is counted where the container says how much there was
    num_ready = len(pictures)
    if is_decoded:
        take(None)
    return Scan(_without_joints(coded), pictures, first, is_decoded, num_ready, num_dropped)


def by_stamp(found: Scan, reorders: bool, is_cut: bool) -> ByStamp | None:
    """The order that the stamps give; None where they do not prove it.

    reorders: whether the decoder expects frames to be decoded in another order than shown. is_cut: whether packets are
    missing at the end.
    """
    coded = found.coded
    stamps = [packet.pts for packet in coded if packet.pts is not None]
    if len(stamps) < len(coded) or not _rise_from_key_to_key(coded):
        return None
    by_time = sorted(range(len(coded)), key=lambda number: (stamps[number], number))
    frames = [number for number in by_time if coded[number].is_shown]
    if any(stamps[a] == stamps[b] for a, b in pairwise(frames)):
        return None
    if reorders and frames == sorted(frames):
        return None  # the stamps of decoding stand for those of display
    shown = _shown_first(found, frames)
    if shown is None:
        return None
    if is_cut and coded[-1].dts is not None:
        # Frames that are lost may be shown before some that are there, whose number is not known then.
        shown = [number for number in shown if stamps[number] <= coded[-1].dts]
    place = {number: at for at, number in enumerate(by_time)}
    packets = [Packet(place[number], packet.is_key, packet.is_corrupt) for number, packet in enumerate(coded)]
    index_of = {place[number]: index for index, number in enumerate(shown)}
    return ByStamp(packets, index_of, stamps, shown)


def _rise_from_key_to_key(coded: Sequence[Coded]) -> bool:
    """Whether each key frame is shown after all that are decoded before it, and the times of decoding never fall."""
    highest = -math.inf
    decoded = -math.inf
    for packet in coded:
        assert packet.pts is not None
        if (packet.is_key and packet.pts <= highest) or (packet.dts is not None and packet.dts < decoded):
            return False
        highest = max(highest, packet.pts)
        decoded = decoded if packet.dts is None else packet.dts
    return True


def _shown_first(found: Scan, frames: list[int]) -> list[int] | None:
    """The frames without those at the start that cannot be shown, because what they refer to is missing; None where the
    pictures that were decoded do not come in this order."""
    numbers = [number for number, is_corrupt in found.pictures if is_corrupt is not None]
    at = {number: place for place, number in enumerate(frames)}
    if not numbers or any(number not in at for number in numbers):
        return None
    end = max(number for number, _ in found.pictures if number is not None)
    if any(is_corrupt is not False for _, is_corrupt in found.pictures) or any(
        p.is_corrupt for p in found.coded[: end + 1]
    ):
        # Pictures may be missing, but those that come are in order. Before the first key frame there can be none.
        places = [at[number] for number in numbers if number is not None]
        key = next((number for number, packet in enumerate(found.coded) if packet.is_key), 0)
        came = set(numbers)
        rises = all(a < b for a, b in pairwise(places))
        return [number for number in frames if number >= key or number in came] if rises else None
    shown = frames[at[numbers[0]] :]
    is_whole = not found.is_decoded or len(shown) == len(numbers)
    return shown if is_whole and shown[: len(numbers)] == numbers else None


def by_count(found: Scan, is_cut: bool) -> ByCount:
    """The order of a video of which all was decoded. is_cut: whether packets are missing at the end.

    Damage makes pictures, and the numbers of those behind it, unsure until the next key frame, whose number follows from
    the packets before it.
    """
    coded = found.coded
    first_key = next((number for number, packet in enumerate(coded) if packet.is_key), 0)
    order: list[int | None] = []
    lost: list[tuple[int, int]] = []  # (packet, pictures that came before)
    damaged: list[int] = []
    for position, (number, is_corrupt) in enumerate(found.pictures):
        if position == found.num_ready and is_cut:
            lost.append((len(coded), len(order)))
        if is_corrupt is None:
            assert number is not None
            lost += [(number, len(order))] * (number >= first_key)
            continue
        if is_corrupt or (number is not None and coded[number].is_corrupt):
            damaged.append(len(order))
        order.append(number)
    numbers = [number for number in order if number is not None]
    troubles = [when for _, when in lost] + damaged
    if not troubles:
        return ByCount(list(range(len(order))), order)
    known_until = max(0, min(troubles) - NUM_CHECKED)
    if len(set(numbers)) < len(order):  # which packets the pictures are of is not known
        return ByCount([i if i < known_until else None for i in range(len(order))], order)
    return _between_damage(coded, numbers, lost, damaged)


def _between_damage(
    coded: Sequence[Coded], order: list[int], lost: list[tuple[int, int]], damaged: list[int]
) -> ByCount:
    place = {number: at for at, number in enumerate(order)}
    keys = sorted(number for number in order if coded[number].is_key)

    def next_key(number: int) -> int:
        at = bisect_right(keys, number)
        return keys[at] if at < len(keys) else len(coded)

    # By the key frame at which all is well again: the first packet that is damaged, and since when pictures may be missing.
    spans: dict[int, tuple[int, float]] = {}
    for number, when in [*lost, *((order[at], math.inf) for at in damaged)]:
        key = next_key(number)
        first, since = spans.get(key, (number, math.inf))
        spans[key] = min(first, number), min(since, when)
    unsure = set()
    for key, (first, since) in spans.items():
        begin = min(since, place.get(first, since))
        for at in range(max(0, int(min(begin, len(order))) - NUM_CHECKED), place.get(key, len(order))):
            if order[at] >= first or at >= since:
                unsure.add(at)
    gone = {number for number, _ in lost if number < len(coded)}
    for key, (first, since) in spans.items():
        if since < math.inf:
            gone |= {n for n in range(first, min(key, len(coded))) if coded[n].is_shown and n not in place}
    counted = sorted({*order, *gone})
    # Where packets are not pictures one by one (fields, for one), those behind a loss cannot be counted.
    is_even = len(counted) == sum(packet.is_shown for packet in coded)
    indexes: list[int | None] = []
    numbers: list[int | None] = [None] * len(counted)
    index = 0
    first_loss = min((since for _, since in spans.values()), default=math.inf)
    for at, number in enumerate(order):
        if number in spans and spans[number][1] < math.inf:
            ahead = sum(other > number for other in order[max(0, at - NUM_CHECKED) : at])
            index = bisect_left(counted, number) + ahead
        is_sure = at not in unsure and index < len(counted) and (is_even or at < first_loss)
        indexes.append(index if is_sure else None)
        if is_sure:
            numbers[index] = number
        index += 1
    return ByCount(indexes, numbers)


def _without_joints(coded: list[Coded]) -> list[Coded]:
    """Where videos were joined, the container misses bytes that were never there; the decoder says what really is."""
    joints = {number for number in restarts(coded) if coded[number].is_key}
    near = {number - before for number in joints for before in (0, 1, 2)}
    return [packet._replace(is_corrupt=False) if number in near else packet for number, packet in enumerate(coded)]
