"""Smaller frame sets inside a frame set: the same clips first, whatever the share."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.frames.buckets import write_row_groups
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import clip_place
from pipeline.frames.manifest import (
    IngestRecord,
    Manifest,
    Shard,
    has_manifest,
    read_manifest,
    total_digest,
    write_manifest,
)
from pipeline.frames.schema import SCHEMA
from pipeline.frames.shards import opened, read_rows, row_groups
from pipeline.storage import join


def nested_clips(frame_set: FrameSet, split: str, share: float, seed: int) -> frozenset[str]:
    """The first clips of the order drawn by seed, until they hold the share of the split's frames; at least one.

    Labels are chosen in the same order (see labelled.select_labels), so that of one set and seed the labelled clips are
    among the unlabelled ones as soon as the share is as large.
    """
    frames: Counter[str] = Counter()
    for shard in frame_set.shards(split):
        with opened(frame_set.shard_uri(shard)) as file:
            frames.update(read_rows(file, ["clip_id"])["clip_id"].to_pylist())
    wanted = share * sum(frames.values())
    chosen: set[str] = set()
    num_frames = 0
    for clip in sorted(frames, key=lambda name: clip_place(name, seed)):
        if chosen and num_frames >= wanted:
            break
        chosen.add(clip)
        num_frames += frames[clip]
    return frozenset(chosen)


def write_subset(uri: str, target: str, split: str, share: float, seed: int) -> Manifest:
    """A frame set at `target` with the `nested_clips` of one split; one that is there already is left as it is.

    Rows keep their order, and frame groups stay whole. Its manifest is written last.
    """
    if has_manifest(target):
        return read_manifest(target)
    frame_set = FrameSet.open(uri)
    manifest = frame_set.manifest
    clips = pa.array(sorted(nested_clips(frame_set, split, share, seed)))
    shards = []
    hands: Counter[str] = Counter()
    for shard in frame_set.shards(split):
        groups = list(_row_groups(frame_set.shard_uri(shard), shard, clips))
        if groups:
            shards.append(write_row_groups(target, shard.path, join(target, "tmp"), shard.source, split, groups))
            for group in groups:
                hands.update(group["hand"].to_pylist())
    counts: dict[str, dict[str, int]] = {}
    for shard in shards:
        of_source = counts.setdefault(shard.source, {})
        of_source[split] = of_source.get(split, 0) + shard.num_rows
    subset = Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        image_size=manifest.image_size,
        group_size=manifest.group_size,
        num_rows=sum(shard.num_rows for shard in shards),
        num_clips=len(clips),
        counts=counts,
        hands=dict(hands),
        rejects={},
        reject_examples={},
        settings={
            source: IngestRecord(
                settings={**manifest.settings[source].settings, "subset": {"share": share, "seed": seed}},
                listing=f"subset of {manifest.digest}",
                num_clips=len(clips),
            )
            for source in counts
        },
        digest=total_digest(shards),
        shards=shards,
    )
    write_manifest(target, subset)
    return subset


def _row_groups(shard_uri: str, shard: Shard, clips: pa.Array) -> Iterator[pa.Table]:
    """The clips' rows, in row groups about as large as they were; no frame group crosses a row group's end."""
    pending: list[pa.Table] = []
    for rows in row_groups(shard_uri, SCHEMA.names):
        table = rows.filter(pc.is_in(rows["clip_id"], clips)).cast(SCHEMA)
        if table.num_rows:
            pending.append(table)
        if sum(part.num_rows for part in pending) >= max(shard.row_groups):
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)
