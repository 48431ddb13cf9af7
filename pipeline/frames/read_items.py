"""Reads and decodes one work item: row groups of some shards -> uint8 frames and the columns asked for.

Whatever is wrong with a row, the block that comes back has a row in its place: rows that cannot be used, up to those of a
whole shard that has vanished, are named and replaced by others of the item, so that every worker makes the same steps.
The choice follows from the plan alone. An item without a single good row takes rows of its spares, other shards.
"""

import json
import pickle
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg

from pipeline.errors import DataError, StorageError
from pipeline.frames.epoch_plan import Item, RowRange, StreamPlan
from pipeline.frames.pairs import SCHEMA_OF_PAIRS, beside, pairs_shard
from pipeline.frames.schema import SCHEMA
from pipeline.frames.shards import UNREADABLE, open_for_long, raise_if_away, read_for_long
from pipeline.storage import join

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
_CONNECTIONS = 4  # shards of one item that are read at a time
_MAX_NAMED = 20


class BadFrame(NamedTuple):
    """A row that could not be used."""

    frame: str
    """Its frame id, or its place in the shard where that could not be read."""
    shard: str
    reason: str

    def __str__(self) -> str:
        return f"{self.frame} in {self.shard} ({self.reason})"


class ItemReader:
    """Reads the work items of a plan. Picklable; runs inside Ray Data's tasks, or in this process."""

    def __init__(self, image_size: int, plan: StreamPlan) -> None:
        self.image_size, self.plan = image_size, plan

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Ray Data's face: one row, the pickled item -> one block of decoded rows."""
        try:
            block = self.read(pickle.loads(batch["item"][0]))  # noqa: S301 - from our own driver, through Ray; never from storage
        except (DataError, StorageError) as error:
            # Ray Data keeps of an exception only its text, and what reads it has to know that it is ours.
            return pa.table({_FAILED: [type(error).__name__], "why": [str(error)]})
        return pa.table({name: _packed(values) for name, values in block.items()})

    def unpack(self, table: pa.Table) -> Block:
        """The block that `read` gave, without copying pixels; its DataError or StorageError where it raised one."""
        if _FAILED in table.column_names:
            kind = DataError if table[_FAILED][0].as_py() == DataError.__name__ else StorageError
            raise kind(table["why"][0].as_py())
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
        """The item's rows. Raises DataError where neither they nor its spares hold a usable one, StorageError where the storage
        does not answer for long."""
        seed = [self.plan.seed, item.epoch, item.number, 1, item.of_set]
        block = self._decoded(item, item.ranges, np.random.default_rng(seed) if self.plan.shuffle else None)
        good = block["problem"] == ""
        if good.all():
            return block
        if item.wanted is not None:  # what takes a row's place does not depend on who reads which rows
            whole = self.read(replace(item, wanted=None))
            return {name: values[list(item.wanted)] for name, values in whole.items()}
        donor, donors, bad = block, np.flatnonzero(good), np.flatnonzero(~good)
        for spare in item.spares:
            if len(donors):
                break
            donor = self._decoded(item, (spare,), None)
            donors = np.flatnonzero(donor["problem"] == "")
        if not len(donors):
            raise DataError(
                f"{item.uri}: no usable frame among {len(bad)} rows, nor in other shards tried instead, e.g. "
                f"{bad_frame(block['problem'][0])}"
            )
        # Half the item away from the row that is replaced, so that no batch shows a frame twice if it can be helped.
        places = np.searchsorted(donors, bad) + len(donors) // 2 + np.arange(len(bad))
        for name, values in block.items():
            if name != "problem":
                values[bad] = donor[name][donors[places % len(donors)]]
        return block

    def _decoded(self, item: Item, ranges: tuple[RowRange, ...], rng: np.random.Generator | None) -> Block:
        """Rows of the item's set as they are, in the order drawn by rng."""
        uri, columns = item.uri, self.plan.columns
        table, shards, problems = self._table(uri, ranges)
        if self.plan.clips is not None:
            if any(problems):
                unread = next(n for n, text in enumerate(problems) if text)
                raise DataError(f"{join(uri, shards[unread])}: {problems[unread]}; which clips it holds is not known")
            chosen = pa.compute.is_in(table["clip_id"], pa.array(sorted(self.plan.clips), pa.string())).to_numpy()
            table = table.filter(pa.array(chosen))
            shards, problems = shards[chosen], [""] * int(chosen.sum())
        if rng is not None or item.wanted is not None:
            clips = table["clip_id"].to_pylist()
            order = np.arange(len(clips)) if rng is None else _permuted_groups(clips, item.group_size, rng)
            order = order if item.wanted is None else order[list(item.wanted)]
            table, shards, problems = table.take(order), shards[order], [problems[row] for row in order]
        frames, wrong = decode_frames(table["jpeg"], self.image_size)
        problems = [problem or text for problem, text in zip(problems, wrong, strict=True)]
        for name in dict.fromkeys(["frame_id", "clip_id", *columns]):
            _note_missing(table, name, problems)
        block = {"frames": frames}
        any_label = set(LABEL_COLUMNS) <= set(columns)
        for name in columns:
            may_lack = name in OPTIONAL_COLUMNS or (any_label and name in LABEL_COLUMNS)
            block[name] = _column(table, name, problems, may_lack)
        if any_label:
            _note_unlabelled(table, problems)
        if self.plan.pairs is not None:
            block["partners"] = self._partners(table, frames, problems)
        names = [
            name or place for name, place in zip(table["frame_id"].to_pylist(), table["place"].to_pylist(), strict=True)
        ]
        rows = zip(names, shards, problems, strict=True)
        texts = [json.dumps([name, join(uri, shard), text]) if text else "" for name, shard, text in rows]
        return {**block, "problem": np.array(texts, dtype=object)}

    def _table(self, uri: str, ranges: tuple[RowRange, ...]) -> tuple[pa.Table, np.ndarray, list[str]]:
        """The rows, the shard of each, and why it could not be read (its cells are null then) or ""."""
        of_shard: dict[str, list[RowRange]] = {}
        for rows in ranges:
            of_shard.setdefault(rows.path, []).append(rows)
        with ThreadPoolExecutor(min(_CONNECTIONS, len(of_shard))) as pool:
            each = pool.map(lambda entry: self._of_shard(uri, *entry), of_shard.items())
            found = {rows: table for part in each for rows, table in part.items()}
        tables, shards, problems = [], [], []
        for rows in ranges:
            table, problem = found[rows]
            wanted = rows.num_rows
            table = table.slice(0, wanted)
            problems += [""] * len(table)
            if len(table) < wanted:
                problems += [problem or "the shard holds fewer rows than the manifest says"] * (wanted - len(table))
                missing = pa.table(
                    {field.name: pa.nulls(wanted - len(table), field.type) for field in table.schema},
                    schema=table.schema,
                )
                table = pa.concat_tables([table, missing])
            places = [f"row {row} of row group {rows.row_group}" for row in range(rows.start, rows.stop)]
            tables.append(table.append_column("place", pa.array(places, pa.string())))
            shards += [rows.path] * wanted
        return pa.concat_tables(tables).combine_chunks(), np.array(shards, dtype=object), problems

    def _of_shard(self, uri: str, path: str, ranges: list[RowRange]) -> dict[RowRange, tuple[pa.Table, str]]:
        """Rows of one shard; neighbouring row groups are one read."""
        try:
            whole = self._row_groups(uri, path, [rows.row_group for rows in ranges])
            metadata = open_for_long(join(uri, path)).metadata
            sizes = [metadata.row_group(rows.row_group).num_rows for rows in ranges]
            starts = np.cumsum([0, *sizes])
            return {
                rows: (whole.slice(start, size).slice(rows.start, rows.num_rows), "")
                for rows, start, size in zip(ranges, starts, sizes, strict=False)
            }
        except UNREADABLE as error:
            raise_if_away(join(uri, path), error)
            if len(ranges) > 1:  # perhaps only one of them is damaged
                return {rows: table for each in ranges for rows, table in self._of_shard(uri, path, [each]).items()}
            return {ranges[0]: (self._schema().empty_table(), _reason(error))}

    def _row_groups(self, uri: str, path: str, row_groups: list[int]) -> pa.Table:
        schema = self._schema()
        own = [name for name in schema.names if name in SCHEMA.names]
        table = read_for_long(join(uri, path), own, row_groups)
        if self.plan.pairs is not None:
            shard = pairs_shard(uri, self.plan.pairs, path)
            mined = [name for name in schema.names if name not in SCHEMA.names]
            table = beside(table, read_for_long(shard, ["frame_id", *mined], row_groups), shard)
        return table.select(schema.names).cast(schema)

    def _schema(self) -> pa.Schema:
        """Of the columns to read; nothing else is read. Cells of rows that cannot be read are null."""
        names = ["frame_id", "clip_id", "jpeg", *self.plan.columns]
        names += ["pair_jpeg"] if self.plan.pairs is not None else []
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


def bad_frames_text(bad: Sequence[BadFrame]) -> str:
    """Bad rows for people: by shard and reason, with some of their names."""
    counts = Counter((frame.shard, frame.reason) for frame in bad)
    named = []
    for (shard, reason), count in counts.most_common(_MAX_NAMED):
        names = [frame.frame for frame in bad if (frame.shard, frame.reason) == (shard, reason)]
        more = f" and {count - 5} more" if count > 5 else ""
        named.append(f"{', '.join(names[:5])}{more} in {shard} ({reason})")
    if len(counts) > _MAX_NAMED:
        named.append(f"and {len(counts) - _MAX_NAMED} more shards or reasons")
    return "; ".join(named)


def _reason(error: Exception) -> str:
    """Why a shard could not be read, in the same words for all its rows."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) or any(word in text for word in _NOT_THERE):
        return "has vanished"
    return re.sub(r" \(Request ID: [^)]*\)", "", text)  # another one for every request


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
