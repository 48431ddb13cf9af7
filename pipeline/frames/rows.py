"""From an opened source to rows: every hand of every frame is checked, cropped, and put into its frame group.

Checks come in the order of their cost. Confidence and size are known before any pixel is, so frames without a hand that is
wanted are not even read; labels are checked before the crop is cut; sharpness and change are measured on the crop.

Groups are formed last, of what is kept, a stretch of a clip at a time. Groups that were planned before the pixels are known
would lose members to every filter, and a resting hand, of which near-duplicate removal leaves a frame now and then, would
be left with groups of one.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from pipeline.errors import MissingError, RefusedError
from pipeline.frames.crop import box_fault, crop_camera, crop_matrix, cut, encode_jpeg, is_box, is_inside, mirror_joints
from pipeline.frames.groups import form_groups
from pipeline.frames.pieces import piece_number
from pipeline.frames.quality import QualitySettings, hash_distance, perceptual_hash, sharpness
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import FrameHands, Hand, Reader, Unit

Row = dict[str, Any]
MIN_DEPTH_M = 1e-3
MAX_HAND_M = 1.0
"""No hand is larger, so joints that span more are in other units."""
STRETCH_ROWS = 512
"""Rows of a clip that are held until groups are formed of them; some 3 MB at 160 px, and 17 s at 30 frames a second."""


class CropSettings(Protocol):
    """What decides how crops and groups look (a part of IngestSettings)."""

    @property
    def image_size(self) -> int: ...
    @property
    def box_margin(self) -> float: ...
    @property
    def jpeg_quality(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def group_stride_s(self) -> float: ...
    @property
    def quality(self) -> QualitySettings: ...


def unit_groups(
    reader: Reader,
    source_name: str,
    unit: Unit,
    split: str,
    settings: CropSettings,
    rejects: Rejects,
    videos: dict[str, Any] | None = None,
) -> Iterator[list[Row]]:
    """The rows of a unit (schema.SCHEMA), one list a frame group, each as soon as it is known.

    A unit with several hands gives one clip a hand, "<source>/<unit>#<track>". A unit of which a file is gone or may not be
    read is rejected; storage that does not answer raises StorageError. videos: takes how a video is shown and timed, by its
    name.
    """
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(reader.open(unit, rejects))
        except (MissingError, RefusedError) as error:
            rejects.add("missing_file" if isinstance(error, MissingError) else "refused_file", unit.name)
            return
        if opened is None:
            return
        if videos is not None and opened.video is not None:
            videos[unit.name] = opened.video
        unit = opened.unit or unit
        whole = _without_duplicates(opened.frames, unit.name, Rejects())
        clips = _clip_names(f"{source_name}/{unit.name}", whole)
        own = [frame for frame in opened.frames if unit.has(frame.index)]
        single = _without_duplicates(own, unit.name, rejects)
        frames = {frame.index: frame for frame in _wanted(single, clips, settings.quality, rejects)}
        last_frame = {hand.track: frame.index for frame in frames.values() for hand in frame.hands}
        ends = sorted(last_frame, key=lambda track: last_frame[track], reverse=True)
        stretches: dict[int, list[Row]] = {}
        hashes: dict[int, int] = {}
        piece = None
        for index, image in opened.read(list(frames)):
            if piece_number(index) != piece:  # another worker may have the frames before
                for track in sorted(stretches):
                    yield from _grouped(stretches.pop(track), settings)
                hashes.clear()
                piece = piece_number(index)
            while ends and last_frame[ends[-1]] < index:
                yield from _grouped(stretches.pop(ends.pop(), []), settings)
            for hand in frames[index].hands:
                row = _row(frames[index], hand, image, clips[hand.track], settings, hashes, rejects)
                if row is None:
                    continue
                stretch = stretches.setdefault(hand.track, [])
                stretch.append({**row, "source": source_name, "split": split})
                if len(stretch) >= STRETCH_ROWS:
                    groups, stretches[hand.track] = _full_groups(stretch, settings)
                    yield from groups
        for track in sorted(stretches):
            yield from _grouped(stretches[track], settings)


def _grouped(rows: list[Row], settings: CropSettings) -> list[list[Row]]:
    """Rows of one clip, ascending, in their groups."""
    times = [row["timestamp_s"] for row in rows]
    if None in times:  # images without a rate count as evenly spaced, and a group takes neighbours
        members = form_groups(range(len(rows)), settings.group_size, 0.0)
    else:
        members = form_groups(times, settings.group_size, settings.group_stride_s)
    return [[rows[position] for position in positions] for positions in members]


def _full_groups(rows: list[Row], settings: CropSettings) -> tuple[list[list[Row]], list[Row]]:
    """(groups, rows that begin the clip's next stretch because they do not fill one)."""
    groups = _grouped(rows, settings)
    rest = [row for group in groups if len(group) < settings.group_size for row in group]
    if len(rest) > STRETCH_ROWS // 2:  # the settings want groups that are longer than a stretch
        return groups, []
    full = [group for group in groups if len(group) == settings.group_size]
    return full, sorted(rest, key=lambda row: row["frame_index"])


def _clip_names(base: str, frames: list[FrameHands]) -> dict[int, str]:
    """{track: clip id}. They do not depend on what is left out later."""
    tracks = sorted({hand.track for frame in frames for hand in frame.hands})
    # The clip of a file named "a#1" must not get the name of the second hand in "a".
    plain = len(tracks) == 1 and "#" not in base
    return {track: base if plain else f"{base}#{track}" for track in tracks}


def _without_duplicates(frames: list[FrameHands], name: str, rejects: Rejects) -> list[FrameHands]:
    """A hand must be there once a frame, or names of rows would not be unique, and an entry given twice would be two clips."""
    result = []
    for frame in frames:
        tracks = {hand.track: hand for hand in reversed(frame.hands)}
        hands = {(hand.hand, *map(repr, hand.box)): hand for _, hand in sorted(tracks.items(), reverse=True)}
        if len(hands) < len(frame.hands):
            rejects.add("duplicate_hand", f"{name}/{frame.index:06d}", len(frame.hands) - len(hands))
        result.append(replace(frame, hands=sorted(hands.values(), key=lambda hand: hand.track)))
    return result


def _wanted(
    frames: list[FrameHands], clips: dict[int, str], quality: QualitySettings, rejects: Rejects
) -> Iterator[FrameHands]:
    """The frames with hands that are certain and large enough; frames without any are left out."""
    for frame in frames:
        hands = []
        for hand in frame.hands:
            reason = _unwanted(hand, quality)
            if reason is None:
                hands.append(hand)
            else:
                rejects.add(reason, f"{clips[hand.track]}/{frame.index:06d}")
        if hands:
            yield replace(frame, hands=hands)


def _unwanted(hand: Hand, quality: QualitySettings) -> str | None:
    """The reason to leave a hand out that shows without its pixels."""
    if quality.min_confidence is not None and hand.confidence is not None and hand.confidence < quality.min_confidence:
        return "low_confidence"
    if quality.min_hand_px is not None and is_box(hand.box):  # a box that is none is damage, counted later
        x0, y0, x1, y1 = hand.box
        if max(x1 - x0, y1 - y0) < quality.min_hand_px:
            return "small_hand"
    return None


def _row(
    frame: FrameHands,
    hand: Hand,
    image: Image.Image,
    clip_id: str,
    settings: CropSettings,
    hashes: dict[int, int],
    rejects: Rejects,
) -> Row | None:
    """One row without source and split, or None where the hand is left out (and counted).

    hashes: {track: hash of its last kept crop}, kept up to date.
    """
    frame_id = f"{clip_id}/{frame.index:06d}"
    labels = usable_labels(hand, image, hand.name or frame_id, rejects)
    if labels is None:
        return None
    joints, camera, joints_2d = labels
    mirrored = hand.hand == "left"
    margin = settings.box_margin if hand.margin is None else hand.margin
    matrix = crop_matrix(hand.box, settings.image_size, margin, mirrored)
    crop = cut(image, matrix, settings.image_size)
    if not _is_good_crop(crop, hand.track, 1 / margin, settings.quality, hashes, frame_id, rejects):
        return None
    return {
        "frame_id": frame_id,
        "clip_id": clip_id,
        "frame_index": frame.index,
        "timestamp_s": frame.time_s,
        "hand": hand.hand,
        "mirrored": mirrored,
        "jpeg": encode_jpeg(crop, settings.jpeg_quality),
        "crop": matrix,
        "joints_3d": mirror_joints(joints) if joints is not None and mirrored else joints,
        "camera": None if camera is None else crop_camera(camera, matrix),
        "confidence": hand.confidence,
        "joints_2d": None if joints_2d is None else joints_2d @ matrix[:, :2].T + matrix[:, 2],
    }


def _is_good_crop(
    crop: Image.Image,
    track: int,
    hand_fraction: float,
    quality: QualitySettings,
    hashes: dict[int, int],
    name: str,
    rejects: Rejects,
) -> bool:
    """Whether a crop is sharp enough and differs enough from its clip's last kept one; else it is counted.

    hand_fraction: side of the hand's box in crops.
    """
    if quality.min_sharpness is None and quality.min_change is None:
        return True
    luminance = crop.convert("L")
    if quality.min_sharpness is not None and sharpness(np.asarray(luminance), hand_fraction) < quality.min_sharpness:
        rejects.add("blurred", name)
        return False
    if quality.min_change is not None:
        value = perceptual_hash(luminance)
        last = hashes.get(track)
        if last is not None and hash_distance(last, value) < quality.min_change:
            rejects.add("near_duplicate", name)
            return False
        hashes[track] = value
    return True


class Labels(NamedTuple):
    """What is known of a hand in an image, checked; None where not given."""

    joints_3d: np.ndarray | None
    """(21, 3) metres, camera frame."""
    camera: np.ndarray | None
    """(3, 3)."""
    joints_2d: np.ndarray | None
    """(21, 2) pixels of the image."""


def usable_labels(hand: Hand, image: Image.Image, name: str, rejects: Rejects) -> Labels | None:
    """The hand's labels; None where box or labels cannot be used (and are counted)."""
    joints = camera = joints_2d = None
    if fault := box_fault(hand.box):
        reason = fault
    elif not is_inside(hand.box, *image.size):
        reason = hand.outside
    elif hand.joints_3d is not None and (joints := _checked_joints(hand.joints_3d)) is None:
        reason = "bad_joints"
    elif hand.camera is not None and (camera := _checked_camera(hand.camera)) is None:
        reason = "bad_camera"
    elif hand.joints_2d is not None and (joints_2d := _numbers(hand.joints_2d, (21, 2))) is None:
        reason = "bad_joints"
    else:
        return Labels(joints, camera, joints_2d)
    rejects.add(reason, name)
    return None


def _checked_joints(value: Any) -> np.ndarray | None:
    """(21, 3) float64, or None where they cannot be a hand before a camera, in metres."""
    joints = _numbers(value, (21, 3))
    if joints is None or joints[:, 2].min() < MIN_DEPTH_M or np.ptp(joints, axis=0).max() > MAX_HAND_M:
        return None
    return joints


def _checked_camera(value: Any) -> np.ndarray | None:
    """(3, 3) float64, or None where it is not a camera's matrix."""
    camera = _numbers(value, (3, 3))
    if camera is None or min(camera[0, 0], camera[1, 1]) <= 0 or camera[2].tolist() != [0, 0, 1]:
        return None
    return camera


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """float64 of a shape, all finite; None where the value is something else."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.shape == shape and np.isfinite(array).all() else None
