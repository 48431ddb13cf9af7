"""Stream a frame set to training workers with Ray Data.

What every worker reads is decided before anything is read: the row groups of a split are permuted by (seed, epoch), laid
end to end, and cut into one equal stretch a worker. So each row is read exactly once an epoch, by the same worker in the
same order whenever seed, epoch and number of workers are the same, whatever machine is fast or slow.

Row groups were shuffled across clips when the set was written (see ingest.py); a few of them together make one work item,
inside which whole frame groups are permuted again. No shuffle buffer is needed.

Ray Data reads in windows of some hundred megabytes, each an execution of its own that runs to its end while the window
before it is consumed. Windows know nothing of epochs, so an epoch's end costs nothing.

Remainder rule: worker r of W gets rows floor(r N / W) to floor((r + 1) N / W) of the epoch's order, so counts differ by one
at most. With drop_last every worker yields floor(floor(N / W) / batch_size) batches and the epoch's last few rows (another
choice every epoch) are left out; without it the last batch is smaller.
"""

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from pipeline.errors import DataError
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.pairs import beside, pairs_shard
from pipeline.frames.schema import SCHEMA
from pipeline.storage import join, resolve

if TYPE_CHECKING:
    import torch

ITEM_ROWS = 512
"""Rows of one work item: large enough for long reads, small enough (39 MB at 160 px) to keep a few in flight."""
_MAX_NAMED = 20

TENSOR_COLUMNS = {"joints_3d": (21, 3), "camera": (3, 3), "crop": (2, 3)}
OPTIONAL_COLUMNS = {"keypoints": (21, 2), "pair_keypoints": (21, 2)}
"""Tensor columns of mined pairs that a row may lack; NaN then."""


@dataclass
class Batch:
    """One worker's share of a batch."""

    epoch: int
    step: int
    """Position of the batch within its epoch."""
    frames: "torch.Tensor"
    """uint8 (B, 3, S, S), RGB, in channels-last memory."""
    columns: dict[str, Any]
    """The other columns asked for: joints_3d (B, 21, 3), camera (B, 3, 3) float32 tensors; the rest as lists."""
    problems: list[str] = field(default_factory=list)
    """Rows that could not be used, by name; each was replaced by another row of the batch's work item."""
    partners: "torch.Tensor | None" = None
    """Where mined pairs are read: the frames' partners, like `frames`; a frame without one is its own."""

    @property
    def num_frames(self) -> int:
        """Frames in this batch."""
        return int(self.frames.shape[0])


def num_batches(
    manifest: Manifest, split: str, batch_size: int, world_size: int, drop_last: bool, rows: int | None = None
) -> int:
    """Batches each worker yields in an epoch (a worker whose last batch is empty yields one fewer without drop_last)."""
    total = rows if rows is not None else manifest.rows_in(split)
    if drop_last:
        return total // world_size // batch_size
    return math.ceil(math.ceil(total / world_size) / batch_size)


def stream_batches(
    uri: str,
    *,
    split: str,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start_epoch: int = 0,
    start_step: int = 0,
    num_epochs: int = 1,
    columns: Sequence[str] = (),
    drop_last: bool = True,
    shuffle: bool = True,
    max_bad_fraction: float = 0.01,
    clips: frozenset[str] | None = None,
    num_readers: int | None = None,
    window_mb: int = 192,
    manifest: Manifest | None = None,
    pairs: str | None = None,
) -> Iterator[Batch]:
    """Batches of this worker's share of a frame set, epoch after epoch. Needs a running Ray.

    start_step: batches of the first epoch to leave out, because they were seen before an interruption.
    columns: what to read besides the frames; columns not named are not read.
    clips: only rows of these clips (label fractions); every worker still gets its share of each item.
    num_readers: reading tasks at a time for this worker; None lets Ray Data decide.
    window_mb: decoded frames of one Ray Data execution, MiB; two windows are held for each worker.
    pairs: name of mined pairs (see pairs.py) whose partners come along; `columns` may then name theirs too.
    Raises DataError naming the rows when more than max_bad_fraction of those read so far (and more than a handful) could
    not be used, or a shard has vanished.
    """
    manifest = manifest or read_manifest(uri)
    if manifest.rows_in(split) == 0:
        raise DataError(f"{uri}: split '{split}' has no frames; the set has {manifest.counts_text()}")
    items: list[dict[str, Any]] = [
        {"epoch": epoch, "index": index, "pieces": pieces}
        for epoch in range(start_epoch, start_epoch + num_epochs)
        for index, pieces in enumerate(plan_epoch(manifest, split, rank, world_size, seed, epoch, shuffle))
    ]
    reader = ItemReader(uri, tuple(columns), seed, manifest.group_size, manifest.image_size, shuffle, clips, pairs)
    bad: list[str] = []
    num_read = 0
    seen = start_step * batch_size
    while items and seen >= (rows := sum(stop - start for *_, start, stop in items[0]["pieces"])) and clips is None:
        items.pop(0)  # whole items are left out unread
        seen -= rows
    blocks = _without_first(_execute(items, reader, num_readers, window_mb * 2**20), seen)
    for batch in _cut(blocks, batch_size, tuple(columns), drop_last, start_step):
        num_read += batch.num_frames
        bad.extend(batch.problems)
        if len(bad) > max(8, max_bad_fraction * num_read):
            named = "; ".join(bad[:_MAX_NAMED])
            raise DataError(
                f"{uri}: {len(bad)} of {num_read} frames read are unusable, above max_bad_fraction={max_bad_fraction}: {named}"
            )
        yield batch


def load_frames(
    uri: str,
    *,
    split: str,
    limit: int | None = None,
    columns: Sequence[str] = (),
    seed: int = 0,
    clips: frozenset[str] | None = None,
    manifest: Manifest | None = None,
) -> Batch:
    """A whole split (or `limit` rows of it, drawn by seed as whole row groups' rows) in memory, without Ray.

    For probes, evaluation and pictures. Rows come in a fixed order. Raises DataError naming rows that do not decode.
    """
    manifest = manifest or read_manifest(uri)
    if manifest.rows_in(split) == 0:
        raise DataError(f"{uri}: split '{split}' has no frames; the set has {manifest.counts_text()}")
    reader = ItemReader(uri, tuple(columns), seed, manifest.group_size, manifest.image_size, False, clips)
    blocks: list[dict[str, Any]] = []
    num_rows = 0
    plan = plan_epoch(manifest, split, 0, 1, seed, 0, shuffle=limit is not None and limit < manifest.rows_in(split))
    for index, pieces in enumerate(plan):
        block = reader.read({"epoch": 0, "index": index, "pieces": pieces})
        blocks.append(block)
        num_rows += len(block["problem"])
        if limit is not None and num_rows >= limit:
            break
    problems = [text for block in blocks for text in block["problem"] if text]
    if problems:
        raise DataError(f"{uri}: {len(problems)} frames are unusable: {'; '.join(problems[:_MAX_NAMED])}")
    merged = {name: np.concatenate([block[name] for block in blocks])[:limit] for name in blocks[0]}
    return _to_batch(merged, 0, 0, tuple(columns))


def plan_epoch(
    manifest: Manifest, split: str, rank: int, world_size: int, seed: int, epoch: int, shuffle: bool = True
) -> list[list[tuple[str, int, int, int]]]:
    """The work items of one worker in one epoch; each is a list of pieces (shard, row group, first row, end row)."""
    groups = [
        (shard.path, index, rows)
        for shard in manifest.shards
        if shard.split == split
        for index, rows in enumerate(shard.row_groups)
    ]
    order = np.random.default_rng([seed, epoch]).permutation(len(groups)) if shuffle else range(len(groups))
    total = sum(rows for _, _, rows in groups)
    first, end = rank * total // world_size, (rank + 1) * total // world_size
    items: list[list[tuple[str, int, int, int]]] = []
    position, filled = 0, ITEM_ROWS
    for number in order:
        path, index, rows = groups[number]
        start, stop = max(first - position, 0), min(end - position, rows)
        position += rows
        if start >= stop:
            continue
        if filled >= ITEM_ROWS:
            items.append([])
            filled = 0
        items[-1].append((path, index, start, stop))
        filled += stop - start
    return items


class ItemReader:
    """Reads and decodes one work item. Picklable; runs inside Ray Data's tasks, or in this process for `load_frames`."""

    def __init__(
        self,
        uri: str,
        columns: tuple[str, ...],
        seed: int,
        group_size: int,
        image_size: int,
        shuffle: bool,
        clips: frozenset[str] | None,
        pairs: str | None = None,
    ) -> None:
        self.uri, self.columns, self.seed, self.pairs = uri, columns, seed, pairs
        self.group_size, self.image_size, self.shuffle, self.clips = group_size, image_size, shuffle, clips

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Ray Data's face: one row, the item as JSON -> one block of decoded rows."""
        block = self.read(json.loads(batch["item"][0]))
        return pa.table({name: _packed(values) for name, values in block.items()})

    def unpack(self, table: pa.Table) -> dict[str, np.ndarray]:
        """The block that `read` gave, without copying pixels."""
        pixels = (self.image_size, self.image_size, 3)
        block = {}
        for name in table.column_names:
            if name in ("frames", "partners"):
                block[name] = _unpacked_array(table[name], np.uint8, pixels)
            elif name in TENSOR_COLUMNS or name in OPTIONAL_COLUMNS:
                block[name] = _unpacked_array(table[name], np.float32, (TENSOR_COLUMNS | OPTIONAL_COLUMNS)[name])
            elif name == "epoch":
                block[name] = table[name].to_numpy()
            else:
                block[name] = np.array(table[name].to_pylist(), dtype=object)
        return block

    def read(self, item: dict[str, Any]) -> dict[str, np.ndarray]:
        """frames uint8 (n, S, S, 3), the columns, `problem` (empty where the row is good) and the item's epoch.

        With pairs also `partners`, like frames.
        """
        table = self._table(item["pieces"])
        if self.clips is not None:
            table = table.filter(pa.compute.is_in(table["clip_id"], pa.array(sorted(self.clips), pa.string())))
        if self.shuffle:
            rng = np.random.default_rng([self.seed, item["epoch"], item["index"], 1])
            table = table.take(_permuted_groups(table["clip_id"].to_pylist(), self.group_size, rng))
        frames, problems = decode_frames(table["jpeg"], self.image_size)
        columns = {name: self._column(table, name, problems) for name in self.columns}
        if self.pairs is not None:
            columns["partners"] = self._partners(table, frames, problems)
        good = np.array([not text for text in problems], dtype=bool)
        names = table["frame_id"].to_pylist()
        problem = np.array([f"{n} ({p})" if p else "" for n, p in zip(names, problems, strict=True)], dtype=object)
        if not good.all():
            if not good.any():
                raise DataError(f"{self.uri}: no usable frame among {len(names)} rows, e.g. {problem[0]}")
            # A bad row's place is taken by a good one of the same item, so that every worker makes the same steps.
            substitutes = np.flatnonzero(good)[np.arange((~good).sum()) % good.sum()]
            frames[~good] = frames[substitutes]
            for values in columns.values():
                values[~good] = values[substitutes]
        return {"frames": frames, "problem": problem, "epoch": np.full(len(names), item["epoch"]), **columns}

    def _table(self, pieces: list[tuple[str, int, int, int]]) -> pa.Table:
        wanted = list(dict.fromkeys(["frame_id", "clip_id", "jpeg", *(c for c in self.columns if c in SCHEMA.names)]))
        of_pairs = ["frame_id", "pair_jpeg", *(c for c in self.columns if c not in SCHEMA.names)]
        tables = []
        for path, row_group, start, stop in pieces:
            shard = join(self.uri, path)
            try:
                table = _open(shard).read_row_group(row_group, columns=wanted)
                if self.pairs is not None:
                    shard = pairs_shard(self.uri, self.pairs, path)
                    mined = _open(shard).read_row_group(row_group, columns=of_pairs)
                    table = beside(table, mined, shard)
                tables.append(table.slice(start, stop - start))
            except FileNotFoundError:
                raise DataError(
                    f"{shard}: this shard of the frame set has vanished; check it against its manifest"
                ) from None
            except (OSError, pa.ArrowException, KeyError) as error:
                raise DataError(f"{shard}, row group {row_group}: {' '.join(str(error).split())}") from None
        return pa.concat_tables(tables).combine_chunks()

    def _partners(self, table: pa.Table, frames: np.ndarray, problems: list[str]) -> np.ndarray:
        partners = frames.copy()
        present = np.flatnonzero(table["pair_jpeg"].is_valid().to_numpy(zero_copy_only=False))
        decoded, wrong = decode_frames(table["pair_jpeg"].take(present), self.image_size)
        partners[present] = decoded
        for row, text in zip(present.tolist(), wrong, strict=True):
            problems[row] = problems[row] or (f"its partner: {text}" if text else "")
        return partners

    def _column(self, table: pa.Table, name: str, problems: list[str]) -> np.ndarray:
        column = table[name]
        if name in OPTIONAL_COLUMNS:
            missing = np.full(OPTIONAL_COLUMNS[name], np.nan, dtype=np.float32)
            rows = [missing if row is None else np.reshape(row, missing.shape) for row in column.to_pylist()]
            return np.asarray(rows, dtype=np.float32)
        if name not in TENSOR_COLUMNS:
            return np.array(column.to_pylist(), dtype=object)
        shape = TENSOR_COLUMNS[name]
        rows = column.to_pylist()
        values = np.zeros((len(rows), *shape), dtype=np.float32)
        for i, row in enumerate(rows):
            if row is None or len(row) != shape[0] * shape[1]:
                problems[i] = problems[i] or f"no {name}"
            else:
                values[i] = np.asarray(row, dtype=np.float32).reshape(shape)
                if not np.isfinite(values[i]).all():
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


def decode_frames(jpegs: pa.ChunkedArray | Sequence[bytes], image_size: int) -> tuple[np.ndarray, list[str]]:
    """Square JPEGs -> uint8 (n, S, S, 3) and, for each, what was wrong with it ("" for a good one)."""
    frames = np.empty((len(jpegs), image_size, image_size, 3), dtype=np.uint8)
    problems = [""] * len(jpegs)
    for i, jpeg in enumerate(jpegs):
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


@lru_cache(maxsize=64)
def _open(shard: str) -> pq.ParquetFile:
    """Shards stay open in a reading process: the footer is read once."""
    filesystem, path = resolve(shard)
    return pq.ParquetFile(filesystem.open_input_file(path), pre_buffer=True)


def _permuted_groups(clips: list[str], group_size: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers with whole frame groups (runs of one clip, at most group_size long) in random order."""
    starts = [0]
    for row in range(1, len(clips)):
        if clips[row] != clips[row - 1] or row - starts[-1] >= group_size:
            starts.append(row)
    runs = np.split(np.arange(len(clips)), starts[1:])
    return np.concatenate([runs[i] for i in rng.permutation(len(runs))]) if len(clips) else np.arange(0)


def _execute(
    items: list[dict[str, Any]], reader: ItemReader, num_readers: int | None, window_bytes: int
) -> Iterator[dict[str, Any]]:
    """Run the items through Ray Data, in order, and yield their blocks; the next window is read meanwhile."""
    rows = [sum(stop - start for *_, start, stop in item["pieces"]) for item in items]
    window_rows = max(1, window_bytes // (reader.image_size**2 * 3))
    with ThreadPoolExecutor(1, thread_name_prefix="stream") as ahead:
        waiting: Future[list[Any]] | None = None
        first, limit = 0, ITEM_ROWS  # the first windows are small: the first batch comes early
        while first < len(items) or waiting is not None:
            end, num_rows = first, 0
            while end < len(items) and (end == first or num_rows + rows[end] <= limit):
                num_rows += rows[end]
                end += 1
            reading = ahead.submit(_read_window, items[first:end], reader, num_readers) if end > first else None
            first, limit = end, min(4 * limit, window_rows)
            if waiting is not None:
                yield from _unpacked(waiting.result(), reader)
            waiting = reading


def _read_window(items: list[dict[str, Any]], reader: ItemReader, num_readers: int | None) -> list[Any]:
    """One Ray Data execution, run to its end: references to one block for each item, in order.

    A window fits the object store, so nothing ever waits for the consumer. An execution that has to wait keeps polling
    in this process, and took a third of the training's time on two cores.
    """
    import ray

    dataset = ray.data.from_items(
        [{"item": json.dumps(item)} for item in items], override_num_blocks=len(items)
    ).map_batches(reader, batch_size=None, batch_format="numpy", concurrency=num_readers)
    dataset.context.execution_options.preserve_order = True
    return dataset.materialize().to_arrow_refs()


def _unpacked(references: list[Any], reader: ItemReader) -> Iterator[dict[str, Any]]:
    import ray

    while references:
        # The reference goes with the block, so the store can free what has been consumed.
        yield reader.unpack(ray.get(references.pop(0)))


def _without_first(blocks: Iterator[dict[str, Any]], num_rows: int) -> Iterator[dict[str, Any]]:
    for block in blocks:
        left_out = min(num_rows, len(block["problem"]))
        num_rows -= left_out
        yield {name: values[left_out:] for name, values in block.items()} if left_out else block


def _cut(
    blocks: Iterator[dict[str, Any]], batch_size: int, columns: tuple[str, ...], drop_last: bool, start_step: int
) -> Iterator[Batch]:
    """Cut blocks of any size into batches that do not cross an epoch's end."""
    pending: list[dict[str, Any]] = []
    num_pending, epoch, step = 0, None, start_step

    def take(count: int) -> dict[str, Any]:
        nonlocal num_pending
        taken, need = [], count
        while need:
            head = pending.pop(0)
            rows = len(head["problem"])
            if rows > need:
                pending.insert(0, {name: values[need:] for name, values in head.items()})
                head = {name: values[:need] for name, values in head.items()}
                rows = need
            taken.append(head)
            need -= rows
        num_pending -= count
        return taken[0] if len(taken) == 1 else {n: np.concatenate([t[n] for t in taken]) for n in taken[0]}

    for block in blocks:
        if not len(block["problem"]):
            continue
        block_epoch = int(block["epoch"][0])
        if epoch is not None and block_epoch != epoch:
            if num_pending and not drop_last:
                yield _to_batch(take(num_pending), epoch, step, columns)
            pending, num_pending, step = [], 0, 0
        epoch = block_epoch
        pending.append(block)
        num_pending += len(block["problem"])
        while num_pending >= batch_size:
            yield _to_batch(take(batch_size), epoch, step, columns)
            step += 1
    if num_pending and not drop_last and epoch is not None:
        yield _to_batch(take(num_pending), epoch, step, columns)


def _to_batch(block: dict[str, Any], epoch: int, step: int, columns: tuple[str, ...]) -> Batch:
    import torch

    def tensor(values: np.ndarray) -> "torch.Tensor":
        # Blocks lie read-only in shared memory; the training loop owns its batch.
        return torch.from_numpy(np.array(values))

    return Batch(
        epoch=epoch,
        step=step,
        frames=tensor(block["frames"]).permute(0, 3, 1, 2),
        columns={
            n: tensor(block[n]) if n in TENSOR_COLUMNS or n in OPTIONAL_COLUMNS else list(block[n]) for n in columns
        },
        problems=[text for text in block["problem"] if text],
        partners=tensor(block["partners"]).permute(0, 3, 1, 2) if "partners" in block else None,
    )
