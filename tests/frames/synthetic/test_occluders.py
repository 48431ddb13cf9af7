import numpy as np
import pytest
import torch

from pipeline.frames.synthetic.bodies import box, cylinder, ellipsoid
from pipeline.frames.synthetic.clip import ClipSettings, clip_labels, sample_clip
from pipeline.frames.synthetic.mesh import load_dressed_mesh
from pipeline.frames.synthetic.model import skin
from pipeline.frames.synthetic.occluders import MAX_HIDDEN, Scene
from pipeline.frames.synthetic.rasteriser import Fragments, depth_map
from pipeline.frames.synthetic.render import _in_front, render_clip

SMALL = ClipSettings(frames_per_clip=4, fps=2, image_size=64, seed=6)
KINDS = ["second_hand", "held_object", "obstacle"]


def volume(vertices, faces):
    """By the divergence theorem: positive where faces are counter-clockwise seen from outside."""
    corners = np.asarray(vertices)[np.asarray(faces)]
    return float((np.cross(corners[:, 0], corners[:, 1]) * corners[:, 2]).sum() / 6)


def with_all(kind, **changes):
    return ClipSettings(**{**SMALL.model_dump(), "occluders": {kind: 1.0}, **changes})


def vertices_of(body):
    """(T, V, 3) camera frame."""
    return skin(body.rest_vertices.double(), body.mesh.skin_weights.double(), body.to_camera)


def test_solids_have_the_volume_they_should():
    assert volume(*box(np.array([0.2, 0.3, 0.5]))) == pytest.approx(8 * 0.2 * 0.3 * 0.5)
    ngon = 10 * np.sin(2 * np.pi / 20)  # area of the cross-section's 20 corners on a unit circle
    assert volume(*cylinder(0.7, 0.3)) == pytest.approx(ngon * 0.09 * 1.4)
    assert volume(*ellipsoid(np.array([0.5, 0.2, 0.3]))) == pytest.approx(4 / 3 * np.pi * 0.03, rel=0.08)


def test_hidden_joints_are_counted():
    joints = np.zeros((2, 21, 3))
    joints[..., 0] = np.linspace(-0.1, 0.1, 21)
    joints[..., 2] = 0.5
    scene = Scene(np.diag([100.0, 100, 1]), 64, np.arange(2.0), joints, 0.18)
    vertices, triangles = box(np.array([0.022, 0.05, 0.02]))
    faces = torch.from_numpy(triangles)
    frames = np.array([0, 1])
    before, behind, beside = (
        np.stack([vertices + place] * 2) for place in ([0, 0, 0.46], [0, 0, 0.56], [0.3, 0, 0.46])
    )
    # The near side of the box, at 0.44, hides 0.022 / 0.44 * 0.5 = 0.025 to each side: joints at 0, 0.01 and 0.02.
    assert scene.num_hidden(before, faces, frames) == 5
    assert scene.num_hidden(behind, faces, frames) == 0
    assert scene.num_hidden(beside, faces, frames) == 0
    before[1] += [0.3, 0, 0]
    assert scene.num_hidden(before, faces, frames) == 2.5


@pytest.mark.parametrize("viewpoint", ["anywhere", "desk"])
@pytest.mark.parametrize("kind", KINDS)
def test_occluders_are_there_hide_little_and_have_no_labels(kind, viewpoint):
    hidden = []
    for index in range(12):
        clip = sample_clip(with_all(kind, viewpoint=viewpoint), index)
        alone = sample_clip(with_all(kind, viewpoint=viewpoint, occluders={}), index)
        assert clip_labels(clip) == clip_labels(alone)
        for body in clip.bodies[1:]:
            points = vertices_of(body).float().transpose(0, 1)
            camera = clip.scene_camera
            seen = torch.cat([points[..., :2] / points[..., 2:] * camera[0, 0] + camera[0, 2], points[..., 2:]], -1)
            depth = depth_map(seen, body.mesh.faces, 64, 64)
            pixels = clip.joints_2d.floor().long()
            inside = ((pixels >= 0) & (pixels < 64)).all(-1)
            column, row = pixels.clamp(0, 63).unbind(-1)
            nearer = depth[torch.arange(4)[:, None], row, column] < clip.joints_3d[..., 2] - 0.005
            hidden.append(float((nearer & inside).sum(1).float().mean()))
    assert len(hidden) >= 10  # nearly always something fits
    assert max(hidden) <= (MAX_HIDDEN if kind != "held_object" else 13) + 1
    assert np.mean(hidden) > 0.2


def test_the_other_hand_is_mirrored_but_not_inside_out():
    mirrored = 0
    for index in range(10):
        bodies = sample_clip(with_all("second_hand", frames_per_clip=1), index).bodies
        if len(bodies) < 2:
            continue
        hand = bodies[1]
        num_faces = load_dressed_mesh().num_hand_faces
        assert volume(vertices_of(hand)[0], hand.mesh.faces[:num_faces]) > 0
        mirrored += bool(torch.linalg.det(hand.to_camera[0, 1, :, :3]) < 0)
    assert 4 <= mirrored <= 10


def test_nearer_bodies_hide_farther_ones():
    generator = torch.Generator().manual_seed(0)
    num_pixels = 50
    fragments = []
    for _ in range(3):
        pixel = torch.randperm(num_pixels, generator=generator)[:30].sort().values
        depth = torch.rand(30, generator=generator) + 0.5
        fragments.append(Fragments(pixel, torch.arange(30), torch.rand(30, 3, generator=generator), depth))
    depth_image = torch.full((1, 5, 10), 9.0)
    visible = _in_front(fragments, depth_image)
    for number in range(num_pixels):
        depths = [dict(zip(f.pixel.tolist(), f.depth.tolist(), strict=True)).get(number, 9.0) for f in fragments]
        shown = [index for index, f in enumerate(visible) if number in f.pixel.tolist()]
        assert shown == ([] if min(depths) == 9.0 else [int(np.argmin(depths))])
        assert float(depth_image.view(-1)[number]) == min(depths)


@pytest.mark.parametrize("kind", KINDS)
def test_an_occluder_changes_the_picture_only_where_it_is_or_throws_a_shadow(kind):
    clip = sample_clip(with_all(kind, shadows=False), 1)
    alone = type(clip)(**{**clip.__dict__, "bodies": clip.bodies[:1]})
    changed = (render_clip(clip).int() - render_clip(alone).int()).abs().amax(1) > 40
    points = vertices_of(clip.bodies[1]).float().transpose(0, 1)
    camera = clip.scene_camera
    seen = torch.cat([points[..., :2] / points[..., 2:] * camera[0, 0] + camera[0, 2], points[..., 2:]], -1)
    drawn = depth_map(seen, clip.bodies[1].mesh.faces, 64, 64).isfinite()
    near = torch.nn.functional.max_pool2d(drawn[:, None].float(), 9, 1, 4)[:, 0] > 0  # ambient light reaches 4 pixels
    assert changed.any()
    assert not (changed & ~near).any()
