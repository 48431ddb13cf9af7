"""The rows of a frame set: column names, types, and the digest of a row.

Compressed JPEG bytes are the only large column, and nothing here decodes them.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

SPLITS = ("train", "val", "test")
HANDS = ("right", "left")

SCHEMA = pa.schema(
    [
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("frame_index", pa.int32(), nullable=False),
        pa.field("timestamp_s", pa.float64()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("hand", pa.string(), nullable=False),
        pa.field("mirrored", pa.bool_(), nullable=False),
        pa.field("jpeg", pa.binary(), nullable=False),
        pa.field("crop", pa.list_(pa.float32()), nullable=False),
        pa.field("joints_3d", pa.list_(pa.float32())),
        pa.field("camera", pa.list_(pa.float32())),
        pa.field("split", pa.string(), nullable=False),
        pa.field("confidence", pa.float32()),
        pa.field("joints_2d", pa.list_(pa.float32())),
    ]
)
"""Columns of every shard.

frame_id     unique, "<clip_id>/<frame_index:06d>"
clip_id      "<source>/<name of the video or folder>", with "#<track>" where it shows several hands
frame_index  number of the frame in its video or folder, from 0
timestamp_s  time in the video, seconds; null for images without a rate
source       name of the source that the row came from
hand         "right" | "left", as seen in the source
mirrored     whether the crop is mirrored. Left hands are, so that every crop shows a right hand
jpeg         square RGB crop
crop         2x3 row-major, maps source pixels to crop pixels (continuous coordinates), mirroring included
joints_3d    21x3 row-major, metres, camera frame (x negated where mirrored), FreiHAND order; null where unlabelled
camera       3x3 row-major, intrinsics of the crop; null where unknown
split        "train" | "val" | "test"
confidence   of the detection or annotation, 0 to 1; null where it has none
joints_2d    21x2 row-major, pixels of the crop, FreiHAND order, of rows that are labelled in the image only; null elsewhere,
             also where joints_3d and camera say where the joints are
"""

LATER_COLUMNS = ("joints_2d",)
"""Columns that shards of earlier versions do not have; all null there."""

LIST_LENGTHS = {"crop": 6, "joints_3d": 63, "camera": 9, "joints_2d": 42}
DIGEST_BITS = 128


def rows_to_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as an Arrow table with SCHEMA. Float lists may be numpy arrays of any shape (or None); LATER_COLUMNS may be absent."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        for name, values in columns.items():
            value = row.get(name) if name in LATER_COLUMNS else row[name]
            if name in LIST_LENGTHS and value is not None:
                value = np.asarray(value, dtype=np.float32).reshape(LIST_LENGTHS[name])
            values.append(value)
    return pa.table(columns, schema=SCHEMA)


def with_later_columns(table: pa.Table, names: Iterable[str] = SCHEMA.names) -> pa.Table:
    """Rows of a shard of any version: those LATER_COLUMNS of `names` that it lacks are appended, null."""
    for name in LATER_COLUMNS:
        if name in names and name not in table.column_names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table


def digest(table: pa.Table) -> int:
    """Digest of a table's rows: the sum modulo 2**128 of each row's BLAKE2b-128 hash.

    It does not depend on the order of rows, and digests of parts add up to the digest of the whole (see add_digests).
    Every column takes part, LATER_COLUMNS only where they hold something: rows of earlier versions keep their digests.
    """
    total = 0
    first = [name for name in SCHEMA.names if name not in LATER_COLUMNS]
    for batch in with_later_columns(table).select(SCHEMA.names).to_batches():
        columns = [_encoded(batch.column(name)) for name in first]
        later = [_encoded(batch.column(name)) for name in LATER_COLUMNS]
        for cells, added in zip(zip(*columns, strict=True), zip(*later, strict=True), strict=True):
            row_hash = hashlib.blake2b(digest_size=DIGEST_BITS // 8)
            for cell in (*cells, *(cell for cell in added if cell is not None)):
                # The length keeps cell borders apart; a null differs from an empty value.
                row_hash.update(b"\xff" if cell is None else len(cell).to_bytes(4, "little") + cell)
            total += int.from_bytes(row_hash.digest(), "little")
    return total % 2**DIGEST_BITS


def add_digests(digests: Iterable[int]) -> int:
    """Digest of all rows behind several digests."""
    return sum(digests) % 2**DIGEST_BITS


def digest_to_hex(value: int) -> str:
    """A digest as it stands in the manifest: 32 hexadecimal digits."""
    return f"{value:0{DIGEST_BITS // 4}x}"


def _encoded(column: pa.Array) -> list[bytes | None]:
    """Each cell as bytes, the same on every machine."""
    encode = _encoder(column.type)
    return [None if value is None else encode(value) for value in column.to_pylist()]


def _encoder(kind: pa.DataType) -> Callable[[Any], bytes]:
    if pa.types.is_binary(kind):
        return bytes
    if pa.types.is_string(kind):
        return str.encode
    if pa.types.is_list(kind):
        return lambda values: np.asarray(values, dtype="<f4").tobytes()
    if pa.types.is_floating(kind):
        return lambda value: np.asarray(value, dtype="<f8").tobytes()
    return lambda value: int(value).to_bytes(8, "little", signed=True)
