import io

import av
import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.frames.synthetic.clip import ClipSettings, clip_labels, sample_clip
from pipeline.frames.synthetic.render import render_clip
from pipeline.frames.synthetic.video import complete_clips, encode_mp4, synthesize_clips, write_clip


def decode(video):
    with av.open(io.BytesIO(video), "r") as container:
        stream = container.streams.video[0]
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream


@pytest.mark.parametrize(("num_frames", "fps"), [(1, 15.0), (7, 15.0), (4, 2.0), (30, 29.97)])
def test_frames_come_back_close_to_what_was_written(num_frames, fps):
    clip = sample_clip(ClipSettings(frames_per_clip=num_frames, fps=fps, image_size=64), 0)
    frames = render_clip(clip)
    decoded, stream = decode(encode_mp4(frames, fps))
    assert stream.codec_context.name == "h264"
    assert stream.codec_context.pix_fmt == "yuv420p"
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    assert len(decoded) == num_frames
    original = frames.permute(0, 2, 3, 1).numpy().astype(float)
    error = np.square(np.stack(decoded) - original).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / error) > 28).all()
    other = np.square(original[0] - original[-1]).mean()
    assert num_frames == 1 or error.max() < other  # each frame is nearer to itself than to another one


def test_the_same_frames_have_the_same_bytes():
    frames = render_clip(sample_clip(ClipSettings(frames_per_clip=8, fps=15.0, image_size=64), 2))
    first = encode_mp4(frames, 15.0)
    other_memory = []
    for number in range(25):  # of ten, about four were different
        other_memory.append(bytes(1000 * number**2))
        assert encode_mp4(frames, 15.0) == first


def test_files_and_labels_belong_together(tmp_path):
    settings = ClipSettings(frames_per_clip=3, image_size=64, left_fraction=1)
    assert synthesize_clips(settings, [5], str(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip_000005.labels.json", "clip_000005.mp4"]
    labels = storage.read_json(str(tmp_path / "clip_000005.labels.json"))
    decoded, _ = decode((tmp_path / "clip_000005.mp4").read_bytes())
    assert labels == clip_labels(sample_clip(settings, 5))
    assert labels["num_frames"] == len(decoded) == len(labels["frames"]) == 3
    assert (labels["height"], labels["width"]) == decoded[0].shape[:2]
    assert (labels["version"], labels["fps"], labels["joint_order"]) == (1, 15.0, "freihand")
    assert [frame["index"] for frame in labels["frames"]] == [0, 1, 2]
    camera = torch.tensor(labels["camera"])
    for frame in labels["frames"]:
        (hand,) = frame["hands"]
        joints = torch.tensor(hand["joints_3d"])
        assert hand["track"] == 0
        assert hand["hand"] == "left"
        assert joints.shape == (21, 3)
        projected = joints @ camera.T
        pixels = projected[:, :2] / projected[:, 2:]
        box = torch.cat([pixels.amin(0), pixels.amax(0)])
        torch.testing.assert_close(torch.tensor(hand["box"]), box, atol=0.02, rtol=0)


def test_only_clips_with_video_and_labels_are_complete(tmp_path):
    write_clip(str(tmp_path), "clip_000000", b"video", {})
    (tmp_path / "clip_000001.mp4").write_bytes(b"video")
    (tmp_path / "clip_000002.labels.json").write_text("{}")
    assert complete_clips(str(tmp_path)) == {"clip_000000"}
    assert complete_clips(str(tmp_path / "nowhere")) == set()
