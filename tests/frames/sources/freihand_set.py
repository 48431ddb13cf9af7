"""A tiny FreiHAND v2 in the layout and units of its authors' scripts (https://github.com/lmb-freiburg/freihand)."""

import json
from pathlib import Path

import numpy as np

from tests.frames.sources.dots import draw, hand, jpeg

CAMERA = np.array([[480.0, 0.0, 112.0], [0.0, 482.0, 112.0], [0.0, 0.0, 1.0]])


def write_freihand(
    root: Path, part: str = "training", num_labels: int = 3, num_versions: int = 4, stride: int | None = None
) -> Path:
    """<part>_{K,xyz,scale,mano}.json and <part>/rgb; version v of label i is image i + v * stride.

    stride: None for as many as there are labels, as published; 32,560 for a cut of the published set.
    """
    images = root / part / "rgb"
    images.mkdir(parents=True)
    hands = [hand("right", number, x=0.003 * number) for number in range(num_labels)]
    xyz = np.array([list(joints.values()) for joints in hands])
    content = {
        "K": [CAMERA.tolist()] * num_labels,
        "xyz": xyz.tolist(),
        "scale": np.linalg.norm(xyz[:, 9] - xyz[:, 10], axis=1).tolist(),
        "mano": [[[0.0] * 61]] * num_labels,
    }
    for name, value in content.items():
        (root / f"{part}_{name}.json").write_text(json.dumps(value))
    for version in range(num_versions):
        for label, joints in enumerate(hands):
            (images / f"{label + version * (stride or num_labels):08d}.jpg").write_bytes(
                jpeg(draw([joints], CAMERA, 224, 224))
            )
    return root
