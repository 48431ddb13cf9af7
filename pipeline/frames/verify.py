"""Check a frame set against its manifest: every shard is read from end to end, and every damaged one is named.

Checked of a shard: it is there, its size, checksum, schema, row groups, number of rows, source and split of each row, the
lengths of lists, the digest of its rows, and that its JPEGs decode to the set's size. Checked of the set: frame ids are
unique, no clip is in two splits, and the manifest's totals are those of its shards, its sizes those that the sources were
ingested with. A shard is read as a whole, in one request; what is kept of each row are two hashes of 8 bytes.
"""

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.errors import StorageError, one_line
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.inspect_columns import name_hash
from pipeline.frames.inspect_shards import map_shards
from pipeline.frames.manifest import Manifest, Shard, new_checksum, total_digest
from pipeline.frames.read_items import decode_frames
from pipeline.frames.schema import LATER_COLUMNS, LIST_LENGTHS, SCHEMA, add_digests, digest, digest_to_hex
from pipeline.frames.shards import UNREADABLE, open_shard, read_rows
from pipeline.progress import SILENT, Progress
from pipeline.storage import is_local, join, list_files, local_path, read_bytes, resolve

_NAMED = 3


@dataclass
class ShardCheck:
    """What was found in one shard."""

    problems: list[str] = field(default_factory=list)
    """What is wrong; empty where the shard is sound."""
    digest: str = ""
    """Of the rows that are there; empty where they cannot be read."""
    frames: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hash of each frame id."""
    clips: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Hash of each clip id, once."""
    hands: Counter[str] = field(default_factory=Counter)
    num_decoded: int = 0
    """JPEGs that were decoded."""


@dataclass
class Verification:
    """What was found in a frame set."""

    frame_set: str
    num_shards: int
    num_rows: int
    """By the manifest."""
    num_decoded: int = 0
    """JPEGs that were decoded, sound or not."""
    damaged: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong with each damaged shard, by its path."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the manifest or the set as a whole."""
    warnings: list[str] = field(default_factory=list)
    """What does no harm."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.problems

    def lines(self) -> list[str]:
        """One line for each thing that is wrong, with the place."""
        of_shards = [
            f"{join(self.frame_set, path)}: {'; '.join(problems)}" for path, problems in sorted(self.damaged.items())
        ]
        return of_shards + [f"{self.frame_set}: {problem}" for problem in self.problems]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "sound": self.is_sound}

    def summary(self) -> str:
        """One line for a sound set or a damaged one."""
        size = f"{self.num_rows:,} rows in {self.num_shards:,} shards, {self.num_decoded:,} JPEGs decoded"
        if self.is_sound:
            return f"sound: {size}"
        return f"damaged: {len(self.damaged)} of {self.num_shards} shards, {len(self.problems)} faults of the whole ({size})"


def verify(
    frame_set: FrameSet, decode: float = 1.0, use_ray: bool = False, progress: Progress = SILENT
) -> Verification:
    """Check a frame set. decode: share of the JPEGs that are decoded, 0 to 1. use_ray: needs a running Ray.

    Nothing that is wrong with the set raises; storage that does not answer does (StorageError).
    """
    uri, manifest = frame_set.uri, frame_set.manifest
    result = Verification(uri, len(manifest.shards), manifest.num_rows)
    checks: list[ShardCheck] = []
    progress.start("verify", manifest.num_rows, "rows")
    work = partial(check_shard, uri, image_size=manifest.image_size, decode=decode)
    for shard, check in map_shards(work, manifest.shards, use_ray):
        checks.append(check)
        progress.advance(shard.num_rows, damaged=sum(bool(c.problems) for c in checks))
    progress.finish()
    result.num_decoded = sum(check.num_decoded for check in checks)
    _name_exchanged(manifest, checks)
    for shard, check in zip(manifest.shards, checks, strict=True):
        if check.problems:
            result.damaged.setdefault(shard.path, []).extend(check.problems)
    result.problems += _wrong_totals(manifest, checks)
    result.problems += _duplicate_frames(frame_set, checks) + _shared_clips(frame_set, checks)
    result.warnings = _unnamed_files(frame_set)
    return result


def check_shard(uri: str, shard: Shard, image_size: int, decode: float = 1.0) -> ShardCheck:
    """Compare a shard with what the manifest says of it. Raises StorageError where storage does not answer."""
    check = ShardCheck()
    shard_uri = join(uri, shard.path)
    try:
        filesystem, path = resolve(shard_uri)
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise StorageError(f"{shard_uri}: {one_line(error)}") from None
    if info.type != pafs.FileType.File:
        check.problems.append("is missing")
        return check
    if info.size != shard.num_bytes:
        check.problems.append(f"has {info.size} bytes, the manifest says {shard.num_bytes}")
    try:
        data = read_bytes(shard_uri)
    except StorageError as error:
        check.problems.append(f"cannot be read ({_short(error)})")
        return check
    try:
        file = open_shard(shard_uri, data)
        if _check_layout(file, shard, check):
            _check_rows(file, shard, image_size, decode, check)
    except UNREADABLE as error:
        check.problems.append(f"is not a readable Parquet file ({_short(error)})")
    if shard.checksum and not check.problems and _checksum(data) != shard.checksum:
        # In what no row is made of: statistics, headers of pages, names of versions.
        check.problems.append("its rows are whole, but not its file (checksum): restore it from a copy")
    return check


def _checksum(data: bytes) -> str:
    checksum = new_checksum()
    checksum.update(data)
    return checksum.hexdigest()


def _check_layout(file: pq.ParquetFile, shard: Shard, check: ShardCheck) -> bool:
    """Whether the columns have the types that a check of the rows needs."""
    schema = file.schema_arrow
    expected = pa.schema(
        [column for column in SCHEMA if column.name in schema.names or column.name not in LATER_COLUMNS]
    )
    if not schema.equals(expected):
        wrong = [
            name
            for name in dict.fromkeys([*expected.names, *schema.names])
            if name not in SCHEMA.names or name not in schema.names or not schema.field(name).equals(SCHEMA.field(name))
        ]
        check.problems.append(f"has another schema: columns {', '.join(wrong) or 'in another order'}")
    if file.metadata.num_rows != shard.num_rows:
        check.problems.append(f"has {file.metadata.num_rows} rows, the manifest says {shard.num_rows}")
    layout = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    if layout != shard.row_groups:
        check.problems.append(
            f"has row groups of {_layout(layout)} rows, the manifest says {_layout(shard.row_groups)}"
        )
    types = {column.name: column.type for column in schema}
    return all(types.get(column.name, column.type) == column.type for column in SCHEMA)


def _check_rows(file: pq.ParquetFile, shard: Shard, image_size: int, decode: float, check: ShardCheck) -> None:
    digests: list[int] = []
    frames: list[int] = []
    clips: set[str] = set()
    faults: dict[str, list[str]] = {}
    # The same JPEGs every time, and others in every shard.
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(shard.path.encode(), digest_size=8).digest()))
    for index in range(file.num_row_groups):
        try:
            table = read_rows(file, groups=[index])
            ids = table["frame_id"].to_pylist()
            names = [name or f"row {row} of row group {index}" for row, name in enumerate(ids)]
            digests.append(digest(table))
        except UNREADABLE as error:
            check.problems.append(f"row group {index} cannot be read ({_short(error)})")
            continue
        frames += [name_hash(name) for name in ids if name is not None]
        clips.update(table["clip_id"].drop_null().to_pylist())
        check.hands.update(table["hand"].to_pylist())
        for fault, rows in _faults(table, shard).items():
            faults.setdefault(fault, []).extend(names[row] for row in rows)
        chosen = np.flatnonzero(rng.random(table.num_rows) < decode)
        _, wrong = decode_frames(table["jpeg"].take(pa.array(chosen)), image_size)
        check.num_decoded += len(chosen)
        for row, text in zip(chosen.tolist(), wrong, strict=True):
            if text:
                faults.setdefault(text, []).append(names[row])
    check.frames = np.array(frames, np.uint64)
    check.clips = np.array([name_hash(name) for name in clips], np.uint64)
    if len(digests) == file.num_row_groups:
        check.digest = digest_to_hex(add_digests(digests))
        if check.digest != shard.digest:
            check.problems.append(f"its rows have changed (digest {check.digest}, the manifest says {shard.digest})")
    check.problems += [f"{fault}: {_some(names)}" for fault, names in faults.items()]


def _faults(table: pa.Table, shard: Shard) -> dict[str, list[int]]:
    """{what is wrong: rows}."""
    result: dict[str, list[int]] = {}
    for name in ("source", "split"):
        values = table[name].to_pylist()
        expected = getattr(shard, name)
        result[f"rows of another {name} than {expected}"] = [i for i, value in enumerate(values) if value != expected]
    for column in SCHEMA:
        if not column.nullable and column.name != "jpeg":  # decoding names that
            result[f"no {column.name}"] = np.flatnonzero(table[column.name].is_null().to_numpy()).tolist()
    for name, length in LIST_LENGTHS.items():
        # Nulls in columns that may have them stay null here, and are no fault.
        fits = pc.equal(pc.list_value_length(table[name]), length).to_pylist()
        result[f"{name} is not a list of {length}"] = [i for i, fit in enumerate(fits) if fit is False]
    return {fault: rows for fault, rows in result.items() if rows}


def _name_exchanged(manifest: Manifest, checks: list[ShardCheck]) -> None:
    """Where a damaged shard holds the rows of another one, say so."""
    home = {shard.digest: shard.path for shard in manifest.shards}
    for shard, check in zip(manifest.shards, checks, strict=True):
        if check.digest != shard.digest and home.get(check.digest, shard.path) != shard.path:
            check.problems.append(f"it holds the rows of {home[check.digest]}")


def _wrong_totals(manifest: Manifest, checks: list[ShardCheck]) -> list[str]:
    """The manifest's totals against its shards' entries, and where all shards can be read against their rows."""
    counts: dict[str, dict[str, int]] = {}
    for shard in manifest.shards:
        by_split = counts.setdefault(shard.source, {})
        by_split[shard.split] = by_split.get(shard.split, 0) + shard.num_rows
    problems = [
        f"the manifest counts {said} rows of source {source}, split {split}; its shards have {there}"
        for source in sorted({*manifest.counts, *counts})
        for split in sorted({*manifest.counts.get(source, {}), *counts.get(source, {})})
        if (said := manifest.counts.get(source, {}).get(split, 0)) != (there := counts.get(source, {}).get(split, 0))
    ]
    num_rows = sum(shard.num_rows for shard in manifest.shards)
    if manifest.num_rows != num_rows:
        problems.append(f"the manifest says {manifest.num_rows} rows in all; its shards have {num_rows}")
    if manifest.digest != (added := total_digest(manifest.shards)):
        problems.append(f"the manifest's digest is {manifest.digest}; those of its shards add up to {added}")
    paths = Counter(shard.path for shard in manifest.shards)
    problems += [f"the manifest names {path} {times} times" for path, times in paths.items() if times > 1]
    problems += _wrong_records(manifest, {shard.source for shard in manifest.shards})
    if any(check.problems for check in checks):
        return problems
    num_clips = len(np.unique(np.concatenate([check.clips for check in checks]))) if checks else 0
    if manifest.num_clips != num_clips:
        problems.append(f"the manifest says {manifest.num_clips} clips; the rows are of {num_clips}")
    hands = sum((check.hands for check in checks), Counter[str]())
    if {hand: count for hand, count in manifest.hands.items() if count} != dict(hands):
        problems.append(f"the manifest counts hands {_counted(manifest.hands)}; the rows have {_counted(hands)}")
    return problems


def _wrong_records(manifest: Manifest, sources: set[str]) -> list[str]:
    """What the manifest says of the whole set against its records of the sources."""
    problems = []
    for source in sorted({*sources, *manifest.counts, *manifest.settings}):
        if source not in sources:
            problems.append(f"the manifest names source {source}; it has no shards")
        elif source not in manifest.settings:
            problems.append(f"the manifest has no settings of source {source}")
        else:
            settings = manifest.settings[source].settings
            for name in ("image_size", "group_size"):
                if settings.get(name, said := getattr(manifest, name)) != said:
                    problems.append(
                        f"the manifest says {name} {said}; source {source} was ingested with {settings[name]}"
                    )
    return problems


def _duplicate_frames(frame_set: FrameSet, checks: list[ShardCheck]) -> list[str]:
    every, times = np.unique(np.concatenate([c.frames for c in checks] or [np.zeros(0, np.uint64)]), return_counts=True)
    suspects = every[times > 1]
    if not len(suspects):
        return []
    # Hashes only say where to look: names are compared in the few shards that hold suspects.
    places: dict[str, list[str]] = {}
    for shard, check in zip(frame_set.manifest.shards, checks, strict=True):
        if np.isin(check.frames, suspects).any():
            for name in _names(frame_set.shard_uri(shard), "frame_id", suspects):
                places.setdefault(name, []).append(shard.path)
    twice = {name: paths for name, paths in places.items() if len(paths) > 1}
    named = [f"{name} in {' and '.join(dict.fromkeys(twice[name]))}" for name in sorted(twice)]
    return [f"{len(twice)} frame ids are there more than once: {_some(named)}"] if twice else []


def _shared_clips(frame_set: FrameSet, checks: list[ShardCheck]) -> list[str]:
    by_split: dict[str, list[np.ndarray]] = {}
    for shard, check in zip(frame_set.manifest.shards, checks, strict=True):
        if check.digest != shard.digest:
            continue  # named already, and its clips may be those of another shard
        by_split.setdefault(shard.split, []).append(check.clips)
    of_splits = [np.unique(np.concatenate(clips)) for clips in by_split.values()]
    every, times = np.unique(np.concatenate([*of_splits, np.zeros(0, np.uint64)]), return_counts=True)
    suspects = every[times > 1]
    if not len(suspects):
        return []
    splits: dict[str, set[str]] = {}
    for shard, check in zip(frame_set.manifest.shards, checks, strict=True):
        if np.isin(check.clips, suspects).any():
            for name in _names(frame_set.shard_uri(shard), "clip_id", suspects):
                splits.setdefault(name, set()).add(shard.split)
    shared = {name: where for name, where in splits.items() if len(where) > 1}
    named = [f"{name} in {' and '.join(sorted(shared[name]))}" for name in sorted(shared)]
    return [f"{len(shared)} clips are in more than one split: {_some(named)}"] if shared else []


def _names(shard_uri: str, column: str, suspects: np.ndarray) -> list[str]:
    wanted = set(suspects.tolist())
    names: list[str] = []
    file = open_shard(shard_uri)
    for index in range(file.num_row_groups):
        try:
            names += read_rows(file, [column], [index])[column].to_pylist()
        except UNREADABLE:
            continue  # named already
    return [name for name in names if name is not None and name_hash(name) in wanted]


def _unnamed_files(frame_set: FrameSet) -> list[str]:
    """Files among the shards that no manifest names: remains of an ingest that did not end, or put there by hand."""
    uri = frame_set.uri
    root = local_path(uri) if is_local(uri) else uri
    named = {join(root, shard.path) for shard in frame_set.manifest.shards}
    return [
        f"{file}: not in the manifest, so not part of the set"
        for file in list_files(join(uri, "shards"))
        if file not in named
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _layout(rows: list[int]) -> str:
    """Such as "16, 16, 8"; the middle of a long list is left out."""
    texts = [str(number) for number in rows]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:4], "...", *texts[-2:]])


def _counted(counts: "Counter[str] | dict[str, int]") -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def _short(error: BaseException) -> str:
    return one_line(error, 160)
