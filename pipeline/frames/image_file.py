"""An image file of any common kind -> upright 8-bit RGB, or a reject that says why not.

What becomes of the kinds that need a decision:

* turned by EXIF: turned upright; boxes and joints refer to the upright image
* more than 8 bits: the upper 8
* transparent: laid over black, like all that lies outside an image
* animated: the first picture
* CMYK, palettes, greys: converted; colour profiles are not applied, colours count as sRGB
* above MAX_PIXELS: left out before it is decoded, so that one file cannot take a worker's memory
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from pipeline.errors import MissingError, RefusedError
from pipeline.frames.rejects import Rejects
from pipeline.storage import read_bytes

MAX_PIXELS = 100_000_000
"""Some 300 MB as RGB; more than the largest cameras give."""

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
        image = Image.open(io.BytesIO(data))
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("RGB")
