"""Clips as files: H.264 video, and the labels beside it."""

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import torch
from torch import Tensor

from pipeline import storage
from pipeline.frames.synthetic.clip import ClipSettings, clip_labels, sample_clip
from pipeline.frames.synthetic.render import render_clip

VIDEO_SUFFIX = ".mp4"
LABELS_SUFFIX = ".labels.json"

_CRF = 16
"""Nearly lossless to the eye: in a frame this small, a usual rate (23) blurs the fingers."""
_KEYFRAME_INTERVAL = 12
"""At most this many frames have to be decoded to reach any one of them."""


def clip_name(index: int) -> str:
    """Name of a clip's files, without suffix."""
    return f"clip_{index:06d}"


def encode_mp4(frames: Tensor, fps: float) -> bytes:
    """An H.264 video file (yuv420p) of frames uint8 (T, 3, H, W), RGB, with even H and W."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1001),
            options={
                "crf": str(_CRF),
                "preset": "veryfast",
                "g": str(_KEYFRAME_INTERVAL),
                "threads": "1",
                # Without it the same frames give other bytes on another CPU, and sometimes in the next call.
                "x264-params": "cpu-independent=1",
            },
        )
        stream.height, stream.width = frames.shape[2:]
        stream.pix_fmt = "yuv420p"
        for picture in frames.permute(0, 2, 3, 1).contiguous().cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def write_clip(folder: str, name: str, video: bytes, labels: dict[str, Any]) -> None:
    """Write a clip's two files; the labels come last, so that they mark the clip as complete."""
    storage.write_bytes(storage.join(folder, name + VIDEO_SUFFIX), video)
    content = json.dumps(labels, separators=(",", ":"), allow_nan=False)
    storage.write_bytes(storage.join(folder, name + LABELS_SUFFIX), content.encode())


def complete_clips(folder: str) -> set[str]:
    """Names of the clips in a folder that have both files."""
    names = {uri.rsplit("/", 1)[-1] for uri in storage.list_files(folder, (VIDEO_SUFFIX, LABELS_SUFFIX))}
    videos = {name.removesuffix(VIDEO_SUFFIX) for name in names if name.endswith(VIDEO_SUFFIX)}
    return {name for name in videos if name + LABELS_SUFFIX in names}


def synthesize_clips(settings: ClipSettings, indices: Sequence[int], folder: str) -> int:
    """Draw clips and write them to a folder (URI), on one core; returns how many were written."""
    torch.set_num_threads(1)
    for index in indices:
        clip = sample_clip(settings, index)
        video = encode_mp4(render_clip(clip), settings.fps)
        write_clip(folder, clip_name(index), video, clip_labels(clip))
    return len(indices)
