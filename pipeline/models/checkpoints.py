"""Checkpoints: a directory of a few files, none of them a pickle.

model.safetensors   weights, with keys "encoder.*", "projection.*" or "head.*"
trainer.pt          optimiser and loop state; loaded with weights_only=True
meta.json           format version, kind, step, epoch, settings, frame-set digest, metrics; of a pose model also the constant
                    pose of its training labels
history.json        of a run's checkpoint: metrics of this and all earlier ones (see kept.py)
checksums.json      size and CRC-32 of the others; written last. Checkpoints without it are read as far as they can be.
"""

import json
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from pipeline.errors import DamagedError, DataError, FullError, MissingError, one_line
from pipeline.storage import exists, join, local_path, read_bytes, write_json
from pipeline.text_files import parse_json

FORMAT_VERSION = 1
_LEAST_FREE = 1 << 20  # bytes of a disk that is not full
META, MODEL, TRAINER, HISTORY, CHECKSUMS = (
    "meta.json",
    "model.safetensors",
    "trainer.pt",
    "history.json",
    "checksums.json",
)

SaveCheckpoint = Callable[[Path], None]
"""Writes the checkpoint of this moment into a local directory."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds. A `SaveCheckpoint` of this moment, and once it is `copied` of that moment."""

    weights: Mapping[str, torch.Tensor]
    trainer_state: dict[str, Any] | None
    """Tensors, numbers, strings and containers of them only; None where nobody will train on."""
    meta: dict[str, Any]
    """Plain JSON; the format version is added."""

    def copied(self) -> "Snapshot":
        """The same in CPU memory of its own, which no later step changes."""
        return Snapshot(_copied(dict(self.weights)), _copied(self.trainer_state), _copied(self.meta))

    def __call__(self, directory: str | Path) -> None:
        """Write it into a local directory."""
        directory = Path(directory)
        with _full_disk_named(directory):
            directory.mkdir(parents=True, exist_ok=True)
            weights = {name: tensor.detach().contiguous().cpu() for name, tensor in self.weights.items()}
            save_file(weights, directory / MODEL)
            if self.trainer_state is not None:
                torch.save(self.trainer_state, directory / TRAINER)
            write_json(str(directory / META), {"format_version": FORMAT_VERSION, **self.meta})
            seal(directory)


def save_checkpoint(
    directory: str | Path, model: torch.nn.Module, trainer_state: dict[str, Any] | None, meta: dict[str, Any]
) -> None:
    """Write a checkpoint of a model into a local directory; trainer_state, meta: see `Snapshot`."""
    Snapshot(model.state_dict(), trainer_state, meta)(directory)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value


@contextmanager
def _full_disk_named(directory: Path) -> Iterator[None]:
    """Raises FullError for what the libraries raise, each in another way, where the disk is full."""
    try:
        yield
    except (FullError, OSError, RuntimeError, SafetensorError) as error:
        try:
            is_full = shutil.disk_usage(directory).free < _LEAST_FREE
        except OSError:
            is_full = False
        if not is_full and not isinstance(error, FullError):
            raise
        raise FullError(
            f"{directory}: no space left on the disk; free some, or set TMPDIR (here, and for Ray) to a folder on another "
            "disk if this is the folder for temporary files; the same command goes on"
        ) from error


def seal(directory: str | Path, *added: str) -> None:
    """Write the checksums of the files of a local checkpoint. Nothing is written into it afterwards.

    added: what has come since it was sealed, which alone is read then; none reads all.
    """
    files = (_read_checksums(str(directory)) or {}) if added else {}
    for name in added if files else (MODEL, TRAINER, META, HISTORY):
        path = Path(directory) / name
        if path.exists():
            files[name] = {"bytes": path.stat().st_size, "crc32": _crc32_of(path)}
    write_json(str(Path(directory) / CHECKSUMS), {"files": files, "crc32": _crc32_of_files(files)})


def read_checkpoint(uri: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and meta of the checkpoint directory at a URI. Raises DataError where it is not one of ours, and its subclass
    DamagedError where a file is missing, cut off or changed.
    """
    if not any(exists(join(uri, name)) for name in (META, MODEL)):
        raise DataError(f"{uri}: not a checkpoint directory ({META} and {MODEL} are expected in it)")
    checksums = _read_checksums(uri)
    meta = _parsed(uri, META, _read(uri, META, checksums))
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{uri}: checkpoint format {version} is not known; this version reads format {FORMAT_VERSION}")
    try:
        return load_safetensors(_read(uri, MODEL, checksums)), meta
    except SafetensorError as error:
        raise DamagedError(f"{join(uri, MODEL)}: damaged ({error})") from None


def read_part(uri: str, name: str) -> dict[str, Any]:
    """meta.json or history.json of the checkpoint directory at a URI. Raises DamagedError where it is missing or damaged."""
    return _parsed(uri, name, _read(uri, name, _read_checksums(uri)))


def read_trainer_state(directory: str | Path) -> dict[str, Any]:
    """Optimiser and loop state of a local checkpoint directory. Raises DamagedError where it is missing or damaged."""
    path = Path(local_path(str(directory)), TRAINER)
    if not path.exists():
        raise DamagedError(f"{path}: no such file; training cannot go on from this checkpoint")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except pickle.UnpicklingError:
        raise DamagedError(f"{path}: damaged, or holds Python objects beside tensors, which are never loaded") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise DamagedError(f"{path}: damaged ({one_line(error, 120)})") from None


def check_checkpoint(directory: str | Path, uri: str) -> None:
    """Raise DamagedError where not all files of a local checkpoint directory are as they were written.

    uri: what to call the checkpoint, of which `directory` may be a copy.
    """
    directory = Path(directory)
    try:
        checksums = _read_checksums(str(directory))
        if checksums is None:  # an older one: whatever can be read is taken to be whole
            read_checkpoint(str(directory))
            read_trainer_state(directory)
            return
        for name, written in checksums.items():
            path = directory / name
            if not path.exists():
                raise DamagedError(f"{path}: missing")
            _compare(str(path), path.stat().st_size, partial(_crc32_of, path), written)
    except DataError as error:
        raise DamagedError(str(error).replace(str(directory), uri.rstrip("/"))) from None


def _read(uri: str, name: str, checksums: dict[str, dict[str, int]] | None) -> bytes:
    """A file of a checkpoint, checked where there are checksums."""
    file = join(uri, name)
    try:
        data = read_bytes(file)
    except MissingError:
        raise DamagedError(f"{file}: missing") from None
    if checksums is not None and name in checksums:
        _compare(file, len(data), lambda: zlib.crc32(data), checksums[name])
    return data


def _compare(file: str, num_bytes: int, crc32: Callable[[], int], written: dict[str, int]) -> None:
    if num_bytes != written["bytes"]:
        raise DamagedError(f"{file}: damaged ({num_bytes} of {written['bytes']} bytes are there)")
    if crc32() != written["crc32"]:
        raise DamagedError(f"{file}: damaged (it is not as it was written: its checksum differs)")


def _read_checksums(uri: str) -> dict[str, dict[str, int]] | None:
    """{name: {"bytes", "crc32"}}; None of a checkpoint without them."""
    file = join(uri, CHECKSUMS)
    try:
        content = parse_json(read_bytes(file))
        files: dict[str, dict[str, int]] = content["files"]
        if content["crc32"] != _crc32_of_files(files):
            raise ValueError("they are not as they were written")
        return files
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file}: damaged ({error})") from None


def _parsed(uri: str, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}")
        return value
    except ValueError as error:
        raise DamagedError(f"{join(uri, name)}: damaged (not valid JSON: {error})") from None


def _crc32_of(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            crc = zlib.crc32(chunk, crc)
    return crc


def _crc32_of_files(files: dict[str, dict[str, int]]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
