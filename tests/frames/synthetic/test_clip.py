import numpy as np
import pytest
import torch
import yaml

from jobs.synthesize import SynthesizeJob
from pipeline.config import flatten, load
from pipeline.errors import SettingsError
from pipeline.frames.synthetic.clip import ClipSettings, clip_labels, sample_clip
from pipeline.frames.synthetic.imaging import Imaging
from pipeline.frames.synthetic.pose import MAX_PENETRATION, penetration
from pipeline.frames.synthetic.render import render_clip
from pipeline.geometry import procrustes_align

SMALL = ClipSettings(frames_per_clip=5, image_size=64, seed=4)
VARIED = ClipSettings(frames_per_clip=5, image_size=64, seed=4, look="varied")
VARIED_WITH_ALL = 18
"""A varied clip with two occluders, motion blur, defocus and JPEG."""
BONES = [(joint, 0 if joint % 4 == 1 else joint - 1) for joint in range(1, 21)]


def silhouettes(clip):
    """Where the hand and arm are (T, S, S): what differs between the clip on a black background and on a white one."""
    bare = clip.settings.model_copy(update={"supersample": 1})
    pictures = []
    for level in (0.0, 2.0):
        flat = {
            **clip.__dict__,
            "settings": bare,
            "background": torch.full_like(clip.background, level),
            "imaging": Imaging(0.0),
        }
        pictures.append(render_clip(type(clip)(**flat)).int())
    return (pictures[0] - pictures[1]).abs().amax(1) == 0


@pytest.mark.parametrize(
    "change",
    [{}, {"viewpoint": "desk"}, {"viewpoint": "egocentric", "left_fraction": 1.0}, {"poses": "varied"}],
    ids=["plain", "desk", "egocentric", "varied poses"],
)
def test_joints_lie_in_the_silhouette_and_in_their_box(change):
    inside = seen = 0
    for index in range(8):
        clip = sample_clip(SMALL.model_copy(update=change), index)
        arm = torch.nn.functional.max_pool2d(silhouettes(clip)[:, None].float(), 3, 1, 1)[:, 0]
        boxes = [frame["hands"][0]["box"] for frame in clip_labels(clip)["frames"]]
        for frame, joints in enumerate(clip.joints_2d):
            left, top, right, bottom = boxes[frame]
            assert (joints >= torch.tensor([left, top]) - 0.01).all()
            assert (joints <= torch.tensor([right, bottom]) + 0.01).all()
            pixels = joints.floor().long()
            in_frame = ((pixels >= 0) & (pixels < 64)).all(1)
            column, row = pixels[in_frame].T
            seen += len(column)
            inside += int(arm[frame, row, column].sum())
    assert seen > 0.98 * 8 * 5 * 21
    assert inside > 0.99 * seen


def test_the_hand_fills_a_good_part_of_the_picture():
    for index in range(10):
        clip = sample_clip(SMALL, index)
        joints = clip.joints_2d.flatten(0, 1) / 64
        assert 0.45 < float((joints.amax(0) - joints.amin(0)).max()) < 0.95
        assert (clip.joints_3d[..., 2] > 0.1).all()


def test_bones_keep_their_length_within_a_clip():
    for index in range(5):
        clip = sample_clip(ClipSettings(frames_per_clip=24), index)
        ends, starts = zip(*BONES, strict=True)
        lengths = (clip.joints_3d[:, list(ends)] - clip.joints_3d[:, list(starts)]).norm(dim=-1)
        spread = (lengths.amax(0) - lengths.amin(0)) / lengths.mean(0)
        palm = torch.tensor([start == 0 for start in starts])
        assert spread[~palm].max() < 1e-3
        assert spread[palm].max() < 0.02  # cupping the palm moves the knuckles against the wrist
        assert 0.14 < clip.hand_length < 0.23


@pytest.mark.parametrize(("settings", "index"), [(SMALL, 1), (VARIED, VARIED_WITH_ALL)])
def test_a_clip_does_not_depend_on_batch_order_or_selection(settings, index):
    clips = [sample_clip(settings, number) for number in (0, index)]
    whole = render_clip(clips[1])
    again = sample_clip(settings, index)
    assert clip_labels(clips[1]) == clip_labels(again)
    for batch in (1, 2, 3):
        assert torch.equal(render_clip(again, frames_at_once=batch), whole)
    assert torch.equal(render_clip(again, frames=[3, 1]), whole[[3, 1]])
    assert not torch.equal(render_clip(clips[0]), whole)
    other_seed = sample_clip(settings.model_copy(update={"seed": 5}), index)
    assert not torch.equal(other_seed.joints_3d, again.joints_3d)


def test_the_varied_clip_has_all_that_it_is_meant_to_test():
    clip = sample_clip(VARIED, VARIED_WITH_ALL)
    assert len(clip.bodies) == 3
    assert clip.bodies[0].shift is not None
    assert clip.imaging.defocus > 0
    assert clip.imaging.jpeg_quality is not None


@pytest.mark.parametrize("settings", [SMALL, VARIED, ClipSettings(**{**SMALL.model_dump(), "viewpoint": "desk"})])
def test_a_left_hand_is_the_mirror_image_of_a_right_one(settings):
    settings = settings.model_copy(update={"imaging": settings.imaging.model_copy(update={"jpeg": 0.0})})
    right = sample_clip(settings, VARIED_WITH_ALL)
    left = sample_clip(settings.model_copy(update={"left_fraction": 1.0}), VARIED_WITH_ALL)
    assert (right.hand, left.hand) == ("right", "left")
    torch.testing.assert_close(left.joints_3d * torch.tensor([-1.0, 1, 1]), right.joints_3d)
    mirrored = right.joints_2d.clone()
    mirrored[..., 0] = 64 - mirrored[..., 0]
    torch.testing.assert_close(left.joints_2d, mirrored, atol=1e-3, rtol=0)
    assert torch.equal(render_clip(left), render_clip(right).flip(-1))
    assert clip_labels(left)["frames"][0]["hands"][0]["hand"] == "left"


def test_left_hands_are_as_many_as_asked_for():
    settings = SMALL.model_copy(update={"left_fraction": 0.3, "frames_per_clip": 1, "image_size": 32})
    left = sum(sample_clip(settings, index).hand == "left" for index in range(60))
    assert 8 <= left <= 30


def test_supersampling_and_shadows_change_detail_not_content():
    clip = sample_clip(SMALL, 3)
    plain = render_clip(clip).float()
    for change in ({"supersample": 2}, {"shadows": False}):
        settings = SMALL.model_copy(update=change)
        other = render_clip(sample_clip(settings, 3)).float()
        assert other.shape == plain.shape
        assert 0 < (other - plain).abs().mean() < 12


def test_few_frames_far_apart_show_different_poses():
    clip = sample_clip(ClipSettings(frames_per_clip=4, fps=2, image_size=64), 0)
    joints = clip.joints_3d - clip.joints_3d[:, :1]
    assert (joints[1:] - joints[:-1]).norm(dim=-1).mean() > 0.005  # metres


def test_a_look_fills_in_what_is_not_given(tmp_path):
    varied = load(SynthesizeJob, ["--out", "x", "--look", "varied", "--imaging.noise", "0.2", "--skin", "usual"])
    assert (varied.imaging.noise, varied.skin) == (0.2, "usual")
    assert (varied.imaging.jpeg, varied.poses, varied.fill) == (0.5, "varied", (0.5, 0.95))
    (tmp_path / "varied.yaml").write_text(yaml.safe_dump({"look": "varied", "light": {"backlight": 0.9}}))
    of_file = load(SynthesizeJob, ["--out", "x", "--config", str(tmp_path / "varied.yaml")])
    assert (of_file.light.backlight, of_file.light.side_light) == (0.9, varied.light.side_light)
    assert flatten(load(SynthesizeJob, ["--out", "x", "--look", "plain"])) == flatten(
        load(SynthesizeJob, ["--out", "x"])
    )
    again = ClipSettings.model_validate(varied.model_dump(include=set(ClipSettings.model_fields)))
    assert flatten(again).items() <= flatten(varied).items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fill", "[0.6, 1.02]"], "setting 'fill.1' = 1.02: input should be less than or equal to 1"),
        (["--fill", "[0.2, 0.6]"], "setting 'fill.0' = 0.2: input should be greater than or equal to 0.3"),
        (["--fill", "[0.8, 0.6]"], "setting 'fill' = [0.8, 0.6]: give the lower end first"),
        (["--imaging.jpeg_quality", "[90, 30]"], "give the lower end first"),
        (["--imaging.jpeg_quality", "[0, 30]"], "setting 'imaging.jpeg_quality.0' = 0"),
        (["--look", "[plain]"], "setting 'look'"),
        (["--viewpoint", "table"], "setting 'viewpoint' = 'table'"),
        (["--occluders.second_hand", "1.5"], "setting 'occluders.second_hand'"),
        (["--light.sidelight", "1"], "did you mean --light.side_light?"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(SettingsError) as error:
        load(SynthesizeJob, ["--out", "x", *arguments])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"skin": "wide"},
        {"light": {"side_light": 1, "backlight": 1, "colour": 0.5, "exposure_stops": 2, "white_balance": 0.2}},
        {"background": {"collage": 1}},
        {"occluders": {"second_hand": 1, "held_object": 1, "obstacle": 1}},
        {"imaging": {"defocus": 1, "noise": 0.1, "tone": 0.3, "jpeg": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_setting_changes_the_picture_and_not_the_labels(change):
    plain, changed = sample_clip(SMALL, 3), sample_clip(ClipSettings(**{**SMALL.model_dump(), **change}), 3)
    assert clip_labels(plain) == clip_labels(changed)
    assert not torch.equal(render_clip(plain), render_clip(changed))


def test_filled_pictures_are_filled():
    for viewpoint in ("anywhere", "desk"):
        settings = ClipSettings(**{**SMALL.model_dump(), "fill": (1.0, 1.0), "viewpoint": viewpoint})
        for index in range(5):
            joints = sample_clip(settings, index).joints_2d.flatten(0, 1) / 64
            assert 0.9 < float((joints.amax(0) - joints.amin(0)).max()) < 1.1


def test_hands_lie_off_the_middle_as_far_as_asked_for():
    settings = ClipSettings(frames_per_clip=1, image_size=64, off_centre=0.15)
    centres = []
    for index in range(80):
        joints = sample_clip(settings, index).joints_2d[0] / 64
        centres.append(((joints.amax(0) + joints.amin(0)) / 2 - 0.5).numpy())
    spread = np.std(centres)  # of both coordinates; the camera's own drift adds 0.035
    assert 0.10 < spread < 0.20
    assert abs(np.mean(centres)) < 0.05


def test_exposure_and_white_balance_are_within_what_was_asked_for():
    settings = ClipSettings(**{**SMALL.model_dump(), "light": {"exposure_stops": 1.0}})
    gains = torch.stack([sample_clip(settings, i).exposure / sample_clip(SMALL, i).exposure for i in range(30)])
    assert gains.amin() >= 0.5
    assert gains.amax() <= 2
    assert gains.amax() / gains.amin() > 2
    assert (gains.amax(1) - gains.amin(1)).max() < 1e-6  # grey
    settings = ClipSettings(**{**SMALL.model_dump(), "light": {"white_balance": 0.2}})
    gains = torch.stack([sample_clip(settings, i).exposure / sample_clip(SMALL, i).exposure for i in range(60)]).log()
    assert 0.14 < gains[:, 0].std() < 0.27


def constant_pa_epe(settings, num_clips):
    """PA-EPE (mm) of the generalised Procrustes mean of the set's own poses."""
    poses = torch.cat([sample_clip(settings, index).joints_3d for index in range(num_clips)]).double()
    mean = poses[0]
    for _ in range(5):
        mean = procrustes_align(poses, mean.expand_as(poses)).mean(0)
    return float((procrustes_align(mean.expand_as(poses), poses) - poses).norm(dim=-1).mean()) * 1000


def test_varied_poses_are_farther_from_their_mean():
    plain = ClipSettings(frames_per_clip=4, fps=2, image_size=32)
    varied = plain.model_copy(update={"poses": "varied"})
    assert constant_pa_epe(varied, 50) > constant_pa_epe(plain, 50) + 2.5


def test_fingers_seldom_pass_through_each_other_between_varied_poses():
    settings = ClipSettings(frames_per_clip=24, image_size=32, poses="varied")
    clips = [sample_clip(settings, index) for index in range(40)]
    depth = torch.cat([penetration(clip.joints_3d / clip.hand_length) for clip in clips])
    assert (depth > MAX_PENETRATION + 0.005).float().mean() < 0.01  # a millimetre deeper than allowed


def test_skin_of_any_tone():
    brightness = {
        skin: [
            float(sample_clip(SMALL.model_copy(update={"skin": skin}), i).bodies[0].skin.back.mean()) for i in range(60)
        ]
        for skin in ("usual", "wide")
    }
    assert min(brightness["wide"]) < min(brightness["usual"])
    assert max(brightness["wide"]) > max(brightness["usual"])
