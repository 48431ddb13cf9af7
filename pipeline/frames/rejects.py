"""What ingest leaves out, counted by reason, with names. Nothing is left out silently."""

from collections.abc import Iterable, Mapping
from typing import Any

CLIP_REASONS = {
    "unreadable_video": "the video cannot be opened or holds no video stream",
    "missing_labels": "there is no labels file beside the video",
    "labels_mismatch": "the labels file is not valid, or its frame count or size is not the video's",
}
"""Reasons that cost a whole clip; each counts once."""

FRAME_REASONS = {
    "broken_video_tail": "the video breaks off before the frame",
    "missing_image": "the boxes file names an image that is not there",
    "unreadable_image": "the image is truncated or not an image",
    "missing_frame_label": "a label is for a frame that the video does not have",
    "no_hand": "no hand was given or found in the frame",
    "short_track": "the hand was seen in too few frames to be trusted",
    "duplicate_hand": "two hands of the frame have the same track",
    "bad_box": "the box is not four finite numbers, or has no area",
    "box_outside_image": "more than half of the box lies outside the image",
    "bad_joints": "joints or camera are not finite numbers of the right count, or lie behind the camera",
}
"""Reasons that cost a frame, or one hand of a frame."""

MAX_EXAMPLES = 20


class Rejects:
    """Counts and example names by reason. Those of several tasks merge."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count one more reject (or `count` behind one name)."""
        if reason not in CLIP_REASONS and reason not in FRAME_REASONS:
            raise KeyError(reason)
        self.counts[reason] = self.counts.get(reason, 0) + count
        names = self.examples.setdefault(reason, [])
        if len(names) < MAX_EXAMPLES:
            names.append(name)

    def merge(self, other: "Rejects") -> None:
        """Add another's counts and, while there is room, examples."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = self.examples.setdefault(reason, [])
            names.extend(other.examples[reason][: MAX_EXAMPLES - len(names)])

    @property
    def num_clips(self) -> int:
        """Whole clips left out."""
        return _total(self.counts, CLIP_REASONS)

    @property
    def num_frames(self) -> int:
        """Single frames (or hands of a frame) left out."""
        return _total(self.counts, FRAME_REASONS)

    def text(self) -> str:
        """For people: "no_hand 12 (e.g. a/000003), bad_box 1 (e.g. b/000001)"."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{reason} {count} (e.g. {self.examples[reason][0]})" for reason, count in ordered)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"counts": dict(sorted(self.counts.items())), "examples": dict(sorted(self.examples.items()))}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Rejects":
        """Back from `to_json`."""
        rejects = cls()
        rejects.counts.update(value["counts"])
        rejects.examples.update({reason: list(names) for reason, names in value["examples"].items()})
        return rejects


def _total(counts: Mapping[str, int], reasons: Iterable[str]) -> int:
    return sum(counts.get(reason, 0) for reason in reasons)
