"""Sources of hand images. A new kind is a file here, its name in base.Kind, and a line in open_source."""

from collections.abc import Callable

from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, Source, SourceSettings, Unit

__all__ = ["FrameHands", "Hand", "OpenUnit", "Source", "SourceSettings", "Unit", "open_source"]


def open_source(settings: SourceSettings) -> Source:
    """The source that the settings describe."""
    from pipeline.frames.sources.boxed_images import BoxedImages
    from pipeline.frames.sources.coco import Coco
    from pipeline.frames.sources.detected_video import DetectedVideo
    from pipeline.frames.sources.dexycb import DexYcb
    from pipeline.frames.sources.freihand import FreiHand
    from pipeline.frames.sources.ho3d import Ho3d
    from pipeline.frames.sources.image_folder import image_folder
    from pipeline.frames.sources.interhand import InterHand
    from pipeline.frames.sources.labelled_images import LabelledImages
    from pipeline.frames.sources.labelled_video import LabelledVideo
    from pipeline.frames.sources.youtube3d import YouTube3d

    kinds: dict[str, Callable[[SourceSettings], Source]] = {
        "labelled_video": LabelledVideo,
        "detected_video": DetectedVideo,
        "labelled_images": LabelledImages,
        "boxed_images": BoxedImages,
        "image_folder": image_folder,
        "coco": Coco,
        "freihand": FreiHand,
        "youtube3d": YouTube3d,
        "interhand": InterHand,
        "ho3d": Ho3d,
        "dexycb": DexYcb,
    }
    return kinds[settings.kind](settings)
