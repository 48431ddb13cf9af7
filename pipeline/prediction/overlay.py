"""Predicted hands drawn over the images and videos that they come from."""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

from pipeline.drawing.skeleton import draw_skeleton
from pipeline.errors import DataError
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import Unit
from pipeline.frames.sources.images import read_images
from pipeline.frames.sources.video import probe, read_frames, sample
from pipeline.storage import as_local_file, join, write_bytes

Hands = Mapping[int, Sequence[np.ndarray]]
"""Joints (21, 2) in pixels of the hands of each frame, by frame index."""

_OVERSAMPLING = 2  # drawn this many times larger and shrunk: smooth lines
_CRF = 20
_TICKS_PER_S = 90_000
"""A multiple of all common frame rates."""


def draw_hands(image: Image.Image, hands: Sequence[np.ndarray]) -> Image.Image:
    """A copy of the image with hands drawn over it, joints (21, 2) in its pixels."""
    picture = image.copy()
    for joints in hands:
        if not np.isfinite(joints).all():
            continue
        width = max(1.0, max(image.size) / 700, float(np.ptp(joints, axis=0).max()) / 80)
        reach = 4 * width
        # Only the part with the hand is drawn large: whole frames would take most of the time.
        low = np.maximum(np.floor(joints.min(0) - reach), 0).astype(int)
        high = np.minimum(np.ceil(joints.max(0) + reach), image.size).astype(int)
        if (high <= low).any():
            continue
        part = picture.crop((*low.tolist(), *high.tolist()))
        large = part.resize((part.width * _OVERSAMPLING, part.height * _OVERSAMPLING), Image.Resampling.BICUBIC)
        draw_skeleton(ImageDraw.Draw(large), (joints - low) * _OVERSAMPLING, width * _OVERSAMPLING)
        picture.paste(large.resize(part.size, Image.Resampling.LANCZOS), (int(low[0]), int(low[1])))
    return picture


def write_image_overlay(root: str, file: str, hands: Sequence[np.ndarray], target: str) -> None:
    """Draw over one image and write a JPEG. root, file: the image's folder and name."""
    found = list(read_images(Unit("", root, 1, [{"file": file}]), Rejects(), [0]))
    if not found:
        raise DataError(f"{join(root, file)}: can no longer be read")
    buffer = io.BytesIO()
    draw_hands(found[0][1], hands).save(buffer, "JPEG", quality=92)
    write_bytes(target, buffer.getvalue())


def write_video_overlay(uri: str, hands: Hands, target: str, fps: float | None = None, stride: int = 1) -> int:
    """Draw over a video and write H.264 (mp4), one frame for each frame that was sampled; gives their number.

    Frames without hands are there too, and each has its time in the source, so that the video runs as the source does.
    """
    with as_local_file(uri) as path:
        info = probe(path)
        if info is None:
            raise DataError(f"{uri}: can no longer be read")
        indexes = sample(info.times_s, fps, stride)
        span = info.times_s[indexes[-1]] - info.times_s[indexes[0]]
        rate = Fraction((len(indexes) - 1) / span if span > 0 else 25.0).limit_denominator(1001)
        time_base = Fraction(1, _TICKS_PER_S)
        buffer = io.BytesIO()
        num_written = 0
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream(
                "libx264",
                rate=rate,
                options={"crf": str(_CRF), "preset": "veryfast"},
            )
            stream.width, stream.height = info.width // 2 * 2, info.height // 2 * 2  # H.264 wants even sides
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = time_base
            newest = -1
            for index, image in read_frames(path, info, indexes, uri, Rejects()):
                picture = draw_hands(image, hands.get(index, ())).crop((0, 0, stream.width, stream.height))
                frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
                # As in the source, whose rate may vary; damage leaves gaps.
                newest = max(newest + 1, round(info.times_s[index] * _TICKS_PER_S))
                frame.pts, frame.time_base = newest, time_base
                container.mux(stream.encode(frame))
                num_written += 1
            container.mux(stream.encode())
    write_bytes(target, buffer.getvalue())
    return num_written
