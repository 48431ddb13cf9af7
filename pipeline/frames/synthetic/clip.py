"""One clip: a person's hand that moves before a camera, with all that is drawn at random and the labels that follow."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.frames.synthetic.anatomy import BONE_INDEX
from pipeline.frames.synthetic.appearance import Cloth, Lights, Skin, sample_cloth, sample_lights, sample_skin
from pipeline.frames.synthetic.background import sample_background
from pipeline.frames.synthetic.model import (
    bone_transforms,
    joint_positions,
    load_hand_model,
    local_rotations,
    subject_shape,
)
from pipeline.frames.synthetic.pose import pose_track, smooth_noise
from pipeline.frames.synthetic.sleeve import sample_sleeve, tuck_in
from pipeline.frames.synthetic.viewpoint import sample_viewpoint


class ClipSettings(Settings):
    """What the clips are like. Equal settings give equal clips, one by one, whatever is rendered beside them."""

    frames_per_clip: int = Field(default=24, ge=1, le=2000)
    """Frames of each clip."""
    fps: float = Field(default=15.0, gt=0, le=240)
    """Frames a second. Few frames at a low rate (4 at 2 a second) give varied poses of one hand at little cost."""
    image_size: int = Field(default=128, ge=32, le=1024, multiple_of=2)
    """Side of the square frames, pixels; even, as the video format wants."""
    seed: int = Field(default=0, ge=0)
    """Random seed of the whole set."""
    supersample: int = Field(default=1, ge=1, le=4)
    """Samples along each side of a pixel; 2 gives smooth outlines at about three times the cost."""
    shadows: bool = True
    """Whether the key light casts shadows; about a fifth of the cost."""
    left_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of clips that show a left hand: the mirror image of a right one."""


@dataclass(frozen=True)
class Clip:
    """All that a clip is made of. T frames, S pixels; tensors are float32 on the CPU.

    Everything but `camera` and `joints_3d` describes a right hand; of a left hand, the picture is mirrored at the end.
    """

    settings: ClipSettings
    hand: str
    """"right" or "left"."""
    camera: Tensor
    """(3, 3) pinhole camera of the frames, pixels."""
    joints_3d: Tensor
    """(T, 21, 3) camera frame, metres, FreiHAND order."""
    hand_length: float
    """From wrist to middle fingertip, metres."""
    distance: float
    """Mean distance of the hand from the camera, metres."""
    scene_camera: Tensor
    """(3, 3) camera of the right hand."""
    rest_vertices: Tensor
    """(V, 3) hand and sleeve at rest, in hand lengths (mesh.DressedMesh)."""
    to_camera: Tensor
    """(T, 21, 3, 4) float64: what takes the points of each bone from rest to the camera frame, metres."""
    skin: Skin
    cloth: Cloth
    lights: Lights
    background: Tensor
    """(3, P, P) linear RGB, larger than a frame."""
    background_corner: np.ndarray
    """(T, 2) int: left and top of each frame's part of the background."""
    exposure: float
    noise: float
    """Standard deviation of the sensor's noise, of a picture in 0..1."""
    noise_offset: list[int]
    """(T,) which window of the noise table each frame gets."""
    texture_offset: float
    """Where in the solid noise the skin's texture lies."""

    @property
    def joints_2d(self) -> Tensor:
        """(T, 21, 2) pixels."""
        projected = self.joints_3d @ self.camera.T
        return projected[..., :2] / projected[..., 2:]


_BACKGROUND_MARGIN = 0.25
"""How far the background reaches beyond the frame on each side, as a fraction of the frame's side."""


def sample_clip(settings: ClipSettings, index: int) -> Clip:
    """Clip number `index` of the set that the settings describe; it depends on nothing else."""
    rng = np.random.default_rng([settings.seed, index])
    size, num_frames = settings.image_size, settings.frames_per_clip
    times_s = np.arange(num_frames) / settings.fps
    is_left = rng.random() < settings.left_fraction
    model = load_hand_model()

    subject = model.subjects[rng.integers(len(model.subjects))]
    vertices, bone_heads = subject_shape(model, (0.9 * subject).clamp(-2.5, 2.5))
    hand_length = float(np.clip(rng.normal(0.186, 0.013), 0.15, 0.22))  # adults
    cuff = rng.uniform(0.12, 0.35) if rng.random() < 0.5 else rng.uniform(0.45, 1.0)
    forearm = BONE_INDEX["forearm"]
    dressed = tuck_in(vertices, model.skin_weights[:, forearm], cuff)

    poses = pose_track(rng, times_s, model, vertices, bone_heads)
    transforms = bone_transforms(bone_heads, local_rotations(model, torch.from_numpy(poses)))
    joints = joint_positions(model, vertices, bone_heads, transforms).double().numpy()
    bones = transforms.double().numpy()
    view = sample_viewpoint(rng, times_s, joints, bones[:, forearm], hand_length, size)
    rotation, translation = view.to_camera[..., :3], view.to_camera[..., 3]
    to_camera = rotation[:, None] @ bones
    to_camera[..., 3] += translation[:, None]
    joints_camera = np.einsum("tij,tkj->tki", rotation, joints) + translation[:, None]
    camera, label_camera = view.camera, view.camera.copy()
    if is_left:
        joints_camera[..., 0] *= -1
        label_camera[0, 2] = size - camera[0, 2]

    margin = math.ceil(_BACKGROUND_MARGIN * size)
    background = sample_background(rng, size + 2 * margin)
    panning = margin * (1 + 0.35 * smooth_noise(rng, times_s, 2, period_s=1.5))
    return Clip(
        settings=settings,
        hand="left" if is_left else "right",
        camera=torch.from_numpy(label_camera).float(),
        joints_3d=torch.from_numpy(joints_camera).float(),
        hand_length=hand_length,
        distance=view.distance,
        scene_camera=torch.from_numpy(camera).float(),
        rest_vertices=torch.cat([dressed, sample_sleeve(rng, cuff)]),
        to_camera=torch.from_numpy(to_camera),
        skin=sample_skin(rng),
        cloth=sample_cloth(rng),
        lights=sample_lights(rng, background.mean((1, 2))),
        background=background,
        background_corner=np.clip(panning.round(), 0, 2 * margin).astype(int),
        exposure=rng.uniform(0.75, 1.15),
        noise=rng.uniform(0, 0.02),
        noise_offset=rng.integers(1 << 16, size=num_frames).tolist(),
        texture_offset=rng.uniform(0, 13),
    )


def clip_labels(clip: Clip) -> dict[str, Any]:
    """The content of the label file: joints in metres, boxes in pixels, the camera; plain JSON values."""
    boxes = torch.cat([clip.joints_2d.amin(1), clip.joints_2d.amax(1)], 1)
    frames = [
        {
            "index": index,
            "hands": [{"track": 0, "hand": clip.hand, "box": _rounded(box, 3), "joints_3d": _rounded(joints, 6)}],
        }
        for index, (box, joints) in enumerate(zip(boxes, clip.joints_3d, strict=True))
    ]
    return {
        "version": 1,
        "fps": clip.settings.fps,
        "width": clip.settings.image_size,
        "height": clip.settings.image_size,
        "num_frames": len(frames),
        "joint_order": "freihand",
        "camera": _rounded(clip.camera, 4),
        "license": "CC0-1.0",
        "frames": frames,
    }


def _rounded(values: Tensor, digits: int) -> list[Any]:
    return np.round(values.double().numpy(), digits).tolist()
