"""The global shuffle: rows leave the workers in random buckets, and each bucket becomes one shuffled shard.

Stage 1, one task a few clips: every frame group goes to the bucket that its name's hash chooses. A task writes one part
file, a row of Arrow streams of one bucket each, and then a small JSON file that says where they lie; the JSON marks the
task as done. Stage 2, one task a bucket: read the bucket's stream from every part, permute its groups, write the shard.
Neither stage holds more than its buffer or one shard in memory, whatever the size of the set.

Arrow streams are used between the stages because a byte range can be read without a footer, and parts times buckets is a
large number.
"""

import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.frames.manifest import Shard, new_checksum
from pipeline.frames.rows import Row
from pipeline.frames.schema import SCHEMA, SPLITS, add_digests, digest, digest_to_hex, rows_to_table, with_later_columns
from pipeline.storage import is_local, join, named_errors, read_range, resolve, size

BUFFER_BYTES = 64 * 2**20
_READERS = 8

Bucket = tuple[str, int]
"""Split and number."""
Extent = tuple[str, int, int, int]
"""Part file, first byte, number of bytes, number of rows."""


class PartWriter:
    """Collects groups by bucket and writes them to one part file whenever BUFFER_BYTES are full."""

    def __init__(self, uri: str) -> None:
        self._stream = _create(uri)
        self._groups: dict[Bucket, list[tuple[str, list[Row]]]] = {}
        self._num_buffered = 0
        self.extents: list[tuple[Bucket, int, int, int]] = []
        """(bucket, first byte, number of bytes, number of rows) of what has been written."""

    def add(self, bucket: Bucket, group: list[Row]) -> None:
        """A frame group; it is known by its first frame's id from here on."""
        self._groups.setdefault(bucket, []).append((group[0]["frame_id"], group))
        self._num_buffered += sum(len(row["jpeg"]) for row in group)
        if self._num_buffered >= BUFFER_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left. Only now the file counts."""
        self._flush()
        self._stream.close()

    def _flush(self) -> None:
        for bucket, groups in sorted(self._groups.items()):
            table = rows_to_table(row for _, group in groups for row in group)
            ids = [group_id for group_id, group in groups for _ in group]
            table = table.append_column("group_id", pa.array(ids, pa.string()))
            start = self._stream.tell()
            with pa.ipc.new_stream(self._stream, table.schema) as writer:
                writer.write_table(table)
            self.extents.append((bucket, start, self._stream.tell() - start, table.num_rows))
        self._groups, self._num_buffered = {}, 0


def write_shard(
    uri: str,
    path: str,
    work_uri: str,
    source: str,
    bucket: Bucket,
    extents: Sequence[Extent],
    seed: int,
    row_group_size: int,
) -> Shard:
    """Shuffle one bucket into the shard <uri>/<path>; the same rows in the same order every time.

    work_uri: where a local file grows before it is moved to its place, whole.
    """
    table = _read(extents)
    split, number = bucket
    order, row_groups = _shuffled(
        table["group_id"].to_pylist(), np.random.default_rng([seed, SPLITS.index(split), number]), row_group_size
    )
    table = table.select(SCHEMA.names).take(pa.array(order))
    starts = accumulate(row_groups, initial=0)
    parts = (table.slice(start, num_rows) for start, num_rows in zip(starts, row_groups, strict=False))
    return write_row_groups(uri, path, work_uri, source, split, parts)


def write_row_groups(
    uri: str, path: str, work_uri: str, source: str, split: str, row_groups: Iterable[pa.Table]
) -> Shard:
    """Write the shard <uri>/<path>, each table as one row group. work_uri: see `write_shard`."""
    shard_uri = join(uri, path)
    written_uri = join(work_uri, f"{uuid.uuid4().hex}.tmp") if is_local(uri) else shard_uri
    counts, digests = [], []
    with (
        named_errors(written_uri),
        _create(written_uri) as stream,
        pa.PythonFile(copy := _Checksummed(stream), mode="w") as file,
        pq.ParquetWriter(file, SCHEMA, **_PARQUET) as writer,
    ):
        for table in row_groups:
            writer.write_table(table, row_group_size=table.num_rows)
            counts.append(table.num_rows)
            digests.append(digest(table))
    if written_uri != shard_uri:
        filesystem, final = resolve(shard_uri)
        filesystem.create_dir(final.rpartition("/")[0], recursive=True)
        filesystem.move(resolve(written_uri)[1], final)
    return Shard(
        path=path,
        source=source,
        split=split,
        num_rows=sum(counts),
        num_bytes=size(shard_uri),
        row_groups=counts,
        digest=digest_to_hex(add_digests(digests)),
        checksum=copy.checksum.hexdigest(),
    )


class _Checksummed:
    """A file to write to that keeps the checksum of what went through it."""

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self.checksum = new_checksum()

    def write(self, data: bytes) -> None:
        self.checksum.update(data)
        self._stream.write(data)

    def flush(self) -> None:
        """Nothing is held back; whoever opened the stream closes it."""

    close = flush


_TEXT = ["clip_id", "source", "hand", "split"]
_PARQUET: dict[str, Any] = {
    # JPEG does not compress any further, and its minimum and maximum would copy whole images into the footer.
    "compression": {
        **{field.name: "zstd" for field in SCHEMA if not pa.types.is_list(field.type)},
        **{f"{field.name}.list.element": "zstd" for field in SCHEMA if pa.types.is_list(field.type)},
        "jpeg": "none",
    },
    "use_dictionary": _TEXT,
    "write_statistics": _TEXT,
    "store_schema": True,
}


def _read(extents: Sequence[Extent]) -> pa.Table:
    def read(extent: Extent) -> pa.Table:
        part, start, num_bytes, _ = extent
        filesystem, path = resolve(part)
        with filesystem.open_input_file(path) as file:
            data = read_range(file, part, start, num_bytes)
        with pa.ipc.open_stream(data) as reader:
            return with_later_columns(reader.read_all()).select([*SCHEMA.names, "group_id"])

    with ThreadPoolExecutor(_READERS) as pool:
        return pa.concat_tables(pool.map(read, extents))


def _shuffled(group_ids: Sequence[str], rng: np.random.Generator, row_group_size: int) -> tuple[list[int], list[int]]:
    """(row order, rows of each row group). Groups stay whole, also at the row groups' borders.

    Groups are sorted by name before they are permuted, so it does not matter in which order parts were read.
    """
    members: dict[str, list[int]] = {}
    for row, group_id in enumerate(group_ids):
        members.setdefault(group_id, []).append(row)
    names = sorted(members)
    order: list[int] = []
    row_groups: list[int] = []
    for index in rng.permutation(len(names)):
        rows = members[names[index]]
        if not row_groups or row_groups[-1] + len(rows) > row_group_size:
            row_groups.append(0)
        row_groups[-1] += len(rows)
        order += rows
    return order, row_groups


def extents_by_bucket(parts: Iterable[tuple[str, list[Any]]]) -> dict[Bucket, list[Extent]]:
    """What every part holds, ordered by bucket. parts: (part URI, PartWriter.extents as read from JSON)."""
    buckets: dict[Bucket, list[Extent]] = {}
    for part, extents in parts:
        for (split, number), start, num_bytes, num_rows in extents:
            buckets.setdefault((split, number), []).append((part, start, num_bytes, num_rows))
    return dict(sorted(buckets.items()))


def _create(uri: str) -> pa.NativeFile:
    """A file to write to. On S3 it appears when it is closed."""
    filesystem, path = resolve(uri)
    if is_local(uri):
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    return filesystem.open_output_stream(path, compression=None)
