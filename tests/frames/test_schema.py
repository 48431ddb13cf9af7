import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.frames.schema import SCHEMA, add_digests, digest, digest_to_hex, rows_to_table, with_later_columns


def row(number: int, **changes):
    return {
        "frame_id": f"s/clip/{number:06d}",
        "clip_id": "s/clip",
        "frame_index": number,
        "timestamp_s": number / 10,
        "source": "s",
        "hand": "left",
        "mirrored": True,
        "jpeg": bytes([number, 255, 0]),
        "crop": np.arange(6).reshape(2, 3) + 0.5,
        "joints_3d": np.arange(63).reshape(21, 3) / 7,
        "camera": np.eye(3),
        "split": "train",
        "confidence": 0.75,
        "joints_2d": None,
        **changes,
    }


def test_rows_survive_parquet(tmp_path):
    points = np.arange(42).reshape(21, 2) / 3
    bare = {"joints_3d": None, "camera": None, "timestamp_s": None, "confidence": None}
    table = rows_to_table([row(0), row(1, **bare, joints_2d=points)])
    pq.write_table(table, tmp_path / "rows.parquet")
    read = pq.read_table(tmp_path / "rows.parquet")
    assert read.schema.equals(SCHEMA)
    assert digest(read) == digest(table)
    first, second = read.to_pylist()
    np.testing.assert_array_equal(first["crop"], np.arange(6, dtype=np.float32) + 0.5)
    np.testing.assert_array_equal(first["joints_3d"], np.arange(63, dtype=np.float32) / np.float32(7))
    np.testing.assert_array_equal(second["joints_2d"], points.ravel().astype(np.float32))
    assert first["joints_2d"] is None
    assert second["joints_3d"] is second["camera"] is second["timestamp_s"] is second["confidence"] is None


def test_a_list_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="63"):
        rows_to_table([row(0, joints_3d=np.zeros((20, 3)))])


def test_digest_does_not_depend_on_order_and_adds_up():
    table = rows_to_table([row(i) for i in range(9)])
    whole = digest(table)
    assert digest(table.take([3, 1, 4, 8, 5, 0, 2, 6, 7])) == whole
    assert add_digests([digest(table.slice(0, 4)), digest(table.slice(4))]) == whole
    assert len(digest_to_hex(whole)) == 32
    assert int(digest_to_hex(whole), 16) == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"jpeg": b"other"},
        {"split": "test"},
        {"mirrored": False},
        {"frame_index": 2},
        {"timestamp_s": None},
        {"timestamp_s": 0.100001},
        {"crop": np.zeros(6)},
        {"joints_3d": None},
        {"camera": 2 * np.eye(3)},
        {"confidence": 0.5},
        {"joints_2d": np.zeros((21, 2))},
    ],
)
def test_digest_sees_every_column(changes):
    assert digest(rows_to_table([row(1)])) != digest(rows_to_table([row(1, **changes)]))


def test_rows_of_earlier_versions_keep_their_digest():
    """Their shards have no column joints_2d; the number was computed before there was one."""
    table = rows_to_table([row(0), row(1, joints_3d=None, camera=None, timestamp_s=None, confidence=None)])
    for older in (table, table.drop_columns("joints_2d")):
        assert digest_to_hex(digest(older)) == "080d6f300fba3ac3f921863557ae7347"
    assert with_later_columns(table.drop_columns("joints_2d")).equals(table)
    assert with_later_columns(table.select(["split"]), ["split"]).column_names == ["split"]


def test_digest_counts_every_copy():
    one, two = rows_to_table([row(1)]), rows_to_table([row(1), row(1)])
    assert digest(one) != digest(two)
