"""What prediction reads: images, video, or a frame set, in pieces that tasks can take."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError
from pipeline.frames.crop import FOCAL_FACTOR
from pipeline.frames.detect import DetectorSettings, require_mediapipe, shared_detector
from pipeline.frames.listing import IMAGE_SUFFIXES, VIDEO_SUFFIXES, list_inputs, needs, nothing_here
from pipeline.frames.manifest import Manifest, has_manifest, read_manifest
from pipeline.frames.read_items import decode_frames
from pipeline.frames.rejects import Rejects
from pipeline.frames.shards import opened, read_rows
from pipeline.frames.sources import Hand, SourceSettings, Unit
from pipeline.frames.sources.boxed_images import BoxedImagesSettings
from pipeline.frames.sources.detected_video import DetectedVideoSettings
from pipeline.frames.sources.images import read_images
from pipeline.frames.sources.labelled_video import LabelledVideoSettings
from pipeline.frames.track import TrackSettings
from pipeline.geometry import default_camera
from pipeline.prediction.cameras import Cameras
from pipeline.prediction.hands import CropPlan, Row, bone_length, camera_of_source, hand_row
from pipeline.storage import absolute, is_file, join, preflight
from pipeline.views import CROP_MARGIN

Kind = Literal["images", "video", "frame set"]

IMAGES_PER_PIECE = 32


class InputSettings(Settings):
    """What is read."""

    input: Uri
    """URI of a video, an image, a folder of either, or a frame set."""
    detector: DetectorSettings = DetectorSettings()
    """Finds the hands in images and video; detector.model is MediaPipe's hand_landmarker.task."""
    boxes: Uri | None = None
    """Images only, instead of a detector: URI of a JSON list of {"file", "boxes_xyxy", "hands"}, with files relative to
    `input`."""
    default_hand: Literal["right", "left"] = "right"
    """Which hand it is where the boxes file does not say so."""
    track: TrackSettings = TrackSettings()
    """Video with a detector only: how detections become tracks."""
    fps: float | None = Field(default=None, gt=0)
    """Video only: largest number of frames to take from a second. none takes all. Not together with `stride`."""
    stride: int = Field(default=1, ge=1)
    """Video only: take every n-th frame."""
    split: str | None = None
    """Frame sets only: the split to predict. none takes all."""
    cameras: Uri | None = None
    """URI of a JSON file with one camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] (pixels of the image) for all
    files, or {name of the image or video: matrix}. Where neither this file nor the labels give a camera, one is
    assumed."""
    focal_factor: float = Field(default=FOCAL_FACTOR, gt=0.1, le=10)
    """Focal length of an assumed camera, as a multiple of the longer side of the image. 1.2 is COLMAP's default;
    webcams have 0.7 to 0.9."""

    def video_source(self) -> SourceSettings:
        """The source that finds the hands of videos: a detector, or the labels beside them."""
        if self.detector.model is None:
            return LabelledVideoSettings(uri=self.input, fps=self.fps, stride=self.stride)
        return DetectedVideoSettings(
            uri=self.input, fps=self.fps, stride=self.stride, detector=self.detector, track=self.track
        )


class Piece(NamedTuple):
    """One piece of work. Plain JSON values only."""

    name: str
    uri: str
    num_frames: int
    """Expected, for progress."""
    content: dict[str, Any]
    """images: {"entries"}; video: {"unit"}; frame set: {"shard", "row_group"}."""


def kind_of(uri: str) -> Kind:
    """What a URI holds, by its manifest or its files' names. Raises DataError where that is not clear."""
    if is_file(uri):
        lower = uri.lower()
        if lower.endswith(VIDEO_SUFFIXES):
            return "video"
        if lower.endswith(IMAGE_SUFFIXES):
            return "images"
        raise DataError(
            f"{uri}: neither a video ({', '.join(VIDEO_SUFFIXES)}) nor an image ({', '.join(IMAGE_SUFFIXES)})"
            + needs("." + lower.rpartition(".")[2])
        )
    if has_manifest(uri):
        return "frame set"
    listing = list_inputs(uri, VIDEO_SUFFIXES + IMAGE_SUFFIXES)
    if not listing.sizes:
        raise nothing_here(uri, "video, image or frame set", VIDEO_SUFFIXES + IMAGE_SUFFIXES, listing)
    num_videos = sum(path.lower().endswith(VIDEO_SUFFIXES) for path in listing.sizes)
    if 0 < num_videos < len(listing.sizes):
        num_images = len(listing.sizes) - num_videos
        raise DataError(f"{uri}: holds {num_videos} videos and {num_images} images; give folders of one kind")
    return "video" if num_videos else "images"


def check(settings: InputSettings, kind: Kind) -> None:
    """Raises SettingsError where the settings do not fit the input, DataError where something is missing."""
    given = settings.detector.model is not None, settings.boxes is not None
    if kind == "frame set":
        if any(given):
            raise SettingsError(
                f"{settings.input} is a frame set, its hands are found: leave out detector.model and boxes"
            )
        if settings.fps or settings.stride > 1 or settings.cameras:
            raise SettingsError(f"{settings.input} is a frame set: fps, stride and cameras have no meaning for it")
    elif settings.split is not None:
        raise SettingsError(f"setting 'split' is for frame sets; {settings.input} holds {kind}")
    if kind == "images":
        if sum(given) != 1:
            raise SettingsError(
                "images need either detector.model (hand_landmarker.task) or a boxes file, to find the hands"
            )
        if settings.fps or settings.stride > 1:
            raise SettingsError("fps and stride are for video")
    if kind == "video" and settings.boxes is not None:
        raise SettingsError(
            "a boxes file is for images; video needs detector.model (hand_landmarker.task), or a <stem>.labels.json beside it"
        )
    if settings.detector.model is not None:
        require_mediapipe()
        preflight(settings.detector.model)
    Cameras(settings.cameras)


def list_pieces(settings: InputSettings, kind: Kind, rejects: Rejects) -> list[Piece]:
    """All pieces, in an order that depends on names only."""
    if kind == "frame set":
        return _frame_set_pieces(settings)
    if kind == "images":
        return _image_pieces(settings, rejects)
    reader = settings.video_source().reader()
    pieces = [
        Piece(unit.name, unit.uri, unit.num_frames, {"unit": [unit.name, unit.uri, unit.num_frames]})
        for unit in reader.list_units(rejects)
    ]
    rejects.notes += Cameras(settings.cameras).unused([piece.name for piece in pieces])
    return pieces


def read_piece(settings: InputSettings, kind: Kind, piece: Piece, plan: CropPlan, rejects: Rejects) -> Iterator[Row]:
    """The hands of a piece, frame by frame."""
    if kind == "frame set":
        return _frame_set_rows(settings, piece, plan, rejects)
    if kind == "images":
        return _image_rows(settings, piece, plan, rejects)
    return _video_rows(settings, piece, plan, rejects)


# --- images: every one for itself


def _image_pieces(settings: InputSettings, rejects: Rejects) -> list[Piece]:
    single = is_file(settings.input)
    root, _, file = absolute(settings.input).rpartition("/") if single else (absolute(settings.input), "", "")
    entries: list[dict[str, Any]] = []
    if settings.boxes is not None:
        reader = BoxedImagesSettings(uri=root, boxes=settings.boxes).reader()
        for unit in reader.list_units(Rejects() if single else rejects):
            folder = "" if unit.uri == root else unit.name + "/"
            entries += [{**entry, "file": folder + entry["file"]} for entry in unit.entries or []]
        if single and not any(entry["file"] == file for entry in entries):
            raise DataError(f"{settings.boxes}: names no image {file}")
    else:
        listing = list_inputs(settings.input, IMAGE_SUFFIXES, known=(settings.cameras,))
        rejects.notes += listing.notes
        entries = [{"file": name} for name in listing.sizes]
    if single:
        entries = [entry for entry in entries if entry["file"] == file]
    rejects.notes += Cameras(settings.cameras).unused([entry["file"] for entry in entries])
    chunks = [entries[i : i + IMAGES_PER_PIECE] for i in range(0, len(entries), IMAGES_PER_PIECE)]
    return [Piece(chunk[0]["file"], root, len(chunk), {"entries": chunk}) for chunk in chunks]


def _image_rows(settings: InputSettings, piece: Piece, plan: CropPlan, rejects: Rejects) -> Iterator[Row]:
    cameras = Cameras(settings.cameras)
    entries = piece.content["entries"]
    unit = Unit("", piece.uri, len(entries), entries)
    for index, image in read_images(unit, rejects, range(len(entries))):
        name = entries[index]["file"]
        if "boxes" in entries[index]:
            pairs = zip(entries[index]["boxes"], entries[index]["hands"], strict=True)
            hands = [Hand(k, hand or settings.default_hand, box) for k, (box, hand) in enumerate(pairs)]
        else:
            assert settings.detector.model is not None  # see check
            found = shared_detector(settings.detector.model, settings.detector)(image)
            hands = [Hand(k, d.hand, d.box, confidence=d.score) for k, d in enumerate(found)]
        if not hands:
            rejects.add("no_hand", name)
        for hand in hands:
            row = hand_row(
                image,
                hand,
                plan,
                rejects,
                name=name,
                frame_index=0,
                timestamp_s=None,
                camera=cameras.find(name),
                focal_factor=settings.focal_factor,
            )
            if row is not None:
                yield row


# --- video


def _video_rows(settings: InputSettings, piece: Piece, plan: CropPlan, rejects: Rejects) -> Iterator[Row]:
    camera = Cameras(settings.cameras).find(piece.name)
    reader = settings.video_source().reader()
    with reader.open(Unit(*piece.content["unit"]), rejects) as opened:
        if opened is None:
            return
        frames = {frame.index: frame for frame in opened.frames}
        for index, image in opened.read(list(frames)):
            for hand in frames[index].hands:
                row = hand_row(
                    image,
                    hand,
                    plan,
                    rejects,
                    name=piece.name,
                    frame_index=index,
                    timestamp_s=frames[index].time_s,
                    camera=camera,
                    focal_factor=settings.focal_factor,
                )
                if row is not None:
                    yield row


# --- frame sets

_COLUMNS = [
    "frame_id",
    "clip_id",
    "frame_index",
    "timestamp_s",
    "hand",
    "jpeg",
    "crop",
    "joints_3d",
    "camera",
    "confidence",
    "source",
]


def _frame_set_pieces(settings: InputSettings) -> list[Piece]:
    manifest = read_manifest(settings.input)
    shards = [shard for shard in manifest.shards if settings.split in (None, shard.split)]
    if not shards:
        raise DataError(
            f"{settings.input}: split '{settings.split}' has no frames; the set has {manifest.counts_text()}"
        )
    return [
        Piece(
            shard.path, settings.input, num_rows, {"shard": shard.path, "row_group": group, "size": manifest.image_size}
        )
        for shard in shards
        for group, num_rows in enumerate(shard.row_groups)
    ]


def _frame_set_rows(settings: InputSettings, piece: Piece, plan: CropPlan, rejects: Rejects) -> Iterator[Row]:
    with opened(join(settings.input, piece.content["shard"])) as file:
        table = read_rows(file, _COLUMNS, [piece.content["row_group"]])
    size = piece.content["size"]
    images, problems = decode_frames(table["jpeg"], size)
    margins = box_margins(read_manifest(settings.input))
    for stored, image, problem in zip(table.drop(["jpeg"]).to_pylist(), images, problems, strict=True):
        if problem:
            rejects.add("unreadable_image", stored["frame_id"])
            continue
        matrix = np.array(stored["crop"], dtype=np.float64).reshape(2, 3)
        known = stored["camera"] is not None
        crop_k = np.array(stored["camera"] if known else default_camera(1, size)[0].numpy(), dtype=np.float64)
        side = size / margins.get(stored["source"], CROP_MARGIN)
        joints = None if stored["joints_3d"] is None else np.array(stored["joints_3d"]).reshape(21, 3)
        yield {
            "name": stored["clip_id"],
            "frame_id": stored["frame_id"],
            "frame_index": stored["frame_index"],
            "timestamp_s": np.nan if stored["timestamp_s"] is None else stored["timestamp_s"],
            "hand": stored["hand"],
            "track": 0,
            "image": image,
            "crop": matrix,
            "camera": camera_of_source(crop_k.reshape(3, 3), matrix),
            "camera_source": "given" if known else "default",
            "box": np.array([size - side, size - side, size + side, size + side]) / 2,
            "confidence": np.nan if stored["confidence"] is None else stored["confidence"],
            "bone_length_m": np.nan if joints is None else bone_length(joints, plan.bone),
        }


def box_margins(manifest: Manifest) -> dict[str, float]:
    """Side of the stored crops in hand boxes, by source, where the manifest says."""
    found = {name: record.settings.get("box_margin") for name, record in manifest.settings.items()}
    return {name: float(margin) for name, margin in found.items() if margin}
