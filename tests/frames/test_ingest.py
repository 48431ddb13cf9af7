import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.ingest import IngestJob, run
from pipeline.errors import DataError, SettingsError
from pipeline.frames import ingest as module
from pipeline.frames import plan
from pipeline.frames.ingest import Preparation, execute, ingest, prepare
from pipeline.frames.manifest import read_manifest
from pipeline.frames.plan import IngestSettings
from pipeline.frames.schema import SCHEMA, digest, digest_to_hex
from pipeline.progress import Progress
from pipeline.storage import copy_from_local, exists, join, list_files, resolve
from tests.frames.clips import hand_label, write_clip, write_images
from tests.frames.inline_ray import PLACES, map_inline

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"image_size": 48, "rows_per_shard": 32, "row_group_size": 16}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """12 clips of 13 frames, every third of a left hand, one frame without a hand, one broken video."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(12):
        write_clip(folder, f"clip_{i:02d}", num_frames=13, hand="left" if i % 3 == 0 else "right")
    labels = json.loads((folder / "clip_05.labels.json").read_text())
    labels["frames"][4]["hands"] = []
    (folder / "clip_05.labels.json").write_text(json.dumps(labels))
    (folder / "clip_07.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture
def inline(monkeypatch):
    """Run the tasks in this process."""
    monkeypatch.setattr(plan, "MIN_FRAMES_PER_TASK", 30)

    for place in PLACES:
        monkeypatch.setattr(place, map_inline)


def settings_for(clips: Path, **changes) -> IngestSettings:
    source = {"kind": "labelled_video", "uri": str(clips), "name": "synthetic", **changes.pop("source", {})}
    splits = {"train": 0.6, "val": 0.2, "test": 0.2}
    return IngestSettings.model_validate({"source": source, "splits": splits, **SMALL, **changes})


def read_set(uri: str):
    """The manifest and all rows, each checked against the other."""
    manifest = read_manifest(uri)
    tables = []
    for shard in manifest.shards:
        filesystem, path = resolve(join(uri, shard.path))
        file = pq.ParquetFile(filesystem.open_input_file(path))
        table = file.read()
        assert table.schema.equals(SCHEMA)
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == shard.row_groups
        assert table.num_rows == shard.num_rows
        assert digest_to_hex(digest(table)) == shard.digest
        assert set(table["split"].to_pylist()) == {shard.split}
        assert set(table["source"].to_pylist()) == {shard.source}
        tables.append(table)
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["frame_id"] for row in rows}) == len(rows) == manifest.num_rows
    assert len({row["clip_id"] for row in rows}) == manifest.num_clips
    assert digest_to_hex(sum(digest(table) for table in tables) % 2**128) == manifest.digest
    for source, by_split in manifest.counts.items():
        for split, count in by_split.items():
            assert sum(row["source"] == source and row["split"] == split for row in rows) == count
    for hand, count in manifest.hands.items():
        assert sum(row["hand"] == hand for row in rows) == count
    return manifest, rows


def check_clips(manifest, rows):
    assert manifest.num_rows == 11 * 13 - 1
    assert manifest.num_clips == 11
    assert manifest.rejects["synthetic"] == {"no_hand": 1, "unreadable_video": 1}
    assert manifest.reject_examples == {"no_hand": ["clip_05/000004"], "unreadable_video": ["clip_07"]}
    assert manifest.hands == {"right": 7 * 13 - 1, "left": 4 * 13}
    by_clip: dict[str, set[str]] = {}
    for row in rows:
        by_clip.setdefault(row["clip_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in by_clip.values())
    assert {split for splits in by_clip.values() for split in splits} == {"train", "val", "test"}


def test_every_frame_is_in_the_set_once(clips, tmp_path, inline):
    manifest = ingest(settings_for(clips), str(tmp_path))
    read, rows = read_set(str(tmp_path))
    assert read == manifest
    check_clips(manifest, rows)
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "shards"]


def test_again_is_a_no_op(clips, tmp_path, inline):
    first = ingest(settings_for(clips), str(tmp_path))
    files = {f: os.stat(f).st_mtime_ns for f in list_files(str(tmp_path))}
    (tmp_path / "_ingest" / "synthetic").mkdir(parents=True)  # killed between publishing and cleaning up
    again = ingest(settings_for(clips, num_workers=1, source={"max_reject_fraction": 0.7}), str(tmp_path))
    assert again == first
    assert {f: os.stat(f).st_mtime_ns for f in list_files(str(tmp_path))} == files
    assert not (tmp_path / "_ingest").exists()


def test_results_do_not_depend_on_how_the_work_was_divided(clips, tmp_path, inline, monkeypatch):
    first = ingest(settings_for(clips), str(tmp_path / "a"))
    monkeypatch.setattr(plan, "MIN_FRAMES_PER_TASK", 1000)
    second = ingest(settings_for(clips), str(tmp_path / "b"))
    assert first.shards == second.shards


def test_the_seed_decides_splits_and_order(clips, tmp_path, inline):
    first = ingest(settings_for(clips), str(tmp_path / "a"))
    second = ingest(settings_for(clips, seed=1), str(tmp_path / "b"))
    assert first.digest != second.digest
    assert first.num_rows == second.num_rows


def test_a_source_with_other_settings_or_files_is_refused(clips, tmp_path, inline):
    folder = tmp_path / "clips"
    copy_from_local(clips, str(folder))
    out = str(tmp_path / "frames")
    ingest(settings_for(folder), out)
    before = read_manifest(out)
    with pytest.raises(DataError, match=r"box_margin 1.5 -> 2\.0"):
        ingest(settings_for(folder, box_margin=2.0), out)
    with pytest.raises(DataError, match=r"source.name|box"):
        ingest(settings_for(folder, source={"stride": 2}), out)
    write_clip(folder, "new")
    with pytest.raises(DataError, match="its files have changed"):
        ingest(settings_for(folder), out)
    assert read_manifest(out) == before


def test_another_source_is_added(clips, tmp_path, inline):
    out = str(tmp_path / "frames")
    first = ingest(settings_for(clips), out)
    entries = write_images(tmp_path / "images", {"a": 10, "b": 6})
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    boxed = {"kind": "boxed_images", "uri": str(tmp_path / "images"), "boxes": str(tmp_path / "boxes.json")}
    ingest(IngestSettings.model_validate({"source": boxed, **SMALL}), out)
    manifest, _ = read_set(out)
    assert manifest.num_rows == first.num_rows + 16
    assert manifest.counts["images"] == {"train": 16, "val": 0, "test": 0}
    assert manifest.shards[: len(first.shards)] == first.shards
    assert manifest.rejects == {"images": {}, **first.rejects}
    # Adding must fit what is there.
    with pytest.raises(DataError, match="image_size and group_size"):
        ingest(IngestSettings.model_validate({"source": {**boxed, "name": "x"}, **SMALL, "image_size": 64}), out)
    assert read_manifest(out) == manifest


def test_too_many_rejects_publish_nothing(tmp_path, inline):
    folder = tmp_path / "clips"
    write_clip(folder, "good", num_frames=8)
    frames = [{"index": i, "hands": [hand_label(i)] if i % 4 == 0 else []} for i in range(8)]
    write_clip(folder, "poor", num_frames=8, labels={"frames": frames})
    out = str(tmp_path / "frames")
    with pytest.raises(
        DataError, match=r"38% of the frames .*max_reject_fraction=0\.1: no_hand 6 \(e\.g\. poor/000001\)"
    ):
        ingest(settings_for(folder), out)
    assert not exists(join(out, "manifest.json"))
    assert not list_files(join(out, "shards"))
    # Accepted, the finished work is used.
    manifest = ingest(settings_for(folder, source={"max_reject_fraction": 0.5}), out)
    assert manifest.num_rows == 10
    assert not exists(join(out, "_ingest"))


def test_too_many_bad_clips_publish_nothing(tmp_path, inline):
    for i in range(4):
        write_clip(tmp_path / "clips", f"c{i}")
    for i in (1, 2):
        (tmp_path / "clips" / f"c{i}.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"50% of the clips.*unreadable_video 2"):
        ingest(settings_for(tmp_path / "clips"), str(tmp_path / "frames"))


def test_a_source_without_one_usable_hand_is_said(tmp_path, inline):
    write_clip(tmp_path / "clips", "c", num_frames=2, labels={"num_frames": 3})
    with pytest.raises(DataError, match="not one usable hand; left out: labels_mismatch 1"):
        ingest(settings_for(tmp_path / "clips", source={"max_reject_fraction": 1}), str(tmp_path / "frames"))


def test_remains_of_other_settings_are_swept_away(clips, tmp_path, inline, monkeypatch):
    out = str(tmp_path)
    monkeypatch.setattr(module, "write_manifest", _fail)
    with pytest.raises(KeyboardInterrupt):
        ingest(settings_for(clips), out)
    assert len(list_files(join(out, "shards"))) > 3
    monkeypatch.undo()
    monkeypatch.setattr(module, "ray_map", lambda *a, **b: iter(()))  # what is there must not be taken for finished
    with pytest.raises(KeyError):
        ingest(settings_for(clips, jpeg_quality=80), out)
    assert list_files(join(out, "shards")) == []


def _fail(*arguments):
    raise KeyboardInterrupt


def test_progress_is_told(clips, tmp_path, inline):
    class Recorder(Progress):
        def __init__(self):
            self.events = []

        def start(self, label, total=None, unit=""):
            self.events.append((label, total, unit))

        def update(self, done, **figures):
            self.events.append((done, figures))

    recorder = Recorder()
    ingest(settings_for(clips), str(tmp_path), recorder)
    assert recorder.events[0] == ("find and crop hands (synthetic)", 155, "frames")
    assert (155, {"rows": 142, "rejects": 2}) in recorder.events
    assert recorder.events[-1][0] == 142


def test_killed_at_ten_random_moments_it_ends_with_the_same_manifest(clips, tmp_path):
    settings = settings_for(clips)
    (tmp_path / "settings.json").write_text(settings.model_dump_json())

    def run_killed(*runs: str) -> list[str]:
        command = [sys.executable, str(ROOT / "tests/frames/killed_ingest.py"), str(tmp_path / "settings.json"), *runs]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, timeout=250, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    whole = tmp_path / "whole"
    (line,) = run_killed(f"{whole}:0")
    num_events = int(line.removeprefix("0 "))
    expected = read_manifest(str(whole))
    check_clips(*read_set(str(whole)))

    # Ten ingests, killed at one moment each and then run to their end; the seed is new every time, and printed.
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed).sample(range(1, num_events + 1), 10)
    print(f"seed {seed}: killed at events {sorted(moments)} of {num_events}")
    killed = run_killed(*(f"{tmp_path}/once-{moment}:{moment}" for moment in moments))
    assert [line.strip() for line in killed] == ["-9"] * 10
    for moment in moments:
        if exists(f"{tmp_path}/once-{moment}/manifest.json"):
            read_set(f"{tmp_path}/once-{moment}")  # once published, it is whole
    assert all(line.startswith("0 ") for line in run_killed(*(f"{tmp_path}/once-{moment}:0" for moment in moments)))

    # And one killed again and again, a few events after it was started.
    many = f"{tmp_path}/many"
    lines = run_killed(*(f"{many}:{3 + moment % 40}" for moment in moments), f"{many}:0")
    assert lines[-1].startswith("0 ")
    assert sum(line.startswith("-9") for line in lines) >= 4
    for out in (many, *(f"{tmp_path}/once-{moment}" for moment in moments)):
        manifest, _ = read_set(out)
        assert without_date(manifest) == without_date(expected)
        assert not exists(join(out, "_ingest"))


def without_date(manifest):
    return manifest.model_copy(update={"created_at": ""})


# The job, with as many tasks as `inline` makes.
JOB = """
from pipeline.frames import plan
plan.MIN_FRAMES_PER_TASK = 30
from jobs.ingest import JOB
from jobs.runtime import run_job
run_job(JOB)
"""


@pytest.mark.slow
def test_with_ray_killed_at_two_random_moments(clips, tmp_path, ray_cluster, inline):
    import ray

    whole = ingest(settings_for(clips), str(tmp_path / "whole"))
    command = [sys.executable, "-c", JOB, "--config", str(tmp_path / "job.json")]
    job = {**settings_for(clips).model_dump(mode="json"), "output": str(tmp_path / "frames")}
    job["ray"] = {"address": ray.get_runtime_context().gcs_address}
    (tmp_path / "job.json").write_text(json.dumps(job))
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    ends = []
    for kind, most in (("parts", 3), ("shards", 3)):
        files = moments.randrange(1, most + 1)
        print(f"seed {seed}: killed after {files} files in {kind}")
        # A session of its own, so that nothing is left that could go on with the work.
        driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
        folder = tmp_path / "frames" / "_ingest" / "synthetic" / kind
        while driver.poll() is None and len(list(folder.rglob("*.json"))) < files:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself just now
            os.killpg(driver.pid, signal.SIGKILL)
        ends.append(driver.wait(10))
    assert set(ends) <= {-signal.SIGKILL, 0}
    assert ends[0] == -signal.SIGKILL
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=250).returncode == 0
    manifest, _ = read_set(str(tmp_path / "frames"))
    assert without_date(manifest) == without_date(whole)


def test_with_ray_from_and_to_s3(clips, tmp_path, ray_cluster, s3):
    copy_from_local(clips, join(s3, "clips"))
    job = IngestJob(**settings_for(clips, source={"uri": join(s3, "clips")}).model_dump(), output=join(s3, "frames"))
    result = run(job)
    manifest, rows = read_set(join(s3, "frames"))
    check_clips(manifest, rows)
    assert result["digest"] == manifest.digest
    assert result["num_rows"] == len(rows)
    assert not list_files(join(s3, "frames", "_ingest"))
    # The same rows as from and to the local disk.
    assert run(job.model_copy(update={"output": str(tmp_path)}))["digest"] == manifest.digest


def test_with_ray_a_workers_error_is_one_line(tmp_path, ray_cluster):
    write_clip(tmp_path / "clips", "c")
    (tmp_path / "model.task").write_bytes(b"no model")
    source = {"kind": "detected_video", "detector": {"model": str(tmp_path / "model.task")}}
    pytest.importorskip("mediapipe")
    with pytest.raises(DataError, match=r"model\.task: not a usable Hand Landmarker model"):
        ingest(settings_for(tmp_path / "clips", source=source), str(tmp_path / "frames"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"kind": "boxed_images"}}, "boxes"),
        ({"source": {"boxes": "x.json"}}, r"source\.labelled_video\.boxes"),
        ({"source": {"fps": 5, "stride": 2}}, "fps or stride"),
        ({"source": {"kind": "boxed_images", "boxes": "b.json", "fps": 5}}, "rate of the images"),
        ({"source": {"name": "a/b"}}, "name"),
        ({"splits": {"train": 0.5, "val": 0.1, "test": 0.1}}, "add up to 0.7"),
        ({"row_group_size": 2}, "at least group_size"),
        ({"num_actors": 2}, "num_actors"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        settings_for(Path("/nowhere"), **change)


def test_the_command_line_names_the_setting(tmp_path):
    from pipeline.config import load

    for given, message in {
        "--source.kind boxed_images": r"setting 'source\.boxes' is required",
        "--source.kind labelled_video --source.boxes b.json": r"setting 'source\.boxes' = 'b\.json': has no meaning for labelled_video",
        "--source.kind coco --source.annotations a --source.image_folder.hands whole_image": r"setting 'source\.image_folder\.hands' = "
        "'whole_image': has no meaning for coco",
        "--source.kind coco --source.annotations a --source.coco.clips no": r"setting 'source\.coco\.clips' = 'no': input should be",
        "--source.kind boxed": r"setting 'source\.kind' = 'boxed': input should be 'boxed_images', .* or 'youtube3d'",
        "--source.name n": r"setting 'source\.kind' is required",
    }.items():
        with pytest.raises(SettingsError, match=f"^{message}[^\n]*$") as caught:
            load(IngestJob, [*given.split(), "--source.uri", "x", "--output", "y"])
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("uri", "name"),
    [("s3://bucket/My clips/", "My-clips"), ("/data/video.mp4", "video"), ("s3://bucket", "bucket")],
)
def test_names_come_from_the_uri(uri, name):
    settings = settings_for(Path(uri), source={"uri": uri, "name": None})
    assert settings.source.resolved_name() == name


def test_remains_of_other_tasks_are_swept_away(clips, tmp_path, inline, monkeypatch):
    # As when the header of a video could not be read the first time, or another version of the code goes on.
    out = str(tmp_path / "out")
    whole = ingest(settings_for(clips), str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(plan, "MIN_FRAMES_PER_TASK", 60)
        patch.setattr(module, "_second_stage", _fail)
        with pytest.raises(KeyboardInterrupt):
            ingest(settings_for(clips), out)
    assert ingest(settings_for(clips), out).digest == whole.digest
    read_set(out)


def test_another_source_may_be_published_meanwhile(clips, tmp_path, inline):
    out = str(tmp_path)
    slow, other = settings_for(clips, source={"name": "slow"}), settings_for(clips, source={"name": "other"})
    prepared = [prepare(slow, out), prepare(slow, out)]
    ingest(other, out)
    assert isinstance(prepared[0], Preparation)
    manifest = execute(prepared[0])
    assert set(manifest.counts) == {"slow", "other"}
    assert isinstance(prepared[1], Preparation)
    with pytest.raises(DataError, match="published by another ingest meanwhile"):
        execute(prepared[1])
    assert ingest(slow, out) == manifest
    read_set(out)
