"""Every container, codec and clock: frame k is the k-th picture that the decoder shows, and looks as a player shows it."""

import io
import json
import os
import shutil
import subprocess
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.frames.plan import IngestSettings, make_plan
from pipeline.frames.rejects import Rejects
from pipeline.frames.rows import unit_groups
from pipeline.frames.sources import Unit, video
from pipeline.frames.sources.video import expected_frames, facts, open_piece, probe, read_frames
from pipeline.frames.sources.video_clock import Coded, read_clock
from pipeline.prediction.overlay import write_video_overlay
from tests.conftest import SHARED
from tests.frames.squares import (
    FPS,
    H264,
    HEIGHT,
    MATRICES,
    NUM_FRAMES,
    PLAIN,
    WIDTH,
    index_of,
    set_matrix,
    squeezed,
    unshown,
    write,
    write_labels,
    write_two_tracks,
    write_with_cover,
)

SHORT_GROUPS = {**H264, "g": "8"}
HEVC = {"x265-params": "bframes=2:keyint=8:open-gop=1:pools=none:frame-threads=1:log-level=none"}
VP8 = {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good", "cpu-used": "4"}


def read(path: Path) -> tuple[dict[int, int | None], dict[str, Any], Rejects]:
    """({index: which picture it is}, facts, rejects)"""
    info = probe(str(path))
    assert info is not None
    rejects = Rejects()
    frames = read_frames(str(path), info, range(info.num_declared), "v", rejects)
    found = {index: index_of(image) for index, image in frames}
    return found, {**facts(info), "times_s": info.times_s}, rejects


def check_all(path: Path, expected=range(NUM_FRAMES)) -> dict[str, Any]:
    found, said, rejects = read(path)
    assert not rejects.counts
    assert found == dict(enumerate(expected))
    return said


def rows_of(uri: Path) -> tuple[list[dict[str, Any]], Rejects]:
    """Rows of a labelled_video source, as an ingest makes them."""
    settings = IngestSettings.model_validate({"source": {"kind": "labelled_video", "uri": str(uri), "name": "s"}})
    source = settings.source.reader()
    plan = make_plan(settings, source)
    rejects = Rejects()
    units = [(unit, split) for task in plan.tasks for unit, split in task.units]
    groups = [g for unit, split in units for g in unit_groups(source, "s", unit, split, settings, rejects)]
    return sorted((row for group in groups for row in group), key=lambda row: row["frame_id"]), rejects


def red_x(row: dict[str, Any]) -> float:
    """Mean x of the red pixels of a row's crop."""
    pixels = np.asarray(Image.open(io.BytesIO(row["jpeg"]))).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(-1) < 110)
    return float(np.nonzero(red)[1].mean()) if red.any() else float("nan")


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("avi", "libx264", None),
        ("avi", "libx264", PLAIN),
        ("avi", "mpeg4", {}),
        ("avi", "mjpeg", {}),
        ("mkv", "libx264", None),
        ("mkv", "libx264", PLAIN),
        ("mkv", "libx265", HEVC),
        ("mp4", "libx264", None),
        ("mp4", "libx264", PLAIN),
        ("mp4", "libx264", {**SHORT_GROUPS, "x264-params": "open-gop=1"}),
        ("mov", "libx264", None),
        ("mov", "mjpeg", {}),
        ("ts", "libx264", None),
        ("ts", "libx264", PLAIN),
        ("ts", "mpeg2video", {"bf": "2"}),
        ("mpg", "mpeg2video", {"bf": "2"}),
        ("wmv", "wmv2", {}),
        ("webm", "libvpx", VP8),
        ("webm", "libvpx-vp9", {**VP8, "deadline": "realtime", "cpu-used": "8"}),
    ],
)
def test_labels_lie_on_their_pictures(tmp_path, suffix, codec, options):
    write_labels(write(tmp_path / f"v.{suffix}", codec, options))
    rows, rejects = rows_of(tmp_path)
    assert (len(rows), rejects.counts) == (NUM_FRAMES, {})
    assert [row["frame_index"] for row in rows] == list(range(NUM_FRAMES))
    np.testing.assert_allclose([red_x(row) for row in rows], 84, atol=2)
    np.testing.assert_allclose([row["timestamp_s"] for row in rows], np.arange(NUM_FRAMES) / FPS, atol=2e-3)


@pytest.mark.parametrize("options", [None, PLAIN])
def test_transport_streams_that_were_joined(tmp_path, options):
    parts = [
        write(tmp_path / f"{n}.ts", "libx264", options, indexes=frames)
        for n, frames in enumerate((range(12), range(12, 16), range(16, 24)))
    ]
    joined = tmp_path / "in" / "v.ts"
    joined.parent.mkdir()
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    write_labels(joined)
    said = check_all(joined)
    assert said["order"] == "decoder"
    assert (said["num_restarts"], said["num_mended"], said["num_equal"]) == (2, 0, 0)
    assert min(np.diff(said["times_s"])) > 0
    np.testing.assert_allclose(said["times_s"], np.arange(NUM_FRAMES) / FPS, atol=2e-3)
    rows, rejects = rows_of(joined.parent)
    assert (len(rows), rejects.counts) == (NUM_FRAMES, {})
    np.testing.assert_allclose([red_x(row) for row in rows], 84, atol=2)


def shifted(numbers: set[int], seconds: float):
    """A change of these packets' stamps."""

    def change(number, packet):
        if number in numbers:
            ticks = round(seconds / packet.time_base)
            packet.pts += ticks
            packet.dts += ticks
        return packet

    return change


def stamps_of_decoding(_, packet):
    packet.pts = packet.dts
    return packet


def one_stamp_twice(number, packet):
    if number == 6:
        packet.pts -= round(Fraction(1, FPS) / packet.time_base)
    return packet


def test_two_frames_with_one_stamp(tmp_path):
    said = check_all(write(tmp_path / "v.mkv", change=one_stamp_twice))
    assert (said["num_equal"], said["num_mended"], said["times"]) == (1, 0, "stamps")
    assert min(np.diff(said["times_s"])) > 0


def test_a_stamp_that_is_far_off(tmp_path):
    def far(number, packet):
        packet.pts += round(1000 / packet.time_base) if number == 6 else 0
        return packet

    said = check_all(write(tmp_path / "v.mkv", change=far))
    assert said["num_mended"] == 1
    np.testing.assert_allclose(said["times_s"], np.arange(NUM_FRAMES) / FPS, atol=1e-2)


def test_stamps_of_decoding_for_those_of_display(tmp_path):
    said = check_all(write(tmp_path / "v.mkv", change=stamps_of_decoding))
    assert (said["times"], said["order"]) == ("decode times", "decoder")
    np.testing.assert_allclose(said["times_s"], np.arange(NUM_FRAMES) / FPS, atol=2e-3)


@pytest.mark.parametrize(("suffix", "restarts", "jump"), [("ts", 1, 0), ("mkv", 0, 100)])
def test_a_clock_that_jumps(tmp_path, suffix, restarts, jump):
    """In a transport stream it is another clock; elsewhere the time passes."""
    later = shifted(set(range(12, 24)), 100)
    said = check_all(write(tmp_path / f"v.{suffix}", options={**H264, "g": "12"}, change=later))
    assert said["num_restarts"] == restarts
    assert said["times_s"][-1] == pytest.approx(23 / FPS + jump, abs=2e-3)


def test_negative_stamps(tmp_path):
    options = {"avoid_negative_ts": "disabled"}
    before = shifted(set(range(24)), -0.5)
    check_all(write(tmp_path / "v.ts", change=before, container_options=options))
    # An MP4's edit list says that what lies before zero is not shown.
    check_all(write(tmp_path / "v.mp4", change=before, container_options=options), range(6, 24))


@pytest.mark.parametrize("options", [SHORT_GROUPS, {**PLAIN, "g": "8"}])
def test_frames_before_the_first_key_frame_are_not_shown(tmp_path, options):
    path = write(tmp_path / "v.ts", "libx264", {**options, "sc_threshold": "0"})
    with av.open(str(path)) as container:
        third = [packet.pos for packet in container.demux(video=0) if packet.size][3]
    data = path.read_bytes()
    path.write_bytes(data[: 3 * 188] + data[third:])
    check_all(path, range(8, 24))


@pytest.mark.parametrize("options", [SHORT_GROUPS, {**PLAIN, "g": "8"}])
@pytest.mark.parametrize(("damaged", "with_header"), [(3, False), (3, True), (9, False), (8, True)])
def test_damage_moves_no_number_where_there_are_no_stamps(tmp_path, options, damaged, with_header):
    path = write(tmp_path / "v.avi", "libx264", {**options, "sc_threshold": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    begin, size = packets[damaged]
    begin, size = (begin - 8, size + 8) if with_header else (begin + size // 3, size // 2)
    data[begin : begin + size] = bytes([255]) * size
    path.write_bytes(data)
    found, _, rejects = read(path)
    assert 12 <= len(found) < NUM_FRAMES
    assert all(shown == index for index, shown in found.items())
    assert sum(rejects.counts.values()) == NUM_FRAMES - len(found)


def test_a_long_video_without_sound_stamps_is_read_by_its_first_piece(tmp_path, monkeypatch):
    path = write_labels(write(tmp_path / "v.avi", options=SHORT_GROUPS))
    pieces = [Unit("v", str(path), 8, first=a, end=b) for a, b in ((0, 8), (8, 16), (16, None))]
    settings = IngestSettings.model_validate({"source": {"kind": "labelled_video", "uri": str(path), "name": "s"}})
    source = settings.source.reader()
    decoded: list[str] = []
    scan_all = video._scan_all

    def noted(path: str) -> Any:
        decoded.append(path)
        return scan_all(path)

    monkeypatch.setattr(video, "_scan_all", noted)
    rejects = Rejects()
    counts = [sum(map(len, unit_groups(source, "s", piece, "train", settings, rejects))) for piece in pieces]
    assert (counts, rejects.counts) == ([NUM_FRAMES, 0, 0], {})
    assert len(decoded) <= 1
    assert [open_piece(str(path), piece)[0] is None for piece in pieces] == [False, True, True]


@pytest.mark.parametrize(("suffix", "options"), [("mp4", SHORT_GROUPS), ("ts", SHORT_GROUPS), ("mkv", SHORT_GROUPS)])
def test_pieces_begin_at_their_own_frame(tmp_path, monkeypatch, suffix, options):
    monkeypatch.setattr(video, "_SEEK_MARGIN", 4)
    path = write(tmp_path / f"v.{suffix}", "libx264", {**options, "x264-params": "open-gop=1"})
    info = probe(str(path))
    assert info is not None
    for first in range(0, NUM_FRAMES, 5):
        wanted = range(first, min(first + 5, NUM_FRAMES))
        rejects = Rejects()
        found = {i: index_of(image) for i, image in read_frames(str(path), info, wanted, "v", rejects)}
        assert (found, rejects.counts) == ({i: i for i in wanted}, {})


# --- as a player shows it


def test_display_matrices(tmp_path):
    for kind in MATRICES:
        path = write(tmp_path / f"{kind}.mp4", stored=partial(unshown, kind=kind), indexes=range(4))
        said = check_all(set_matrix(path, kind), range(4))
        assert said["shown"] == f"{WIDTH} x {HEIGHT}"
        assert ("mirrored" in said["turn"]) == (kind in ("hflip", "vflip", "transpose", "transverse"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "mov"])
def test_pixels_that_are_not_square(tmp_path, suffix):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write_labels(write(tmp_path / f"v.{suffix}", stored=lambda image: squeezed(image, 4 / 3), prepare=wide))
    said = check_all(path)
    assert (said["stored"], said["shown"], said["pixel_aspect"]) == ("240 x 240", "320 x 240", "4:3")
    rows, _ = rows_of(tmp_path)
    assert len(rows) == NUM_FRAMES
    np.testing.assert_allclose([red_x(row) for row in rows], 84, atol=2)


def test_a_turned_video_of_wide_pixels(tmp_path):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write(
        tmp_path / "v.mp4",
        stored=lambda image: squeezed(unshown(image, "rot90"), 4 / 3),
        prepare=wide,
        indexes=range(4),
    )
    # Written after the container knows the pixels' shape, which a matrix does not change.
    assert check_all(set_matrix(path, "rot90"), range(4))["shown"] == f"{WIDTH} x {HEIGHT}"


@pytest.mark.parametrize(("small_first", "default"), [(True, 1), (False, 0), (True, None)])
def test_the_track_that_a_player_shows(tmp_path, small_first, default):
    path = write_two_tracks(tmp_path / "v.mkv", small_first, default)
    assert check_all(path)["track"] == f"{1 + small_first} of 2"


def test_cover_art_is_no_video(tmp_path):
    path = write_with_cover(tmp_path / "v.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mjpeg"
    assert check_all(path)["track"] == "2 of 2"
    assert expected_frames(str(path), None, 1) == (NUM_FRAMES, NUM_FRAMES)


FFMPEG = os.environ.get("EQUIHAND_FFMPEG") or shutil.which("ffmpeg")


@pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg program here")
@pytest.mark.parametrize("kind", MATRICES)
def test_ffmpeg_shows_the_same_picture(tmp_path, kind):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)

    path = set_matrix(write(tmp_path / "v.mp4", prepare=wide, indexes=range(3)), kind)
    info = probe(str(path))
    assert info is not None
    images = [np.asarray(image, float) for _, image in read_frames(str(path), info, range(3), "v", Rejects())]
    # FFmpeg turns the pixels' shape with the picture; where that lies on its side, it is the inverse.
    lies = kind in ("transpose", "transverse", "rot90", "rot270")
    size = "scale=iw:ih/sar" if lies else "scale=iw*sar:ih"
    command = [str(FFMPEG), "-v", "error", "-i", str(path), "-vf", size, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    shown = np.frombuffer(raw, np.uint8).reshape(3, info.height, info.width, 3).astype(float)
    for ours, theirs in zip(images, shown, strict=True):
        assert np.abs(ours - theirs).mean() < 4


# --- overlays


def test_an_overlay_keeps_the_sources_stamps(tmp_path):
    def uneven(number, packet):
        packet.time_base = Fraction(1, 1000)
        packet.pts = packet.dts = round((number + (number % 3) * 0.217) / FPS * 1000)
        return packet

    path = write(tmp_path / "v.mkv", options=PLAIN, change=uneven)
    info = probe(str(path))
    assert info is not None
    assert np.ptp(np.diff(info.times_s)) > 0.01
    assert write_video_overlay(str(path), {}, str(tmp_path / "o.mp4")) == NUM_FRAMES
    written = probe(str(tmp_path / "o.mp4"))
    assert written is not None
    np.testing.assert_allclose(written.times_s, info.times_s, atol=1e-3)
    check_all(tmp_path / "o.mp4")


# --- the clock alone


def clock_of(pts, dts=None, numbers=None, **options):
    coded = [Coded(p, d, i == 0, False, True) for i, (p, d) in enumerate(zip(pts, dts or pts, strict=True))]
    return read_clock(coded, numbers or list(range(len(pts))), Fraction(1, 10), Fraction(10), **options)


@pytest.mark.parametrize(
    ("pts", "times", "counts"),
    [
        ([5, 6, 7, 9], [0, 0.1, 0.2, 0.4], (0, 0, 0)),
        ([5, None, None, 8], [0, 0.1, 0.2, 0.3], (0, 0, 2)),
        ([5, 6, 6, 8], [0, 0.1, 0.2, 0.3], (0, 1, 0)),
        ([5, 6, 7, 5, 6, 7], [0, 0.1, 0.2, 0.3, 0.4, 0.5], (1, 0, 0)),
        ([5, 6, 9999, 8, 9], [0, 0.1, 0.2, 0.3, 0.4], (0, 0, 1)),
        ([None, 6, 7, None], [0, 0.1, 0.2, 0.3], (0, 0, 2)),
        ([-4, -3, -2], [0, 0.1, 0.2], (0, 0, 0)),
    ],
)
def test_times_of_stamps(pts, times, counts):
    clock = clock_of(pts)
    np.testing.assert_allclose(clock.times_s, times, atol=1e-9)
    assert (clock.num_restarts, clock.num_equal, clock.num_mended) == counts


def test_times_without_stamps():
    nothing = clock_of([None] * 4, [None] * 4)
    assert (nothing.source, nothing.times_s) == ("frame rate", [0, 0.1, 0.2, pytest.approx(0.3)])
    decoding = clock_of([None] * 4, [3, 4, 5, 6], numbers=[0, 2, 1, 3])
    assert (decoding.source, decoding.times_s) == ("decode times", [0, 0.1, 0.2, pytest.approx(0.3)])


# --- the failing inputs of the field


@pytest.mark.skipif(not (SHARED / "field").exists(), reason="field inputs are not here")
def test_field_videos(tmp_path):
    for path in sorted((SHARED / "field").glob("*.labels.json")):
        name = path.name.removesuffix(".labels.json")
        for file in (SHARED / "field").glob(f"{name}.*"):
            shutil.copy(file, tmp_path)
    rows, rejects = rows_of(tmp_path)
    clips: dict[str, list[float]] = {}
    for row in rows:
        clips.setdefault(row["clip_id"], []).append(red_x(row))
    assert rejects.counts == {}
    assert len(clips) == len(list(tmp_path.glob("*.labels.json")))
    for name, centres in clips.items():
        assert len(centres) == json.loads((tmp_path / f"{name[2:]}.labels.json").read_text())["num_frames"]
        np.testing.assert_allclose(centres, 84, atol=2)
