"""The table of bad inputs: what each is, and what ingest makes of it. docs/bad-inputs.md is written from it:

python -m tests.frames.bad_inputs > docs/bad-inputs.md
"""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pipeline.frames.image_file import MAX_PIXELS
from pipeline.frames.rejects import REASONS
from tests import hostile_inputs, start_errors
from tests.frames import squares
from tests.frames.clips import CAMERA, draw, hand_label, joints_at, project, write_clip, write_images, write_video

NAN = float("nan")


class Images:
    """An image folder with three good images; the bad input comes beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root / "images"
        self.boxes = root / "boxes.json"
        self.entries = write_images(self.root, {"good": 3})
        self.box = self.entries[0]["boxes_xyxy"][0]
        self.picture = Image.open(self.root / "good" / "00000.jpg").convert("RGB")
        """A good image; the first of the folder."""
        self.text: str | None = None
        """Of the boxes file, where it is not made of the entries."""
        self.encoding = "utf-8"
        """Of the boxes file."""

    def add(self, content: bytes, name: str = "odd/00000.jpg", boxes: list[Any] | None = None) -> None:
        """One more image and its entry; the box is that of the picture."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(content)
        self.entries.append({"file": name, "boxes_xyxy": [self.box] if boxes is None else boxes})

    def add_box(self, *boxes: Any) -> None:
        """One more good image with other boxes."""
        self.add(encoded(self.picture), boxes=list(boxes))

    def source(self) -> dict[str, Any]:
        """Its settings; writes the boxes file."""
        text = json.dumps(self.entries, ensure_ascii=False) if self.text is None else self.text
        self.boxes.write_bytes(text.encode(self.encoding))
        return {"kind": "boxed_images", "uri": str(self.root), "boxes": str(self.boxes)}


class Videos:
    """A folder with one good labelled video of three frames; the bad input comes beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "videos"
        write_clip(self.root, "good", num_frames=3)

    def add(self, content: bytes | None = None, name: str = "odd", **labels: Any) -> Path:
        """One more video of four frames, with other content or labels."""
        path = write_clip(self.root, name, num_frames=4, labels=labels)
        if content is not None:
            path.write_bytes(content)
        return path

    def add_hand(self, **changes: Any) -> None:
        """A video of two frames, one good, one with a changed label."""
        frames = [{"index": 0, "hands": [hand_label(0)]}, {"index": 1, "hands": [hand_label(1, **changes)]}]
        write_clip(self.root, "odd", num_frames=2, labels={"frames": frames})

    def source(self) -> dict[str, Any]:
        """Its settings."""
        return {"kind": "labelled_video", "uri": str(self.root)}


@dataclass(frozen=True)
class Case:
    """A row of the table. Exactly one of `left_out` and `stops` is given, or `kept` says how the input is taken."""

    what: str
    make: Callable[[Any], Any]
    """Adds it to Images or Videos."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rejects by reason."""
    kept: str = ""
    num_kept: int = 0
    """Rows beside the three good ones."""
    looks: Callable[[np.ndarray, np.ndarray], bool] | None = None
    """(crop, crop of the same picture as a plain JPEG) -> whether it is as it should be; both (S, S, 3) float."""
    stops: str = ""
    """The error's message, a part of it."""
    change: Callable[[Any], Any] | None = None
    """What happens between listing and reading."""


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def png(pixels: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """PNG of uint16 (H, W, 3) pixels, which Pillow cannot write; `size`: what the header claims."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">2I5B", *(size or (width, height)), 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def like(tolerance: float = 4.0) -> Callable[[np.ndarray, np.ndarray], bool]:
    """Looks like the plain JPEG."""
    return lambda crop, plain: float(np.abs(crop - plain).mean()) < tolerance


def _claiming(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose header says that it is `side` pixels wide and high."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">2H", side, side) + jpeg[at + 4 :]


def _turned(images: Images) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    images.add(encoded(images.picture.transpose(Image.Transpose.ROTATE_90), exif=exif))


def _bad_exif(images: Images) -> None:
    images.add(encoded(images.picture, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\x00\x63" * 9))


def _sixteen_bit_grey(images: Images) -> None:
    grey = np.asarray(images.picture.convert("L")).astype(np.uint16) * 257
    images.add(encoded(Image.fromarray(grey), "PNG"), "odd/00000.png")


def _sixteen_bit_rgb(images: Images) -> None:
    images.add(png(np.asarray(images.picture).astype(np.uint16) * 257), "odd/00000.png")


def _transparent(images: Images) -> None:
    image = images.picture.convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    images.add(encoded(image, "PNG"), "odd/00000.png")


def _animated(images: Images, kind: str) -> None:
    second = Image.new("RGB", images.picture.size, "red")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(images.picture, kind, save_all=True, append_images=[second], **options)
    images.add(content, f"odd/00000.{kind.lower()}")


def _odd_size(images: Images) -> None:
    image = images.picture.crop((0, 0, 157, 119))
    images.add(encoded(image))


def _with_gone_image(images: Images) -> None:
    images.add(encoded(images.picture))


def _remove(thing: Images | Videos) -> None:
    next(thing.root.rglob("odd*.mp4" if isinstance(thing, Videos) else "odd/*")).unlink()


def _no_labels(videos: Videos) -> None:
    path = videos.add()
    path.with_name("odd.labels.json").unlink()


def _broken_labels(videos: Videos) -> None:
    path = videos.add()
    path.with_name("odd.labels.json").write_text('{"version": 1, ')


def _labels_of_another(videos: Videos) -> None:
    path = videos.add()
    path.with_name("odd.labels.json").write_bytes((videos.root / "good.labels.json").read_bytes())


def _long_video(videos: Videos) -> Path:
    """24 frames in groups of 6, of noise, so that every packet is large."""
    rng = np.random.default_rng(0)
    frames = [{"index": i, "hands": [hand_label(i)]} for i in range(24)]
    path = videos.add(num_frames=24, frames=frames)
    noisy = [
        draw([project(joints_at(i), CAMERA)]) // 2 + rng.integers(0, 99, (120, 160, 3), np.uint8) for i in range(24)
    ]
    write_video(path, noisy, movflags="faststart")
    return path


def _broken_tail(videos: Videos) -> None:
    path = _long_video(videos)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _damaged_middle(videos: Videos) -> None:
    path = _long_video(videos)
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[8]
        content, coded = path.read_bytes(), bytes(packet)
    assert content.count(coded) == 1
    path.write_bytes(content.replace(coded, bytes(len(coded))))


def _audio_only(videos: Videos) -> None:
    path = videos.add()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44_100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def _without_frames(videos: Videos) -> None:
    path = videos.add()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        container.start_encoding()


def _two_tracks_alike(videos: Videos) -> None:
    frames = [{"index": 0, "hands": [hand_label(0)] * 2}]
    write_clip(videos.root, "odd", num_frames=1, labels={"frames": frames})


def _names_that_collide(videos: Videos) -> None:
    frames = [{"index": 0, "hands": [hand_label(0), hand_label(0, "left", track=1)]}]
    write_clip(videos.root, "odd", num_frames=1, labels={"frames": frames})
    write_clip(videos.root, "odd#1", num_frames=1)


def _squares(videos: Videos, suffix: str, write: Callable[..., Path] = squares.write, **options: Any) -> Path:
    """One more video of 24 frames, of a square whose box is labelled."""
    return squares.write_labels(write(videos.root / f"odd.{suffix}", **options))


def _joined(videos: Videos) -> None:
    parts = [
        squares.write(videos.root / "part.ts", indexes=frames).read_bytes() for frames in (range(12), range(12, 24))
    ]
    (videos.root / "part.ts").unlink()
    _squares(videos, "ts").write_bytes(b"".join(parts))


def _one_stamp_twice(number: int, packet: Any) -> Any:
    if number == 6:
        packet.pts -= round(1 / squares.FPS / packet.time_base)
    return packet


def _mirrored(videos: Videos) -> None:
    path = _squares(videos, "mp4", stored=lambda image: squares.unshown(image, "hflip"))
    squares.set_matrix(path, "hflip")


def _wide_pixels(videos: Videos) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    _squares(videos, "mp4", stored=lambda image: squares.squeezed(image, 4 / 3), prepare=prepare)


def _starts_late(videos: Videos) -> None:
    path = _squares(videos, "ts", options={**squares.PLAIN, "g": "8"})
    with av.open(str(path)) as container:
        third = [packet.pos for packet in container.demux(video=0) if packet.size][3]
    data = path.read_bytes()
    path.write_bytes(data[: 3 * 188] + data[third:])
    frames = [{"index": i, "hands": [{"track": 0, "hand": "right", "box": squares.box(8 + i)}]} for i in range(16)]
    squares.write_labels(path, num_frames=16, frames=frames)


def _has_square(crop: np.ndarray, _: np.ndarray) -> bool:
    """The square lies where its box says; the middle of its red is right and below of the box's."""
    red = (crop[..., 0] > 150) & (crop[..., 1:].max(-1) < 120)
    return bool(red.any() and abs(np.nonzero(red)[1].mean() / len(crop) - 84 / 160) < 0.02)


def _text(text: str) -> Callable[[Images], None]:
    def make(images: Images) -> None:
        images.text = text

    return make


def _empty(thing: Images | Videos) -> None:
    for path in [*thing.root.rglob("*.jpg"), *thing.root.rglob("*.mp4")]:
        path.unlink()


def _other_files_only(images: Images) -> None:
    _empty(images)
    (images.root / "readme.txt").write_text("no images")


def _entry_without_hands(images: Images) -> None:
    images.entries[0]["hands"] = []


def _folder_called_images(images: Images) -> None:
    images.add(encoded(images.picture), "images/00000.jpg")
    images.add(encoded(images.picture), "00000.jpg")


def _in_encoding(encoding: str) -> Callable[[Images], None]:
    def make(images: Images) -> None:
        images.add(encoded(images.picture), "ödd/0.jpg")
        images.encoding = encoding

    return make


def _windows(images: Images) -> None:
    images.text = json.dumps(images.entries, indent=1).replace("\n", "\r\n") + "\r\n"


def _named_as(name: str, listed: str = "odd/0.jpg") -> Callable[[Images], None]:
    """The boxes file names a file in another way than the folder."""

    def make(images: Images) -> None:
        images.add(encoded(images.picture), listed)
        images.entries[-1]["file"] = name

    return make


def _twice_by_link(images: Images) -> None:
    images.add(encoded(images.picture), "odd/0.jpg")
    (images.root / "link").symlink_to(images.root / "odd")
    images.entries.append({**images.entries[-1], "file": "link/0.jpg"})


def _left_behind(thing: Images | Videos) -> None:
    for path in list(thing.root.rglob("*.*")):
        for name in (
            f"._{path.name}",
            f"__MACOSX/{path.name}",
            f".ipynb_checkpoints/{path.name}",
            f"@eaDir/{path.name}",
        ):
            (path.parent / name).parent.mkdir(exist_ok=True)
            (path.parent / name).write_bytes(b"not for anybody's eyes")
    (thing.root / ".DS_Store").write_bytes(b"")
    (thing.root / "Thumbs.db").write_bytes(b"")


def _labels_encoded(encoding: str) -> Callable[[Videos], None]:
    def make(videos: Videos) -> None:
        path = videos.add().with_name("odd.labels.json")
        path.write_bytes(path.read_text().encode(encoding))

    return make


def _labels_edited(old: str, new: str) -> Callable[[Videos], None]:
    def make(videos: Videos) -> None:
        path = videos.add().with_name("odd.labels.json")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return make


def _labels_called(name: str, video: str = "odd") -> Callable[[Videos], None]:
    def make(videos: Videos) -> None:
        videos.add(name=video).with_name(f"{video}.labels.json").rename(videos.root / name)

    return make


def _links(videos: Videos) -> None:
    """To a parent, to a file that is there already, and to nothing."""
    (videos.root / "again").symlink_to(videos.root)
    (videos.root / "up").symlink_to(videos.root.parent)
    (videos.root / "second.mp4").hardlink_to(videos.root / "good.mp4")
    (videos.root / "third.mp4").symlink_to(videos.root / "good.mp4")
    (videos.root / "gone.mp4").symlink_to(videos.root / "nowhere.mp4")


def _tiff_turned(images: Images) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images.add(encoded(images.picture.transpose(Image.Transpose.ROTATE_90), "TIFF", exif=exif), "odd/0.tiff")


def _grey_tiff(numbers: Callable[[np.ndarray], np.ndarray]) -> Callable[[Images], None]:
    """numbers: of greys, uint8."""
    return lambda images: images.add(
        encoded(Image.fromarray(numbers(np.asarray(images.picture.convert("L")))), "TIFF"), "odd/0.TIF"
    )


HUGE = (60_000, 50_000)
LARGE = (12_000, 10_000)
assert HUGE[0] * HUGE[1] > LARGE[0] * LARGE[1] > MAX_PIXELS
LEFT_OUT_IMAGE = {"unreadable_image": 1}

IMAGE_CASES = [
    Case("JPEG cut in half", lambda s: s.add(encoded(s.picture)[: len(encoded(s.picture)) // 2]), LEFT_OUT_IMAGE),
    Case("image of zero bytes", lambda s: s.add(b""), LEFT_OUT_IMAGE),
    Case("text named .jpg", lambda s: s.add(b"not an image, whatever it is called\n" * 40), LEFT_OUT_IMAGE),
    Case("zeros behind a JPEG's head", lambda s: s.add(encoded(s.picture)[:400] + bytes(4000)), LEFT_OUT_IMAGE),
    Case("decompression bomb (header of 60,000 x 50,000)", lambda s: s.add(png(np.zeros((2, 2, 3)), HUGE)), {"huge_image": 1}),
    Case("decompression bomb (JPEG whose header says 60,000 x 60,000)", lambda s: s.add(_claiming(encoded(s.picture), 60_000)), {"huge_image": 1}),
    Case("PostScript named .jpg, which Pillow would give to Ghostscript", lambda s: s.add(encoded(s.picture, "EPS")), LEFT_OUT_IMAGE),
    Case("name with a line break and signs that steer a terminal", lambda s: s.add(b"", "odd/\x1b[2J\n0.jpg"), LEFT_OUT_IMAGE),
    Case("header of 12,000 x 10,000", lambda s: s.add(png(np.zeros((2, 2, 3)), LARGE)), {"huge_image": 1}),
    Case("image that the boxes file names, but is not there", lambda s: s.entries.append({"file": "odd/0.jpg", "boxes_xyxy": [s.box]}), {"missing_image": 1}),
    Case("image that vanished between listing and reading", _with_gone_image, {"missing_image": 1}, change=_remove),
    Case("turned by EXIF", _turned, kept="turned upright; boxes and joints refer to the upright image", num_kept=1, looks=like()),
    Case("damaged EXIF", _bad_exif, kept="as it is", num_kept=1, looks=like()),
    Case("greyscale JPEG", lambda s: s.add(encoded(s.picture.convert("L"))), kept="as RGB", num_kept=1, looks=like()),
    Case("RGBA, opaque", lambda s: s.add(encoded(s.picture.convert("RGBA"), "PNG"), "odd/0.png"), kept="as RGB", num_kept=1, looks=like()),
    Case("RGBA, transparent", _transparent, kept="laid over black, like all that lies outside an image", num_kept=1, looks=lambda crop, _: bool(crop.max() < 8)),
    Case("palette PNG", lambda s: s.add(encoded(s.picture.convert("P"), "PNG"), "odd/0.png"), kept="as RGB", num_kept=1, looks=like(8)),
    Case("CMYK JPEG", lambda s: s.add(encoded(s.picture.convert("CMYK"))), kept="as RGB; colour profiles are not applied", num_kept=1, looks=like()),
    Case("16-bit grey PNG", _sixteen_bit_grey, kept="the upper 8 bits", num_kept=1, looks=like()),
    Case("16-bit RGB PNG", _sixteen_bit_rgb, kept="the upper 8 bits", num_kept=1, looks=like()),
    Case("grey TIFF of 32 bits", _grey_tiff(lambda grey: (grey.astype(np.uint32) << 24).view(np.int32)), kept="the upper 8 bits", num_kept=1, looks=like()),
    Case("grey TIFF of floating point in 0..1", _grey_tiff(lambda grey: grey.astype(np.float32) / 255), kept="255 times its values", num_kept=1, looks=like()),
    Case("TIFF turned by its orientation tag", _tiff_turned, kept="turned upright", num_kept=1, looks=like()),
    Case("odd width and height", _odd_size, kept="as it is", num_kept=1, looks=like()),
    Case("1 x 1 image", lambda s: s.add(encoded(s.picture.resize((1, 1)))), {"box_outside_image": 1}),
    Case("animated GIF", lambda s: _animated(s, "GIF"), kept="its first picture", num_kept=1, looks=like(8)),
    Case("animated WebP", lambda s: _animated(s, "WEBP"), kept="its first picture", num_kept=1, looks=like()),
    Case("spaces, umlauts, Chinese, # and % in names", lambda s: s.add(encoded(s.picture), "ödd földer/手 #1 100%.jpg"), kept="as it is; the clip has the folder's name", num_kept=1, looks=like()),
    Case("box with negative corners, half inside", lambda s: s.add_box([-20, -4, 80, 90]), kept="black where it leaves the image", num_kept=1),
    Case("box outside the image", lambda s: s.add_box([500, 400, 600, 500]), {"box_outside_image": 1}),
    Case("box with x1 < x0", lambda s: s.add_box([90, 20, 30, 80]), {"bad_box": 1}),
    Case("box without area", lambda s: s.add_box([30, 30, 30, 80]), {"bad_box": 1}),
    Case("box with NaN", lambda s: s.add_box([30, NAN, 90, 80]), {"bad_box": 1}),
    Case("box of three numbers, box of words", lambda s: s.add_box([30, 20, 90], ["a", "b", "c", "d"]), {"bad_box": 2}),
    Case("box of numbers in quotes, box of lists", lambda s: s.add_box(["30", "20", "90", "80"], [[30], [20], [90], [80]]), {"bad_box": 2}),
    Case("no box", lambda s: s.add_box(), {"no_hand": 1}),
    Case("entry given twice in the boxes file", lambda s: s.entries.append(s.entries[1]), {"duplicate_hand": 1}),
    Case("folder called as the root's own clip would be", _folder_called_images, stops="two clips would both be called 'images'"),
    Case("boxes file that is not JSON", _text("file,x0,y0,x1,y1"), stops="not a valid boxes file"),
    Case("boxes file of another form", _text('{"images": []}'), stops="not a valid boxes file"),
    Case("boxes in 0..1", lambda s: s.add_box([0.1, 0.2, 0.5, 1.0], [0, 0, 1, 1]), {"fraction_box": 2}),
    Case("boxes file in Latin-1", _in_encoding("latin-1"), stops="neither UTF-8 nor UTF-16; save it as UTF-8"),
    Case("comma before a closing bracket", _text('[{"file": "good/00000.jpg", "boxes_xyxy": [[1,2,30,40],]},\n]'), stops="a comma before ']', which JSON does not allow in line 1"),
    Case("key that an entry has twice", _text('[{"file": "a.jpg", "boxes_xyxy": [], "file": "b.jpg"}]'), stops="the key 'file' is there twice"),
    Case("JSON Lines, an entry a line", _text('{"file": "a.jpg"}\n{"file": "b.jpg"}\n'), stops="more than one value (JSON Lines?"),
    Case("file named by its path on the disk", _named_as("/data/odd/0.jpg"), stops="must be a path below the source's URI"),
    Case("file named by a path that leads out (../x.jpg)", _named_as("../odd/0.jpg"), stops="must be a path below the source's URI"),
    Case("boxes file nested 100,000 deep", _text("[" * 100_000), stops="nested too deeply"),
    Case("boxes file without entries", _text("[]"), stops="names no images"),
    Case("more boxes than hands in an entry", _entry_without_hands, stops="has more or fewer hands than boxes"),
    Case("empty image folder", _empty, stops="no image here"),
    Case("folder without images", _other_files_only, stops="no image here"),
]  # fmt: skip

NAME_CASES = [
    Case("suffixes .jpe, .jfif, .JPEG and the like", lambda s: [s.add(encoded(s.picture), f"odd/{i}{suffix}") for i, suffix in enumerate((".jpe", ".jfif", ".JPEG", ".Jpg"))], kept="as any image", num_kept=4, looks=like()),
    Case("boxes file with a byte order mark", _in_encoding("utf-8-sig"), kept="read", num_kept=1, looks=like()),
    Case("boxes file in UTF-16", _in_encoding("utf-16"), kept="read", num_kept=1, looks=like()),
    Case("boxes file with Windows' line ends", _windows, kept="read"),
    Case("file named with backslashes", _named_as("odd\\0.jpg"), kept="the file that is meant", num_kept=1, looks=like()),
    Case("file named with ./ or //", _named_as("./odd//0.jpg"), kept="the file that is meant", num_kept=1, looks=like()),
    Case("file named in another Unicode normalisation (macOS)", _named_as("o\u0308dd/0.jpg", "\u00f6dd/0.jpg"), kept="the file that is meant", num_kept=1, looks=like()),
    Case("file named in other case", _named_as("odd/0.JPG"), {"missing_image": 1}),
    Case("image named by two links", _twice_by_link, {"duplicate_hand": 1}, kept="once", num_kept=1, looks=like()),
]  # fmt: skip
"""How files and boxes files are named and written; each is tried by itself."""

LEFT_OUT_CLIP = {"unreadable_video": 1}

VIDEO_CASES = [
    Case("video of zero bytes", lambda s: s.add(b""), LEFT_OUT_CLIP),
    Case("text named .mp4", lambda s: s.add(b"no video at all" * 100), LEFT_OUT_CLIP),
    Case("audio only", _audio_only, LEFT_OUT_CLIP),
    Case("video of zero frames", _without_frames, LEFT_OUT_CLIP),
    Case("video that vanished between listing and reading", lambda s: s.add(), {"missing_file": 1}, change=_remove),
    Case("video without its last half", _broken_tail, {"broken_video_tail": 24}, kept="the frames before the break", num_kept=1),
    Case("video with damaged bytes in the middle", _damaged_middle, {"damaged_frame": 24}, kept="the frames before, and those from the next key frame on (damage that neither decoder nor container notices stays unnoticed)", num_kept=12),
    Case("B-frames in AVI, which stores no times of display", lambda s: _squares(s, "avi"), kept="in the order in which the decoder shows them; times are those of decoding", num_kept=24, looks=_has_square),
    Case("two frames of one stamp", lambda s: _squares(s, "mkv", change=_one_stamp_twice), kept="both; the second lies between its neighbours in time", num_kept=24, looks=_has_square),
    Case("transport streams that were joined", _joined, kept="all; time goes on where the clock starts again", num_kept=24, looks=_has_square),
    Case("frames before the first key frame", _starts_late, kept="those from the key frame on, which is number 0, as when it is played", num_kept=16, looks=_has_square),
    Case("display matrix that mirrors", _mirrored, kept="turned and mirrored as when it is played; boxes and joints refer to that", num_kept=24, looks=_has_square),
    Case("pixels that are not square", _wide_pixels, kept="as wide as when it is played; boxes, joints and cameras refer to that", num_kept=24, looks=_has_square),
    Case("cover art before the video", lambda s: _squares(s, "mp4", squares.write_with_cover), kept="the video; pictures beside it are passed over", num_kept=24, looks=_has_square),
    Case("several video tracks", lambda s: _squares(s, "mkv", squares.write_two_tracks), kept="the default one; without one, the largest", num_kept=24, looks=_has_square),
    Case("no labels file", _no_labels, {"missing_labels": 1}),
    Case("labels that are not JSON", _broken_labels, {"labels_mismatch": 1}),
    Case("labels of another video (other number of frames)", _labels_of_another, {"labels_mismatch": 1}),
    Case("labels for another size of image", lambda s: s.add(width=320), {"labels_mismatch": 1}),
    Case("labels in an unknown order of joints", lambda s: s.add(joint_order="mine"), {"labels_mismatch": 1}),
    Case("label for a frame that the video does not have", lambda s: s.add(frames=[{"index": i, "hands": [hand_label(i)]} for i in (0, 1, 2, 3, 9)]), {"missing_frame_label": 1}, num_kept=4),
    Case("joints with NaN", lambda s: s.add_hand(joints_3d=[[0, 0, NAN]] * 21), {"bad_joints": 1}, num_kept=1),
    Case("joints behind the camera", lambda s: s.add_hand(joints_3d=(-joints_at(1)).tolist()), {"bad_joints": 1}, num_kept=1),
    Case("20 joints", lambda s: s.add_hand(joints_3d=joints_at(1)[:20].tolist()), {"bad_joints": 1}, num_kept=1),
    Case("joints in millimetres", lambda s: s.add_hand(joints_3d=(1000 * joints_at(1)).tolist()), {"bad_joints": 1}, num_kept=1),
    Case("camera with focal length 0", lambda s: s.add(camera=[[0, 0, 80], [0, 190, 60], [0, 0, 1]]), {"bad_camera": 4}),
    Case("camera with NaN", lambda s: s.add(camera=[[NAN, 0, 80], [0, 190, 60], [0, 0, 1]]), {"bad_camera": 4}),
    Case("camera of 2 x 3 numbers", lambda s: s.add(camera=[[200, 0, 80], [0, 190, 60]]), {"bad_camera": 4}),
    Case("camera transposed", lambda s: s.add(camera=CAMERA.T.tolist()), {"bad_camera": 4}),
    Case("hidden files, and those that systems leave behind (._*, .DS_Store, __MACOSX, .ipynb_checkpoints, @eaDir, Thumbs.db)", _left_behind, kept="not looked at, also among images"),
    Case("links to a parent, to files that are there, to nothing", _links, kept="every file once; a note names them"),
    Case("labels with a byte order mark", _labels_encoded("utf-8-sig"), kept="read", num_kept=4),
    Case("labels in UTF-16", _labels_encoded("utf-16"), kept="read", num_kept=4),
    Case("labels with a comma before a closing bracket", _labels_edited("}]}]}", "}]}],}"), {"labels_mismatch": 1}),
    Case("labels with a key twice", _labels_edited('"version": 1', '"version": 1, "version": 1'), {"labels_mismatch": 1}),
    Case("labels file in another Unicode normalisation than its video", _labels_called("o\u0308dd.labels.json", "\u00f6dd"), kept="read", num_kept=4),
    Case("labels file in other case than its video", _labels_called("Odd.labels.json"), {"missing_labels": 1}),
    Case("two hands of one track in a frame", _two_tracks_alike, {"duplicate_hand": 1}, num_kept=1),
    Case("videos 'odd' of two hands, and 'odd#1'", _names_that_collide, kept="each frame id stays unique", num_kept=3),
    Case("empty video folder", _empty, stops="no video here"),
]  # fmt: skip


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """The file may not be read meanwhile, not even by root (which then works as another user)."""
    path.chmod(0)
    for folder in path.parents:
        if folder.stat().st_uid == os.getuid() and len(folder.parts) > 2:
            folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o644)


_BEFORE = "warning that names the file; goes on from the checkpoint before it, to the same weights"
RUNS = {
    "newest checkpoint: trainer.pt, model.safetensors, meta.json or history.json empty, cut off, with one byte changed, or missing": _BEFORE,
    "newest checkpoint: checksums.json empty, cut off, or with one byte changed": _BEFORE,
    "newest checkpoint: checksums.json missing (older versions wrote none)": "what can be read is taken as whole",
    "newest checkpoint: upload that broke off": "it counts as missing",
    "all checkpoints damaged": 'stops, exit code 1: one line that names each file, and what to do: "none of its checkpoints can be read"; a trial of a search starts again from the beginning',
    "model named by a run's folder (evaluate, predict, export, init): its best checkpoint damaged": "warning that names the file; the next best is taken",
    "model named by a checkpoint's folder: damaged": "stops: one line that names the file",
    "Ray Train's checkpoint_manager_snapshot.json (of older versions)": "warning where it is damaged; not needed, removed",
    "search whose driver was killed; Tune's state, whatever is in it": "not read: the search goes on from its trials' records and checkpoints",
    "trial.json of a search empty or cut off": "warning, where the trial has checkpoints; the others go on",
    "result.json empty or cut off": "warning; made again from the last checkpoint, without training",
    "settings.yaml empty or cut off": "warning; the settings given now take its place",
    "run that ended between its last checkpoint and its result": "the result is written, without another epoch",
    "MLflow that does not answer when evaluate, search, study or training starts": "stops within 10 seconds, with one line that names its URI; with tracking.required false it goes on, and MLflow gets the run later",
    "MLflow that goes away on the way": "one warning; the work goes on, and MLflow gets what it missed when it is back, or from `jobs.sync` after the run",
    "MLflow that refuses a record": "warning; it is kept in RUN/tracking/refused.jsonl and tried again at the end and by `jobs.sync`; everything else is delivered",
    "S3 prefix where only a longer name begins alike (frames, frames-old)": 'stops: "nothing there"',
}  # fmt: skip


def markdown() -> str:
    """docs/bad-inputs.md."""
    lines = [
        "# Bad inputs",
        "",
        "What an ingest does with inputs that are damaged, unusual or wrong. The manifest counts what is left out by reason",
        "(`rejects`, with names in `reject_examples`). All other rows are the same as without such an input. If more than",
        "`source.max_reject_fraction` of the clips or frames is left out, nothing is published. This page is generated from the",
        "tests that try each of these inputs (`tests/frames/bad_inputs.py`).",
        "",
        "| input | what becomes of it |",
        "| --- | --- |",
    ]
    lines += [f"| {case.what} | {_outcome(case)} |" for case in [*IMAGE_CASES, *NAME_CASES, *VIDEO_CASES]]
    lines += [
        "| names without leading zeros (frame_9, frame_10) | kept: images of a folder are in the order of their numbers |",
        "| files of other kinds among images or videos | a note counts them by suffix |",
        "| HEIC | kept: with pillow-heif (`pip install -e '.[heif]'`); without it the note says so |",
        "| S3 key with an empty part (`a//b.png`) or one of dots | left out; a note names it |",
        "| frames in which a detector finds no hand | left out: `no_hand`, which is no damage |",
        '| no frame with a hand at all | stops: "not one frame shows a hand to source.detector.model=..." |',
        "| COCO file, labelled images' JSON, split list, cameras, settings YAML with a byte order mark, in UTF-16, with a key twice | as a boxes file |",
        "| names in them with backslashes, in another Unicode normalisation | as in a boxes file |",
        "| image that may not be read (permission) | left out: `refused_image` |",
        "| video or labels file that may not be read | left out: `refused_file` |",
        "| S3 object to which access is denied | left out: as above |",
        "| storage that does not answer, at the start or in between | stops: one line with the URI; what is finished is kept |",
        "",
        *start_errors.markdown(),
        "",
        *hostile_inputs.markdown(),
        "",
        "## Runs",
        "",
        "What a run does when its own files were changed, cut off, emptied or lost, on disk or in S3. These tests try each row:",
        "`tests/models/test_kept.py`, `tests/training/test_launch.py`, `tests/search/test_campaign.py`,",
        "`tests/models/test_weights.py`, `tests/reports/test_evaluate.py`, `tests/test_tracked.py` or `tests/test_tracking_queue.py`.",
        "",
        "| file | what becomes of the run |",
        "| --- | --- |",
        *(f"| {what} | {outcome} |" for what, outcome in RUNS.items()),
        "",
        "## Reasons",
        "",
        "| reason | meaning |",
        "| --- | --- |",
        *(f"| `{reason}` | {meaning} |" for reason, meaning in REASONS.items()),
    ]
    return "\n".join(lines) + "\n"


def _outcome(case: Case) -> str:
    parts = [f"left out: {', '.join(f'`{reason}`' for reason in case.left_out)}"] if case.left_out else []
    parts += [f"kept: {case.kept}"] if case.kept else []
    parts += [f'stops: "{case.stops}"'] if case.stops else []
    return "; ".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
