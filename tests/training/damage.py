"""What becomes of files: each kind of damage that a checkpoint or a run's file meets in the tests."""

from collections.abc import Callable

from pipeline.storage import delete, read_bytes, write_bytes


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: 2 * len(data) // 3],
    "one byte changed": _flipped,
    "missing": lambda data: None,
}


def damage(uri: str, how: str) -> None:
    """Do it to a file, on disk or in S3."""
    data = DAMAGES[how](read_bytes(uri))
    if data is None:
        delete(uri)
    else:
        write_bytes(uri, data)
