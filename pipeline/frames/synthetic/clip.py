"""One clip: a person's hand that moves before a camera, with all that is drawn at random and the labels that follow."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.frames.synthetic.anatomy import BONE_INDEX
from pipeline.frames.synthetic.appearance import (
    Lights,
    LightSettings,
    SkinRange,
    sample_cloth,
    sample_exposure,
    sample_lights,
    sample_skin,
    vary_lights,
)
from pipeline.frames.synthetic.background import BackgroundSettings, sample_background, vary_background
from pipeline.frames.synthetic.bodies import Body
from pipeline.frames.synthetic.imaging import Imaging, ImagingSettings, rising, sample_imaging
from pipeline.frames.synthetic.looks import over_look
from pipeline.frames.synthetic.mesh import load_dressed_mesh
from pipeline.frames.synthetic.model import (
    bone_transforms,
    joint_positions,
    load_hand_model,
    local_rotations,
    subject_shape,
)
from pipeline.frames.synthetic.occluders import (
    OccluderSettings,
    Scene,
    sample_held_object,
    sample_obstacle,
    sample_second_hand,
)
from pipeline.frames.synthetic.orientation import ViewpointName
from pipeline.frames.synthetic.pose import Variety, pose_track, smooth_noise
from pipeline.frames.synthetic.sleeve import sample_sleeve, tuck_in
from pipeline.frames.synthetic.viewpoint import sample_viewpoint

Share = Annotated[float, Field(ge=0.3, le=1.0)]  # of smaller hands, one would see where the arm ends


class ClipSettings(Settings):
    """What the clips are like. Equal settings give equal clips, one by one, whatever is rendered beside them."""

    frames_per_clip: int = Field(default=24, ge=1, le=2000)
    """Number of frames in each clip."""
    fps: float = Field(default=15.0, gt=0, le=240)
    """Frames in a second of video. Few frames at a low rate (4 frames at 2 a second) give varied poses of one hand at
    little cost."""
    image_size: int = Field(default=128, ge=32, le=1024, multiple_of=2)
    """Side of the square frames in pixels. It must be even for the video format."""
    seed: int = Field(default=0, ge=0)
    """Random seed of the whole set."""
    supersample: int = Field(default=1, ge=1, le=4)
    """Samples along each side of a pixel. 2 gives smooth outlines at about three times the cost."""
    shadows: bool = True
    """Whether the main light casts shadows, which is about a fifth of the cost."""
    left_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of clips that show a left hand: the mirror image of a right one."""
    look: Literal["plain", "varied"] = "plain"
    """Preset of all the settings that follow. `varied` turns on a mixture of them. Settings that you give win."""
    viewpoint: ViewpointName = "anywhere"
    """Where the camera is. `anywhere`: every direction alike. `desk`: before or above a person at a table.
    `egocentric`: at the eyes of the hand's owner."""
    fill: tuple[Share, Share] = (0.52, 0.80)
    """Smallest and largest share of the picture that the joints span. Where the share is large, the crops of an ingest
    reach beyond the picture."""
    off_centre: float = Field(default=0.0, ge=0, le=0.3)
    """How far the hand is from the middle of the picture: standard deviation, as a fraction of the picture's side."""
    poses: Variety = "gestures"
    """Which poses occur. `varied` has more gestures (counting, finger-spelling, grasps), and each finger bends on its
    own."""
    skin: SkinRange = "usual"
    """Which skin occurs. `wide` reaches from very light to very dark, smooth to wrinkled."""
    light: LightSettings = LightSettings()
    background: BackgroundSettings = BackgroundSettings()
    occluders: OccluderSettings = OccluderSettings()
    imaging: ImagingSettings = ImagingSettings()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _with_look(cls, values: Any) -> Any:
        return over_look(values) if isinstance(values, dict) else values

    @pydantic.field_validator("fill")
    @classmethod
    def _rising(cls, fill: tuple[float, float]) -> tuple[float, float]:
        return rising(fill)


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
    bodies: tuple[Body, ...]
    """The hand with its arm, then what else is in the picture."""
    lights: Lights
    background: Tensor
    """(3, P, P) linear RGB, larger than a frame."""
    background_corner: np.ndarray
    """(T, 2) int: left and top of each frame's part of the background."""
    exposure: Tensor
    """(3,) gain of each colour channel."""
    imaging: Imaging
    noise_offset: list[int]
    """(T,) which window of the noise table each frame gets."""

    @property
    def joints_2d(self) -> Tensor:
        """(T, 21, 2) pixels."""
        projected = self.joints_3d @ self.camera.T
        return projected[..., :2] / projected[..., 2:]


_BACKGROUND_MARGIN = 0.25
"""How far the background reaches beyond the frame on each side, as a fraction of the frame's side."""


_SWING = 0.6
"""How fast arms swing while the shutter is open, beside the motion that the frames show: sides of the picture a second."""


def sample_clip(settings: ClipSettings, index: int) -> Clip:
    """Clip number `index` of the set that the settings describe; it depends on nothing else."""
    rng = np.random.default_rng([settings.seed, index])
    # Drawn apart from the rest, so that a setting changes what it is about and nothing else.
    extras = [np.random.default_rng([settings.seed, index, 1 + number]) for number in range(5)]
    size, num_frames = settings.image_size, settings.frames_per_clip
    frame_times_s = np.arange(num_frames) / settings.fps
    is_left = rng.random() < settings.left_fraction
    model = load_hand_model()

    shutter_s = _sample_shutter(extras[0], settings.imaging)
    times_s = np.stack([frame_times_s, frame_times_s + shutter_s], 1).ravel() if shutter_s else frame_times_s
    subject = model.subjects[rng.integers(len(model.subjects))]
    vertices, bone_heads = subject_shape(model, (0.9 * subject).clamp(-2.5, 2.5))
    hand_length = float(np.clip(rng.normal(0.186, 0.013), 0.15, 0.22))  # adults
    cuff = rng.uniform(0.12, 0.35) if rng.random() < 0.5 else rng.uniform(0.45, 1.0)
    forearm = BONE_INDEX["forearm"]
    dressed = tuck_in(vertices, model.skin_weights[:, forearm], cuff)

    poses = pose_track(rng, times_s, model, vertices, bone_heads, settings.poses)
    transforms = bone_transforms(bone_heads, local_rotations(model, torch.from_numpy(poses)))
    joints = joint_positions(model, vertices, bone_heads, transforms).double().numpy()
    bones = transforms.double().numpy()
    off_centre = settings.off_centre * extras[0].standard_normal(2).clip(-2, 2)
    view = sample_viewpoint(
        rng, times_s, joints, bones[:, forearm], hand_length, size, settings.viewpoint, settings.fill, off_centre
    )
    rotation, translation = view.to_camera[..., :3], view.to_camera[..., 3]
    to_camera = rotation[:, None] @ bones
    to_camera[..., 3] += translation[:, None]
    shift = None
    if shutter_s:
        to_camera, at_end = to_camera[0::2], to_camera[1::2]
        swing = _SWING * shutter_s * smooth_noise(extras[0], frame_times_s, 2, period_s=0.3)
        at_end[..., :2, 3] += swing[:, None] * (view.distance * size / view.camera[0, 0])
        shift = torch.from_numpy(at_end - to_camera)
        joints, rotation, translation = joints[0::2], rotation[0::2], translation[0::2]
    joints_camera = np.einsum("tij,tkj->tki", rotation, joints) + translation[:, None]
    scene = Scene(view.camera, size, frame_times_s, joints_camera.copy(), hand_length)
    camera, label_camera = view.camera, view.camera.copy()
    if is_left:
        joints_camera[..., 0] *= -1
        label_camera[0, 2] = size - camera[0, 2]

    margin = math.ceil(_BACKGROUND_MARGIN * size)
    background = sample_background(rng, size + 2 * margin)
    background = vary_background(extras[1], background, settings.background)
    panning = margin * (1 + 0.35 * smooth_noise(rng, frame_times_s, 2, period_s=1.5))
    sleeve = sample_sleeve(rng, cuff)
    skin, cloth = sample_skin(rng, settings.skin), sample_cloth(rng)
    lights = vary_lights(extras[2], sample_lights(rng, background.mean((1, 2))), settings.light)
    exposure = rng.uniform(0.75, 1.15)
    gain, background_gain = sample_exposure(extras[2], settings.light)
    noise = rng.uniform(0, settings.imaging.noise)
    noise_offset = rng.integers(1 << 16, size=num_frames).tolist()
    hand = Body(
        mesh=load_dressed_mesh(),
        rest_vertices=torch.cat([dressed, sleeve]),
        to_camera=torch.from_numpy(to_camera),
        skin=skin,
        cloth=cloth,
        texture_offset=rng.uniform(0, 13),
        shift=shift,
    )
    return Clip(
        settings=settings,
        hand="left" if is_left else "right",
        camera=torch.from_numpy(label_camera).float(),
        joints_3d=torch.from_numpy(joints_camera).float(),
        hand_length=hand_length,
        distance=view.distance,
        scene_camera=torch.from_numpy(camera).float(),
        bodies=(hand, *_others(extras[3], settings, scene, hand, joints)),
        lights=lights,
        background=background * background_gain,
        background_corner=np.clip(panning.round(), 0, 2 * margin).astype(int),
        exposure=torch.from_numpy(exposure * gain).float(),
        imaging=sample_imaging(extras[4], settings.imaging, noise, size),
        noise_offset=noise_offset,
    )


def _sample_shutter(rng: np.random.Generator, settings: ImagingSettings) -> float:
    """For how long the shutter is open, seconds; 0 = nothing blurs."""
    share, longest = rng.random(), rng.uniform(0.2, 1) * settings.shutter_s
    return float(longest) if share < settings.motion_blur else 0.0


def _others(
    rng: np.random.Generator, settings: ClipSettings, scene: Scene, hand: Body, joints: np.ndarray
) -> list[Body]:
    """What is in the picture beside the hand; joints (T, 21, 3) in the hand's own frame, in hand lengths."""
    shares = settings.occluders
    has_second, has_object, has_obstacle = rng.random(3) < (shares.second_hand, shares.held_object, shares.obstacle)
    others: list[Body | None] = []
    if has_object:
        hand_bone = hand.to_camera[:, BONE_INDEX["wrist"]]
        held = sample_held_object(rng, scene, joints, hand_bone.numpy(), hand.skin)
        if held is not None and hand.shift is not None:
            held = replace(held, shift=hand.shift[:, BONE_INDEX["wrist"], None])
        others.append(held)
    if has_second:
        others.append(
            sample_second_hand(rng, scene, settings.viewpoint, settings.poses, hand.skin, hand.cloth, settings.skin)
        )
    if has_obstacle:
        others.append(sample_obstacle(rng, scene, hand.skin))
    return [body for body in others if body is not None]


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
