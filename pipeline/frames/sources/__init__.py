"""Sources of hand images. A new kind is a file here, with its settings and its reader, and its line in the first import."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.frames.sources import (  # noqa: F401
    boxed_images,
    coco,
    detected_video,
    dexycb,
    freihand,
    ho3d,
    image_folder,
    interhand,
    labelled_images,
    labelled_video,
    youtube3d,
)
from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, Reader, SourceSettings, Unit

__all__ = ["AnySource", "FrameHands", "Hand", "OpenUnit", "Reader", "SourceSettings", "Unit"]

if TYPE_CHECKING:
    AnySource = SourceSettings
else:
    AnySource = Annotated[reduce(or_, SourceSettings.__subclasses__()), Field(discriminator="kind")]
"""Settings of one of the kinds above, told apart by `kind`."""
