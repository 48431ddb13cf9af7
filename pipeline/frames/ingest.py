"""Ingest: hand images from a source become a frame set, shuffled across clips, with Ray Data.

The driver lists the source's units and packs them into tasks; where hands have to be found, a detector does that first (see
detect_stage.py); stage 1 (see rows.py) cuts out the hands and throws frame
groups into buckets, stage 2 turns each bucket into a shuffled shard (see buckets.py), and the manifest is written last.

All that is decided follows from the settings and the listing alone: tasks, splits, buckets, order. What a task has finished
is marked in storage. So an ingest that is killed at any moment and started again goes on where it was, and ends with the
same rows exactly once. Until the manifest is written nothing is published; afterwards the same ingest is a no-op.

Two ingests of one source into one frame set must not run at the same time.

    <frame set>/manifest.json
    <frame set>/shards/<source>-<split>-<bucket>.parquet
    <frame set>/_ingest/<source>/   while an ingest runs: plan.json, found/, parts/, shards/
"""

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any

from pipeline.errors import DataError
from pipeline.frames.buckets import Bucket, Extent, PartWriter, extents_by_bucket, write_shard
from pipeline.frames.detect_stage import find_hands
from pipeline.frames.groups import bucket_of
from pipeline.frames.manifest import (
    IngestRecord,
    Manifest,
    Shard,
    VideoGroup,
    has_manifest,
    merge,
    read_manifest,
    total_digest,
    write_manifest,
)
from pipeline.frames.pieces import is_whole
from pipeline.frames.plan import IngestSettings, Plan, Task, make_plan
from pipeline.frames.rejects import MAX_EXAMPLES, UNSEEN_REASONS, Rejects
from pipeline.frames.rows import unit_groups
from pipeline.frames.schema import HANDS, SPLITS
from pipeline.frames.sources import Reader
from pipeline.frames.sources.base import DetectorKindSettings
from pipeline.progress import SILENT, Progress
from pipeline.ray_map import ray_map
from pipeline.storage import delete, exists, join, list_files, preflight, read_json, with_patience, write_json

_MAX_NOTES = 3
"""That an error repeats."""


@dataclass(frozen=True)
class Preparation:
    """An ingest that is checked and planned."""

    settings: IngestSettings
    output_uri: str
    name: str
    """Of the source."""
    record: dict[str, Any]
    """Settings and listing; equal records mean equal rows."""
    plan: Plan

    @property
    def work_uri(self) -> str:
        """Where unfinished work lies."""
        return _work_uri(self.output_uri, self.name)


def ingest(settings: IngestSettings, output_uri: str, progress: Progress = SILENT) -> Manifest:
    """Add a source to the frame set at `output_uri` (made where there is none yet). Needs a running Ray.

    Gives the frame set's manifest. A source that is there already, with the same settings and files, is left as it is.
    Raises DataError where the source is unusable, too much of it was rejected, or it does not fit the set; the frame set is
    then as it was before. Raises StorageError where a URI cannot be reached.
    """
    prepared = prepare(settings, output_uri)
    return prepared if isinstance(prepared, Manifest) else execute(prepared, progress)


def prepare(settings: IngestSettings, output_uri: str) -> Preparation | Manifest:
    """The first part of `ingest`, without Ray: check, list and plan. The frame set's manifest where nothing is to be done."""
    name = settings.source.resolved_name()
    preflight(settings.source.uri)
    preflight(output_uri, write=True)
    reader = settings.source.reader()
    record = {"settings": settings.deciding(), "listing": _listing(reader)}
    there = _frame_set(settings, output_uri, name, record)
    if there is not None and name in there.settings:
        _clean_up(output_uri, name)
        return there
    return Preparation(settings, output_uri, name, record, make_plan(settings, reader))


def execute(prepared: Preparation, progress: Progress = SILENT) -> Manifest:
    """The second part of `ingest`. Needs a running Ray."""
    settings, output_uri, name, work_uri = prepared.settings, prepared.output_uri, prepared.name, prepared.work_uri
    _others(prepared)
    plan_uri = join(work_uri, "plan.json")
    # Equal records mean equal plans, but for another version of this code, or a header that could not be read this time.
    planned = {**prepared.record, "plan": prepared.plan.digest()}
    if not exists(plan_uri) or read_json(plan_uri) != planned:
        # Remains of an ingest with other settings, files or tasks; nothing of it was published.
        delete(work_uri)
        for shard_uri in _shards_of(output_uri, name):
            delete(shard_uri)
        write_json(plan_uri, planned)

    prepared = replace(prepared, plan=find_hands(settings, prepared.plan, work_uri, progress))
    stats = _first_stage(prepared, progress)
    rejects = Rejects()
    rejects.merge(prepared.plan.rejects)
    for task_stats in stats:
        rejects.merge(Rejects.from_json(task_stats["rejects"]))
    _check_rejects(settings, prepared.plan, rejects, sum(task_stats["num_rows"] for task_stats in stats))
    shards = _second_stage(prepared, stats, progress)

    # Read only now: another source may have been published meanwhile.
    manifest = merge(_others(prepared), _describe(prepared, stats, shards, rejects), MAX_EXAMPLES)
    write_manifest(output_uri, manifest)
    _clean_up(output_uri, name)
    return manifest


def run_task(
    task: Task, reader: Reader, settings: IngestSettings, num_buckets: dict[str, int], work_uri: str
) -> dict[str, Any]:
    """Stage 1 for one task: writes its part file and its statistics, which mark it as done, and gives the latter."""
    name = settings.source.resolved_name()
    # A name of its own for every attempt: a worker that outlives its killed driver must not write into a newer file.
    part = f"{task.number:05d}-{uuid.uuid4().hex}.arrows"
    writer = PartWriter(join(work_uri, "parts", part))
    rejects = Rejects()
    counts: dict[str, int] = {}
    hands: dict[str, int] = {}
    clips: set[str] = set()
    shared: set[str] = set()
    videos: dict[str, Any] = {}
    for unit, split in task.units:
        for group in unit_groups(reader, name, unit, split, settings, rejects, videos):
            writer.add((split, bucket_of(group[0]["frame_id"], num_buckets[split], settings.seed)), group)
            (clips if is_whole(unit) else shared).add(group[0]["clip_id"])
            counts[split] = counts.get(split, 0) + len(group)
            hand = group[0]["hand"]
            hands[hand] = hands.get(hand, 0) + len(group)
    writer.close()
    stats = {
        "task": task.number,
        "part": part,
        "num_rows": sum(counts.values()),
        "num_clips": len(clips),
        "shared_clips": sorted(shared),
        "counts": counts,
        "hands": hands,
        "rejects": rejects.to_json(),
        "videos": videos,
        "pieces": [[list(bucket), *where] for bucket, *where in writer.extents],
    }
    write_json(join(work_uri, "parts", f"{task.number:05d}.json"), stats)
    return stats


def _first_stage_item(
    settings: IngestSettings, num_buckets: dict[str, int], work_uri: str, task: Task
) -> dict[str, Any]:
    return with_patience(lambda: run_task(task, settings.source.reader(), settings, num_buckets, work_uri))


def _second_stage_item(
    settings: IngestSettings, output_uri: str, work_uri: str, item: tuple[Bucket, list[Extent]]
) -> Shard:
    bucket, extents = item
    name = settings.source.resolved_name()
    path = shard_path(name, bucket)
    shard = with_patience(
        lambda: write_shard(output_uri, path, work_uri, name, bucket, extents, settings.seed, settings.row_group_size)
    )
    write_json(join(work_uri, f"{path}.json"), shard.model_dump())
    return shard


def shard_path(source: str, bucket: Bucket) -> str:
    """Where a shard lies in the frame set."""
    split, number = bucket
    return f"shards/{source}-{split}-{number:05d}.parquet"


def _first_stage(prepared: Preparation, progress: Progress) -> list[dict[str, Any]]:
    """Statistics of all tasks, in their order; tasks that an earlier run has finished are not run again."""
    settings, plan, work_uri = prepared.settings, prepared.plan, prepared.work_uri
    done = {value["task"]: value for value in map(read_json, list_files(join(work_uri, "parts"), ".json"))}
    todo = [task for task in plan.tasks if task.number not in done]
    expected = {task.number: sum(unit.num_frames for unit, _ in task.units) for task in plan.tasks}
    progress.start(f"find and crop hands ({prepared.name})", plan.num_frames, "frames")
    work = partial(_first_stage_item, settings, plan.num_buckets, work_uri)
    rows = rejects = frames = 0
    for stats in chain(list(done.values()), ray_map(work, todo, num_workers=settings.num_workers)):
        done[stats["task"]] = stats
        rows += stats["num_rows"]
        rejects += sum(stats["rejects"]["counts"].values())
        frames += expected[stats["task"]]
        progress.update(frames, rows=rows, rejects=rejects)
    progress.finish(rows=rows, rejects=rejects)
    return [done[task.number] for task in plan.tasks]


def _second_stage(prepared: Preparation, stats: Sequence[dict[str, Any]], progress: Progress) -> list[Shard]:
    """All shards, ordered by split and bucket; shards that an earlier run has finished are not written again."""
    settings, name, work_uri = prepared.settings, prepared.name, prepared.work_uri
    buckets = extents_by_bucket((join(work_uri, "parts", value["part"]), value["pieces"]) for value in stats)
    marks = list_files(join(work_uri, "shards"), ".json")
    done = {shard.path: shard for shard in map(Shard.model_validate, map(read_json, marks))}
    todo = [(bucket, extents) for bucket, extents in buckets.items() if shard_path(name, bucket) not in done]
    progress.start(f"shuffle and write shards ({name})", sum(value["num_rows"] for value in stats), "rows")
    work = partial(_second_stage_item, settings, prepared.output_uri, work_uri)
    rows = num_bytes = 0
    for shard in chain(list(done.values()), ray_map(work, todo, num_workers=settings.num_workers)):
        done[shard.path] = shard
        rows += shard.num_rows
        num_bytes += shard.num_bytes
        progress.update(rows, megabytes=round(num_bytes / 1e6, 1))
    progress.finish(shards=len(done), megabytes=round(num_bytes / 1e6, 1))
    return [done[shard_path(name, bucket)] for bucket in buckets]


def _frame_set(settings: IngestSettings, output_uri: str, name: str, record: dict[str, Any]) -> Manifest | None:
    """What is published so far. Raises DataError where the source does not fit it."""
    if not has_manifest(output_uri):
        return None
    there = read_manifest(output_uri)
    if name in there.settings:
        _check_same(output_uri, name, there.settings[name], record)
    elif (there.image_size, there.group_size) != (settings.image_size, settings.group_size):
        raise DataError(
            f"{output_uri}: holds crops of {there.image_size} px in groups of {there.group_size}; image_size and group_size "
            "of another source must be the same"
        )
    return there


def _others(prepared: Preparation) -> Manifest | None:
    """What is published of other sources. Raises DataError where this one has been published since it was prepared."""
    there = _frame_set(prepared.settings, prepared.output_uri, prepared.name, prepared.record)
    if there is not None and prepared.name in there.settings:
        raise DataError(
            f"{prepared.output_uri}: source '{prepared.name}' was published by another ingest meanwhile; run this one again"
        )
    return there


def _check_same(output_uri: str, name: str, there: IngestRecord, record: dict[str, Any]) -> None:
    """Raises DataError where a source of this name was ingested in another way, or from other files."""
    old, new = _flatten("", there.settings), _flatten("", record["settings"])
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]
    if changed:
        raise DataError(
            f"{output_uri}: source '{name}' is there already, made with other settings ({'; '.join(changed)}); give this "
            "one another source.name, or write to another frame set"
        )
    if there.listing != record["listing"]:
        raise DataError(
            f"{output_uri}: source '{name}' is there already, but its files have changed since; ingest the new ones as a "
            "source of their own (source.name), or all of them into another frame set"
        )


def _check_rejects(settings: IngestSettings, plan: Plan, rejects: Rejects, num_rows: int) -> None:
    """Raises DataError where there is nothing to publish, or too much could not be used. Choices count as usable."""
    limit = settings.source.resolved_max_reject_fraction()
    uri, kind = settings.source.uri, settings.source.kind
    notes = "".join(f"; note: {note}" for note in rejects.notes[:_MAX_NOTES])
    if num_rows == 0 and (detector := _detector_without_hands(settings, rejects)):
        raise DataError(f"{uri}: not one frame shows a hand to {detector}; left out: {rejects.text()}{notes}")
    if num_rows == 0:
        left_out = (
            f"{rejects.text()}; {rejects.main_reason(kind)}" if rejects.counts else "nothing, the labels name no hands"
        )
        raise DataError(f"{uri}: not one usable hand; left out: {left_out}{notes}")
    fractions = {
        "clips": rejects.num_clips / plan.num_clips,
        "frames": rejects.num_damaged(kind) / (rejects.num_damaged(kind) + rejects.num_chosen(kind) + num_rows),
    }
    for what, fraction in fractions.items():
        if fraction > limit:
            raise DataError(
                f"{uri}: {fraction:.0%} of the {what} had to be left out, more than source.max_reject_fraction={limit:g}: "
                f"{rejects.text()}; nothing was published (with a higher limit the finished work is used again); "
                f"{rejects.main_reason(kind)}{notes}"
            )


def _detector_without_hands(settings: IngestSettings, rejects: Rejects) -> str | None:
    """The settings of the detector, for people, where it found no hand in any frame that could be read."""
    # A hand that is found becomes a row, or is left out for another reason than those that cost a frame before it is looked at.
    if not rejects.counts.get("no_hand") or rejects.counts.keys() - UNSEEN_REASONS:
        return None
    if not isinstance(settings.source, DetectorKindSettings):
        return None
    detector = settings.source.detector
    return (
        f"source.detector.model={detector.model} with source.detector.min_confidence={detector.min_confidence:g} "
        "(lower it, or look whether this is hand video)"
    )


def _describe(
    prepared: Preparation, stats: Sequence[dict[str, Any]], shards: list[Shard], rejects: Rejects
) -> Manifest:
    """The manifest of this source alone."""
    settings, name = prepared.settings, prepared.name
    counts = {split: sum(value["counts"].get(split, 0) for value in stats) for split in SPLITS}
    shared = {clip for value in stats for clip in value["shared_clips"]}  # of videos in pieces
    num_clips = sum(value["num_clips"] for value in stats) + len(shared)
    return Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        image_size=settings.image_size,
        group_size=settings.group_size,
        num_rows=sum(counts.values()),
        num_clips=num_clips,
        counts={name: counts},
        hands={hand: sum(value["hands"].get(hand, 0) for value in stats) for hand in HANDS},
        rejects={name: dict(sorted(rejects.counts.items()))},
        reject_examples=dict(sorted(rejects.examples.items())),
        videos={name: alike} if (alike := group_videos(stats)) else {},
        notes={name: rejects.notes} if rejects.notes else {},
        settings={name: IngestRecord(**prepared.record, num_clips=num_clips)},
        digest=total_digest(shards),
        shards=shards,
    )


def group_videos(stats: Sequence[dict[str, Any]]) -> list[VideoGroup]:
    """The videos of some tasks, those together that are shown and timed in the same way; largest groups first."""
    videos = {
        video: facts for value in stats for video, facts in value.get("videos", {}).items()
    }  # pieces say the same
    groups: dict[str, list[str]] = {}
    for video, facts in sorted(videos.items()):
        groups.setdefault(json.dumps(facts, sort_keys=True), []).append(video)
    alike = sorted(groups.values(), key=lambda members: (-len(members), members[0]))
    return [VideoGroup(num_videos=len(m), examples=m[:MAX_EXAMPLES], **videos[m[0]]) for m in alike]


def _listing(reader: Reader) -> str:
    """Digest of the names and sizes of a source's files."""
    lines = [f"{uri}\t{num_bytes}\n" for uri, num_bytes in sorted(reader.list_files().items())]
    return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()


def _work_uri(output_uri: str, name: str) -> str:
    return join(output_uri, "_ingest", name)


def _clean_up(output_uri: str, name: str) -> None:
    delete(_work_uri(output_uri, name))
    if not list_files(join(output_uri, "_ingest")):
        delete(join(output_uri, "_ingest"))


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    """Nested mappings as one: {"source.track.max_gap_s": 0.5}."""
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, item in value.items():
        result |= _flatten(f"{prefix}.{key}" if prefix else key, item)
    return result


def _shards_of(output_uri: str, name: str) -> list[str]:
    """All shard files that belong to a source, by name."""
    pattern = re.compile(rf"/{re.escape(name)}-({'|'.join(SPLITS)})-\d{{5}}\.parquet$")
    return [uri for uri in list_files(join(output_uri, "shards")) if pattern.search(uri)]
