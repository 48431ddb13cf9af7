import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, SettingsError
from pipeline.frames import detect
from pipeline.frames.crop import assumed_camera
from pipeline.frames.detect import DetectorSettings, HandDetector
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import Unit
from pipeline.frames.sources.detected_video import DetectedVideoSettings, settle
from pipeline.frames.sources.video import probe, read_frames
from pipeline.frames.track import Detection, TrackSettings
from pipeline.hands import BONES
from tests.conftest import real_data
from tests.frames.clips import write_video

needs_mediapipe = pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed")


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("mediapipe")
    loaded = HandDetector(str(real_data("hand_landmarker.task")), DetectorSettings())
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def right_hand() -> Image.Image:
    """A frame of real video: one right hand, its palm to the camera, fingers up, the thumb on the image's right."""
    path = str(real_data("human_hand_video.mp4"))
    info = probe(path)
    assert info is not None
    return next(read_frames(path, info, [300], "video", Rejects()))[1]


def test_a_real_right_hand_is_a_right_hand(detector, right_hand, capfd):
    (found,) = detector(right_hand)
    assert found.hand == "right"
    assert found.score > 0.9
    np.testing.assert_allclose(found.box, (600, 120, 915, 415), atol=15)
    (mirrored,) = detector(right_hand.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert mirrored.hand == "left"
    np.testing.assert_allclose(mirrored.box[0], right_hand.width - found.box[2], atol=8)
    assert capfd.readouterr().err == ""


def test_two_hands_are_found_left_to_right(detector, right_hand):
    both = Image.new("RGB", (right_hand.width * 2, right_hand.height))
    both.paste(right_hand.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (0, 0))
    both.paste(right_hand, (right_hand.width, 0))
    assert [found.hand for found in detector(both)] == ["left", "right"]


def test_landmarks_of_the_hand_in_the_middle(detector, right_hand):
    points = detector.central_hand(right_hand)
    (found,) = detector(right_hand)
    assert points.shape == (21, 2)
    np.testing.assert_allclose([*points.min(0), *points.max(0)], found.box)
    wrist, thumb_tip, middle_tip = points[0], points[4], points[12]
    assert middle_tip[1] < wrist[1]  # fingers up
    assert thumb_tip[0] > middle_tip[0]  # thumb on the right
    assert detector.central_hand(Image.new("RGB", (320, 240), "grey")) is None


def test_joints_in_3d_are_where_the_landmarks_are(detector, right_hand):
    (found,) = detector(right_hand, with_joints=True)
    joints, camera = np.array(found.joints_3d), np.array(found.camera)
    np.testing.assert_allclose(camera, assumed_camera(*right_hand.size))
    pixels = joints @ camera.T
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], detector.central_hand(right_hand), atol=0.01)
    lengths = [np.linalg.norm(joints[child] - joints[parent]) for parent, child in BONES]
    assert 0.01 < min(lengths) < max(lengths) < 0.13  # an adult's, metres
    (mirrored,) = detector(right_hand.transpose(Image.Transpose.FLIP_LEFT_RIGHT), with_joints=True)
    away = joints - np.array(mirrored.joints_3d) * (-1, 1, 1)
    assert np.linalg.norm(away - away.mean(0), axis=1).mean() < 0.01  # the same hand, mirrored
    assert detector(right_hand) == [replace(found, joints_3d=None, camera=None)]


def test_an_image_without_a_hand_gives_nothing(detector):
    assert detector(Image.new("RGB", (320, 240), "grey")) == []


@needs_mediapipe
def test_a_file_that_is_no_model_is_said(tmp_path):
    (tmp_path / "model.task").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"model\.task: not a usable Hand Landmarker model"):
        HandDetector(str(tmp_path / "model.task"), DetectorSettings())


def test_without_mediapipe_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(detect.importlib.util, "find_spec", lambda name: None)
    write_video(tmp_path / "v.mp4", [np.zeros((64, 64, 3), np.uint8)])
    settings = DetectedVideoSettings(uri=str(tmp_path), detector=DetectorSettings(model="model.task"))
    with pytest.raises(DataError, match=r"pip install -e '\.\[detect\]'"):
        settings.reader().list_units(Rejects())


def test_a_missing_model_setting_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"source\.detector\.model"):
        DetectedVideoSettings(uri=str(tmp_path)).reader()


def test_real_video_becomes_one_steady_track(detector, tmp_path, monkeypatch):
    path = real_data("human_hand_video.mp4")
    settings = DetectedVideoSettings(
        uri=str(path),
        fps=3,
        detector=DetectorSettings(model=str(real_data("hand_landmarker.task"))),
        track=TrackSettings(max_gap_s=1.0),
    )
    monkeypatch.setattr("pipeline.frames.sources.detected_video.shared_detector", lambda *_: detector)
    source = settings.reader()
    rejects = Rejects()
    (unit,) = source.list_units(rejects)
    assert unit.num_frames == 63
    with source.open(unit, rejects) as opened:
        assert opened is not None
        hands = [hand for frame in opened.frames for hand in frame.hands]
        assert len(hands) == 63
        assert {hand.track for hand in hands} == {0}
        assert {hand.hand for hand in hands} == {"right"}  # though single frames are taken for a left hand
        assert [index for index, _ in opened.read([0, 30])] == [0, 30]
    assert not rejects.counts


def test_tracks_are_settled_and_short_ones_counted():
    def box(x):
        return (x, 10.0, x + 40.0, 60.0)

    times = [i / 10 for i in range(12)]
    seen = [(i, [Detection(box(20.0 + i), "right" if i == 5 else "left", 0.9)]) for i in range(12)]
    seen[3][1].append(Detection(box(300.0), "right", 0.6))
    rejects = Rejects()
    frames = settle(seen, times, TrackSettings(min_frames=4), Unit("clip", "", 12), rejects)
    assert rejects.counts == {"short_track": 1}
    assert rejects.examples == {"short_track": ["clip/000003"]}
    assert [frame.index for frame in frames] == list(range(12))
    hands = [hand for frame in frames for hand in frame.hands]
    assert len(hands) == 12
    assert {(hand.track, hand.hand, hand.confidence) for hand in hands} == {(0, "left", 0.9)}


def test_joints_of_a_frame_that_was_taken_for_the_other_hand_are_no_labels():
    joints, camera = np.full((21, 3), 0.5).tolist(), np.eye(3).tolist()
    sides = ["left" if i == 2 else "right" for i in range(6)]
    seen = [(i, [Detection((0.0, 0.0, 40.0, 40.0), side, 0.9, joints, camera)]) for i, side in enumerate(sides)]
    rejects = Rejects()
    frames = settle(seen, [i / 10 for i in range(6)], TrackSettings(), Unit("clip", "", 6), rejects)
    assert rejects.examples == {"other_hand": ["clip/000002"]}
    assert [frame.index for frame in frames] == [0, 1, 3, 4, 5]
    assert all(hand.joints_3d == joints and hand.hand == "right" for frame in frames for hand in frame.hands)
    without = [(i, [replace(found, joints_3d=None, camera=None) for found in each]) for i, each in seen]
    assert len(settle(without, [i / 10 for i in range(6)], TrackSettings(), Unit("clip", "", 6), Rejects())) == 6
