"""A tiny InterHand2.6M 1.0 in the layout and units of its home page (https://mks0601.github.io/InterHand2.6M/)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.frames.sources.dots import FINGERS, draw, hand, jpeg

WIDTH, HEIGHT = 334, 512
SEQUENCES = {("0", "0390_dh_touchROM"): "interacting", ("0", "0007_thumbup_normal"): "left", ("3", "ROM01"): "right"}
CAMERAS = ("400026", "410053")
FRAMES = (2017, 2035, 69148)
# skeleton.txt: of the right hand, then of the left, each finger from its tip (4) to its base (1), then the wrist.
NAMES = {"4": "tip", "3": "dip", "2": "pip", "1": "mcp"}
SKELETON = [
    name for side in "rl" for name in (*(f"{side}_{finger}{n}" for finger in FINGERS for n in "4321"), f"{side}_wrist")
]


def rotation(camera: str) -> np.ndarray:
    """Of the world into a camera."""
    angle = 0.4 if camera == CAMERAS[0] else -2.1
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def write_interhand(root: Path, split: str = "train", folder: str | None = None) -> Path:
    """Two cameras of three sequences of two captures; three images each."""
    position = {camera: np.array([300.0, -40.0, 80.0]) * (1 + n) for n, camera in enumerate(CAMERAS)}
    focal, princpt = np.array([1263.0, 1261.0]), np.array([165.3, 258.7])
    published = np.array([[focal[0], 0, princpt[0]], [0, focal[1], princpt[1]], [0, 0, 1]])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    joints: dict[str, Any] = {}
    for capture, sequence in SEQUENCES:
        hand_type = SEQUENCES[capture, sequence]
        for number, camera in enumerate(CAMERAS):
            for index, frame in enumerate(FRAMES):
                # In the world's frame the hands of both cameras would have to be the same; so each camera has frames of its own.
                frame_idx = frame + number + 100 * list(SEQUENCES).index((capture, sequence))
                sides = ["right", "left"] if hand_type == "interacting" else [hand_type]
                hands = {side: hand(side, index, depth=1.1, y=0.07 if side == "left" else -0.08) for side in sides}
                file_name = f"Capture{capture}/{sequence}/cam{camera}/image{frame_idx}.jpg"
                path = root / "images" / split / file_name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(draw(list(hands.values()), published, WIDTH, HEIGHT)))
                world, valid = np.ones((42, 3)), np.zeros((42, 1), bool)
                for joint, name in enumerate(SKELETON):
                    side = {"r": "right", "l": "left"}[name[0]]
                    if side in hands:
                        finger, part = name[2:-1], name[-1]
                        key = "wrist" if name.endswith("wrist") else f"{finger}_{NAMES[part]}"
                        # X_camera = R (X_world - campos), in millimetres
                        world[joint] = rotation(camera).T @ (1000 * hands[side][key]) + position[camera]
                        valid[joint] = True
                number_of = len(images)
                images.append(
                    {
                        "id": 326750 - number_of,
                        "file_name": file_name,
                        "width": WIDTH,
                        "height": HEIGHT,
                        "capture": int(capture),
                        "subject": int(capture),
                        "seq_name": sequence,
                        "camera": camera,
                        "frame_idx": frame_idx,
                    }
                )
                annotations.append(
                    {
                        "id": 326750 - number_of,
                        "image_id": 326750 - number_of,
                        "bbox": [50.25, 80.5, 240.0, 330.0],
                        "joint_valid": valid.astype(int).tolist(),
                        "hand_type": hand_type,
                        "hand_type_valid": 1,
                    }
                )
                joints.setdefault(capture, {})[str(frame_idx)] = {
                    "world_coord": world.tolist(),
                    "joint_valid": valid.tolist(),
                    "hand_type": hand_type,
                    "hand_type_valid": True,
                    "seq": sequence,
                }
    cameras = {
        capture: {
            "campos": {camera: position[camera].tolist() for camera in CAMERAS},
            "camrot": {camera: rotation(camera).tolist() for camera in CAMERAS},
            "focal": {camera: focal.tolist() for camera in CAMERAS},
            "princpt": {camera: princpt.tolist() for camera in CAMERAS},
        }
        for capture in ("0", "3")
    }
    where = root / "annotations" / (folder or split)
    where.mkdir(parents=True)
    data = {"images": images, "annotations": annotations}
    for kind, value in (("data", data), ("camera", cameras), ("joint_3d", joints)):
        (where / f"InterHand2.6M_{split}_{kind}.json").write_text(json.dumps(value))
    return root
