from contextlib import nullcontext

import pytest

from jobs import synthesize
from jobs.synthesize import SynthesizeJob, run
from pipeline import storage
from pipeline.config import load
from pipeline.errors import DataError, SettingsError, StorageError
from pipeline.frames.synthetic.video import complete_clips, synthesize_clips
from pipeline.progress import SILENT


@pytest.fixture
def without_ray(monkeypatch):
    """Render in this process."""

    def render(settings, missing, out, progress):
        progress.advance(synthesize_clips(settings, missing, out))

    monkeypatch.setattr(synthesize, "_render", render)
    monkeypatch.setattr(synthesize.run, "__defaults__", (SILENT, nullcontext))


def job(out, **changes):
    return SynthesizeJob(**{"out": str(out), "num_clips": 2, "frames_per_clip": 2, "image_size": 32, **changes})


def test_clips_that_exist_are_kept_and_more_can_be_added(tmp_path, without_ray):
    first = run(job(tmp_path))
    assert (first["rendered"], first["kept"], first["num_frames"]) == (2, 0, 4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("clip_*")}
    (tmp_path / "clip_000001.labels.json").unlink()  # as if stopped between the two files
    again = run(job(tmp_path, num_clips=3))
    assert (again["rendered"], again["kept"]) == (2, 1)
    assert complete_clips(str(tmp_path)) == {"clip_000000", "clip_000001", "clip_000002"}
    unchanged = [path for path, time in before.items() if path.exists() and path.stat().st_mtime_ns == time]
    assert sorted(path.name for path in unchanged) == ["clip_000000.labels.json", "clip_000000.mp4"]
    assert run(job(tmp_path, num_clips=3))["rendered"] == 0


@pytest.mark.parametrize(
    ("change", "named"), [({"seed": 7}, "seed was 0 and is now 7"), ({"num_clips": 1}, "num_clips was 2 and is now 1")]
)
def test_a_folder_holds_clips_of_one_kind(tmp_path, without_ray, change, named):
    run(job(tmp_path))
    with pytest.raises(SettingsError, match=named):
        run(job(tmp_path, **change))


def test_other_videos_are_left_alone(tmp_path, without_ray):
    (tmp_path / "holiday.mp4").write_bytes(b"")
    with pytest.raises(SettingsError, match="did not write"):
        run(job(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", "97"), ("fps", "0"), ("left_fraction", "1.5"), ("num_clips", "0")]
)
def test_bad_settings_are_named(tmp_path, name, value):
    with pytest.raises(SettingsError, match=name):
        load(SynthesizeJob, ["--out", str(tmp_path), f"--{name}", value])


def test_an_unwritable_folder_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a folder"):
        run(job(tmp_path / "file" / "clips"))


def test_a_folder_without_photographs_is_found_before_the_work(tmp_path, without_ray):
    with pytest.raises(DataError, match="no photographs here"):
        run(job(tmp_path / "out", background={"photographs": str(tmp_path)}))
    assert not (tmp_path / "out").exists() or complete_clips(str(tmp_path / "out")) == set()


def test_more_varied_clips_can_be_added(tmp_path, without_ray):
    assert run(job(tmp_path, look="varied", imaging={"noise": 0.1}))["rendered"] == 2
    assert run(job(tmp_path, look="varied", imaging={"noise": 0.1}, num_clips=3))["rendered"] == 1
    with pytest.raises(SettingsError, match=r"imaging\.noise was 0\.1 and is now 0\.05"):
        run(job(tmp_path, look="varied", num_clips=3))


def test_renders_in_parallel_to_object_storage(ray_cluster, s3, tmp_path):
    result = run(job(f"{s3}/clips", num_clips=5))
    assert result["rendered"] == 5
    assert complete_clips(f"{s3}/clips") == {f"clip_{index:06d}" for index in range(5)}
    synthesize_clips(job(tmp_path), [3], str(tmp_path))
    for suffix in (".mp4", ".labels.json"):
        assert storage.read_bytes(f"{s3}/clips/clip_000003{suffix}") == (tmp_path / f"clip_000003{suffix}").read_bytes()
    assert run(job(f"{s3}/clips", num_clips=6))["kept"] == 5
