"""What all video sources share: finding files, frame times without decoding, decoding chosen frames."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from pipeline.errors import DataError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.damage import Damage, Packet
from pipeline.storage import absolute, is_file, list_files, resolve

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts", ".mts")

_HEADER_READ = 2**18
_SEEK_MARGIN = 32  # frames; more than any codec reorders

av.logging.set_level(av.logging.PANIC)  # what FFmpeg has to say is counted as rejects instead
logging.getLogger("libav").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class VideoInfo:
    """A video's frames, read from its packets."""

    pts: list[int]
    """Presentation time stamps of the frames that are there, ascending; the position is the frame's index."""
    times_s: list[float]
    """The same in seconds from the first frame."""
    num_declared: int
    """Frames that the container says it has (those that are there, where it does not say)."""
    width: int
    """Pixels, as displayed."""
    height: int
    packets: list[Packet]
    """In the order of decoding."""


def find_videos(uri: str) -> dict[str, str]:
    """{unit name: URI} of a folder's videos, or of one video file; sorted by name. Raises DataError where there is none.

    Names are paths below the folder without the suffix (with it where two videos would share a name).
    """
    root = absolute(uri)
    if is_file(root):
        return {_stem(root.rpartition("/")[2]): root}
    found = {path[len(root) + 1 :]: path for path in list_files(root, VIDEO_SUFFIXES)}
    if not found:
        raise DataError(f"{uri}: no video here ({', '.join(VIDEO_SUFFIXES)})")
    stems = Counter(_stem(name) for name in found)
    return dict(sorted((_stem(name) if stems[_stem(name)] == 1 else name, path) for name, path in found.items()))


def probe(path: str) -> VideoInfo | None:
    """Frame times and size of a local video file, without decoding; None where it is not a readable video."""
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            first = next(_decode(container, stream, Damage(())))
            container.seek(0, stream=stream)
            packets, pts, last = _list_packets(container, stream)
            num_declared, base = _num_declared(container, stream), stream.time_base
            if len(pts) < num_declared and last is not None:
                # Frames that are lost may be shown before some that are there, whose number is not known then.
                pts = [p for p in pts if p <= last]
    except (av.error.FFmpegError, OSError, IndexError, StopIteration, ValueError):
        return None
    if not pts or base is None:
        return None
    size = (first.width, first.height) if first.rotation % 180 == 0 else (first.height, first.width)
    times = [float((p - pts[0]) * base) for p in pts]
    return VideoInfo(pts, times, max(num_declared, len(pts)), *size, packets)


def declared_times(info: VideoInfo) -> list[float]:
    """Seconds of all frames that the container says it has; those that a broken video has lost follow as evenly as may be.

    Who samples these asks for lost frames too, so that reading counts them.
    """
    step = info.times_s[-1] / max(len(info.times_s) - 1, 1) or 1.0
    return info.times_s + [info.times_s[-1] + step * (i + 1) for i in range(info.num_declared - len(info.times_s))]


def _num_declared(container: av.container.InputContainer, stream: av.VideoStream) -> int:
    """Frames to be shown, as the header says; 0 where it does not."""
    if "mp4" in container.format.name:  # what an edit list cuts (a phone trims so) is still counted in stream.frames
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def _list_packets(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[list[Packet], list[int], int | None]:
    """(packets that have a time stamp, time stamps of those that are shown, decoding time of the last one)"""
    packets: list[Packet] = []
    shown: list[int] = []
    last = None
    for packet in container.demux(stream):
        if packet.pts is not None:
            packets.append(Packet(packet.pts, packet.is_keyframe, packet.is_corrupt))
            last = packet.dts
            if not packet.is_discard:
                shown.append(packet.pts)
    return packets, sorted(shown), last


def expected_frames(uri: str, fps: float | None, stride: int) -> tuple[int, int]:
    """(how many frames `sample` will take, how many there are), from the video's header, read where it lies; 0 where it does
    not say."""
    filesystem, path = resolve(uri)
    try:
        with filesystem.open_input_file(path) as file, av.open(file, buffer_size=_HEADER_READ) as container:
            stream = container.streams.video[0]
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
    received = set()
    newest = -1
    reformatter = VideoReformatter()  # setting one up for every frame would take longer than its work
    try:
        for index, frame in _sound_frames(path, info, min(wanted)):
            if index < newest - _SEEK_MARGIN:  # a damaged time stamp
                continue
            newest = max(newest, index)
            if index in wanted and index not in received:
                received.add(index)
                yield index, _upright(frame, info, reformatter)
            if index >= last:  # not before: a later frame tells damage from a broken tail
                break
    except (av.error.FFmpegError, OSError):
        pass  # what is missing is counted below
    for index in sorted(wanted - received):
        rejects.add("damaged_frame" if index < newest else "broken_video_tail", f"{name}/{index:06d}")


def _sound_frames(path: str, info: VideoInfo, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) from `first` or before on, decoded from the last key frame that can be sought before `first`; without
    those that damage has cost."""
    # Frames are recognised by time stamp: a decoder may drop a damaged one, and counting would then be off by one.
    number = {stamp: index for index, stamp in enumerate(info.pts)}
    damage = Damage(info.packets)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # a worker has one CPU
        is_sought = _SEEK_MARGIN < first < len(info.pts)
        if is_sought:
            # Containers seek by decoding time, which runs ahead of presentation by the depth of reordering.
            container.seek(info.pts[first - _SEEK_MARGIN], stream=stream)
        frames = ((frame.pts, frame) for frame in _decode(container, stream, damage) if frame.pts in number)
        start = []
        if is_sought:
            # Frames before a key frame lack what they refer to.
            start = list(islice((f for f in frames if f[1].key_frame and damage.is_key(f[0])), 1))
            if not start or number[start[0][0]] > first:  # the container went elsewhere
                yield from _sound_frames(path, info, 0)
                return
        for pts, frame in damage.sound(chain(start, frames)):
            yield number[pts], frame


def _decode(container: av.container.InputContainer, stream: av.VideoStream, damage: Damage) -> Iterator[av.VideoFrame]:
    """All frames that come out of a decoder; like FFmpeg's own tools it goes on behind packets that do not decode."""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            damage.add(packet.pts)
            continue
        for frame in frames:
            if frame.is_corrupt:
                damage.add(frame.pts)
            yield frame


def _upright(frame: av.VideoFrame, info: VideoInfo, reformatter: VideoReformatter) -> Image.Image:
    """RGB. A video that changes its size keeps that of its first frame, as when it is played: boxes refer to it."""
    turns = round(frame.rotation / 90)  # counter-clockwise, as phones store them
    width, height = (info.height, info.width) if turns % 2 else (info.width, info.height)
    pixels: np.ndarray = reformatter.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, k=turns)))


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
