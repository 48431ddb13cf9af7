"""What else is in the picture: a second hand, an object that is held, obstacles between camera and hand. None has labels."""

import math
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.frames.synthetic.anatomy import BONE_INDEX
from pipeline.frames.synthetic.appearance import Cloth, Skin, SkinRange, sample_cloth, sample_skin
from pipeline.frames.synthetic.bodies import Body, box, cylinder, ellipsoid, solid_mesh
from pipeline.frames.synthetic.mesh import load_dressed_mesh
from pipeline.frames.synthetic.model import (
    bone_transforms,
    joint_positions,
    load_hand_model,
    local_rotations,
    subject_shape,
)
from pipeline.frames.synthetic.model import skin as skin_vertices
from pipeline.frames.synthetic.orientation import ViewpointName, sample_orientations
from pipeline.frames.synthetic.pose import Variety, pose_track, smooth_noise
from pipeline.frames.synthetic.rasteriser import depth_map
from pipeline.frames.synthetic.sleeve import sample_sleeve, tuck_in
from pipeline.frames.synthetic.viewpoint import FOREARM_DIRECTION, FOREARM_FAR_END
from pipeline.hands import BONES

MAX_HIDDEN = 9
"""Joints of the 21 that one thing may hide, on average over the clip; of an object that is held, more."""
_MAX_HIDDEN_BY_HELD = 13
_MIN_IN_PICTURE = 8
"""Joints of the second hand that the picture shows, on average."""
_FLESH = 0.045
"""From a finger's bone to its skin, in hand lengths."""
_NEAREST = 0.75
"""How near the second hand may be, as a fraction of the labelled hand's distance: or one would not know which is meant."""
_GRID = 64
"""Pixels along a side of the depth maps that tell which joints are hidden."""
_TRIES = 40


class OccluderSettings(Settings):
    """Shares of clips with something beside, behind or before the hand; where nothing fits, there is none."""

    second_hand: float = Field(default=0.0, ge=0, le=1)
    """Share of clips with a second hand, mostly the other hand of the same person."""
    held_object: float = Field(default=0.0, ge=0, le=1)
    """Share of clips in which the hand holds a box, a ball or a rod."""
    obstacle: float = Field(default=0.0, ge=0, le=1)
    """Share of clips with a bar or blob between camera and hand."""


class Scene:
    """The labelled hand, in the camera frame of the right hand: what the others have to fit in with."""

    def __init__(
        self, camera: np.ndarray, image_size: int, times_s: np.ndarray, joints: np.ndarray, hand_length: float
    ) -> None:
        """camera: (3, 3). times_s: (T,). joints: (T, 21, 3) camera frame, metres."""
        self.focal, self.image_size, self.times_s = float(camera[0, 0]), image_size, times_s
        self.joints, self.hand_length = joints, hand_length
        self.pixels = self.project(joints)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) -> pixels (..., 2)."""
        return points[..., :2] / np.maximum(points[..., 2:], 0.01) * self.focal + self.image_size / 2

    def num_hidden(self, points: np.ndarray, faces: Tensor, frames: np.ndarray) -> float:
        """Mean number of joints behind a mesh: points (N, V, 3) in the camera frame in N frames, faces (F, 3)."""
        scale = _GRID / self.image_size
        seen = np.concatenate([self.project(points) * scale, points[..., 2:]], -1).transpose(1, 0, 2)
        nearest = depth_map(torch.from_numpy(seen).float(), faces, _GRID, _GRID).numpy()
        column, row = np.moveaxis((self.pixels[frames] * scale).astype(int), -1, 0)
        is_seen = (np.minimum(column, row) >= 0) & (np.maximum(column, row) < _GRID)
        column, row = column.clip(0, _GRID - 1), row.clip(0, _GRID - 1)
        before = nearest[np.arange(len(frames))[:, None], row, column] < self.joints[frames][..., 2] - 0.005
        return float((is_seen & before).sum(1).mean())

    def some_frames(self) -> np.ndarray:
        """Up to four frames, from first to last."""
        return np.unique(np.linspace(0, len(self.times_s) - 1, 4).round().astype(int))


def sample_held_object(
    rng: np.random.Generator, scene: Scene, joints: np.ndarray, hand_to_camera: np.ndarray, skin: Skin
) -> Body | None:
    """An object between the fingers, as large as they leave room for.

    joints: (T, 21, 3) at the hand's own frame, in hand lengths. hand_to_camera: (T, 3, 4).
    """
    tips, knuckles = joints[:, [4, 8, 12, 16, 20]].mean((0, 1)), joints[:, [5, 9, 13, 17]].mean((0, 1))
    outwards = np.array([0.0, 0.0, -1.0])  # out of the palm
    fingers = _along_bones(joints)
    frames = scene.some_frames()
    for _ in range(_TRIES):
        centre = knuckles + rng.uniform(0.3, 1) * (tips - knuckles) + rng.uniform(0.02, 0.3) * outwards
        room = float(np.linalg.norm(fingers - centre, axis=-1).min(1).mean()) - _FLESH
        radius = rng.uniform(0.04, 0.3)
        if not radius - 0.05 < room < radius:  # in touch, and at most a little of the object within the flesh
            continue
        kind = rng.integers(3)
        if kind == 0:
            vertices, faces = cylinder(rng.uniform(0.3, 1.0), radius)
        elif kind == 1:
            vertices, faces = box(radius * np.array([rng.uniform(1, 4), *rng.uniform(0.7, 1, 2)]))
        else:
            vertices, faces = ellipsoid(radius * np.array([rng.uniform(1, 2), 1, 1]))
        along = np.array([0.3, 1.0, 0.0]) + 0.35 * rng.standard_normal(3)  # as the fingers' grip lies
        placed = vertices @ _towards(along).T + centre
        points = placed @ hand_to_camera[frames, :, :3].transpose(0, 2, 1) + hand_to_camera[frames, None, :, 3]
        if scene.num_hidden(points, torch.from_numpy(faces), frames) <= _MAX_HIDDEN_BY_HELD:
            return _solid(rng, placed, faces, hand_to_camera[:, None], skin)
    return None


def sample_obstacle(rng: np.random.Generator, scene: Scene, skin: Skin) -> Body | None:
    """A bar or a blob nearer to the camera than the hand."""
    frames = scene.some_frames()
    middle = scene.joints.mean((0, 1))
    nearest = scene.joints[..., 2].min()
    for _ in range(_TRIES):
        depth = nearest * rng.uniform(0.5, 0.92)
        offset = rng.normal(0, 0.42, 2) * scene.hand_length
        centre = np.array([*((middle[:2] + offset) * (depth / middle[2])), depth])
        if rng.random() < 0.6:
            thickness = rng.uniform(0.03, 0.13)
            vertices, faces = (
                cylinder(2.5, thickness)
                if rng.random() < 0.5
                else box(np.array([2.5, thickness, rng.uniform(0.02, 0.1)]))
            )
            along = np.array([*rng.standard_normal(2), 0.15 * rng.standard_normal()])
        else:
            vertices, faces = (ellipsoid if rng.random() < 0.5 else box)(rng.uniform(0.08, 0.3, 3))
            along = rng.standard_normal(3)
        turned = vertices @ _towards(along).T
        points = turned * scene.hand_length
        if (points[:, 2] + depth).min() < 0.08 or (points[:, 2] + depth).max() > nearest:
            continue
        drift = centre + 0.05 * scene.hand_length * smooth_noise(rng, scene.times_s, 3, period_s=1.5)
        if scene.num_hidden(points + drift[frames, None], torch.from_numpy(faces), frames) <= MAX_HIDDEN:
            scaling = np.broadcast_to(scene.hand_length * np.eye(3), (len(drift), 3, 3))
            to_camera = np.concatenate([scaling, drift[..., None]], -1)
            return _solid(rng, turned, faces, to_camera[:, None], skin)
    return None


def _towards(along: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) that takes x to the direction `along`."""
    first = along / np.linalg.norm(along)
    helper = np.eye(3)[int(np.abs(first).argmin())]
    second = np.cross(helper, first)
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], 1)


def _solid(
    rng: np.random.Generator, vertices: np.ndarray, faces: np.ndarray, to_camera: np.ndarray, skin: Skin
) -> Body:
    mesh = solid_mesh(vertices, faces)
    material = sample_cloth(rng)
    cloth = Cloth(material.colours, rng.uniform(1, 12), rng.uniform(0, 0.4))
    return Body(mesh, mesh.surface[:, :3], torch.from_numpy(to_camera), skin, cloth, rng.uniform(0, 13))


def sample_second_hand(
    rng: np.random.Generator,
    scene: Scene,
    viewpoint: ViewpointName,
    variety: Variety,
    skin: Skin,
    cloth: Cloth,
    skin_range: SkinRange,
) -> Body | None:
    """Another hand with its arm: the other hand of the same person three times in four, else anybody's.

    Four times in ten it hides a part of the labelled hand.

    skin, cloth: of the labelled hand.
    """
    model = load_hand_model()
    times_s, hand_length = scene.times_s, scene.hand_length
    is_same_person = rng.random() < 0.75
    is_left = is_same_person or rng.random() < 0.5
    vertices, bone_heads = subject_shape(
        model, 0.9 * model.subjects[rng.integers(len(model.subjects))].clamp(-2.5, 2.5)
    )
    cuff = rng.uniform(0.12, 1.0)
    forearm_bone = BONE_INDEX["forearm"]
    rest = torch.cat([tuck_in(vertices, model.skin_weights[:, forearm_bone], cuff), sample_sleeve(rng, cuff)])
    poses = pose_track(rng, times_s, model, vertices, bone_heads, variety)
    transforms = bone_transforms(bone_heads, local_rotations(model, torch.from_numpy(poses)))
    joints = joint_positions(model, vertices, bone_heads, transforms).double().numpy()
    bones = transforms.double().numpy()
    forearm = bones[:, forearm_bone]
    arm_direction = (forearm[:, :, :3] @ FOREARM_DIRECTION).mean(0)
    arm_end = forearm[:, :, :3] @ FOREARM_FAR_END + forearm[:, :, 3]
    centre = joints.mean((0, 1))
    wobble = 0.06 * smooth_noise(rng, times_s, 3, period_s=1.0)
    frames = scene.some_frames()
    nearest, farthest, min_hidden = (-0.6, -0.15, 1) if rng.random() < 0.4 else (-0.6, 0.8, 0)

    for orientation in sample_orientations(rng, viewpoint, 100, arm_direction):
        if is_left:
            orientation = np.diag([-1.0, 1, 1]) @ orientation
        around, away = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0)
        beside = np.array([math.cos(around) * away, math.sin(around) * away, rng.uniform(nearest, farthest)])
        place = scene.joints.mean(1) + (beside + wobble) * hand_length
        scaled = orientation * hand_length
        offset = place - scaled @ centre
        seen = joints @ scaled.T + offset[:, None]
        end = arm_end @ scaled.T + offset
        off_centre = np.abs(scene.project(end) - scene.image_size / 2).max(-1)
        apart = np.linalg.norm(seen[frames][:, :, None] - scene.joints[frames][:, None], axis=-1).min()
        if (
            (orientation @ arm_direction)[2] < -0.55
            or end[:, 2].min() < 0.08
            or seen[..., 2].min() < 0.1
            or off_centre.min() < 0.56 * scene.image_size
            or apart < 0.13 * hand_length
            or (np.abs(scene.project(seen) - scene.image_size / 2) < scene.image_size / 2).all(-1).sum(1).mean()
            < _MIN_IN_PICTURE
            or seen[..., 2].mean() < _NEAREST * scene.joints[..., 2].mean()
        ):
            continue
        to_camera = scaled @ bones
        to_camera[..., 3] += offset[:, None]
        mesh = load_dressed_mesh()
        faces = mesh.faces.flip(1) if is_left else mesh.faces
        drawn = skin_vertices(rest, mesh.skin_weights, torch.from_numpy(to_camera[frames]).float()).numpy()
        if not min_hidden <= scene.num_hidden(drawn, faces, frames) <= MAX_HIDDEN:
            continue
        return Body(
            mesh=replace(mesh, faces=faces),
            rest_vertices=rest,
            to_camera=torch.from_numpy(to_camera),
            skin=skin if is_same_person else sample_skin(rng, skin_range),
            cloth=cloth if is_same_person else sample_cloth(rng),
            texture_offset=rng.uniform(0, 13),
        )
    return None


def _along_bones(joints: np.ndarray) -> np.ndarray:
    """Joints (T, 21, 3) and the middles of the bones between them (T, 41, 3)."""
    ends = np.array(BONES)
    return np.concatenate([joints, joints[:, ends].mean(2)], 1)
