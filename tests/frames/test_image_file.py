"""Images look as a viewer shows them: as FFmpeg does, and upright where a camera stored them turned or mirrored."""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.frames.image_file import decode_image
from pipeline.frames.listing import IMAGE_SUFFIXES
from pipeline.frames.sources.image_folder import _size_of_header
from tests.frames.squares import index_of, picture, unshown

EXIF = {2: "hflip", 3: "rot180", 4: "vflip", 5: "transpose", 6: "rot90", 7: "transverse", 8: "rot270"}
"""Orientation -> what is to be done so that the picture is shown right (EXIF 2.3, tag 274)."""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", EXIF)
def test_exif_turns_and_mirrors(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    Image.fromarray(unshown(picture(5), EXIF[orientation])).save(buffer, kind, exif=exif, quality=95)
    image = decode_image(buffer.getvalue())
    assert (image.size, index_of(image)) == ((320, 240), 5)
    assert np.abs(np.asarray(image, float) - picture(5)).mean() < 4
    (tmp_path / "a").write_bytes(buffer.getvalue())
    assert _size_of_header(str(tmp_path / "a")) in (None, (320, 240))  # None: the whole image is read


GREY = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (16, 1))
PICTURE = np.stack([GREY, GREY[:, ::-1], GREY // 2], 2)


def by_ffmpeg(codec: str, form: str) -> tuple[bytes, np.ndarray]:
    """(file, the picture that it holds)."""
    frame = av.VideoFrame.from_ndarray(PICTURE, format="rgb24").reformat(format=form)
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width = PICTURE.shape[:2]
    context.pix_fmt, context.time_base = form, Fraction(1, 25)
    data = b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
    return data, frame.reformat(format="rgb24").to_ndarray()


@pytest.mark.parametrize(
    ("codec", "form"),
    [
        *(("png", form) for form in ("rgb24", "rgba", "gray", "ya8", "monob", "gray16be", "rgb48be", "rgba64be", "ya16be")),
        *(("tiff", form) for form in ("rgb24", "gray16le", "rgb48le", "rgba64le")),
        *(("bmp", form) for form in ("bgr24", "rgb565le")),
    ],
)  # fmt: skip
def test_every_depth_shows_the_same_picture(codec, form):
    data, picture = by_ffmpeg(codec, form)
    assert np.abs(np.asarray(decode_image(data)).astype(int) - picture).max() <= 1


@pytest.mark.parametrize("suffix", [s for s in IMAGE_SUFFIXES if s not in (".heic", ".heif")])
def test_every_suffix_that_is_read_can_be_read(suffix):
    buffer = io.BytesIO()
    picture = Image.fromarray(PICTURE[..., [0, 0, 0]] if suffix == ".pgm" else PICTURE)
    kind = Image.registered_extensions()[suffix]
    picture.convert("L" if suffix == ".pgm" else "RGB").save(buffer, kind)
    assert np.abs(np.asarray(decode_image(buffer.getvalue())).astype(int) - np.asarray(picture)).mean() < 4


def test_heif_is_read_where_the_extra_is_there():
    pillow_heif = pytest.importorskip("pillow_heif")
    assert ".heic" in IMAGE_SUFFIXES
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(PICTURE)).save(buffer, quality=90)
    assert np.abs(np.asarray(decode_image(buffer.getvalue())).astype(int) - PICTURE).mean() < 4


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_tells_the_size_as_displayed(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(tmp_path / "image", kind, exif=exif)
    size = decode_image((tmp_path / "image").read_bytes()).size
    assert size == ((16, 64) if orientation > 4 else (64, 16))
    assert _size_of_header(str(tmp_path / "image")) in (size, None)
    assert kind == "WEBP" or _size_of_header(str(tmp_path / "image")) == size
