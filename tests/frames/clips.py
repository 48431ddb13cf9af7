"""Tiny labelled videos and image folders for tests: 21 white dots on a dark, slowly moving square."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, FPS = 160, 120, 10
CAMERA = np.array([[200.0, 0.0, 80.0], [0.0, 190.0, 60.0], [0.0, 0.0, 1.0]])


def joints_at(index: int) -> np.ndarray:
    """(21, 3) joints in metres, in front of the camera; they project onto well separated pixels and move with `index`."""
    u = np.array([52.0 + 14 * (k % 5) for k in range(21)]) + 0.7 * index
    v = np.array([30.0 + 12 * (k // 5) for k in range(21)]) + 0.4 * index
    z = 0.4 + 0.01 * np.arange(21)
    pixels = np.stack([u * z, v * z, z], axis=1)
    return pixels @ np.linalg.inv(CAMERA).T


def project(joints: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """(21, 3), (3, 3) -> (21, 2) pixels."""
    pixels = joints @ camera.T
    return pixels[:, :2] / pixels[:, 2:]


def draw(points: Sequence[np.ndarray], width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 (height, width, 3): dots of radius 2 around continuous coordinates, with soft edges."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    image = np.full((height, width), 40.0)
    for cloud in points:
        for px, py in cloud:
            image = np.maximum(image, 40 + 215 * np.clip(2.5 - np.hypot(x - px, y - py), 0, 1))
    return np.repeat(image.astype(np.uint8)[..., None], 3, axis=2)


def write_video(path: Path, images: Sequence[np.ndarray], fps: int = FPS, **options: str) -> None:
    """H.264, nearly lossless."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4", "g": "6"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def hand_label(index: int, hand: str = "right", track: int = 0, **changes: Any) -> dict[str, Any]:
    """The label of one hand in frame `index`."""
    joints = joints_at(index)
    pixels = project(joints, CAMERA)
    box = [*pixels.min(0).tolist(), *pixels.max(0).tolist()]
    return {"track": track, "hand": hand, "box": box, "joints_3d": joints.tolist(), **changes}


def write_clip(
    folder: Path, name: str, num_frames: int = 8, hand: str = "right", labels: dict[str, Any] | None = None
) -> Path:
    """<folder>/<name>.mp4 and its labels file. labels: replaces top-level entries of the labels file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, [draw([project(joints_at(i), CAMERA)]) for i in range(num_frames)])
    content = {
        "version": 1,
        "fps": float(FPS),
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": num_frames,
        "joint_order": "freihand",
        "camera": CAMERA.tolist(),
        "license": None,
        "frames": [{"index": i, "hands": [hand_label(i, hand)]} for i in range(num_frames)],
        **(labels or {}),
    }
    path.with_name(f"{path.stem}.labels.json").write_text(json.dumps(content))
    return path


def write_images(root: Path, folders: dict[str, int], boxes_per_image: int = 1) -> list[dict[str, Any]]:
    """Image folders with `folders` = {name: images}, and the entries of their boxes file."""
    entries = []
    for folder, count in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            points = project(joints_at(index), CAMERA)
            Image.fromarray(draw([points])).save(root / folder / f"{index:05d}.jpg", quality=95)
            box = [*points.min(0).tolist(), *points.max(0).tolist()]
            boxes = [[box[0] + 9 * k, box[1], box[2] + 9 * k, box[3]] for k in range(boxes_per_image)]
            entries.append({"file": f"{folder}/{index:05d}.jpg", "boxes_xyxy": boxes})
    return entries
