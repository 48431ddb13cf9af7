"""Reads and decodes one work item: row groups of some shards -> uint8 frames and the columns asked for.

Whatever is wrong with a row, the block that comes back has a row in its place: rows that cannot be used, up to those of a
whole shard that has vanished, are named and replaced by others of the item, so that every worker makes the same steps.
The choice follows from the plan alone. An item without a single good row takes rows of its spares, other shards.
"""

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from pipeline.errors import DataError
from pipeline.frames.epoch_plan import Item, Piece
from pipeline.frames.pairs import SCHEMA_OF_PAIRS, beside, pairs_shard
from pipeline.frames.schema import LATER_COLUMNS, SCHEMA, with_later_columns
from pipeline.storage import is_local, join, local_path, resolve

TENSOR_COLUMNS = {"joints_3d": (21, 3), "camera": (3, 3), "crop": (2, 3), "joints_2d": (21, 2)}
OPTIONAL_COLUMNS = {"keypoints": (21, 2), "pair_keypoints": (21, 2)}
"""Tensor columns of mined pairs that a row may lack; NaN then."""
LABEL_COLUMNS = ("joints_3d", "camera", "joints_2d")
"""Where all of them are asked for, a row needs the first two or the last one; what it lacks is NaN."""

Block = dict[str, np.ndarray]
"""frames uint8 (n, S, S, 3), the columns, `problem` (empty where the row is good); with pairs also partners."""

_FAILED = "failed"
_NOT_THERE = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND")
"""S3's words for an object that was there when it was opened; the second where its answer came without a text."""
_OPEN_SHARDS = 256
_CONNECTIONS = 4  # shards of one item that are read at a time


class BadFrame(NamedTuple):
    """A row that could not be used."""

    frame: str
    """Its frame id, or its place in the shard where that could not be read."""
    shard: str
    reason: str

    def __str__(self) -> str:
        return f"{self.frame} in {self.shard} ({self.reason})"


class Source(NamedTuple):
    """What the reader has to know of a frame set."""

    uri: str
    group_size: int


class ItemReader:
    """Reads work items. Picklable; runs inside Ray Data's tasks, or in this process.

    clips: only rows of these clips. pairs: name of mined pairs whose partners come along.
    """

    def __init__(
        self,
        sources: tuple[Source, ...],
        image_size: int,
        columns: tuple[str, ...] = (),
        seed: int = 0,
        shuffle: bool = True,
        clips: frozenset[str] | None = None,
        pairs: str | None = None,
    ) -> None:
        self.sources, self.image_size, self.columns = sources, image_size, columns
        self.seed, self.shuffle, self.clips, self.pairs = seed, shuffle, clips, pairs

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Ray Data's face: one row, the item as JSON -> one block of decoded rows."""
        try:
            block = self.read(_item(json.loads(batch["item"][0])))
        except DataError as error:
            # Ray Data keeps of an exception only its text, and what reads it has to know that it is ours.
            return pa.table({_FAILED: [str(error)]})
        return pa.table({name: _packed(values) for name, values in block.items()})

    def unpack(self, table: pa.Table) -> Block:
        """The block that `read` gave, without copying pixels; its DataError where it raised one."""
        if _FAILED in table.column_names:
            raise DataError(table[_FAILED][0].as_py())
        pixels = (self.image_size, self.image_size, 3)
        block = {}
        for name in table.column_names:
            if name in ("frames", "partners"):
                block[name] = _unpacked_array(table[name], np.uint8, pixels)
            elif name in TENSOR_COLUMNS or name in OPTIONAL_COLUMNS:
                block[name] = _unpacked_array(table[name], np.float32, (TENSOR_COLUMNS | OPTIONAL_COLUMNS)[name])
            else:
                block[name] = np.array(table[name].to_pylist(), dtype=object)
        return block

    def read(self, item: Item) -> Block:
        """The item's rows. Raises DataError where neither they nor its spares hold a usable one."""
        block = self._decoded(item.of_set, item.pieces, np.random.default_rng(_seed(self.seed, item)))
        good = block["problem"] == ""
        if good.all():
            return block
        donor, donors, bad = block, np.flatnonzero(good), np.flatnonzero(~good)
        for spare in item.spares:
            if len(donors):
                break
            donor = self._decoded(item.of_set, (spare,), None)
            donors = np.flatnonzero(donor["problem"] == "")
        if not len(donors):
            raise DataError(
                f"{self.sources[item.of_set].uri}: no usable frame among {len(bad)} rows, nor in other shards tried "
                f"instead, e.g. {bad_frame(block['problem'][0])}"
            )
        # Half the item away from the row that is replaced, so that no batch shows a frame twice if it can be helped.
        places = np.searchsorted(donors, bad) + len(donors) // 2 + np.arange(len(bad))
        for name, values in block.items():
            if name != "problem":
                values[bad] = donor[name][donors[places % len(donors)]]
        return block

    def _decoded(self, of_set: int, pieces: tuple[Piece, ...], rng: np.random.Generator | None) -> Block:
        """The rows of some pieces as they are, in the order drawn by rng."""
        uri, group_size = self.sources[of_set]
        table, shards, problems = self._table(uri, pieces)
        if self.clips is not None:
            if any(problems):
                unread = next(n for n, text in enumerate(problems) if text)
                raise DataError(f"{join(uri, shards[unread])}: {problems[unread]}; which clips it holds is not known")
            chosen = pa.compute.is_in(table["clip_id"], pa.array(sorted(self.clips), pa.string())).to_numpy()
            table = table.filter(pa.array(chosen))
            shards, problems = shards[chosen], [""] * int(chosen.sum())
        if self.shuffle and rng is not None:
            order = _permuted_groups(table["clip_id"].to_pylist(), group_size, rng)
            table, shards, problems = table.take(order), shards[order], [problems[row] for row in order]
        frames, wrong = decode_frames(table["jpeg"], self.image_size)
        problems = [problem or text for problem, text in zip(problems, wrong, strict=True)]
        for name in dict.fromkeys(["frame_id", "clip_id", *self.columns]):
            _note_missing(table, name, problems)
        block = {"frames": frames}
        any_label = set(LABEL_COLUMNS) <= set(self.columns)
        for name in self.columns:
            may_lack = name in OPTIONAL_COLUMNS or (any_label and name in LABEL_COLUMNS)
            block[name] = _column(table, name, problems, may_lack)
        if any_label:
            _note_unlabelled(table, problems)
        if self.pairs is not None:
            block["partners"] = self._partners(table, frames, problems)
        names = [
            name or place for name, place in zip(table["frame_id"].to_pylist(), table["place"].to_pylist(), strict=True)
        ]
        rows = zip(names, shards, problems, strict=True)
        texts = [json.dumps([name, join(uri, shard), text]) if text else "" for name, shard, text in rows]
        return {**block, "problem": np.array(texts, dtype=object)}

    def _table(self, uri: str, pieces: tuple[Piece, ...]) -> tuple[pa.Table, np.ndarray, list[str]]:
        """Rows of the pieces, the shard of each, and why it could not be read (its cells are null then) or ""."""
        of_shard: dict[str, list[Piece]] = {}
        for piece in pieces:
            of_shard.setdefault(piece.path, []).append(piece)
        with ThreadPoolExecutor(min(_CONNECTIONS, len(of_shard))) as pool:
            each = pool.map(lambda entry: self._of_shard(uri, *entry), of_shard.items())
            found = {piece: rows for part in each for piece, rows in part.items()}
        tables, shards, problems = [], [], []
        for piece in pieces:
            table, problem = found[piece]
            wanted = piece.stop - piece.start
            table = table.slice(0, wanted)
            problems += [""] * len(table)
            if len(table) < wanted:
                problems += [problem or "the shard holds fewer rows than the manifest says"] * (wanted - len(table))
                missing = pa.table(
                    {field.name: pa.nulls(wanted - len(table), field.type) for field in table.schema},
                    schema=table.schema,
                )
                table = pa.concat_tables([table, missing])
            places = [f"row {row} of row group {piece.row_group}" for row in range(piece.start, piece.stop)]
            tables.append(table.append_column("place", pa.array(places, pa.string())))
            shards += [piece.path] * wanted
        return pa.concat_tables(tables).combine_chunks(), np.array(shards, dtype=object), problems

    def _of_shard(self, uri: str, path: str, pieces: list[Piece]) -> dict[Piece, tuple[pa.Table, str]]:
        """Rows of one shard's pieces; neighbouring row groups are one read."""
        shard = join(uri, path)
        try:
            whole = self._row_groups(uri, path, [piece.row_group for piece in pieces])
            metadata = _open(shard, _version(shard)).metadata
            sizes = [metadata.row_group(piece.row_group).num_rows for piece in pieces]
            starts = np.cumsum([0, *sizes])
            return {
                piece: (whole.slice(start, size).slice(piece.start, piece.stop - piece.start), "")
                for piece, start, size in zip(pieces, starts, sizes, strict=False)
            }
        except (OSError, pa.ArrowException, ValueError, IndexError) as error:
            if len(pieces) > 1:  # perhaps only one of them is damaged
                return {piece: rows for each in pieces for piece, rows in self._of_shard(uri, path, [each]).items()}
            return {pieces[0]: (self._schema().empty_table(), _reason(error))}

    def _row_groups(self, uri: str, path: str, row_groups: list[int]) -> pa.Table:
        schema = self._schema()
        own = [name for name in schema.names if name in SCHEMA.names]
        table = _read(join(uri, path), row_groups, own)
        if self.pairs is not None:
            shard = pairs_shard(uri, self.pairs, path)
            mined = [name for name in schema.names if name not in SCHEMA.names]
            table = beside(table, _read(shard, row_groups, ["frame_id", *mined]), shard)
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)  # damaged text would fail only where it is used
        return table

    def _schema(self) -> pa.Schema:
        """Of the columns to read; nothing else is read. Cells of rows that cannot be read are null."""
        names = ["frame_id", "clip_id", "jpeg", *self.columns, *(["pair_jpeg"] if self.pairs is not None else [])]
        fields = [(SCHEMA if name in SCHEMA.names else SCHEMA_OF_PAIRS).field(name) for name in dict.fromkeys(names)]
        return pa.schema([field.with_nullable(True) for field in fields])

    def _partners(self, table: pa.Table, frames: np.ndarray, problems: list[str]) -> np.ndarray:
        partners = frames.copy()
        present = np.flatnonzero(table["pair_jpeg"].is_valid().to_numpy())
        decoded, wrong = decode_frames(table["pair_jpeg"].take(present), self.image_size)
        partners[present] = decoded
        for row, text in zip(present.tolist(), wrong, strict=True):
            problems[row] = problems[row] or (f"its partner: {text}" if text else "")
        return partners


def decode_frames(jpegs: pa.ChunkedArray | Sequence[bytes], image_size: int) -> tuple[np.ndarray, list[str]]:
    """Square JPEGs -> uint8 (n, S, S, 3) and, for each, what was wrong with it ("" for a good one)."""
    frames = np.empty((len(jpegs), image_size, image_size, 3), dtype=np.uint8)
    problems = [""] * len(jpegs)
    for i, jpeg in enumerate(jpegs):
        if jpeg is None or (isinstance(jpeg, pa.Scalar) and not jpeg.is_valid):
            problems[i] = "no JPEG"
            continue
        # A view into the Arrow table: no copy of the compressed bytes.
        data = memoryview(jpeg.as_buffer()).cast("B") if isinstance(jpeg, pa.Scalar) else jpeg
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            if (height, width) != (image_size, image_size):
                problems[i] = f"is {width}x{height} px, the set says {image_size}"
                continue
            simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=frames[i])
        except (ValueError, TypeError):
            problems[i] = "JPEG does not decode"
    return frames, problems


def bad_frame(problem: str) -> BadFrame:
    """What a block's `problem` says."""
    return BadFrame(*json.loads(problem))


def item_as_json(item: Item) -> str:
    """The item as Ray Data carries it."""
    return json.dumps(asdict(item))


def _item(values: dict[str, Any]) -> Item:
    pieces = {name: tuple(Piece(*piece) for piece in values[name]) for name in ("pieces", "spares")}
    return Item(values["epoch"], values["number"], values["of_set"], **pieces)


def _seed(seed: int, item: Item) -> list[int]:
    return [seed, item.epoch, item.number, 1, item.of_set]


def _reason(error: Exception) -> str:
    """Why a shard could not be read, in the same words for all its rows."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) or any(word in text for word in _NOT_THERE):
        return "has vanished"
    return re.sub(r" \(Request ID: [^)]*\)", "", text)  # another one for every request


def _read(shard: str, row_groups: list[int], columns: list[str]) -> pa.Table:
    file = _open(shard, _version(shard))
    if max(row_groups) >= file.num_row_groups:
        raise ValueError("the shard holds fewer rows than the manifest says")
    table = file.read_row_groups(row_groups, columns=columns)
    missing = [name for name in columns if name not in table.column_names and name not in LATER_COLUMNS]
    if missing:
        raise ValueError(f"has no column {missing[0]}")
    return with_later_columns(table, columns)


def _version(shard: str) -> tuple[int, ...]:
    """Which file a local path means now. Raises FileNotFoundError where none. Nothing is asked of object storage.

    A file that was deleted or replaced could still be read by the processes that have it open, and by no others: what comes
    of it would depend on which process reads.
    """
    if not is_local(shard):
        return ()
    info = os.stat(local_path(shard))
    return info.st_ino, info.st_mtime_ns, info.st_size


@lru_cache(maxsize=_OPEN_SHARDS)
def _open(shard: str, version: tuple[int, ...]) -> pq.ParquetFile:
    """Shards stay open in a reading process, as long as they are the same files: the footer is read once."""
    filesystem, path = resolve(shard)
    return pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=True, page_checksum_verification=True)


def _note_missing(table: pa.Table, name: str, problems: list[str]) -> None:
    """Name good rows that lack a field which every row must have; a shard that ingest did not write may have such rows."""
    if (SCHEMA if name in SCHEMA.names else SCHEMA_OF_PAIRS).field(name).nullable:
        return
    for row in np.flatnonzero(table[name].is_null().to_numpy()):
        problems[row] = problems[row] or f"no {name}"


def _note_unlabelled(table: pa.Table, problems: list[str]) -> None:
    """Name good rows without any of the labels that LABEL_COLUMNS hold."""
    joints_3d, camera, joints_2d = (table[name].is_valid().to_numpy() for name in LABEL_COLUMNS)
    for row in np.flatnonzero(~(joints_3d & camera | joints_2d)):
        problems[row] = problems[row] or "no joints_3d with a camera, and no joints_2d"


def _column(table: pa.Table, name: str, problems: list[str], may_lack: bool) -> np.ndarray:
    """A column's values, (n, ...) float32 or objects; `problems` gets what is wrong with rows that are good so far.

    may_lack: a row without the value is good, too; NaN then.
    """
    rows = table[name].to_pylist()
    shape = TENSOR_COLUMNS.get(name) or OPTIONAL_COLUMNS.get(name)
    if shape is None:
        return np.array(rows, dtype=object)
    values = np.full((len(rows), *shape), np.nan, dtype=np.float32)
    for i, row in enumerate(rows):
        if row is None and may_lack:
            continue
        if row is None or len(row) != shape[0] * shape[1]:
            problems[i] = problems[i] or (f"no {name}" if row is None else f"{name} has {len(row)} numbers")
            continue
        values[i] = np.asarray(row, dtype=np.float32).reshape(shape)
        if name in TENSOR_COLUMNS and not np.isfinite(values[i]).all():
            problems[i] = problems[i] or f"{name} is not finite"
    return values


def _packed(values: np.ndarray) -> pa.Array:
    """Arrays of numbers as fixed-size binary: Arrow carries them without a copy and without an extension type."""
    if values.ndim == 1:
        return pa.array(values)
    width = values[0].nbytes
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, buffer])


def _unpacked_array(column: pa.ChunkedArray, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    flat: np.ndarray = np.frombuffer(array.buffers()[1], dtype=dtype).reshape(-1, *shape)
    return flat[array.offset : array.offset + len(array)]


def _permuted_groups(clips: list[str], group_size: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers with whole frame groups (runs of one clip, at most group_size long) in random order."""
    starts = [0]
    for row in range(1, len(clips)):
        if clips[row] != clips[row - 1] or row - starts[-1] >= group_size:
            starts.append(row)
    runs = np.split(np.arange(len(clips)), starts[1:])
    return np.concatenate([runs[i] for i in rng.permutation(len(runs))]) if len(clips) else np.arange(0)
