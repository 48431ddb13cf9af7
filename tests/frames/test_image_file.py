"""Images that a camera stored turned or mirrored come upright, in every format that says so."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.frames.image_file import decode_image
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
