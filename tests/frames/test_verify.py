"""Each kind of damage is named, with its place, and nothing else is."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RefusedError
from pipeline.frames.buckets import PartWriter, write_shard
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.manifest import Manifest, Shard, read_manifest, total_digest, write_manifest
from pipeline.frames.schema import SCHEMA, digest, digest_to_hex
from pipeline.frames.verify import Verification, verify
from pipeline.storage import copy_from_local, join, read_bytes
from tests.tiny_sets import write_tiny_set

FIRST, SECOND = "shards/tiny-train-00000.parquet", "shards/tiny-train-00001.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Three shards: 64 and 36 rows of train, 20 of val, in row groups of 16."""
    folder = tmp_path_factory.mktemp("sound")
    write_tiny_set(str(folder), splits={"train": 100, "val": 20})
    return folder


@pytest.fixture
def frames(sound, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "frames"))


def check(folder: Path, **options) -> Verification:
    return verify(FrameSet.open(str(folder)), **options)


def rewrite(folder: Path, path: str, table: pa.Table, row_group_size: int = 16) -> Shard:
    """Replace a shard's rows, and give the entry that an ingest would have written for them."""
    write_plainly(table, folder / path, row_group_size)
    metadata = pq.read_metadata(folder / path)
    old = next(shard for shard in read_manifest(str(folder)).shards if shard.path == path)
    return old.model_copy(
        update={
            "num_rows": table.num_rows,
            "num_bytes": os.path.getsize(folder / path),
            "row_groups": [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)],
            "digest": digest_to_hex(digest(table)),
        }
    )


def write_plainly(table: pa.Table, path: Path, row_group_size: int = 16) -> None:
    """As the ingest treats JPEGs: each stands in the file once, as it is."""
    pq.write_table(
        table,
        path,
        row_group_size=row_group_size,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )


def publish(folder: Path, *changed: Shard, **changes) -> None:
    """Write a manifest that agrees with the changed shards."""
    manifest = read_manifest(str(folder))
    by_path = {shard.path: shard for shard in changed}
    shards = [by_path.get(shard.path, shard) for shard in manifest.shards]
    write_manifest(
        str(folder), manifest.model_copy(update={"shards": shards, "digest": total_digest(shards), **changes})
    )


def set_column(table: pa.Table, name: str, values: list) -> pa.Table:
    return table.set_column(SCHEMA.names.index(name), SCHEMA.field(name), pa.array(values, SCHEMA.field(name).type))


def test_a_sound_set(frames):
    found = check(frames)
    assert found.is_sound
    assert found.lines() == []
    assert found.warnings == []
    assert found.summary() == "sound: 120 rows in 3 shards, 120 JPEGs decoded"
    assert json.loads(json.dumps(found.to_json()))["sound"] is True


def test_shards_of_earlier_versions_are_sound(frames):
    """They lack columns that came later, and keep their digests."""
    digest_before = read_manifest(str(frames)).digest
    publish(frames, rewrite(frames, FIRST, pq.read_table(frames / FIRST).drop_columns("joints_2d")))
    assert check(frames).is_sound
    assert read_manifest(str(frames)).digest == digest_before
    write_plainly(pq.read_table(frames / FIRST).drop_columns("confidence"), frames / FIRST)
    assert "has another schema: columns confidence" in check(frames).damaged[FIRST]


def test_a_share_of_the_jpegs(frames):
    assert 20 < check(frames, decode=0.5).num_decoded < 100
    assert check(frames, decode=0.0).num_decoded == 0


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit(frames, where):
    # JPEGs are stored as they are, so most bytes are theirs: the file opens, and only the digest can tell.
    publish(frames, rewrite(frames, FIRST, pq.read_table(frames / FIRST)))
    data = bytearray((frames / FIRST).read_bytes())
    jpegs = [i for i in range(len(data) - 2) if data[i : i + 3] == b"\xff\xd8\xff"]
    assert len(jpegs) == 64
    data[jpegs[int(where * len(jpegs))] + 400] ^= 1
    (frames / FIRST).write_bytes(data)
    found = check(frames)
    assert list(found.damaged) == [FIRST]
    assert "its rows have changed (digest" in found.damaged[FIRST][0]
    assert found.problems == []
    assert check(frames, decode=0.0).damaged.keys() == {FIRST}


def test_every_flipped_byte_of_a_footer_or_page_is_survived(frames):
    good = (frames / SECOND).read_bytes()
    rng = np.random.default_rng(0)
    for position in [*rng.integers(4, len(good), 20), *rng.integers(len(good) - 400, len(good), 20)]:
        data = bytearray(good)
        data[position] ^= 0x5A
        (frames / SECOND).write_bytes(data)
        found = check(frames, decode=0.0)
        assert set(found.damaged) <= {SECOND}
        assert found.problems == []


def test_every_flipped_bit_of_a_shard_as_ingest_writes_it_is_named(tmp_path):
    """Also where no row changes: in statistics, in headers of pages, in the footer."""
    write_tiny_set(str(tmp_path), splits={"train": 24})
    rows = pq.read_table(tmp_path / FIRST)
    writer = PartWriter(str(tmp_path / "part"))
    writer.add(("train", 0), rows.to_pylist())
    writer.close()
    extents = [(str(tmp_path / "part"), start, size, count) for _, start, size, count in writer.extents]
    shard = write_shard(str(tmp_path), FIRST, str(tmp_path / "work"), "tiny", ("train", 0), extents, 0, 16)
    publish(tmp_path, shard)
    assert check(tmp_path).is_sound
    good = (tmp_path / FIRST).read_bytes()
    footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for position in [*range(footer, len(good), 40), *range(0, footer, footer // 100)]:
        data = bytearray(good)
        data[position] ^= 0x10
        (tmp_path / FIRST).write_bytes(data)
        found = check(tmp_path, decode=0.0)
        assert list(found.damaged) == [FIRST]
        assert found.problems == []


@pytest.mark.parametrize("name", ["frame_id", "clip_id", "hand", "jpeg"])
def test_missing_fields(frames, name):
    table = pq.read_table(frames / FIRST)
    path = frames / FIRST
    field = pa.field(name, SCHEMA.field(name).type)
    values = [None, *table[name].to_pylist()[1:]]
    write_plainly(table.set_column(SCHEMA.names.index(name), field, pa.array(values, field.type)), path)
    found = check(frames)
    assert list(found.damaged) == [FIRST]
    row = "row 0 of row group 0" if name == "frame_id" else "tiny/train-00000/000000"
    assert found.damaged[FIRST][-1] == f"no {'JPEG' if name == 'jpeg' else name}: {row}"
    assert found.problems == []


@pytest.mark.parametrize("name", ["frame_id", "jpeg", "crop", "split"])
def test_a_column_of_another_type(frames, name):
    table = pq.read_table(frames / FIRST)
    write_plainly(table.set_column(SCHEMA.names.index(name), name, pa.array(range(len(table)))), frames / FIRST)
    found = check(frames)
    assert list(found.damaged) == [FIRST]
    assert found.damaged[FIRST][-1] == f"has another schema: columns {name}"


def test_a_shard_that_cannot_be_read_is_named(frames, monkeypatch):
    def refuse(uri):
        if uri.endswith(SECOND):
            raise RefusedError(f"{uri}: no permission")
        return read_bytes(uri)

    monkeypatch.setattr("pipeline.frames.verify.read_bytes", refuse)
    assert check(frames).lines() == [f"{frames}/{SECOND}: cannot be read ({frames}/{SECOND}: no permission)"]


@pytest.mark.parametrize("keep", [0, 3, 1000, -1])
def test_a_truncated_shard(frames, keep):
    data = (frames / FIRST).read_bytes()
    (frames / FIRST).write_bytes(data[:keep])
    found = check(frames)
    assert list(found.damaged) == [FIRST]
    size, unreadable = found.damaged[FIRST]
    assert size == f"has {len(data[:keep])} bytes, the manifest says {len(data)}"
    assert unreadable.startswith("is not a readable Parquet file (")


def test_a_deleted_shard(frames):
    (frames / SECOND).unlink()
    found = check(frames)
    assert found.lines() == [f"{frames}/{SECOND}: is missing"]
    assert found.summary().startswith("damaged: 1 of 3 shards")


def test_swapped_shards(frames):
    first, second = (frames / FIRST).read_bytes(), (frames / SECOND).read_bytes()
    (frames / FIRST).write_bytes(second)
    (frames / SECOND).write_bytes(first)
    found = check(frames)
    assert list(found.damaged) == [FIRST, SECOND]
    assert found.damaged[FIRST][-1] == f"it holds the rows of {SECOND}"
    assert found.damaged[SECOND][-1] == f"it holds the rows of {FIRST}"
    assert "has 36 rows, the manifest says 64" in found.damaged[FIRST]
    assert found.problems == []


def test_shards_swapped_between_splits_are_no_fault_of_their_clips(frames):
    other = "shards/tiny-val-00000.parquet"
    first, second = (frames / FIRST).read_bytes(), (frames / other).read_bytes()
    (frames / FIRST).write_bytes(second)
    (frames / other).write_bytes(first)
    found = check(frames)
    assert list(found.damaged) == [FIRST, other]
    assert found.problems == []


def test_a_wrong_row_count_of_a_shard(frames):
    shard = read_manifest(str(frames)).shards[0]
    publish(frames, shard.model_copy(update={"num_rows": 65}), num_rows=121, counts={"tiny": {"train": 101, "val": 20}})
    assert check(frames).lines() == [f"{frames}/{FIRST}: has 64 rows, the manifest says 65"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_rows": 121}, "the manifest says 121 rows in all; its shards have 120"),
        (
            {"counts": {"tiny": {"train": 99, "val": 20}}},
            "the manifest counts 99 rows of source tiny, split train; its shards have 100",
        ),
        ({"num_clips": 7}, "the manifest says 7 clips; the rows are of 30"),
        ({"hands": {"right": 119, "left": 1}}, "the manifest counts hands 1 left, 119 right; the rows have 120 right"),
        ({"group_size": 2}, "the manifest says group_size 2; source tiny was ingested with 4"),
        ({"settings": {}}, "the manifest has no settings of source tiny"),
        (
            {"counts": {"tiny": {"train": 100, "val": 20}, "more": {}}},
            "the manifest names source more; it has no shards",
        ),
        ({"digest": "0" * 32}, f"the manifest's digest is {'0' * 32}; those of its shards add up to "),
    ],
)
def test_wrong_totals(frames, changes, line):
    manifest = read_manifest(str(frames))
    manifest.settings["tiny"].settings["group_size"] = 4
    write_manifest(str(frames), Manifest.model_validate({**manifest.model_dump(), **changes}))
    found = check(frames)
    assert found.damaged == {}
    assert len(found.problems) == 1
    assert found.problems[0].startswith(line)


def test_other_row_groups(frames):
    table = pq.read_table(frames / FIRST)
    rewritten = rewrite(frames, FIRST, table, row_group_size=32)
    publish(frames, rewritten.model_copy(update={"row_groups": [16, 16, 16, 16]}))
    assert check(frames).damaged == {
        FIRST: ["has row groups of 32, 32 rows, the manifest says 16, 16, 16, 16"],
    }


def test_another_schema(frames):
    table = pq.read_table(frames / FIRST)
    rewritten = rewrite(frames, FIRST, table)
    pq.write_table(table.drop_columns(["confidence"]), frames / FIRST, row_group_size=16)
    publish(frames, rewritten.model_copy(update={"num_bytes": os.path.getsize(frames / FIRST)}))
    problems = check(frames).damaged[FIRST]
    assert problems[0] == "has another schema: columns confidence"


def test_rows_of_another_split_and_short_lists(frames):
    table = pq.read_table(frames / FIRST)
    table = set_column(table, "split", ["train"] * 63 + ["val"])
    joints = table["joints_3d"].to_pylist()
    table = set_column(table, "joints_3d", [joints[0][:60], *joints[1:]])
    publish(frames, rewrite(frames, FIRST, table))
    assert check(frames).damaged == {
        FIRST: [
            "joints_3d is not a list of 63: tiny/train-00000/000000",
            "rows of another split than train: tiny/train-00015/000003",
        ]
    }


def test_a_broken_jpeg_that_the_ingest_wrote(tmp_path):
    write_tiny_set(str(tmp_path), splits={"train": 32}, broken=frozenset({5}))
    assert check(tmp_path).damaged == {FIRST: ["JPEG does not decode: tiny/train-00001/000001"]}


def test_duplicate_frame_ids(frames):
    first, second = pq.read_table(frames / FIRST), pq.read_table(frames / SECOND)
    ids = [first["frame_id"][7].as_py(), *second["frame_id"].to_pylist()[1:]]
    publish(frames, rewrite(frames, SECOND, set_column(second, "frame_id", ids)))
    found = check(frames)
    assert found.damaged == {}
    assert found.problems == [
        f"1 frame ids are there more than once: tiny/train-00001/000003 in {FIRST} and {SECOND}",
    ]


def test_a_clip_in_two_splits(frames):
    path = "shards/tiny-val-00000.parquet"
    table = pq.read_table(frames / path)
    clips = ["tiny/train-00000"] * 4 + table["clip_id"].to_pylist()[4:]
    publish(frames, rewrite(frames, path, set_column(table, "clip_id", clips)), num_clips=29)
    assert check(frames).problems == ["1 clips are in more than one split: tiny/train-00000 in train and val"]


def test_files_that_no_manifest_names_are_warnings(frames):
    (frames / "shards" / "tiny-train-00009.parquet").write_bytes(b"left behind")
    found = check(frames)
    assert found.is_sound
    assert found.warnings == [f"{frames}/shards/tiny-train-00009.parquet: not in the manifest, so not part of the set"]


def test_in_object_storage(frames, s3):
    (frames / "shards" / "stray.parquet").write_bytes(b"left behind")
    data = (frames / SECOND).read_bytes()
    (frames / SECOND).write_bytes(data[:-1])
    copy_from_local(frames, join(s3, "frames"))
    found = verify(FrameSet.open(join(s3, "frames")))
    assert list(found.damaged) == [SECOND]
    assert found.problems == []
    assert found.warnings == [f"{s3}/frames/shards/stray.parquet: not in the manifest, so not part of the set"]


def test_with_ray_data(frames, ray_cluster):
    (frames / FIRST).unlink()
    found, same = check(frames, use_ray=True), check(frames)
    assert list(found.damaged) == [FIRST]
    assert found == same
