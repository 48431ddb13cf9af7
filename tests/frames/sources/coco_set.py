"""Tiny sets in COCO's format (https://cocodataset.org/#format-data), and in COCO-WholeBody's (its data_format.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.frames.sources.dots import draw, hand, jpeg, pixels_of

CAMERA = np.array([[420.0, 0.0, 160.0], [0.0, 420.0, 120.0], [0.0, 0.0, 1.0]])
WIDTH, HEIGHT = 320, 240
SHIFT = {"right": -0.1, "left": 0.1}


def joints_of(side: str, number: int) -> dict[str, np.ndarray]:
    """The hand of a side in image `number`."""
    return hand(side, number, x=SHIFT[side])


def box_of(side: str, number: int) -> list[float]:
    """x, y, width, height around the joints, from the image's corner."""
    points = np.array(list(pixels_of(joints_of(side, number), CAMERA).values())) + 0.5
    return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]


def write_coco(root: Path, files: list[str], whole_body: bool = False) -> tuple[Path, Path]:
    """(folder of images, annotations file). Each image has a right and a left hand; the first also a crowd."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        path = root / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        hands = [joints_of(side, number) for side in SHIFT]
        path.write_bytes(jpeg(draw(hands, CAMERA, WIDTH, HEIGHT, radius=5.0)))
        images.append({"id": 900 + number, "file_name": file, "width": WIDTH, "height": HEIGHT, "license": 4})
        base = {"image_id": 900 + number, "iscrowd": 0, "segmentation": [[0, 0, 1, 1, 0, 1]], "area": 1.0}
        if whole_body:
            keypoints = {f"{side}hand_kpts": [0.0] * 63 for side in SHIFT}
            boxes = {f"{side}hand_box": box_of(side, number) for side in SHIFT}
            valid = {"lefthand_valid": True, "righthand_valid": number != 1}
            if number == 1:
                boxes["righthand_box"] = [0.0, 0.0, 0.0, 0.0]
            body = {"category_id": 1, "bbox": [0, 0, WIDTH, HEIGHT], "keypoints": [0] * 51, "num_keypoints": 0}
            annotations.append({**base, **body, **keypoints, **boxes, **valid})
        else:
            annotations += [
                {**base, "category_id": category, "bbox": box_of(side, number)}
                for category, side in ((3, "right"), (7, "left"))
            ]
            annotations.append({**base, "category_id": 5, "bbox": [1.0, 1.0, 50.0, 50.0]})
        if number == 0:
            crowd = {"iscrowd": 1, "segmentation": {"counts": [1], "size": [HEIGHT, WIDTH]}, "bbox": [0, 0, 300, 200]}
            annotations.append({**annotations[0], **crowd})
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    names = {1: "person"} if whole_body else {3: "Right Hand", 7: "left_hand", 5: "handbag"}
    content = {
        "info": {"year": 2026, "version": "1.0"},
        "licenses": [{"id": 4, "name": "none", "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": [{"supercategory": "x", "id": id_, "name": name} for id_, name in names.items()],
    }
    path = root / "annotations.json"
    path.write_text(json.dumps(content))
    return root / "images", path
