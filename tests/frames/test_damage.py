"""Videos of which bytes are damaged or gone: what lies behind is kept, under its own number, and nothing that was made up."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.frames.rejects import Rejects
from pipeline.frames.sources import Unit, video
from pipeline.frames.sources.damage import Damage, Packet
from pipeline.frames.sources.detected_video import DetectedVideoSettings
from pipeline.frames.sources.video import declared_times, probe, read_frames
from pipeline.frames.track import Detection
from tests.frames.clips import CAMERA, HEIGHT, WIDTH, draw, joints_at, project

NUM_FRAMES, KEY_EVERY = 60, 12


def write_noisy(path: Path, num_frames: int = NUM_FRAMES, **options: str) -> Path:
    """H.264 with B frames, a key frame every KEY_EVERY frames, and large packets."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as container:
        codec_options = {"g": str(KEY_EVERY), "bf": "2", "sc_threshold": "0", "crf": "18"}
        stream = container.add_stream("libx264", rate=10, options=codec_options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(num_frames):
            noise = rng.integers(0, 99, (HEIGHT, WIDTH, 3), np.uint8)
            image = draw([project(joints_at(i), CAMERA)]) // 2 + noise
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def packets_of(path: Path) -> list[tuple[int, int, int]]:
    """(index of the frame, first byte, bytes) of each packet, in the order of decoding."""
    with av.open(str(path)) as container:
        packets = [(p.pts, p.pos or 0, p.size) for p in container.demux(video=0) if p.pts is not None]
    number = {pts: index for index, pts in enumerate(sorted(pts for pts, _, _ in packets))}
    return [(number[pts], pos, size) for pts, pos, size in packets]


def overwrite(path: Path, index: int, start: float, end: float) -> None:
    """Other bytes for a part of the packet of frame `index`; start, end: fractions of it."""
    pos, size = next((pos, size) for i, pos, size in packets_of(path) if i == index)
    data = bytearray(path.read_bytes())
    first, last = pos + int(size * start), pos + int(size * end)
    data[first:last] = np.random.default_rng(1).integers(0, 256, last - first, np.uint8).tobytes()
    path.write_bytes(data)


def read(path: Path, indexes: range) -> tuple[dict[int, np.ndarray], dict[str, list[int]]]:
    """({index: pixels}, {reason: indexes})"""
    info = probe(str(path))
    assert info is not None
    rejects = Rejects()
    frames = {i: np.asarray(image) for i, image in read_frames(str(path), info, indexes, "v", rejects)}
    assert list(frames) == sorted(frames)
    return frames, {reason: [int(name[2:]) for name in names] for reason, names in rejects.examples.items()}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("damaged", [16, 24])  # in the middle of a group, and its key frame
def test_damage_costs_no_more_than_its_group(tmp_path, monkeypatch, suffix, damaged):
    monkeypatch.setattr(video, "_SEEK_MARGIN", 4)
    path = write_noisy(tmp_path / f"v{suffix}")
    intact, nothing = read(path, range(NUM_FRAMES))
    assert (len(intact), nothing) == (NUM_FRAMES, {})
    overwrite(path, damaged, 0.3, 0.7)
    frames, left_out = read(path, range(NUM_FRAMES))
    lost = set(range(NUM_FRAMES)) - set(frames)
    assert set(left_out) == {"damaged_frame"}
    assert set(left_out["damaged_frame"]) == lost
    assert damaged in lost
    begin = damaged // KEY_EVERY * KEY_EVERY
    assert lost <= set(range(begin - 2, begin + KEY_EVERY))
    for index, pixels in frames.items():
        np.testing.assert_array_equal(pixels, intact[index])  # no picture was made up, none is under another number
    # The same in pieces, wherever they begin.
    for size in (7, 20):
        pieces = [read(path, range(first, min(first + size, NUM_FRAMES))) for first in range(0, NUM_FRAMES, size)]
        assert {index for found, _ in pieces for index in found} == set(frames)
        assert all(np.array_equal(pixels, frames[i]) for found, _ in pieces for i, pixels in found.items())
        assert {reason for _, left_out in pieces for reason in left_out} == {"damaged_frame"}


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {}), (".ts", {})])
def test_a_file_that_is_cut_off_ends_earlier(tmp_path, suffix, options):
    path = write_noisy(tmp_path / f"v{suffix}", **options)
    intact, _ = read(path, range(NUM_FRAMES))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = probe(str(path))
    assert info is not None
    assert info.num_declared == (NUM_FRAMES if suffix == ".mp4" else len(info.times_s))
    frames, left_out = read(path, range(info.num_declared))
    assert set(left_out) <= {"damaged_frame", "broken_video_tail"}
    assert 15 < len(frames) < 45
    for index, pixels in frames.items():
        number = round(10 * info.times_s[index])
        np.testing.assert_array_equal(pixels, intact[number])
        if suffix == ".mp4":  # whose header says how many there were, so labels may fit
            assert index == number


def test_damage_at_the_start_and_at_the_end(tmp_path):
    path = write_noisy(tmp_path / "v.mp4")
    intact, _ = read(path, range(NUM_FRAMES))
    overwrite(path, 0, 0, 1)
    overwrite(path, 48, 0, 1)
    frames, left_out = read(path, range(NUM_FRAMES))
    assert list(frames) == list(range(12, 48))
    assert len(left_out["damaged_frame"]) == 12
    assert left_out["broken_video_tail"] == list(range(48, 60))
    assert all(np.array_equal(pixels, intact[index]) for index, pixels in frames.items())
    some, left_out = read(path, range(45, 54, 4))
    assert (list(some), left_out) == ([45], {"broken_video_tail": [49, 53]})


def test_lost_bytes_that_only_the_container_knows_of(tmp_path):
    path = write_noisy(tmp_path / "v.ts")
    intact, _ = read(path, range(NUM_FRAMES))
    pos = next(pos for index, pos, _ in packets_of(path) if index == 15)
    data = path.read_bytes()
    at = pos // 188 * 188 + 3 * 188
    path.write_bytes(data[:at] + data[at + 188 :])
    frames, left_out = read(path, range(NUM_FRAMES))
    assert 15 in left_out["damaged_frame"]
    assert len(frames) >= NUM_FRAMES - KEY_EVERY - 1
    assert all(np.array_equal(pixels, intact[index]) for index, pixels in frames.items())


def packets(text: str) -> list[Packet]:
    """ "K0 P3 B1": kinds and time stamps, in the order of decoding."""
    return [Packet(int(word[1:]), word[0] == "K", False) for word in text.split()]


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        (3, "0 6 9"),  # 1 and 2 are shown earlier, but predicted from it; so may 5 be
        (2, "0 1 3 6 9"),
        (6, "0 1 2 3"),  # 5 is predicted from both sides
        (5, "0 1 2 3 6 9"),  # nothing is predicted from it that is shown after the key frame
        (9, "0 1 2 3 5 6"),
        (77, "0 1 2 3 5 6 9"),
    ],
)
def test_what_may_be_predicted_from_damage(damaged, kept):
    damage = Damage(packets("K0 P3 B1 B2 K6 B5 P9"))
    shown = [0, 1, 2, 3, 5, 6, 9]

    def decoded():
        for pts in shown:
            if pts == damaged:
                damage.add(pts)
            yield pts, str(pts)

    assert " ".join(frame for _, frame in damage.sound(decoded())) == kept


def test_frames_wait_for_what_they_are_predicted_from_only():
    damage = Damage(packets("K0 P1 P4 B2 B3 K5"))
    given = []

    def decoded():
        for pts in range(6):
            given.append(pts)
            yield pts, pts

    assert [(pts, given[-1]) for pts, _ in damage.sound(decoded())] == [(0, 0), (1, 1), (2, 4), (3, 4), (4, 4), (5, 5)]


def test_a_detector_counts_damage_once_in_pieces(tmp_path, monkeypatch):
    path = write_noisy(tmp_path / "v.mp4")
    overwrite(path, 16, 0, 1)
    overwrite(path, 48, 0, 1)
    (tmp_path / "model.task").write_bytes(b"model")
    module = "pipeline.frames.sources.detected_video"
    monkeypatch.setattr(f"{module}.shared_detector", lambda *_: lambda *_: [Detection((1, 2, 30, 40), "right", 0.9)])
    settings = DetectedVideoSettings.model_validate(
        {"uri": str(path), "stride": 2, "detector": {"model": str(tmp_path / "model.task")}}
    )
    source = settings.reader()
    for units in (
        [Unit("v", str(path), 60)],
        [Unit("v", str(path), 20, first=a, end=b) for a, b in ((0, 20), (20, 40), (40, None))],
    ):
        rejects = Rejects()
        for unit in units:
            with source.open(unit, rejects) as opened:
                assert opened is not None
        assert rejects.counts["broken_video_tail"] == 6
        assert 3 <= rejects.counts["damaged_frame"] <= 6


def test_a_video_that_changes_its_size_keeps_its_first(tmp_path):
    parts = []
    for name, (width, height) in {"a": (64, 48), "b": (128, 96)}.items():
        with av.open(str(tmp_path / f"{name}.ts"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            image = np.zeros((height, width, 3), np.uint8)
            image[:, width // 2 :] = 255
            for i in range(4):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = i + (4 if name == "b" else 0), Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        parts.append((tmp_path / f"{name}.ts").read_bytes())
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(parts))
    frames, _ = read(path, range(8))
    assert {pixels.shape for pixels in frames.values()} == {(48, 64, 3)}
    assert max(frames) > 4
    for pixels in frames.values():
        assert pixels[:, :28].max() < 40 < 200 < pixels[:, 36:].min()


@pytest.mark.parametrize(("first", "count"), [(5, 55), (14, 20), (0, 30)])
def test_a_trimmed_video_is_not_a_broken_one(tmp_path, first, count):
    path = write_noisy(tmp_path / "v.mp4")
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # phones trim by an edit list; all frames stay in the file
    media_time = struct.unpack(">i", data[at + 4 : at + 8])[0]
    data[at : at + 8] = struct.pack(">Ii", count * 100, media_time + round(first / 10 / base))
    path.write_bytes(data)
    info = probe(str(path))
    assert info is not None
    assert info.num_declared == len(info.times_s) == len(declared_times(info)) == count
    frames, left_out = read(path, range(count))
    assert (len(frames), left_out) == (count, {})
