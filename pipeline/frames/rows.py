"""From an opened source to rows: every hand of every frame is cropped, checked, and put into its frame group."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pipeline.frames.crop import crop_camera, crop_matrix, cut, encode_jpeg, is_box, is_inside, mirror_joints
from pipeline.frames.groups import form_groups
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import FrameHands, Hand, Source, Unit

Row = dict[str, Any]
MIN_DEPTH_M = 1e-3


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


def unit_groups(
    source: Source, source_name: str, unit: Unit, split: str, settings: CropSettings, rejects: Rejects
) -> Iterator[list[Row]]:
    """The rows of a unit (schema.SCHEMA), one list a frame group, each group as soon as its last frame is cropped.

    A unit with several hands gives one clip a hand, "<source>/<unit>#<track>".
    """
    with source.open(unit, rejects) as opened:
        if opened is None:
            return
        frames = {frame.index: frame for frame in _without_duplicates(opened.frames, unit.name, rejects)}
        tracks = sorted({hand.track for frame in frames.values() for hand in frame.hands})
        base = f"{source_name}/{unit.name}"
        clips = {track: base if len(tracks) == 1 else f"{base}#{track}" for track in tracks}
        group_of, awaited = _plan_groups(list(frames.values()), tracks, settings)
        groups: list[list[Row]] = [[] for _ in awaited]
        for index, image in opened.read(list(frames)):
            for hand in frames[index].hands:
                clip_id = clips[hand.track]
                group = group_of[index, hand.track]
                row = _row(frames[index], hand, image, clip_id, settings, rejects)
                if row is not None:
                    groups[group].append({**row, "source": source_name, "split": split})
                awaited[group] -= 1
                if not awaited[group] and groups[group]:
                    yield groups[group]
                    groups[group] = []
        yield from (group for group in groups if group)  # those that lost a frame while reading


def _without_duplicates(frames: list[FrameHands], name: str, rejects: Rejects) -> list[FrameHands]:
    """A hand must be there once a frame, or names of rows would not be unique."""
    result = []
    for frame in frames:
        hands = {hand.track: hand for hand in reversed(frame.hands)}
        if len(hands) < len(frame.hands):
            rejects.add("duplicate_hand", f"{name}/{frame.index:06d}", len(frame.hands) - len(hands))
        result.append(replace(frame, hands=[hands[track] for track in sorted(hands)]))
    return result


def _plan_groups(
    frames: list[FrameHands], tracks: list[int], settings: CropSettings
) -> tuple[dict[tuple[int, int], int], list[int]]:
    """The group number of each (frame index, track), and the size of each group."""
    group_of: dict[tuple[int, int], int] = {}
    sizes: list[int] = []
    for track in tracks:
        mine = [frame for frame in frames if any(hand.track == track for hand in frame.hands)]
        times = [frame.time_s for frame in mine if frame.time_s is not None]
        if len(times) == len(mine):
            members = form_groups(times, settings.group_size, settings.group_stride_s)
        else:  # images without a rate count as evenly spaced, and a group takes neighbours
            members = form_groups(range(len(mine)), settings.group_size, 0.0)
        for positions in members:
            group_of.update({(mine[position].index, track): len(sizes) for position in positions})
            sizes.append(len(positions))
    return group_of, sizes


def _row(
    frame: FrameHands, hand: Hand, image: Image.Image, clip_id: str, settings: CropSettings, rejects: Rejects
) -> Row | None:
    """One row without source and split, or None where the hand cannot be used (and is counted)."""
    frame_id = f"{clip_id}/{frame.index:06d}"
    labels = usable_labels(hand, image, frame_id, rejects)
    if labels is None:
        return None
    joints, camera = labels
    mirrored = hand.hand == "left"
    matrix = crop_matrix(hand.box, settings.image_size, settings.box_margin, mirrored)
    return {
        "frame_id": frame_id,
        "clip_id": clip_id,
        "frame_index": frame.index,
        "timestamp_s": frame.time_s,
        "hand": hand.hand,
        "mirrored": mirrored,
        "jpeg": encode_jpeg(cut(image, matrix, settings.image_size), settings.jpeg_quality),
        "crop": matrix,
        "joints_3d": mirror_joints(joints) if joints is not None and mirrored else joints,
        "camera": None if camera is None else crop_camera(camera, matrix),
        "confidence": hand.confidence,
    }


def usable_labels(
    hand: Hand, image: Image.Image, name: str, rejects: Rejects
) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """The hand's (joints, camera), see `_checked_labels`; None where box or labels cannot be used (and are counted)."""
    if not is_box(hand.box):
        rejects.add("bad_box", name)
    elif not is_inside(hand.box, *image.size):
        rejects.add("box_outside_image", name)
    elif (labels := _checked_labels(hand)) is None:
        rejects.add("bad_joints", name)
    else:
        return labels
    return None


def _checked_labels(hand: Hand) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """(joints (21, 3), camera (3, 3)), each None where not given; None where one of them is not usable."""
    try:
        joints = None if hand.joints_3d is None else np.asarray(hand.joints_3d, dtype=np.float64)
        camera = None if hand.camera is None else np.asarray(hand.camera, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if joints is not None and (
        joints.shape != (21, 3) or not np.isfinite(joints).all() or joints[:, 2].min() < MIN_DEPTH_M
    ):
        return None
    if camera is not None and (
        camera.shape != (3, 3) or not np.isfinite(camera).all() or min(camera[0, 0], camera[1, 1]) <= 0
    ):
        return None
    return joints, camera
