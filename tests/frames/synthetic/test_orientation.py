import numpy as np
import pytest
from scipy import stats

from pipeline.frames.synthetic.anatomy import BONE_INDEX
from pipeline.frames.synthetic.clip import ClipSettings, sample_clip
from pipeline.frames.synthetic.orientation import STANCES, sample_orientations
from pipeline.frames.synthetic.viewpoint import FOREARM_DIRECTION

ARM = np.array([-0.9, 0.3, -0.25])  # a wrist that is bent
PALM, THUMB_SIDE = np.array([0.0, 0, -1]), np.array([0.0, 1, 0])


def angles_deg(arms):
    """Bearing and recession of forearm directions (N, 3) in the camera frame."""
    arms = arms / np.linalg.norm(arms, axis=-1, keepdims=True)
    return np.degrees(np.arctan2(arms[:, 0], arms[:, 1])), np.degrees(np.arcsin(arms[:, 2]))


@pytest.mark.parametrize("name", ["anywhere", *STANCES])
def test_orientations_are_rotations(name):
    rotations = sample_orientations(np.random.default_rng(0), name, 50, ARM)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)


def test_anywhere_is_uniform():
    rotations = sample_orientations(np.random.default_rng(0), "anywhere", 3000, ARM)
    for axis in range(3):  # Archimedes: each coordinate of a uniform direction is uniform
        assert stats.kstest(rotations[:, axis] @ PALM, stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", STANCES)
def test_the_forearm_comes_from_where_the_stance_says(name):
    stance = STANCES[name]
    rotations = sample_orientations(np.random.default_rng(1), name, 3000, ARM)
    for found, expected in zip(angles_deg(rotations @ ARM), (stance.bearing, stance.recession), strict=True):
        low, high = ((bound - expected.mean) / expected.deviation for bound in (expected.low, expected.high))
        truncated = stats.truncnorm(low, high, expected.mean, expected.deviation)
        assert stats.kstest(found, truncated.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", STANCES)
def test_the_sides_of_the_hand_are_seen_as_often_as_the_stance_says(name):
    straight = FOREARM_DIRECTION
    rotations = sample_orientations(np.random.default_rng(2), name, 4000, straight)
    arm = rotations @ straight / np.linalg.norm(straight)
    to_camera = np.array([0.0, 0, -1]) + arm[:, 2:] * arm  # its part across the forearm

    def share_facing(side):
        """How often a side is the one of the four that faces the camera most."""
        return (side * to_camera).sum(1)

    palm = rotations @ PALM
    thumb = rotations @ THUMB_SIDE
    facing = np.stack([share_facing(side) for side in (palm, thumb, -palm, -thumb)]).argmax(0)
    shares = np.bincount(facing, minlength=4) / len(facing)
    np.testing.assert_allclose(shares, stance_shares(name), atol=0.05)


def stance_shares(name):
    """Shares of the four sides, with what a normal roll loses to its neighbours beyond 45 degrees."""
    stance = STANCES[name]
    leaves = stats.norm.sf(45 / stance.roll_deviation)
    shares = np.array(stance.facing)
    return shares * (1 - 2 * leaves) + leaves * (np.roll(shares, 1) + np.roll(shares, -1))


def test_a_right_palm_held_up_has_its_thumb_on_the_right():
    rotations = sample_orientations(np.random.default_rng(3), "desk", 500, FOREARM_DIRECTION)
    palm, thumb = rotations @ PALM, rotations @ THUMB_SIDE
    held_up = (palm[:, 2] < -0.8) & (rotations @ FOREARM_DIRECTION @ [0, 1, 0] > 0.7)
    assert held_up.sum() > 30
    assert (thumb[held_up, 0] > 0.3).all()


@pytest.mark.parametrize(("name", "left_fraction"), [("desk", 0), ("egocentric", 0), ("egocentric", 1)])
def test_clips_keep_the_stance(name, left_fraction):
    """Redrawn viewpoints, bent wrists and a wobbling camera move the distribution but little."""
    settings = ClipSettings(frames_per_clip=2, fps=2, image_size=32, viewpoint=name, left_fraction=left_fraction)
    arms = []
    for index in range(80):
        clip = sample_clip(settings, index)
        forearm = clip.bodies[0].to_camera[:, BONE_INDEX["forearm"], :, :3].numpy()
        arms += list(forearm @ FOREARM_DIRECTION * ([-1, 1, 1] if left_fraction else [1, 1, 1]))
    bearing, recession = angles_deg(np.array(arms))
    stance = STANCES[name]
    mirror = -1 if left_fraction else 1
    assert abs(bearing.mean() - mirror * stance.bearing.mean) < 6
    assert 0.8 < bearing.std() / stance.bearing.deviation < 1.3
    assert (np.abs(bearing) < 100).all()
    assert abs(recession.mean() - stance.recession.mean) < 8
