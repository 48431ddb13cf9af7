import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.frames import buckets
from pipeline.frames.buckets import PartWriter, extents_by_bucket, write_shard
from pipeline.frames.schema import digest, rows_to_table
from pipeline.storage import read_bytes


def group(clip: int, size: int, split: str = "train"):
    return [
        {
            "frame_id": f"s/{clip:04d}/{i:06d}",
            "clip_id": f"s/{clip:04d}",
            "frame_index": i,
            "timestamp_s": None,
            "source": "s",
            "hand": "right",
            "mirrored": False,
            "jpeg": np.random.default_rng(clip).bytes(100),
            "crop": np.zeros(6),
            "joints_3d": None,
            "camera": None,
            "split": split,
            "confidence": None,
        }
        for i in range(size)
    ]


def write_parts(folder, groups, num_parts=3, num_buckets=2):
    """[(part URI, extents)]"""
    parts = []
    for part in range(num_parts):
        writer = PartWriter(f"{folder}/part{part}.arrows")
        for number, rows in enumerate(groups[part::num_parts]):
            writer.add(("train", number % num_buckets), rows)
        writer.close()
        parts.append((f"{folder}/part{part}.arrows", writer.extents))
    return parts


def clip_runs(table):
    """(clip, run length) of neighbouring rows of one clip."""
    runs: list[list] = []
    for clip in table["clip_id"].to_pylist():
        if runs and runs[-1][0] == clip:
            runs[-1][1] += 1
        else:
            runs.append([clip, 1])
    return runs


@pytest.mark.parametrize("buffer_bytes", [1, 2**20])
def test_every_group_ends_whole_in_its_bucket(tmp_path, monkeypatch, buffer_bytes):
    monkeypatch.setattr(buckets, "BUFFER_BYTES", buffer_bytes)
    groups = [group(clip, 1 + clip % 4) for clip in range(40)]
    extents = extents_by_bucket(write_parts(tmp_path, groups))
    assert list(extents) == [("train", 0), ("train", 1)]
    shards = [
        write_shard(
            str(tmp_path), f"shards/s{b[1]}.parquet", str(tmp_path), "s", b, extents[b], seed=0, row_group_size=8
        )
        for b in extents
    ]
    tables = [pq.read_table(tmp_path / shard.path) for shard in shards]
    rows = [row for g in groups for row in g]
    assert sum(shard.num_rows for shard in shards) == len(rows)
    assert sorted(i for t in tables for i in t["frame_id"].to_pylist()) == sorted(row["frame_id"] for row in rows)
    assert sum(int(s.digest, 16) for s in shards) % 2**128 == digest(rows_to_table(rows))
    sizes = {g[0]["clip_id"]: len(g) for g in groups}
    for shard, table in zip(shards, tables, strict=True):
        assert all(sizes[clip] == length for clip, length in clip_runs(table))
        assert table["clip_id"].to_pylist() != sorted(table["clip_id"].to_pylist())
        file = pq.ParquetFile(tmp_path / shard.path)
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == shard.row_groups
        assert max(shard.row_groups) <= 8
        assert len(read_bytes(str(tmp_path / shard.path))) == shard.num_bytes
        for i in range(file.num_row_groups):
            first_in_group = [run[1] for run in clip_runs(file.read_row_group(i))]
            clips = [run[0] for run in clip_runs(file.read_row_group(i))]
            assert first_in_group == [sizes[clip] for clip in clips]  # none is cut at a row group's end


def test_a_shard_does_not_depend_on_the_parts(tmp_path):
    groups = [group(clip, 3) for clip in range(12)]
    contents = []
    for name, order, num_parts in (("a", groups, 3), ("b", groups[::-1], 2)):
        extents = extents_by_bucket(write_parts(tmp_path / name, order, num_parts, num_buckets=1))["train", 0]
        write_shard(
            str(tmp_path), f"{name}.parquet", str(tmp_path), "s", ("train", 0), extents, seed=5, row_group_size=256
        )
        contents.append((tmp_path / f"{name}.parquet").read_bytes())
    assert contents[0] == contents[1]


def test_the_seed_decides_the_order(tmp_path):
    extents = extents_by_bucket(write_parts(tmp_path, [group(c, 1) for c in range(12)], num_buckets=1))["train", 0]
    orders = []
    for seed in (0, 0, 1):
        write_shard(
            str(tmp_path), "x.parquet", str(tmp_path), "s", ("train", 0), extents, seed=seed, row_group_size=256
        )
        orders.append(pq.read_table(tmp_path / "x.parquet")["frame_id"].to_pylist())
    assert orders[0] == orders[1] != orders[2]


def test_jpegs_are_stored_as_they_are(tmp_path):
    extents = extents_by_bucket(write_parts(tmp_path, [group(0, 4)], num_parts=1))["train", 0]
    write_shard(str(tmp_path), "x.parquet", str(tmp_path), "s", ("train", 0), extents, seed=0, row_group_size=256)
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0)
    columns = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    assert columns["jpeg"].compression == "UNCOMPRESSED"
    assert not columns["jpeg"].is_stats_set
    assert columns["clip_id"].compression == "ZSTD"
