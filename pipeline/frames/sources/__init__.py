"""Sources of hand images. A new kind is a file here, its name in base.Kind, and a line in open_source."""

from pipeline.frames.sources.base import FrameHands, Hand, OpenUnit, Source, SourceSettings, Unit

__all__ = ["FrameHands", "Hand", "OpenUnit", "Source", "SourceSettings", "Unit", "open_source"]


def open_source(settings: SourceSettings) -> Source:
    """The source that the settings describe."""
    from pipeline.frames.sources.boxed_images import BoxedImages
    from pipeline.frames.sources.detected_video import DetectedVideo
    from pipeline.frames.sources.dexycb import DexYcb
    from pipeline.frames.sources.ho3d import Ho3d
    from pipeline.frames.sources.interhand import InterHand
    from pipeline.frames.sources.labelled_video import LabelledVideo

    kinds: dict[str, type[Source]] = {
        "labelled_video": LabelledVideo,
        "boxed_images": BoxedImages,
        "detected_video": DetectedVideo,
        "interhand": InterHand,
        "ho3d": Ho3d,
        "dexycb": DexYcb,
    }
    return kinds[settings.kind](settings)
