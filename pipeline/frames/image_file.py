"""An image file of any common kind -> upright 8-bit RGB, or a reject that says why not.

What becomes of the kinds that need a decision:

* turned by EXIF: turned upright; boxes and joints refer to the upright image
* more than 8 bits: the upper 8; of floating point in 0..1, 255 times the value
* transparent: laid over black, like all that lies outside an image
* several pictures (animated, pages): the first
* CMYK, palettes, greys: converted; colour profiles are not applied, colours count as sRGB
* above MAX_PIXELS: left out before it is decoded, so that one file cannot take a worker's memory
"""

import io
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from pipeline.errors import MissingError, RefusedError
from pipeline.frames.rejects import Rejects
from pipeline.storage import read_bytes

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "TGA", "PPM", "JPEG2000", "AVIF", "HEIF")
"""What is read, whatever a file is called. Pillow knows more, and would give some of it to another program (EPS to Ghostscript)."""
MAX_PIXELS = 100_000_000
"""Some 300 MB as RGB; more than the largest cameras give."""

with suppress(ImportError):  # an extra, for photographs of telephones
    import pillow_heif

    pillow_heif.register_heif_opener()

warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # what Pillow has to say about damaged files is counted as rejects instead


class HugeImageError(ValueError):
    """An image of more than MAX_PIXELS."""


def read_image(uri: str, name: str, rejects: Rejects) -> Image.Image | None:
    """The image; None where it is missing, refused or not usable, which is counted under `name`.

    Raises StorageError where the storage as a whole does not answer.
    """
    try:
        return decode_image(read_bytes(uri))
    except MissingError:
        rejects.add("missing_image", name)
    except RefusedError:
        rejects.add("refused_image", name)
    except HugeImageError:
        rejects.add("huge_image", name)
    except ValueError:
        rejects.add("unreadable_image", name)
    return None


def decode_image(data: bytes) -> Image.Image:
    """Upright 8-bit RGB. Raises HugeImageError, or ValueError for whatever else is wrong with the data."""
    try:
        image = Image.open(io.BytesIO(data), formats=_known_formats())
        if image.width * image.height > MAX_PIXELS:
            raise HugeImageError(f"{image.width} x {image.height} pixels")
        return _to_rgb(ImageOps.exif_transpose(image))
    except HugeImageError:
        raise
    except Image.DecompressionBombError as error:
        raise HugeImageError(str(error)) from None
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # damaged files make Pillow's readers raise nearly anything, struct.error and TypeError too
        raise ValueError(f"not a readable image ({error})") from error


@cache
def _known_formats() -> list[str]:
    """Those that this build of Pillow reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip instead of scaling
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Greys of 16 or 32 bits, or of floating point, as uint8."""
    if grey.dtype.kind == "f":
        finite = np.nan_to_num(grey, posinf=255.0)
        return (finite * (255.0 if finite.max() <= 1 else 1.0)).round().clip(0, 255).astype(np.uint8)
    whole = grey.astype(np.uint32)  # Pillow gives 32 bits as if they had a sign, and 16 as if they were 32
    return (whole >> (8 if whole.max() < 2**16 else 24)).astype(np.uint8)
