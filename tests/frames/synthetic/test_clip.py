import torch

from pipeline.frames.synthetic.clip import ClipSettings, clip_labels, sample_clip
from pipeline.frames.synthetic.imaging import Imaging
from pipeline.frames.synthetic.render import render_clip

SMALL = ClipSettings(frames_per_clip=5, image_size=64, seed=4)
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


def test_joints_lie_in_the_silhouette_and_in_their_box():
    inside = seen = 0
    for index in range(8):
        clip = sample_clip(SMALL, index)
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


def test_a_clip_does_not_depend_on_batch_order_or_selection():
    clips = [sample_clip(SMALL, index) for index in (0, 1)]
    whole = render_clip(clips[1])
    again = sample_clip(SMALL, 1)
    assert clip_labels(clips[1]) == clip_labels(again)
    for batch in (1, 2, 3):
        assert torch.equal(render_clip(again, frames_at_once=batch), whole)
    assert torch.equal(render_clip(again, frames=[3, 1]), whole[[3, 1]])
    assert not torch.equal(render_clip(clips[0]), whole)
    other_seed = sample_clip(SMALL.model_copy(update={"seed": 5}), 1)
    assert not torch.equal(other_seed.joints_3d, again.joints_3d)


def test_a_left_hand_is_the_mirror_image_of_a_right_one():
    right = sample_clip(SMALL, 2)
    left = sample_clip(SMALL.model_copy(update={"left_fraction": 1.0}), 2)
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
