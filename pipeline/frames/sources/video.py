"""What all video sources share: finding files, what there is in them, decoding chosen frames.

A frame's index is its place in the order in which the decoder shows pictures (video_order.py), its time comes from stamps
where they are sound (video_clock.py), and its picture is what a player would show (video_display.py).
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from pipeline.frames.listing import VIDEO_SUFFIXES, list_inputs, nothing_here
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.base import Unit
from pipeline.frames.sources.damage import Damage
from pipeline.frames.sources.video_clock import Clock, read_clock
from pipeline.frames.sources.video_display import Display, as_shown, best_track, display_of
from pipeline.frames.sources.video_order import (
    ByCount,
    ByStamp,
    Picture,
    Scan,
    by_count,
    by_stamp,
    decode,
    packets_of,
    scan,
)
from pipeline.storage import resolve

_HEADER_READ = 2**18
_SEEK_MARGIN = 32  # frames; more than any codec reorders

av.logging.set_level(av.logging.PANIC)  # what FFmpeg has to say is counted as rejects instead
logging.getLogger("libav").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class VideoInfo:
    """A video's frames."""

    clock: Clock
    num_declared: int
    """Frames that the container says it has (those that are there, where it does not say)."""
    display: Display
    order: ByStamp | ByCount

    @property
    def times_s(self) -> list[float]:
        """Of the frames that are there, seconds from the first; the position is the frame's index."""
        return self.clock.times_s

    @property
    def width(self) -> int:
        """Pixels, as displayed."""
        return self.display.shown[0]

    @property
    def height(self) -> int:
        """Pixels, as displayed."""
        return self.display.shown[1]


def find_videos(uri: str, rejects: Rejects | None = None, beside: tuple[str, ...] = ()) -> dict[str, str]:
    """{unit name: URI} of a folder's videos, or of one video file; sorted by name. Raises DataError where there is none.

    Names are paths below the folder without the suffix (with it where two videos would share a name). What is not
    read is noted in the rejects, but for files with the suffixes `beside`.
    """
    listing = list_inputs(uri, VIDEO_SUFFIXES, beside)
    if not listing.sizes:
        raise nothing_here(uri, "video", VIDEO_SUFFIXES, listing)
    if rejects is not None:
        rejects.notes += listing.notes
    stems = Counter(map(_stem, listing.sizes))
    names = {_stem(path) if stems[_stem(path)] == 1 else path: path for path in listing.sizes}
    return {name: listing.uri(path) for name, path in sorted(names.items())}


def probe(path: str) -> VideoInfo | None:
    """What there is in a local video file; None where it is not a readable video."""
    return open_piece(path, Unit("", path, 0))[0]


def open_piece(path: str, unit: Unit) -> tuple[VideoInfo | None, Unit | None]:
    """(what there is in a local video file, which part of it is the unit's). None, None: it is not a readable video.

    A video whose packets do not prove which frame is which can only be read from its start; the first of its pieces then is
    all of it, and there is nothing to do for the others: None, and their unit without frames.
    """
    try:
        with av.open(path) as container:
            stream = _track(container)
            found = scan(container, stream)
            rate, base = stream.average_rate, stream.time_base
            may_jump = container.format.name.startswith("mpeg")  # transport and program streams
            if found.first is None or base is None:
                return None, None
            display = display_of(container, stream, found.first)
            there = sum(packet.is_shown for packet in found.coded) + found.num_dropped
            declared = _num_declared(container, stream)
            num_missing = max(0, declared - there)
            reorders = stream.codec_context.has_b_frames
            order: ByStamp | ByCount | None = by_stamp(found, reorders, num_missing > 0, declared > 0)
        if order is None:
            if unit.first > 0:
                return None, replace(unit, end=unit.first)
            unit = replace(unit, end=None)
            found = found if found.is_decoded else _scan_all(path)
            order = by_count(found, num_missing > 0, declared > 0)
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        return None, None
    clock = read_clock(found.coded, order.numbers, base, rate, may_jump)
    if not clock.times_s:
        return None, None
    num_missing += order.num_unplaced if isinstance(order, ByStamp) else 0
    return VideoInfo(clock, len(clock.times_s) + num_missing, display, order), unit


def facts(info: VideoInfo) -> dict[str, Any]:
    """How a video is shown and timed, as plain values, for the manifest."""
    display, clock = info.display, info.clock
    return {
        "stored": "{} x {}".format(*display.stored),
        "shown": "{} x {}".format(*display.shown),
        "turn": str(display.turn),
        "pixel_aspect": "{}:{}".format(*display.pixel_aspect.as_integer_ratio()),
        "track": f"{display.track + 1} of {display.num_tracks}",
        "times": clock.source,
        "order": "stamps" if isinstance(info.order, ByStamp) else "decoder",
        "num_restarts": clock.num_restarts,
        "num_equal": clock.num_equal,
        "num_mended": clock.num_mended,
    }


def declared_times(info: VideoInfo) -> list[float]:
    """Seconds of all frames that the container says it has; those that a broken video has lost follow as evenly as may be.

    Who samples these asks for lost frames too, so that reading counts them.
    """
    step = info.clock.step_s or 1.0
    return info.times_s + [info.times_s[-1] + step * (i + 1) for i in range(info.num_declared - len(info.times_s))]


def _track(container: av.container.InputContainer) -> av.VideoStream:
    """The track that is shown, set up for a worker. Raises ValueError where there is none."""
    stream = best_track(container)
    if stream is None:
        raise ValueError("no video")
    stream.codec_context.thread_count = 1  # a worker has one CPU
    return stream


def _scan_all(path: str) -> Scan:
    with av.open(path) as container:
        return scan(container, _track(container), math.inf)


def _num_declared(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Frames to be shown, as the header says; 0 where it does not."""
    if "mp4" in container.format.name:  # what an edit list cuts (a phone trims so) is still counted in stream.frames
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def expected_frames(uri: str, fps: float | None, stride: int) -> tuple[int, int]:
    """(how many frames `sample` will take, how many there are), from the video's header, read where it lies; 0 where it does
    not say."""
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_file(path) as file, av.open(file, buffer_size=_HEADER_READ) as container:
            stream = _track(container)
            rate, duration = float(stream.average_rate or 0), float(container.duration or 0) / av.time_base
            count = stream.frames or round(duration * rate)
    except (av.error.FFmpegError, OSError, IndexError, ValueError):
        return 0, 0
    return math.ceil(count * min(1.0, fps / rate) if fps and rate else count / stride), count


def sample(times_s: Sequence[float], fps: float | None, stride: int) -> list[int]:
    """Positions of the frames to take: at most `fps` a second, evenly in time, or every `stride`-th."""
    if fps is None:
        return list(range(0, len(times_s), stride))
    due = np.floor(np.asarray(times_s) * fps + 1e-3)  # the number of the sampling interval that a frame lies in
    return [int(i) for i in np.flatnonzero(np.diff(due, prepend=due[0] - 1 if len(due) else 0) > 0)]


def read_frames(
    path: str, info: VideoInfo, indexes: Sequence[int], name: str, rejects: Rejects
) -> Iterator[tuple[int, Image.Image]]:
    """Decode frames of a local video file by index (ascending), upright RGB.

    Frames that damage has cost (see damage.py) count as damaged_frame, or as broken_video_tail where none comes behind them.
    """
    wanted = set(indexes)
    if not wanted:
        return
    last = max(wanted)
    newest = -1
    reformatter = VideoReformatter()  # setting one up for every frame would take longer than its work
    received = set()
    try:
        for index, frame in _sound_frames(path, info, min(wanted)):
            if index <= newest:  # it came before: the video was read once more, from its start
                continue
            newest = index
            if index in wanted:
                received.add(index)
                yield index, as_shown(frame, info.display, reformatter)
            if index >= last:  # not before: a later frame tells damage from a broken tail
                break
    except (av.error.FFmpegError, OSError):
        pass  # what is missing is counted below
    for index in sorted(wanted - received):
        rejects.add("damaged_frame" if index < newest else "broken_video_tail", f"{name}/{index:06d}")


def _sound_frames(path: str, info: VideoInfo, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) from `first` or before on, without those that damage has cost; frames may come again."""
    order = info.order
    with av.open(path) as container:
        stream = _track(container)
        if isinstance(order, ByCount):
            packets = enumerate(packets_of(container, stream))
            pictures = (picture.frame for picture in decode(stream, packets) if picture.frame is not None)
            for index, frame in zip(order.indexes, pictures, strict=False):
                if index is not None:
                    yield index, frame
            return
        damage = Damage(order.packets)
        is_sought = _SEEK_MARGIN < first < len(order.numbers)
        if is_sought:
            # Containers seek by decoding time, which runs ahead of presentation by the depth of reordering.
            container.seek(order.stamps[order.numbers[first - _SEEK_MARGIN]], stream=stream)
        try:
            frames = _placed(decode(stream, _numbered(container, stream, order)), order, damage)
            start = []
            if is_sought:
                # Frames before a key frame lack what they refer to.
                start = list(islice((f for f in frames if f[1].key_frame and damage.is_key(f[0])), 1))
                if not start or order.index_of.get(start[0][0], math.inf) > first:
                    raise LookupError
            for place, frame in damage.sound(chain(start, frames)):
                if place in order.index_of:
                    yield order.index_of[place], frame
            return
        except LookupError:  # the container went elsewhere
            if not is_sought:
                return
    yield from _sound_frames(path, info, 0)


def _numbered(
    container: av.container.InputContainer, stream: av.VideoStream, order: ByStamp
) -> Iterator[tuple[int, av.Packet]]:
    """The packets that follow, with their numbers. Raises LookupError where they are not those that were there before."""
    number_of: dict[int | None, int] = {stamp: number for number, stamp in reversed(list(enumerate(order.stamps)))}
    number = None
    for packet in packets_of(container, stream):
        number = number_of.get(packet.pts, len(order.stamps)) if number is None else number + 1
        if order.stamps[number : number + 1] != [packet.pts]:
            raise LookupError
        yield number, packet


def _placed(pictures: Iterator[Picture], order: ByStamp, damage: Damage) -> Iterator[tuple[int, av.VideoFrame]]:
    """(place, frame) of pictures; what they say of damage is noted."""
    for number, frame in pictures:
        if number is None:
            continue
        place = order.packets[number].pts
        if frame is None or frame.is_corrupt:
            damage.add(place)
        if frame is not None:
            yield place, frame


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
