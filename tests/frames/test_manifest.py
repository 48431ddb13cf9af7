import json

import pytest

from pipeline.errors import DataError
from pipeline.frames.manifest import IngestRecord, Manifest, Shard, merge, read_manifest, total_digest, write_manifest


def shard(source: str, digest: str) -> Shard:
    return Shard(
        path=f"shards/{source}-train-00000.parquet",
        source=source,
        split="train",
        num_rows=3,
        num_bytes=100,
        row_groups=[2, 1],
        digest=digest,
    )


def manifest(source: str, digest: str = "0" * 31 + "5", **changes) -> Manifest:
    values = {
        "created_at": "2026-01-01T00:00:00+00:00",
        "image_size": 64,
        "group_size": 2,
        "num_rows": 3,
        "num_clips": 2,
        "counts": {source: {"train": 3, "val": 0, "test": 0}},
        "hands": {"right": 2, "left": 1},
        "rejects": {source: {"no_hand": 2}},
        "reject_examples": {"no_hand": [f"{source}/a", f"{source}/b"]},
        "settings": {source: IngestRecord(settings={"seed": 0}, listing="x", num_clips=2)},
        "digest": digest,
        "shards": [shard(source, digest)],
        **changes,
    }
    return Manifest.model_validate(values)


def test_write_and_read(tmp_path):
    original = manifest("a")
    write_manifest(str(tmp_path), original)
    assert read_manifest(str(tmp_path)) == original
    assert original.rows_in("train") == 3
    assert original.counts_text() == "3 train, 0 val, 0 test"


def test_sources_with_labels_of_a_detector_are_known():
    def of(name, labels):
        record = IngestRecord(settings={"source": labels}, listing="x", num_clips=2)
        return manifest(name, settings={name: record})

    both = merge(of("a", {"labels": "detector"}), of("b", {"kind": "image_folder"}), max_examples=1)
    assert both.detector_labels("train") == ["a"]
    assert both.detector_labels("test") == []
    assert manifest("a").detector_labels("train") == []


def test_merging_adds_a_source():
    first = manifest("a")
    both = merge(first, manifest("b", digest="f" * 32), max_examples=3)
    assert both.num_rows == 6
    assert both.num_clips == 4
    assert both.hands == {"right": 4, "left": 2}
    assert set(both.counts) == set(both.rejects) == set(both.settings) == {"a", "b"}
    assert both.reject_examples == {"no_hand": ["a/a", "a/b", "b/a"]}
    assert [s.source for s in both.shards] == ["a", "b"]
    assert both.digest == total_digest(both.shards) == "0" * 31 + "4"  # modulo 2**128
    assert merge(None, first, max_examples=3) == first


def test_a_missing_manifest_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no frame set here.*jobs\.ingest"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2, "something_new": 1}, "schema version 2"),
        ({"num_rows": "many"}, "num_rows"),
        ({"unknown": 1}, "unknown"),
        ({"digest": "not a number"}, "digest"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_said(tmp_path, change, message):
    values = {**manifest("a").model_dump(), **change}
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_manifest(str(tmp_path))
