"""What ingest leaves out, counted by reason, with names. Nothing is left out silently.

Reasons are of three kinds: damage that costs a whole clip, damage that costs a frame or one hand of it, and what is left out
by choice: hands that the settings do not want (quality.py), and frames in which a detector finds none (see `choices`). Only
damage counts toward source.max_reject_fraction.
"""

from collections.abc import Iterable, Mapping
from typing import Any

CLIP_REASONS = {
    "unreadable_video": "the video cannot be opened or holds no video stream",
    "missing_labels": "there is no labels file beside the video",
    "labels_mismatch": "the labels file is not valid, or its frame count or size is not the video's",
    "missing_file": "a file of the clip was listed, but gone when it was to be read",
    "refused_file": "a file of the clip may not be read (permission)",
}
"""Reasons that cost a whole clip; each counts once."""

FRAME_REASONS = {
    "broken_video_tail": "the video breaks off before the frame",
    "damaged_frame": "the video is damaged at the frame, or at one that it may be predicted from, and goes on later",
    "missing_image": "the labels name an image that is not there",
    "refused_image": "the image may not be read (permission)",
    "unreadable_image": "the image is truncated or not an image",
    "huge_image": "the image has more pixels than a camera gives; it is not decoded",
    "no_hand": "no hand was given or found in the frame",
    "missing_frame_label": "a label is for a frame that the video does not have",
    "short_track": "the hand was seen in too few frames to be trusted",
    "other_hand": "the detector took the hand for a left one in this frame and for a right one in most others, or the other way round: "
    "its joints (source.labels) have wrong depths",
    "duplicate_hand": "two hands of the frame have the same track, or the same box",
    "bad_box": "the box is not four finite numbers, or has no area",
    "fraction_box": "the box lies within 0..1: fractions of the image? boxes are in pixels",
    "crowd": "the box is of a crowd, not of one hand",
    "box_outside_image": "more than half of the box lies outside the image",
    "bad_joints": "the joints are not 21 x 3 finite numbers (in the image: 21 x 2), lie behind the camera, or span more than a metre",
    "bad_camera": "the camera is not a 3 x 3 matrix of finite numbers with focal lengths above 0 and 0 0 1 below",
    "bad_labels": "the labels of the image are missing, damaged, or not of the published form",
    "partial_joints": "not all joints of the hand are annotated, and the published box is not the hand's own",
    "wrong_size": "the image is not of the size that its labels are for",
    "wrong_unit": "the joints in 3D span more than a metre or less than a centimetre (metres or millimetres? "
    "source.labelled_images.unit), or those in 2D less than two pixels (fractions of the image?)",
    "joints_behind_camera": "joints lie behind the camera: they must be in its frame (x right, y down, z forward), not "
    "relative to the wrist, nor in OpenGL's axes",
    "missing_camera": "there are joints in 3D, but no camera to project them with",
    "joints_outside_image": "more than half of the box around the joints lies outside the image: labels for another size of "
    "it, in other units or axes (x right, y down)",
    "joints_outside_box": "most joints lie outside the hand's own box (x0, y0, x1, y1; not width and height)",
    "labels_disagree": "the joints in 2D are not where the camera sees those in 3D",
}
"""Reasons that cost a frame, or one hand of a frame."""

CHOICE_REASONS = {
    "low_confidence": "the hand's confidence is below quality.min_confidence",
    "small_hand": "the hand's box is smaller than quality.min_hand_px",
    "blurred": "the hand is less sharp than quality.min_sharpness",
    "near_duplicate": "the crop differs from the clip's last kept one by less than quality.min_change",
}
"""Reasons for which a good hand is left out, because the settings ask for it."""

DETECTOR_KINDS = ("detected_video", "image_folder")
"""Kinds of sources of which nobody said that a frame shows a hand, so that one without is no damage."""

UNSEEN_REASONS = {
    *CLIP_REASONS,
    *(
        "broken_video_tail",
        "damaged_frame",
        "missing_image",
        "refused_image",
        "unreadable_image",
        "huge_image",
        "no_hand",
    ),
}
"""Reasons that leave open, or say, that there is no hand."""

REASONS = {**CLIP_REASONS, **FRAME_REASONS, **CHOICE_REASONS}

MAX_EXAMPLES = 20


def choices(kind: str) -> set[str]:
    """The reasons that are a choice, and not damage, in a source of this kind."""
    return {*CHOICE_REASONS, *(("no_hand",) if kind in DETECTOR_KINDS else ())}


class Rejects:
    """Counts and example names by reason. Those of several tasks merge."""

    def __init__(self, max_examples: int = MAX_EXAMPLES) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}
        self.notes: list[str] = []
        """What else is worth saying about the input, one line each: files that are not read, and the like."""
        self._max_examples = max_examples

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count one more reject (or `count` behind one name)."""
        if reason not in REASONS:
            raise KeyError(reason)
        self.counts[reason] = self.counts.get(reason, 0) + count
        names = self.examples.setdefault(reason, [])
        if len(names) < self._max_examples:
            names.append(name)

    def merge(self, other: "Rejects") -> None:
        """Add another's counts, notes and, while there is room, examples."""
        self.notes += other.notes
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = self.examples.setdefault(reason, [])
            names.extend(other.examples[reason][: self._max_examples - len(names)])

    @property
    def num_clips(self) -> int:
        """Whole clips left out."""
        return _total(self.counts, CLIP_REASONS)

    @property
    def num_frames(self) -> int:
        """Single frames (or hands of a frame) left out because they could not be used."""
        return _total(self.counts, FRAME_REASONS)

    def text(self) -> str:
        """For people: "no_hand 12 (e.g. a/000003), bad_box 1 (e.g. b/000001)"."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{reason} {count} (e.g. {self.examples[reason][0]})" for reason, count in ordered)

    def num_chosen(self, kind: str) -> int:
        """What is left out by choice of a source of this kind."""
        return _total(self.counts, choices(kind))

    def num_damaged(self, kind: str) -> int:
        """Frames (or hands of a frame) left out of a source of this kind because they could not be used."""
        return _total(self.counts, FRAME_REASONS.keys() - choices(kind))

    def main_reason(self, kind: str) -> str:
        """For people: what the most frequent reason means, of damage where there is some."""
        damage = self.counts.keys() - choices(kind)
        reason = max(damage or self.counts, key=lambda name: (self.counts[name], name))
        return f"{reason}: {REASONS[reason]}"

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
