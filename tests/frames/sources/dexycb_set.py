"""A tiny DexYCB in the layout and units of its authors' toolkit (https://github.com/NVlabs/dex-ycb-toolkit)."""

from pathlib import Path

import numpy as np
import yaml

from tests.frames.sources.dots import draw, hand, jpeg

SERIALS = ("836212060125", "839512060362")
SESSIONS = {
    "20200709-subject-01/20200709_141754": "right",
    "20200709-subject-01/20200709_142123": "left",
    "20200813-subject-02/20200813_145341": "left",
}
NUM_FRAMES = 4
# dex_ycb.py, _MANO_JOINTS ("little" is called "pinky" here).
JOINTS = [
    "wrist",
    "thumb_mcp",
    "thumb_pip",
    "thumb_dip",
    "thumb_tip",
    "index_mcp",
    "index_pip",
    "index_dip",
    "index_tip",
    "middle_mcp",
    "middle_pip",
    "middle_dip",
    "middle_tip",
    "ring_mcp",
    "ring_pip",
    "ring_dip",
    "ring_tip",
    "pinky_mcp",
    "pinky_pip",
    "pinky_dip",
    "pinky_tip",
]


def camera(serial: str) -> np.ndarray:
    shift = 7.0 * SERIALS.index(serial)
    return np.array([[613.0 + shift, 0, 318.6 - shift], [0, 612.5 + shift, 241.3], [0, 0, 1]])


def label(joints: dict[str, np.ndarray] | None, serial: str) -> dict[str, np.ndarray]:
    """The arrays of a label file."""
    joint_3d, joint_2d = np.full((1, 21, 3), -1, np.float32), np.full((1, 21, 2), -1, np.float32)
    if joints is not None:
        joint_3d[0] = [joints[name] for name in JOINTS]
        projected = joint_3d[0] @ camera(serial).T
        joint_2d[0] = projected[:, :2] / projected[:, 2:]
    return {
        "seg": np.zeros((480, 640), np.uint8),
        "pose_y": np.zeros((4, 3, 4), np.float32),
        "pose_m": np.zeros((1, 51), np.float32),
        "joint_3d": joint_3d,
        "joint_2d": joint_2d,
    }


def write_dexycb(root: Path) -> Path:
    """Three sessions of two subjects, two cameras; the hand comes into sight in the second frame."""
    intrinsics = root / "calibration/intrinsics"
    intrinsics.mkdir(parents=True)
    (root / "models").mkdir()
    for serial in SERIALS:
        (fx, _, ppx), (_, fy, ppy), _ = camera(serial).tolist()
        values = {"fx": fx, "fy": fy, "ppx": ppx, "ppy": ppy}
        (intrinsics / f"{serial}_640x480.yml").write_text(yaml.safe_dump({"color": values, "depth": values}))
    for session, side in SESSIONS.items():
        for serial in SERIALS:
            folder = root / session / serial
            folder.mkdir(parents=True)
            for number in range(NUM_FRAMES):
                joints = hand(side, number, x=-0.04, y=0.03) if number else None
                image = draw([joints] if joints else [], camera(serial), 640, 480, radius=9.0)
                (folder / f"color_{number:06d}.jpg").write_bytes(jpeg(image))
                np.savez_compressed(folder / f"labels_{number:06d}.npz", allow_pickle=False, **label(joints, serial))
        meta = {
            "serials": list(SERIALS),
            "num_frames": NUM_FRAMES,
            "extrinsics": "20200702_151821",
            "ycb_ids": [1, 11, 13, 20],
            "ycb_grasp_ind": 0,
            "mano_sides": [side],
            "mano_calib": [f"20200709_140042_subject-01_{side}"],
        }
        (root / session / "meta.yml").write_text(yaml.safe_dump(meta))
    return root
