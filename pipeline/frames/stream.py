"""Stream frame sets to training workers with Ray Data.

What a worker reads, and when, is decided by `epoch_plan.py` (and `mixing.py`, for several sets); `windows.py` runs it through
Ray Data, `read_items.py` is what its tasks do, `batches.py` cuts batches from what comes back. This file is their face.

Unusable rows are replaced where they are found, and counted here: a run goes on while a worker's bad rows of an epoch are
at most max_bad_fraction of its rows of an epoch, and stops with their list otherwise.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import DataError
from pipeline.frames import windows
from pipeline.frames.batches import Batch, cut, cut_as_they_come, to_batch, without_first
from pipeline.frames.epoch_plan import Item, num_batches, plan_epoch, rows_after, steps_per_epoch, worker_rows
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.mixing import FrameSet, check_together
from pipeline.frames.read_items import BadFrame, ItemReader, Source, bad_frame, decode_frames

__all__ = [
    "BadFrame",
    "Batch",
    "bad_frames_text",
    "decode_frames",
    "load_frames",
    "num_batches",
    "steps_per_epoch",
    "stream_batches",
]

_MAX_NAMED = 20
_HANDFUL = 8  # bad rows that are borne where a worker's rows of an epoch are not known beforehand


def stream_batches(
    frames: str | Sequence[FrameSet],
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
    """Batches of this worker's share of frame sets, epoch after epoch. Needs a running Ray.

    frames: a frame set's URI, or several sets (see mixing.open_frame_sets).
    start_step: batches of the first epoch to leave out, because they were seen before an interruption; not with clips.
    num_epochs: 0 gives nothing, and reads nothing.
    columns: what to read besides the frames; columns not named are not read.
    clips: only rows of these clips (label fractions) of a single set; every worker gets those among its rows.
    num_readers: reading tasks at a time for this worker; None lets Ray Data decide.
    window_mb: decoded frames of one Ray Data execution, MiB; three windows are held for each worker.
    manifest: that of the set, where it has been read already.
    pairs: name of mined pairs (see pairs.py) whose partners come along; `columns` may then name theirs too.
    Raises DataError naming the rows when more than max_bad_fraction of an epoch's could not be used: a JPEG that does not
    decode, missing fields, a shard that vanished, is damaged or cannot be reached.
    """
    sets = _opened(frames, manifest)
    check_together(sets, split)
    if clips is not None and (len(sets) > 1 or start_step):
        raise ValueError("clips are chosen from a single frame set, and from the start of an epoch")
    if num_epochs < 1:
        return
    wanted = tuple(columns)
    rows = worker_rows(sets, split, rank, world_size)
    seen = rows_after(tuple(rows), batch_size)
    skipped = seen[min(start_step, len(seen) - 1)]  # this worker's epoch may be a batch shorter than the others'
    items, left_out = _items(sets, split, rank, world_size, seed, shuffle, start_epoch, num_epochs, list(skipped))
    reader = _reader(sets, wanted, seed, shuffle, clips, pairs)
    blocks = without_first(windows.read_items(items, reader, num_readers, window_mb * 2**20), left_out)
    if clips is None:
        steps = steps_per_epoch(sets, split, batch_size, world_size, drop_last)
        batches = cut(blocks, tuple(rows), steps, start_epoch, start_step, batch_size, wanted)
    else:
        batches = cut_as_they_come(blocks, drop_last, batch_size, wanted)
    bad: list[BadFrame] = []
    epoch, num_read = start_epoch, 0
    for batch in batches:
        if batch.epoch != epoch:
            bad, epoch = [], batch.epoch
        num_read += batch.num_frames
        bad.extend(batch.problems)
        of = sum(rows) if clips is None else max(num_read, round(_HANDFUL / max(max_bad_fraction, 1e-9)))
        if batch.problems and len(bad) > max_bad_fraction * of:
            raise DataError(
                f"{', '.join(each.uri for each in sets)}: {len(bad)} of {of} frames of an epoch are unusable already, "
                f"above max_bad_fraction={max_bad_fraction}: {bad_frames_text(bad)}"
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
    max_bad_fraction: float = 0.0,
) -> Batch:
    """A whole split (or `limit` rows of it, drawn by seed as whole row groups' rows) in memory, without Ray.

    For probes, evaluation and pictures. Rows come in a fixed order. Rows that cannot be used are left out, and named in the
    batch's `problems`. Raises DataError with their names where they are more than max_bad_fraction of those read.
    """
    sets = _opened(uri, manifest)
    check_together(sets, split)
    reader = _reader(sets, tuple(columns), seed, False, clips, None)
    blocks = []
    num_rows = num_good = 0
    drawn = limit is not None and limit < sets[0].manifest.rows_in(split)
    for item in plan_epoch(sets, split, 0, 1, seed, 0, shuffle=drawn):
        block = reader.read(item)
        blocks.append(block)
        num_rows += len(block["problem"])
        num_good += int((block["problem"] == "").sum())
        if limit is not None and num_good >= limit:
            break
    problems = [bad_frame(text) for block in blocks for text in block["problem"] if text]
    if len(problems) > max_bad_fraction * num_rows:
        raise DataError(f"{uri}: {len(problems)} frames are unusable: {bad_frames_text(problems)}")
    if problems:
        blocks = [{name: values[block["problem"] == ""] for name, values in block.items()} for block in blocks]
    merged = {name: np.concatenate([block[name] for block in blocks])[:limit] for name in blocks[0]}
    return replace(to_batch(merged, 0, 0, tuple(columns)), problems=problems)


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


def _opened(frames: str | Sequence[FrameSet], manifest: Manifest | None) -> list[FrameSet]:
    return [FrameSet(frames, manifest or read_manifest(frames))] if isinstance(frames, str) else list(frames)


def _reader(
    sets: Sequence[FrameSet],
    columns: tuple[str, ...],
    seed: int,
    shuffle: bool,
    clips: frozenset[str] | None,
    pairs: str | None,
) -> ItemReader:
    sources = tuple(Source(each.uri, each.manifest.group_size) for each in sets)
    return ItemReader(sources, sets[0].manifest.image_size, columns, seed, shuffle, clips, pairs)


def _items(
    sets: Sequence[FrameSet],
    split: str,
    rank: int,
    world_size: int,
    seed: int,
    shuffle: bool,
    start_epoch: int,
    num_epochs: int,
    skipped: list[int],
) -> tuple[Iterator[Item], list[int]]:
    """All epochs' items, each epoch planned when it is reached, without the whole items among the first rows `skipped`
    of each set; and how many rows are still to be left out of the items that begin then."""
    first: list[Item] = []
    begun: set[int] = set()
    for item in plan_epoch(sets, split, rank, world_size, seed, start_epoch, shuffle):
        if item.of_set not in begun and skipped[item.of_set] >= item.num_rows:
            skipped[item.of_set] -= item.num_rows  # left out unread
        else:
            begun.add(item.of_set)
            first.append(item)

    def all_items() -> Iterator[Item]:
        yield from first
        for epoch in range(start_epoch + 1, start_epoch + num_epochs):
            yield from plan_epoch(sets, split, rank, world_size, seed, epoch, shuffle)

    return all_items(), skipped
