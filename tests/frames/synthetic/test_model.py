import math

import numpy as np
import pytest
import torch

from pipeline.frames.synthetic.anatomy import (
    BONE_INDEX,
    BONE_PARENTS,
    HIGH_DEG,
    LOW_DEG,
    NUM_POSE_PARAMETERS,
    POSE_INDEX,
    REST_DEG,
    constrain,
)
from pipeline.frames.synthetic.model import (
    bone_transforms,
    joint_positions,
    load_hand_model,
    local_rotations,
    rotation_matrices,
    skin,
    subject_shape,
)
from pipeline.frames.synthetic.pose import (
    GESTURES,
    MAX_PENETRATION,
    MORE_GESTURES,
    penetration,
    pose_track,
    random_poses,
    valid_poses,
)

MODEL = load_hand_model()


def subject(index=0):
    return subject_shape(MODEL, MODEL.subjects[index])


def posed_joints(poses, shape=None):
    vertices, heads = shape or subject()
    transforms = bone_transforms(heads, local_rotations(MODEL, torch.as_tensor(poses)))
    return joint_positions(MODEL, vertices, heads, transforms)


def test_the_mesh_is_a_right_hand_of_unit_length_with_outward_faces():
    joints = posed_joints(REST_DEG[None], (MODEL.vertices, MODEL.bone_heads))[0]
    assert joints[0].abs().max() < 1e-6
    assert abs(float(joints[12].norm()) - 1) < 0.05
    # Looking at the back of a right hand with the fingers up, the thumb is on the left: fingers x thumb points out of it.
    assert torch.linalg.cross(joints[9], joints[4])[2] > 0
    corners = MODEL.vertices[MODEL.faces]
    volume = (torch.linalg.cross(corners[:, 0], corners[:, 1]) * corners[:, 2]).sum() / 6
    assert volume > 0
    torch.testing.assert_close(MODEL.skin_weights.sum(1), torch.ones(len(MODEL.vertices)))


def test_rest_pose_changes_nothing():
    rotations = local_rotations(MODEL, torch.from_numpy(REST_DEG[None]))
    torch.testing.assert_close(rotations, torch.eye(3).expand(1, 21, 3, 3), atol=1e-6, rtol=0)
    vertices, heads = subject(3)
    moved = skin(vertices, MODEL.skin_weights, bone_transforms(heads, rotations))[0]
    torch.testing.assert_close(moved, vertices, atol=1e-5, rtol=0)


def test_rotation_matrices_turn_by_the_right_hand_rule():
    turned = rotation_matrices(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(math.pi / 2)) @ torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_forward_kinematics_equals_a_chain_written_by_hand():
    generator = torch.Generator().manual_seed(0)
    _, heads = subject(1)
    axes = torch.nn.functional.normalize(torch.randn(2, 21, 3, generator=generator), dim=-1)
    rotations = rotation_matrices(axes, torch.randn(2, 21, generator=generator))
    transforms = bone_transforms(heads, rotations)
    for bone in range(21):
        chain = [bone]
        while BONE_PARENTS[chain[-1]] >= 0:
            chain.append(BONE_PARENTS[chain[-1]])
        point = torch.tensor([0.3, -0.2, 0.1])
        for frame in range(2):
            moved = point
            for link in chain:  # from the bone itself up to the root: turn about the link's own head
                moved = rotations[frame, link] @ (moved - heads[link]) + heads[link]
            found = transforms[frame, bone, :, :3] @ point + transforms[frame, bone, :, 3]
            torch.testing.assert_close(found, moved, atol=1e-5, rtol=0)


@pytest.mark.parametrize("finger", ["index", "middle", "ring", "pinky"])
def test_flexion_bends_towards_the_palm(finger):
    bent = REST_DEG.copy()
    bent[POSE_INDEX[f"{finger}_flexion"]] += 60
    rest, moved = posed_joints(np.stack([REST_DEG, bent]))
    tip = {"index": 8, "middle": 12, "ring": 16, "pinky": 20}[finger]
    assert moved[tip, 2] < rest[tip, 2] - 0.15
    others = [joint for joint in range(21) if joint not in range(tip - 3, tip + 1)]
    torch.testing.assert_close(moved[others], rest[others], atol=1e-6, rtol=0)


def test_the_hand_stays_and_the_forearm_moves_with_the_wrist():
    bent = REST_DEG.copy()
    bent[POSE_INDEX["wrist_flexion"]] = 40
    rest, moved = posed_joints(np.stack([REST_DEG, bent]))
    torch.testing.assert_close(rest, moved, atol=1e-4, rtol=0)
    transforms = bone_transforms(subject()[1], local_rotations(MODEL, torch.from_numpy(bent[None])))
    elbow = transforms[0, BONE_INDEX["forearm"], :, :3] @ torch.tensor([-1.0, 0.13, 0.0])
    assert elbow[2] < -0.5  # the hand bends palmwards, so the forearm is on the palm's side


VARIETIES = ["gestures", "varied"]


@pytest.mark.parametrize("variety", VARIETIES)
def test_poses_obey_the_limits(variety):
    poses = random_poses(np.random.default_rng(0), 500, variety)
    assert poses.shape == (500, NUM_POSE_PARAMETERS)
    assert (poses >= LOW_DEG).all()
    assert (poses <= HIGH_DEG).all()
    pip, dip = poses[:, POSE_INDEX["index_pip"]], poses[:, POSE_INDEX["index_dip"]]
    assert (dip <= np.maximum(0.75 * pip + 12, LOW_DEG[POSE_INDEX["index_dip"]]) + 1e-9).all()
    wild = constrain(np.random.default_rng(1).normal(0, 500, (50, NUM_POSE_PARAMETERS)))
    assert (wild >= LOW_DEG).all()
    assert (wild <= HIGH_DEG).all()


def test_flexed_fingers_hardly_spread():
    pose = np.zeros(NUM_POSE_PARAMETERS)
    pose[POSE_INDEX["index_flexion"]], pose[POSE_INDEX["index_splay"]] = 85, 20
    assert constrain(pose)[POSE_INDEX["index_splay"]] == pytest.approx(2 + 18 * 0.15)


def test_penetration_tells_a_fist_from_a_finger_through_another():
    crossed = GESTURES["flat"].copy()
    crossed[POSE_INDEX["index_splay"]] = -20  # far beyond the limit, through the middle finger
    flat, through = penetration(posed_joints(np.stack([GESTURES["flat"], crossed])))
    assert flat < MAX_PENETRATION < through
    for name, pose in (GESTURES | MORE_GESTURES).items():
        assert penetration(posed_joints(pose[None])) < 2 * MAX_PENETRATION, name


@pytest.mark.parametrize("variety", VARIETIES)
def test_valid_poses_do_not_penetrate(variety):
    vertices, heads = subject(5)
    poses = valid_poses(np.random.default_rng(2), 40, MODEL, vertices, heads, variety)
    assert poses.shape == (40, NUM_POSE_PARAMETERS)
    assert (penetration(posed_joints(poses, subject(5))) < MAX_PENETRATION).all()


@pytest.mark.parametrize("variety", VARIETIES)
def test_tracks_are_smooth_and_within_limits(variety):
    times = np.arange(90) / 60
    vertices, heads = subject(2)
    poses = pose_track(np.random.default_rng(3), times, MODEL, vertices, heads, variety)
    assert (poses >= LOW_DEG).all()
    assert (poses <= HIGH_DEG).all()
    assert np.abs(np.diff(poses, axis=0)).max() < 12  # degrees in a sixtieth of a second
