"""Drawn videos for tests of reading: a red square with a blue left and a white top edge moves 10 px a frame; its box is known.

`write` takes the stamps, the container and the codec, so that each may be as odd as those met in the field.
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

WIDTH, HEIGHT, NUM_FRAMES, FPS = 320, 240, 24, 12
H264 = {"bf": "2", "b_strategy": "0", "crf": "12", "sc_threshold": "0"}
PLAIN = {"bf": "0", "crf": "12"}
MATRICES = {
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "rot180": (-1, 0, 0, -1),
    "rot90": (0, 1, -1, 0),
    "rot270": (0, -1, 1, 0),
    "transpose": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}
"""a, b, c, d of a display matrix: a stored point (x, y) is shown at (a x + c y, b x + d y), but for a shift."""


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 (height, width, 3) of frame `index`, as it is to be shown."""
    rng = np.random.default_rng(0)
    image = (rng.random((height // 8, width // 8, 3)) * 60 + 60).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    x = 20 + 10 * index
    image[30:90, x : x + 40] = (230, 40, 40)
    image[30:90, x : x + 6] = (40, 40, 230)
    image[30:36, x : x + 40] = (255, 255, 255)
    return np.ascontiguousarray(image)


def box(index: int) -> list[int]:
    """x0, y0, x1, y1 of the square in frame `index`."""
    return [20 + 10 * index, 30, 60 + 10 * index, 90]


def write(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    indexes: Sequence[int] = range(NUM_FRAMES),
    stored: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    change: Callable[[int, Any], Any] = lambda number, packet: packet,
    prepare: Callable[[Any], None] = lambda stream: None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video. stored: the picture as it is coded. change: of each packet, by its number; None leaves it out."""
    with av.open(str(path), "w", options=container_options) as container:
        options = H264 if options is None and codec == "libx264" else options
        stream: Any = container.add_stream(codec, rate=FPS, options=options)
        first = stored(picture(indexes[0]))
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec in ("mpeg4", "mpeg2video", "wmv2", "libvpx", "mjpeg"):
            stream.bit_rate = 8_000_000
        prepare(stream)
        packets: list[Any] = []
        for index in indexes:
            image = np.ascontiguousarray(stored(picture(index)))
            packets += stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        packets += stream.encode()
        for number, packet in enumerate(packets):
            if (changed := change(number, packet)) is not None:
                container.mux(changed)
    return path


def _h264(container: Any, width: int = WIDTH, height: int = HEIGHT) -> Any:
    stream = container.add_stream("libx264", rate=FPS, options=H264)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    return stream


def write_two_tracks(path: Path, small_first: bool = True, default: int | None = 1) -> Path:
    """A video with a small grey track beside the one of the square. default: which is marked as default."""
    with av.open(str(path), "w") as container:
        sizes = [(80, 60), (WIDTH, HEIGHT)][:: 1 if small_first else -1]
        streams = [_h264(container, *size) for size in sizes]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for index in range(NUM_FRAMES):
            for stream in streams:
                image = picture(index) if stream.width == WIDTH else np.full((60, 80, 3), 99, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


def write_with_cover(path: Path) -> Path:
    """An MP4 or MOV whose first video track is cover art."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        stream = _h264(container)
        art = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        container.mux(cover.encode(art.reformat(format="yuvj420p")) + cover.encode())
        for index in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode())
    # The cover is in the metadata ("udta"), which some writers put before the tracks.
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    atoms, end, here = [], at + int.from_bytes(data[at : at + 4], "big"), at + 8
    while here < end:
        size = int.from_bytes(data[here : here + 4], "big")
        atoms.append(data[here : here + size])
        here += size
    atoms.sort(key=lambda atom: [b"mvhd", b"udta", b"trak"].index(atom[4:8]))
    path.write_bytes(data[: at + 8] + b"".join(atoms) + data[end:])
    return path


def write_labels(path: Path, **changes: Any) -> Path:
    """The labels file of a video beside it."""
    num_frames = changes.get("num_frames", NUM_FRAMES)
    content = {
        "version": 1,
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": num_frames,
        "frames": [{"index": i, "hands": [{"track": 0, "hand": "right", "box": box(i)}]} for i in range(num_frames)],
        **changes,
    }
    path.with_name(f"{path.stem}.labels.json").write_text(json.dumps(content))
    return path


def set_matrix(path: Path, kind: str) -> Path:
    """Write a display matrix into an MP4's track."""
    a, b, c, d = MATRICES[kind]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(data)
    return path


def unshown(image: np.ndarray, kind: str) -> np.ndarray:
    """The picture that is to be stored so that it is shown right with the matrix."""
    a, b, c, d = MATRICES[kind]
    if a == d == 0:
        image = image[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1].transpose(1, 0, 2)
    else:
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def squeezed(image: np.ndarray, aspect: float) -> np.ndarray:
    """The picture as stored with pixels that are `aspect` times as wide as high."""
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((round(width / aspect), height), Image.Resampling.BOX))


def index_of(image: Any) -> int | None:
    """Which frame a picture is of, by the place of its red; None where it is not one of them, upright and unmirrored."""
    pixels = np.asarray(image).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(-1) < 120)
    blue = (pixels[..., 2] > 150) & (pixels[..., :2].max(-1) < 120)
    white = pixels.min(-1) > 200
    if min(red.sum(), blue.sum(), white.sum()) < 50:
        return None
    (y, x), (_, blue_x), (white_y, _) = (np.nonzero(mask) for mask in (red, blue, white))
    index = (x.mean() - 42.5) / 10
    is_right = blue_x.mean() < x.mean() - 10 and white_y.mean() < y.mean() - 20 and abs(y.mean() - 62.5) < 3
    return round(index) if is_right and abs(index - round(index)) < 0.3 else None
