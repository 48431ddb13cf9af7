"""What all video sources share: finding files, frame times without decoding, decoding chosen frames."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from pipeline.errors import DataError
from pipeline.frames.rejects import Rejects
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


def find_videos(uri: str) -> dict[str, str]:
    """{unit name: URI} of a folder's videos, or of one video file; sorted by name. Raises DataError where there is none.

    Names are paths below the folder without the suffix (with it where two videos would share a name).
    """
    root = absolute(uri)
    if is_file(root):
        return {root.rpartition("/")[2].rpartition(".")[0]: root}
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
            first = next(container.decode(stream))  # a video whose first frame does not decode is of no use
            container.seek(0, stream=stream)
            pts = sorted(p.pts for p in container.demux(stream) if p.pts is not None and not p.is_discard)
            num_declared, base = stream.frames, stream.time_base
    except (av.error.FFmpegError, OSError, IndexError, StopIteration, ValueError):
        return None
    if not pts or base is None:
        return None
    size = (first.width, first.height) if first.rotation % 180 == 0 else (first.height, first.width)
    times = [float((p - pts[0]) * base) for p in pts]
    return VideoInfo(pts, times, max(num_declared, len(pts)), *size)


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

    Frames that cannot be decoded count as broken_video_tail (a damaged packet ends the video).
    """
    wanted = set(indexes)
    received = set()
    reformatter = VideoReformatter()  # setting one up for every frame would take longer than its work
    try:
        for index, frame in _decoded(path, info, min(wanted, default=0), max(wanted, default=-1)):
            if index in wanted and index not in received:
                received.add(index)
                yield index, _upright(reformatter.reformat(frame, format="rgb24", threads=1), frame.rotation)
    except (av.error.FFmpegError, OSError):
        pass  # what is missing is counted below
    for index in sorted(wanted - received):
        rejects.add("broken_video_tail", f"{name}/{index:06d}")


def _decoded(path: str, info: VideoInfo, first: int, last: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(index, frame) from `first` or before to `last`, decoded from the last key frame that can be sought before `first`."""
    # Frames are recognised by time stamp: a decoder may drop a damaged one, and counting would then be off by one.
    number = {stamp: index for index, stamp in enumerate(info.pts)}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # a worker has one CPU
        if first > _SEEK_MARGIN and first < len(info.pts):
            # Containers seek by decoding time, which runs ahead of presentation by the depth of reordering.
            container.seek(info.pts[first - _SEEK_MARGIN], stream=stream)
            start = _sought(container.decode(stream), number, first)
            if start is None:
                yield from _decoded(path, info, 0, last)
                return
            yield start
        for frame in container.decode(stream):
            index = number.get(frame.pts, -1) if frame.pts is not None else -1
            yield index, frame
            if index >= last:
                return


def _sought(frames: Iterator[av.VideoFrame], number: dict[int, int], first: int) -> tuple[int, av.VideoFrame] | None:
    """The key frame after a seek; None where the container went elsewhere. Frames before it lack what they refer to."""
    for frame in frames:
        if frame.key_frame:
            index = number.get(frame.pts, -1) if frame.pts is not None else -1
            return (index, frame) if 0 <= index <= first else None
    return None


def _upright(frame: av.VideoFrame, rotation: int) -> Image.Image:
    """rotation: degrees counter-clockwise, as phones store it."""
    pixels: np.ndarray = frame.to_ndarray()
    if rotation % 360:
        pixels = np.ascontiguousarray(np.rot90(pixels, k=round(rotation / 90)))
    return Image.fromarray(pixels)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
