"""Opens the Parquet files of a frame set and of the pairs beside it, local or in object storage; nobody else does.

`opened` and `row_groups` are for all who stop at damage and name it; `open_shard` and `open_for_long` leave what is raised to the
caller, who says what is wrong with each row (read_items.py) or each shard (verify.py).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, one_line
from pipeline.frames.schema import LATER_COLUMNS, with_later_columns
from pipeline.storage import (
    credentials_version,
    forget_connections,
    is_away,
    is_local,
    local_path,
    named_errors,
    resolve,
    with_patience,
)

UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, IndexError, OverflowError)
"""What pyarrow, and what makes something of the rows, raise on damaged files."""
_KEPT_OPEN = 256
_MAX_BYTES = 2**31  # of a row group, unpacked


@contextmanager
def opened(uri: str) -> Iterator[pq.ParquetFile]:
    """A shard, open. Raises DataError, which names it, where it cannot be read, also within the block; StorageError where its
    storage does not answer."""
    try:
        yield open_shard(uri)
    except UNREADABLE as error:
        raise_if_away(uri, error)
        text = one_line(error, 200)
        raise DataError(f"{uri}: cannot be read ({text}); jobs.inspect --verify finds all damage of the set") from None


def row_groups(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Columns of a shard, one row group after the other, to hold no more. Raises DataError as `opened` does."""
    with opened(uri) as file:
        for index in range(file.num_row_groups):
            yield read_rows(file, columns, [index])


def open_shard(uri: str, data: bytes | None = None) -> pq.ParquetFile:
    """A shard, open. data: its bytes, where they have been read already. Raises UNREADABLE."""
    if data is None:
        filesystem, path = resolve(uri)
        source = filesystem.open_input_file(path)
    else:
        source = pa.BufferReader(data)
    return pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)


def open_for_long(uri: str) -> pq.ParquetFile:
    """A shard that stays open in this process for as long as it is the same file: its footer is read once. Raises UNREADABLE.

    A local file that was deleted or replaced could still be read by the processes that have it open, and by no others: what
    comes of it would depend on which process reads. Nothing is asked of object storage, whose files go on with the credentials
    that they were opened with.
    """
    if not is_local(uri):
        return _kept_open(uri, credentials_version())
    info = os.stat(local_path(uri))
    return _kept_open(uri, (info.st_ino, info.st_mtime_ns, info.st_size))


def read_for_long(uri: str, columns: Sequence[str], groups: Sequence[int]) -> pa.Table:
    """Rows of a shard that stays open; tried anew for a while where its storage does not answer, and then a StorageError. Raises
    UNREADABLE where it does."""

    def attempt() -> pa.Table | Exception:
        try:
            return read_rows(open_for_long(uri), columns, groups)
        except UNREADABLE as error:
            raise_if_away(uri, error)
            return error

    found = with_patience(attempt)
    if isinstance(found, Exception):
        raise found
    return found


def read_rows(
    file: pq.ParquetFile, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> pa.Table:
    """Rows of a shard of any version: some of its columns and row groups, or all. Raises UNREADABLE."""
    groups = range(file.num_row_groups) if groups is None else groups
    if max(groups, default=-1) >= file.num_row_groups:
        raise ValueError("the shard holds fewer rows than the manifest says")
    # A file of a few kilobytes can claim, and unpack to, any number of bytes.
    if max((file.metadata.row_group(group).total_byte_size for group in groups), default=0) > _MAX_BYTES:
        raise ValueError(f"a row group of more than {_MAX_BYTES:,} bytes")
    table = file.read_row_groups(list(groups), columns=columns if columns is None else list(columns))
    table.validate(full=True)  # damaged text would fail only where it is used
    missing = [name for name in columns or () if name not in table.column_names and name not in LATER_COLUMNS]
    if missing:
        raise ValueError(f"has no column {missing[0]}")
    return with_later_columns(table) if columns is None else with_later_columns(table, columns)


def raise_if_away(uri: str, error: Exception) -> None:
    """Raise a StorageError instead of one of UNREADABLE that says nothing of the shard, as its storage does not answer. What is opened
    after that has new connections."""
    if is_away(error):
        forget_connections()
        _kept_open.cache_clear()
        with named_errors(uri):
            raise error


@lru_cache(maxsize=_KEPT_OPEN)
def _kept_open(uri: str, version: tuple[object, ...]) -> pq.ParquetFile:
    return open_shard(uri)
