"""Long videos in pieces: the same rows, names, tracks, splits and shards as without."""

import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from pipeline.frames import pieces, plan
from pipeline.frames.detect import DetectorSettings
from pipeline.frames.ingest import ingest
from pipeline.frames.plan import IngestSettings
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import Unit, video
from pipeline.frames.sources.detected_video import DetectedVideoSettings
from pipeline.frames.sources.video import probe, read_frames
from pipeline.frames.track import Detection, TrackSettings
from tests.conftest import real_data
from tests.frames.clips import CAMERA, draw, hand_label, joints_at, project, write_clip, write_video
from tests.frames.inline_ray import PLACES, map_inline

NUM_FRAMES, PIECE = 70, 20


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_FRAMES", PIECE)
    monkeypatch.setattr(video, "_SEEK_MARGIN", 4)
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)


def ingested(source, out, monkeypatch, *, split, **changes):
    """The manifest, without its date."""
    settings = IngestSettings.model_validate(
        {"source": source, "image_size": 48, "rows_per_shard": 32, "row_group_size": 16, **changes}
    )
    with monkeypatch.context() as patch:
        patch.setattr(plan, "MIN_FRAMES_PER_TASK", 1)
        if not split:
            patch.setattr(plan, "into_pieces", list)
        planned = plan.make_plan(settings, settings.source.reader())
        assert len(planned.tasks) == (4 if split else 1)
        return ingest(settings, str(out)).model_copy(update={"created_at": ""})


def test_a_video_is_cut_into_ranges():
    unit = Unit("v", "uri", 33, length=2 * pieces.PIECE_FRAMES + 1)
    first, second, last = pieces.into_pieces([unit])
    assert [(p.first, p.end) for p in (first, second, last)] == [(0, 8192), (8192, 16384), (16384, None)]
    assert sum(p.num_frames for p in (first, second, last)) == 33
    for index in (-1, 0, 8191, 8192, 16383, 16384, 99999):
        assert sum(p.has(index) for p in (first, second, last)) == 1
    for short in (Unit("v", "uri", 33), Unit("v", "uri", 33, length=8192), Unit("v", "uri", 0, length=0)):
        assert pieces.into_pieces([short]) == [short]


@pytest.mark.parametrize("quality", [{}, {"min_change": 3}])
def test_labelled_video_gives_the_same_set_in_pieces(tmp_path, monkeypatch, short_pieces, quality):
    # The second hand comes late and goes early, so most pieces show one hand only; one frame has none.
    frames: list[dict[str, Any]] = [
        {"index": i, "hands": [hand_label(i), hand_label(i, "left", track=1)][: 1 + (32 < i < 50)] if i != 25 else []}
        for i in range(NUM_FRAMES)
    ]
    for frame in frames:
        for k, hand in enumerate(frame["hands"]):
            hand["box"][0] -= 5 * k
    frames.append({"index": 99, "hands": [hand_label(0)]})
    write_clip(tmp_path / "in", "long", num_frames=NUM_FRAMES, labels={"frames": frames})
    source = {"kind": "labelled_video", "uri": str(tmp_path / "in")}
    whole, split = (
        ingested(source, tmp_path / str(cut), monkeypatch, split=cut, quality=quality) for cut in (False, True)
    )
    assert split == whole
    assert whole.num_clips == 2
    assert whole.rejects["in"].get("no_hand") == whole.rejects["in"]["missing_frame_label"] == 1
    if not quality:
        assert whole.num_rows == NUM_FRAMES - 1 + 17


def test_detected_video_gives_the_same_set_in_pieces(tmp_path, monkeypatch, short_pieces):
    class Detector:
        """Finds the dots; a frame in seven is taken for a left hand, another one is missed."""

        def __call__(self, image, with_joints):
            bright = np.asarray(image.convert("L")) > 150
            (y,), (x,) = (np.nonzero(bright.any(axis)) for axis in (1, 0))
            if not len(x) or int(x[0] * 10) % 7 == 3:
                return []
            box = (float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1))
            return [Detection(box, "left" if x[0] % 7 == 1 else "right", 0.5 + float(x[0]) / 1000)]

    module = "pipeline.frames.sources.detected_video"
    monkeypatch.setattr(f"{module}.require_mediapipe", lambda: None)
    monkeypatch.setattr(f"{module}.shared_detector", lambda *_: Detector())
    (tmp_path / "model.task").write_bytes(b"model")
    (tmp_path / "in").mkdir()
    images = [draw([project(joints_at(i), CAMERA)]) for i in range(NUM_FRAMES)]
    write_video(tmp_path / "in" / "long.mp4", images)
    source = {
        "kind": "detected_video",
        "uri": str(tmp_path / "in"),
        "detector": {"model": str(tmp_path / "model.task")},
    }
    whole, split = (ingested(source, tmp_path / str(cut), monkeypatch, split=cut) for cut in (False, True))
    assert split == whole
    assert whole.num_clips == 1
    assert whole.hands == {"right": whole.num_rows, "left": 0}  # voted over the whole video
    assert 0 < whole.rejects["in"]["no_hand"] == NUM_FRAMES - whole.num_rows < NUM_FRAMES // 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_frames_after_a_seek_are_those_of_the_whole_video(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(video, "_SEEK_MARGIN", 4)
    path = tmp_path / f"video{suffix}"
    write_video(path, [draw([project(joints_at(i), CAMERA)]) for i in range(40)])
    info = probe(str(path))
    assert info is not None
    rejects = Rejects()
    whole = {i: np.asarray(image) for i, image in read_frames(str(path), info, range(40), "v", rejects)}
    assert len(whole) == 40
    for first in (5, 17, 24, 39):
        wanted = range(first, min(first + 7, 40))
        found = {i: np.asarray(image) for i, image in read_frames(str(path), info, wanted, "v", rejects)}
        assert list(found) == list(wanted)
        assert all(np.array_equal(found[i], whole[i]) for i in wanted)
    assert not rejects.counts
    if suffix in (".mp4", ".mkv"):
        begun, _ = next(iter(video._sound_frames(str(path), info, 24)))
        assert begun >= 12  # not decoded from the start


def test_a_detector_in_lasting_workers(tmp_path, monkeypatch, ray_cluster):
    if importlib.util.find_spec("mediapipe") is None:
        pytest.skip("mediapipe is not installed")
    source = DetectedVideoSettings(
        uri=str(real_data("human_hand_video.mp4")),
        name="real",
        fps=1,
        detector=DetectorSettings(model=str(real_data("hand_landmarker.task"))),
        track=TrackSettings(max_gap_s=2.5),
    )
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 320)
    settings = IngestSettings(source=source, image_size=48, num_detectors=2)
    assert json.dumps(settings.deciding()) == json.dumps(settings.model_copy(update={"num_detectors": 1}).deciding())
    manifest = ingest(settings, str(tmp_path / "ray"))
    for place in PLACES:
        monkeypatch.setattr(place, map_inline)
    assert ingest(settings, str(tmp_path / "inline")).shards == manifest.shards
    assert manifest.num_rows >= 15
    assert manifest.num_clips == 1
