"""A tiny HO-3D in the layout and units of its authors' scripts (https://github.com/shreyashampali/ho3d)."""

import json
import pickle
from pathlib import Path

import numpy as np

from tests.frames.sources.dots import draw, hand, jpeg

CAMERA = np.array([[617.3, 0, 312.4], [0, 617.1, 241.4], [0, 0, 1]])
# vis_HO3D.py, jointsMapManoToSimple: where wrist, thumb, index, middle, ring and little finger stand in MANO's order.
MANO_TO_SIMPLE = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]
SEQUENCES = {"train": ("ABF10", "ABF11", "MC1"), "evaluation": ("SM1",)}


def meta(part: str, number: int) -> tuple[dict, dict]:
    """(label file's content, the hand)."""
    joints = hand("right", number, x=0.05)
    simple = np.array(list(joints.values()))
    mano = np.empty((21, 3))
    mano[MANO_TO_SIMPLE] = simple
    opengl = mano.dot(np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]]))
    common = {"camMat": CAMERA, "objName": "021_bleach_cleanser", "objTrans": np.zeros(3), "objLabel": np.int64(3)}
    if part == "train":
        return {**common, "handJoints3D": opengl, "handBeta": np.zeros(10), "handPose": np.zeros(48)}, joints
    return {**common, "handJoints3D": opengl[0], "handBoundingBox": [250, 150, 460, 330]}, joints


def python2(value: dict) -> bytes:
    """A pickle as Python 2 writes one (protocol 2, the arrays' bytes as str)."""
    out = b"\x80\x02}("
    for key, item in value.items():
        out += b"U" + bytes([len(key)]) + key.encode()
        if isinstance(item, np.ndarray):
            data = item.astype("<f8").tobytes()
            shape = b"".join(b"K" + bytes([n]) for n in item.shape)
            out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(" + shape
            out += b"tcnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            out += b"T" + len(data).to_bytes(4, "little") + data + b"tb"
        else:
            out += pickle.dumps(item, protocol=2)[2:-1]
    return out + b"u."


def write_ho3d(root: Path, version: int, with_joints: bool = False) -> Path:
    """Three sequences of training and one of evaluation, three annotated frames and one that is not.

    with_joints: also those of the evaluation part, in the order of its list of frames (published after the challenge).
    """
    for part, sequences in SEQUENCES.items():
        names, later = [], []
        for sequence in sequences:
            folder = root / part / sequence
            for kind in ("rgb", "meta"):
                (folder / kind).mkdir(parents=True)
            for number in range(4):
                content, joints = meta(part, number)
                if number == 3:
                    content = {**content, "handJoints3D": None}
                else:
                    names.append(f"{sequence}/{number:04d}")
                    later.append(meta("train", number)[0]["handJoints3D"].tolist())
                image = draw([joints], CAMERA, 640, 480, radius=9.0)
                if version == 2:
                    image.save(folder / "rgb" / f"{number:04d}.png")
                else:
                    (folder / "rgb" / f"{number:04d}.jpg").write_bytes(jpeg(image))
                data = python2(content) if version == 2 else pickle.dumps(content, protocol=2)
                (folder / "meta" / f"{number:04d}.pkl").write_bytes(data)
        (root / f"{part}.txt").write_text("\n".join(names[::-1]) + "\n")
        if part == "evaluation" and with_joints:
            (root / "evaluation_xyz.json").write_text(json.dumps(later[::-1]))
    return root
