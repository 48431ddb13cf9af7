"""A tiny YouTube 3D Hands in the layout and units of its README and load_db.py
(https://github.com/snap-research/arielai_youtube_3d_hands), and a regressor of MANO's shape.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.frames.sources.dots import FREIHAND, draw, hand, pixels_of

WIDTH, HEIGHT = 320, 240
CAMERA = np.array([[420.0, 0.0, 160.0], [0.0, 420.0, 120.0], [0.0, 0.0, 1.0]])
# MANO's skeleton, as its model file lists it; the tips are vertices of the mesh.
SKELETON = [
    "wrist",
    *(f"{f}_{p}" for f in ("index", "middle", "pinky", "ring", "thumb") for p in ("mcp", "pip", "dip")),
]
TIPS = {"thumb_tip": 744, "index_tip": 320, "middle_tip": 443, "ring_tip": 555, "pinky_tip": 672}


def regressor() -> np.ndarray:
    """(16, 778): joint j is the middle of vertices 2j and 2j + 1."""
    matrix = np.zeros((16, 778))
    for joint in range(16):
        matrix[joint, 2 * joint : 2 * joint + 2] = 0.5
    return matrix


def mesh(points: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """(778, 3): x, y in pixels. Vertices that no joint depends on reach 4 px further than the joints."""
    rng = np.random.default_rng(seed)
    cloud = np.array([points[name] for name in FREIHAND])
    vertices = rng.uniform(cloud.min(0) - 4, cloud.max(0) + 4, size=(778, 2))
    vertices[100], vertices[101] = cloud.min(0) - 4, cloud.max(0) + 4
    for joint, name in enumerate(SKELETON):
        offset = rng.uniform(-2, 2, size=2)
        vertices[2 * joint], vertices[2 * joint + 1] = points[name] - offset, points[name] + offset
    for name, vertex in TIPS.items():
        vertices[vertex] = points[name]
    return np.column_stack([vertices, rng.normal(size=778)])


def write_youtube3d(root: Path, videos: dict[str, int], suffix: str = "png") -> Path:
    """youtube_train.json and frames of `videos` = {id: frames}; frame 0 of each has a left hand, too.

    suffix: of the files; the annotations always say png.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video, count in videos.items():
        folder = root / "youtube" / video / "video" / "frames"
        folder.mkdir(parents=True)
        for frame in range(count):
            hands = {"right": hand("right", frame, x=-0.1)}
            if frame == 0:
                hands["left"] = hand("left", frame, x=0.1)
            number = 9 + 30 * frame
            image_id = len(images)
            name = f"youtube/{video}/video/frames/{number}.png"
            images.append({"name": name, "width": WIDTH, "height": HEIGHT, "id": image_id})
            picture = draw(list(hands.values()), CAMERA, WIDTH, HEIGHT, radius=5.0)
            picture.save(folder / f"{number}.{suffix}", quality=98)
            for side, joints in hands.items():
                annotations.append(
                    {
                        "vertices": mesh(pixels_of(joints, CAMERA), len(annotations)).tolist(),
                        "is_left": int(side == "left"),
                        "image_id": image_id,
                        "id": len(annotations),
                    }
                )
    (root / "youtube_train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    np.save(root / "regressor.npy", regressor())
    return root
