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

_CHUNK_HEADER = 8
"""Bytes before a packet in AVI."""


class Picture(NamedTuple):
    """What came out of the decoder."""

    number: int | None
    """Of its packet, in the order of decoding; None where the decoder does not say."""
    frame: av.VideoFrame | None
    """None for a packet that does not decode."""


class Scan(NamedTuple):
    """A video track's packets, and its first pictures."""

    coded: list[Coded]
    pictures: list[tuple[int | None, bool]]
    """(packet, whether it is damaged), as they come from the decoder."""
    came_before: list[int]
    """Pictures that had come when the decoder got each packet, and at last the end. Shorter where not all were decoded."""
    failed: set[int]
    """Packets that do not decode."""
    first: av.VideoFrame | None
    num_dropped: int
    """Frames that the container counts, but has nothing for."""

    @property
    def is_decoded(self) -> bool:
        """Whether all of it was decoded."""
        return len(self.came_before) > len(self.coded)


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
    num_unplaced: int
    """Frames at the end that are there, but whose number is not known."""


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
    # AVI's index tells of packets that are lost between others, which no stamp does.
    chunks = [entry.pos + _CHUNK_HEADER for entry in stream.index_entries if entry.size]
    number_of_chunk = dict(zip(chunks, range(len(chunks)), strict=True)) if container.format.name == "avi" else {}
    coded: list[Coded] = []
    pictures: list[tuple[int | None, bool]] = []
    came_before: list[int] = []
    failed: set[int] = set()
    first = None
    num_dropped = 0

    def take(packet: av.Packet | None) -> None:
        nonlocal first
        for number, frame in decode_packet(stream, len(came_before) - 1, packet):
            if frame is not None:
                first = first or frame
                pictures.append((number, frame.is_corrupt))
            elif number is not None:
                failed.add(number)

    try:
        for packet in container.demux(stream):
            if not packet.size:
                num_dropped += packet.dts is not None
                continue
            # VP8 has packets that are for reference only; their first bits say so (RFC 6386, 9.1).
            is_shown = not packet.is_discard and not (is_vp8 and not bytes(packet)[0] >> 4 & 1)
            for _ in range(len(coded), number_of_chunk.get(packet.pos or 0, 0)):
                coded.append(Coded(None, None, False, True, True))
                came_before += [len(pictures)] * (len(came_before) == len(coded) - 1)
            coded.append(Coded(packet.pts, packet.dts, packet.is_keyframe, packet.is_corrupt, is_shown))
            if len(came_before) == len(coded) - 1 and len(pictures) < num_decoded:
                came_before.append(len(pictures))
                take(packet)
    except av.error.FFmpegError:
        pass  # the file breaks off; what is missing is counted where the container says how much there was
    if len(came_before) == len(coded):
        came_before.append(len(pictures))
        take(None)
    return Scan(_without_joints(coded), pictures, came_before, failed, first, num_dropped)


def by_stamp(found: Scan, reorders: bool, is_cut: bool, is_counted: bool) -> ByStamp | None:
    """The order that the stamps give; None where they do not prove it.

    reorders: whether the decoder expects frames to be decoded in another order than shown. is_cut: whether packets are
    missing at the end. is_counted: whether the container says how many frames there are; else those before the first key
    frame, as where a broadcast was joined late, are none.
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
    shown = _shown_first(found, frames, 0 if is_counted else _first_key(coded))
    if shown is None:
        return None
    num_shown = len(shown)
    last = coded[-1].dts
    if is_cut and last is not None:
        # Frames that are lost may be shown before some that are there, whose number is not known then.
        shown = [number for number in shown if stamps[number] <= last]
    place = {number: at for at, number in enumerate(by_time)}
    packets = [Packet(place[number], packet.is_key, packet.is_corrupt) for number, packet in enumerate(coded)]
    index_of = {place[number]: index for index, number in enumerate(shown)}
    return ByStamp(packets, index_of, stamps, shown, num_shown - len(shown))


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


def _shown_first(found: Scan, frames: list[int], key: int) -> list[int] | None:
    """The frames without those at the start that cannot be shown, because what they refer to is missing; None where the
    pictures that were decoded do not come in this order."""
    coded = found.coded
    at = {number: place for place, number in enumerate(frames)}
    places = [at.get(number, -1) if number is not None else -1 for number, _ in found.pictures]
    if not places or places[0] < 0 or any(a >= b for a, b in pairwise(places)):
        return None
    came = {number for number, _ in found.pictures}
    if found.failed or any(packet.is_corrupt for packet in coded[: len(found.came_before)]):
        start = [number for number in frames[: places[-1]] if number >= key or number in came]
    else:
        start = frames[places[0] : places[-1]]
    shown = start + frames[places[-1] :]
    seen = shown if found.is_decoded else start
    missing = [number for number in seen if number not in came]
    return None if _are_fields(missing, len(seen)) else shown


def _first_key(coded: Sequence[Coded]) -> int:
    return next((number for number, packet in enumerate(coded) if packet.is_key), 0)


def _are_fields(missing: Sequence[int], total: int) -> bool:
    """Whether packets without a picture are second fields: many, and each has a picture before. Damage costs neighbours."""
    ordered = sorted(missing)
    return 3 * len(ordered) > total and all(b - a > 1 for a, b in pairwise(ordered))


def by_count(found: Scan, is_cut: bool, is_counted: bool) -> ByCount:
    """The order of a video of which all was decoded. is_cut, is_counted: see by_stamp.

    Damage makes pictures, and the numbers of those behind it, unsure until the next key frame, whose number follows from
    the packets before it.
    """
    coded = found.coded
    order = [number for number, _ in found.pictures]
    came = set(order)
    key = _first_key(coded)
    start = coded[key].pts if coded else None
    next_key = next((n for n in range(key + 1, len(coded)) if coded[n].is_key), len(coded))
    missing = []
    for number in range(0 if is_counted else key, len(coded)):
        packet = coded[number]
        # What is shown before the first key frame lacks what it refers to; no player shows it.
        leads = key < number < next_key and packet.pts is not None and start is not None and packet.pts < start
        if packet.is_shown and number not in came and not leads:
            missing.append(number)
    are_fields = _are_fields(missing, len(missing) + len(order))
    losses = [(number, found.came_before[number]) for number in (sorted(found.failed) if are_fields else missing)]
    if is_cut:
        losses.append((len(coded), found.came_before[-1]))
    damaged = [
        at
        for at, (number, is_corrupt) in enumerate(found.pictures)
        if is_corrupt or (number is not None and coded[number].is_corrupt)
    ]
    troubles = [since for _, since in losses] + damaged
    if not troubles:
        return ByCount(list(range(len(order))), order)
    numbers = [number for number in order if number is not None]
    if len(set(numbers)) < len(order) or (are_fields and losses):  # packets do not tell how many pictures were lost
        known = max(0, min(troubles) - NUM_CHECKED)
        return ByCount([at if at < known else None for at in range(len(order))], order)
    return _between_damage(coded, numbers, losses, damaged)


def _between_damage(
    coded: Sequence[Coded], order: list[int], losses: list[tuple[int, int]], damaged: list[int]
) -> ByCount:
    place = {number: at for at, number in enumerate(order)}
    keys = sorted(number for number in order if coded[number].is_key)

    def next_key(number: int) -> int:
        at = bisect_right(keys, number)
        return keys[at] if at < len(keys) else len(coded)

    # By the key frame at which all is well again: the first packet that is damaged, and since when pictures may be missing.
    spans: dict[int, tuple[int, float]] = {}
    for number, when in [*losses, *((order[at], math.inf) for at in damaged)]:
        key = next_key(number)
        first, since = spans.get(key, (number, math.inf))
        spans[key] = min(first, number), min(since, when)
    unsure = set()
    for key, (first, since) in spans.items():
        begin = min(since, place.get(first, since))
        for at in range(max(0, int(min(begin, len(order))) - NUM_CHECKED), place.get(key, len(order))):
            if order[at] >= first or at >= since:
                unsure.add(at)
    counted = sorted({*order, *(number for number, _ in losses if number < len(coded))})
    restarted = {next_key(number) for number, _ in losses}
    indexes: list[int | None] = []
    numbers: list[int | None] = [None] * len(counted)
    index = 0
    for at, number in enumerate(order):
        if number in restarted:
            ahead = sum(other > number for other in order[max(0, at - NUM_CHECKED) : at])
            index = bisect_left(counted, number) + ahead
        is_sure = at not in unsure and index < len(counted)
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
