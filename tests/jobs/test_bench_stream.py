from jobs.bench_frames import write_frames
from jobs.bench_stream import BenchStreamJob, _storage
from pipeline.frames.frame_set import FrameSet


def test_the_set_to_measure_with_is_a_frame_set_of_photograph_sized_crops(tmp_path):
    manifest = write_frames(str(tmp_path), 300, rows_per_shard=256)
    assert [shard.row_groups for shard in manifest.shards] == [[256], [44]]
    assert 4000 < sum(shard.num_bytes for shard in manifest.shards) / 300 < 9000
    batch = FrameSet.open(str(tmp_path)).load("train", columns=("joints_3d", "frame_id"))
    assert batch.frames.shape == (300, 3, 160, 160)
    assert len(set(batch.columns["frame_id"])) == 300


def test_object_storage_is_compared_with_disk_in_turns(tmp_path, monkeypatch):
    uris: list[str] = []

    class Opened:
        def __init__(self, uri):
            uris.append(uri)

        def stream(self, plan):
            return range(3)

    monkeypatch.setattr(FrameSet, "open", Opened)
    alone, first = _storage(BenchStreamJob(rounds=2), "disk", "s3://b/frames")
    assert uris == ["disk", "s3://b/frames"] * 3
    assert alone["unit"] == "frames/s"
    assert alone["ratio"] is not None
    assert alone["ratio"] > 0
    assert first["value"] is not None
    assert first["value"] >= 0
