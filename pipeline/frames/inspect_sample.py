"""A random sample of crops, decoded: their sharpness and brightness, and the pictures of the data card.

Whole row groups are drawn by a seed and a random part of their rows is taken. Frame groups were shuffled across clips when
the set was written, so a few row groups stand for all.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.frames.frame_set import FrameSet
from pipeline.frames.groups import apportion
from pipeline.frames.manifest import Shard
from pipeline.frames.quality import sharpness
from pipeline.frames.read_items import decode_frames
from pipeline.frames.shards import opened, read_rows

COLUMNS = ("frame_id", "source", "split", "jpeg", "joints_3d", "camera", "joints_2d")
_ROWS_READ = 4  # for each row taken, so that not all of a sample comes from a handful of row groups
_THREADS = 4


@dataclass(frozen=True)
class Sample:
    """Rows drawn at random, in random order."""

    rows: pa.Table
    """COLUMNS; only rows that decode."""
    sharpness: np.ndarray
    """(n,) of the hand in the crop, see quality.sharpness."""
    brightness: np.ndarray
    """(n,) mean luminance, 0 to 255."""
    problems: list[str]
    """Rows that were drawn but do not decode: frame id and what is wrong."""
    num_row_groups: int
    """From which the rows come."""

    def frames(self, where: Sequence[int], image_size: int) -> np.ndarray:
        """Pictures of some rows by their numbers: uint8 (n, 3, S, S)."""
        frames, _ = decode_frames(self.rows["jpeg"].take(pa.array(where, pa.int64())), image_size)
        return frames.transpose(0, 3, 1, 2)


def draw_sample(frame_set: FrameSet, num_rows: int, seed: int, box_margins: dict[str, float]) -> Sample:
    """`num_rows` rows (all where there are no more), from each split in proportion.

    box_margins: side of the crops in hand boxes, by source. Raises DataError where a shard cannot be read.
    """
    manifest = frame_set.manifest
    rng = np.random.default_rng([seed, 7])
    splits = manifest.splits()
    counts = apportion(min(num_rows, manifest.num_rows), [manifest.rows_in(split) for split in splits])
    wanted: dict[tuple[str, int], np.ndarray] = {}
    for split, count in zip(splits, counts, strict=True):
        wanted |= _choose(frame_set, split, count, rng)
    shards = {shard.path: shard for shard in manifest.shards}
    with ThreadPoolExecutor(_THREADS) as pool:
        pieces = list(
            pool.map(
                lambda item: _measure(frame_set, shards[item[0][0]], item[0][1], item[1], box_margins),
                wanted.items(),
            )
        )
    rows = pa.concat_tables([piece[0] for piece in pieces]).combine_chunks()
    order = rng.permutation(rows.num_rows)
    return Sample(
        rows=rows.take(pa.array(order)),
        sharpness=np.concatenate([piece[1] for piece in pieces])[order],
        brightness=np.concatenate([piece[2] for piece in pieces])[order],
        problems=[text for piece in pieces for text in piece[3]],
        num_row_groups=len(pieces),
    )


def _choose(
    frame_set: FrameSet, split: str, num_rows: int, rng: np.random.Generator
) -> dict[tuple[str, int], np.ndarray]:
    """{(shard, row group): rows to take from it}."""
    groups = [
        (shard.path, index, rows) for shard in frame_set.shards(split) for index, rows in enumerate(shard.row_groups)
    ]
    chosen: list[tuple[str, int, int]] = []
    there = 0
    for number in rng.permutation(len(groups)):
        if there >= _ROWS_READ * num_rows:
            break
        chosen.append(groups[number])
        there += groups[number][2]
    taken = np.sort(rng.choice(there, size=min(num_rows, there), replace=False))
    starts = np.cumsum([0, *(rows for *_, rows in chosen)])
    result = {}
    for (path, index, _), start, end in zip(chosen, starts[:-1], starts[1:], strict=True):
        mine = taken[(taken >= start) & (taken < end)] - start
        if len(mine):
            result[path, index] = mine
    return result


def _measure(
    frame_set: FrameSet, shard: Shard, row_group: int, rows: np.ndarray, box_margins: dict[str, float]
) -> tuple[pa.Table, np.ndarray, np.ndarray, list[str]]:
    """(rows that decode, their sharpness, their brightness, what is wrong with the others)."""
    with opened(frame_set.shard_uri(shard)) as file:
        table = read_rows(file, COLUMNS, [row_group]).take(pa.array(rows))
    frames, wrong = decode_frames(table["jpeg"], frame_set.manifest.image_size)
    good = np.array([not text for text in wrong], dtype=bool)
    luminance = [np.asarray(Image.fromarray(frame).convert("L")) for frame in frames[good]]  # as ingest's filter
    problems = [
        f"{frame_id} in {shard.path} ({text})"
        for frame_id, text in zip(table["frame_id"].to_pylist(), wrong, strict=True)
        if text
    ]
    inner = 1 / box_margins[shard.source]
    return (
        table.filter(pa.array(good)),
        np.array([sharpness(picture, inner) for picture in luminance]),
        np.array([picture.mean() for picture in luminance]),
        problems,
    )
