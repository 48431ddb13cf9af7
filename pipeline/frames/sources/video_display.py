"""What a player would show of a video: which of its tracks, turned and mirrored how, with pixels of which shape.

Frames are shown with the display matrix of their track (phones store how they were held; some cameras mirror), and with its
pixels' aspect: their number is kept upwards, and changed sideways, before anything is turned.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
"""Tracks that are pictures beside a video (cover art, thumbnails), or no use without another one."""
_MAX_ASPECT = 16
"""Of a pixel, or its inverse; what is beyond is damage."""


class Turn(NamedTuple):
    """What is done to a stored picture so that it is shown as a player would: one of the eight turns and mirrorings."""

    transposed: bool = False
    """First, along the diagonal from the upper left."""
    flipped_x: bool = False
    """Then, left to right."""
    flipped_y: bool = False
    """Then, top to bottom."""

    def __str__(self) -> str:
        return _NAMES[self.transposed, self.flipped_x, self.flipped_y]


_NAMES = {
    (False, False, False): "as stored",
    (False, True, False): "mirrored left to right",
    (False, False, True): "mirrored top to bottom",
    (False, True, True): "turned by 180 degrees",
    (True, False, False): "mirrored along the diagonal",
    (True, True, False): "turned by 90 degrees clockwise",
    (True, False, True): "turned by 90 degrees counter-clockwise",
    (True, True, True): "mirrored along the other diagonal",
}


class Display(NamedTuple):
    """How a video is shown."""

    stored: tuple[int, int]
    """Width and height, pixels."""
    shown: tuple[int, int]
    """The same as displayed; boxes and cameras are in these pixels."""
    turn: Turn
    """Of the first frame."""
    pixel_aspect: Fraction
    """Width of a stored pixel in its heights."""
    track: int
    """Which of the file's video tracks, from 0."""
    num_tracks: int


def best_track(container: InputContainer) -> av.VideoStream | None:
    """The track that a player shows: not a cover or thumbnail, if there is a choice the default one, else the largest.

    None where there is no video.
    """
    tracks = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & _NO_VIDEO
    ]
    return max(tracks, key=_rank, default=None)


def _rank(stream: av.VideoStream) -> tuple[bool, bool, int, int]:
    is_default = bool(stream.disposition & Disposition.default)
    is_still = stream.frames == 1 or bool(stream.disposition & Disposition.still_image)
    return not is_still, is_default, stream.codec_context.width * stream.codec_context.height, -stream.index


def display_of(container: InputContainer, stream: av.VideoStream, first: av.VideoFrame) -> Display:
    """How a track is shown; `first`: its first frame, already decoded."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, _MAX_ASPECT) <= aspect <= _MAX_ASPECT:
        aspect = Fraction(1)
    turn = turn_of(first)
    width, height = max(1, round(first.width * aspect)), first.height
    track = [video.index for video in container.streams.video].index(stream.index)
    return Display(
        stored=(first.width, first.height),
        shown=(height, width) if turn.transposed else (width, height),
        turn=turn,
        pixel_aspect=aspect,
        track=track,
        num_tracks=len(container.streams.video),
    )


def turn_of(frame: av.VideoFrame) -> Turn:
    """What a frame's display matrix does, to the nearest quarter turn, mirrors included."""
    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return Turn()
    # 3 x 3, for rows (x, y, 1) from the left: x' = a x + c y, y' = b x + d y. Players take a quarter turn, as FFmpeg does.
    a, b, _, c, d = np.frombuffer(bytes(found), dtype=np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, c < 0, b < 0)
    return Turn(False, a < 0, d < 0)


def as_shown(frame: av.VideoFrame, display: Display, reformatter: VideoReformatter) -> Image.Image:
    """RGB. A video that changes its size keeps that of its first frame, as when it is played: boxes refer to it."""
    turn = turn_of(frame)
    width, height = display.shown[::-1] if turn.transposed else display.shown
    pixels: np.ndarray = reformatter.reformat(
        frame, width, height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
    ).to_ndarray()
    if turn.transposed:
        pixels = pixels.transpose(1, 0, 2)
    if turn.flipped_x:
        pixels = pixels[:, ::-1]
    if turn.flipped_y:
        pixels = pixels[::-1]
    return Image.fromarray(np.ascontiguousarray(pixels))
