"""The manifest of a frame set: what it holds, where it came from, which shards belong to it.

It is written last, in one atomic write, so a frame set without a manifest is not there yet, and shards that no manifest
names do not belong to it.
"""

import hashlib
from typing import Annotated, Any

import pydantic

from pipeline.errors import DataError
from pipeline.frames.schema import SPLITS, add_digests, digest_to_hex
from pipeline.storage import exists, join, read_json, write_bytes

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

Digest = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{1,32}$")]


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


MAX_IMAGE_SIZE = 4096
"""Side of a crop, pixels. With MAX_GROUP_ROWS it bounds what a manifest of strangers can make a reader allocate."""
MAX_GROUP_ROWS = 1_000_000
_MAX_BYTES = 200_000_000  # of half a million shards


def _check_shard_path(path: str) -> str:
    if ":" in path or "\\" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(f"'{path}' is not a path below the frame set")
    return path


class Shard(_Model):
    """One Parquet file of a frame set. It holds rows of one source and one split only."""

    path: Annotated[str, pydantic.AfterValidator(_check_shard_path)]
    """Relative to the frame set, and below it."""
    source: str
    split: str
    num_rows: int
    num_bytes: int
    row_groups: list[Annotated[int, pydantic.Field(ge=0, le=MAX_GROUP_ROWS)]]
    """Rows of each Parquet row group. No frame group crosses a row group's end."""
    digest: Digest
    """Of its rows, whatever file they are in."""
    checksum: str = ""
    """BLAKE2b-128 of the file, hexadecimal; empty where the set was written before there was one."""


class IngestRecord(_Model):
    """What one source was ingested from; the same record again means that there is nothing to do."""

    settings: dict[str, Any]
    """The settings that decide the rows (not those that only decide how fast)."""
    listing: str
    """Digest of the names and sizes of the input files."""
    num_clips: int


class VideoGroup(_Model):
    """Videos of a source that are shown and timed in the same way."""

    num_videos: int
    examples: list[str]
    """Names of some of them."""
    stored: str
    """Size of the coded picture, pixels, such as "240 x 240"."""
    shown: str
    """The same as displayed; boxes and cameras are in these pixels."""
    turn: str
    """How it is turned or mirrored to be displayed."""
    pixel_aspect: str
    """Width to height of a stored pixel."""
    track: str
    """Which of the file's video tracks was read, such as "2 of 2"."""
    times: str
    """Where the frames' times come from: stamps, decode times, or frame rate."""
    order: str
    """What numbers the frames: their stamps, or the decoder, where those do not prove the order."""
    num_restarts: int
    """Times that the clock of each starts again."""
    num_equal: int
    """Frames of each with the stamp of the one before."""
    num_mended: int
    """Frames of each whose stamp is missing, or not between those of their neighbours."""


class Manifest(_Model):
    """Contents of a frame set."""

    schema_version: int = SCHEMA_VERSION
    created_at: str
    """UTC, ISO 8601; when this manifest was written."""
    image_size: int = pydantic.Field(ge=1, le=MAX_IMAGE_SIZE)
    """Side of the square crops, pixels."""
    group_size: int = pydantic.Field(ge=1)
    """Frames of one clip that stay neighbours (fewer where a clip ran out of frames)."""
    num_rows: int
    num_clips: int
    counts: dict[str, dict[str, int]]
    """Rows by source and split."""
    hands: dict[str, int]
    """Rows by hand as seen in the source."""
    rejects: dict[str, dict[str, int]]
    """What was left out, by source and reason; rejects.py says which reasons there are, and which are a choice."""
    reject_examples: dict[str, list[str]]
    """Names of some of what was left out, by reason."""
    videos: dict[str, list[VideoGroup]] = {}
    """How videos are shown and timed, by source; none for sources of images, and of sets from before this was noted."""
    notes: dict[str, list[str]] = {}
    """What else was worth saying about the input, by source: files that are not read, and the like."""
    settings: dict[str, IngestRecord]
    """By source."""
    digest: Digest
    """Sum of all rows' hashes, 32 hexadecimal digits; independent of their order (see schema.digest)."""
    shards: list[Shard]

    def rows_in(self, split: str) -> int:
        """Rows of one split."""
        return sum(by_split.get(split, 0) for by_split in self.counts.values())

    def kind_of(self, source: str) -> str:
        """The kind of a source, as far as the manifest says."""
        record = self.settings.get(source)
        return str(record.settings.get("source", {}).get("kind", "")) if record else ""

    def detector_labels(self, split: str) -> list[str]:
        """Sources of a split whose joints are answers of a detector (DetectorKindSettings.labels)."""
        return [
            source
            for source, record in self.settings.items()
            if record.settings.get("source", {}).get("labels") == "detector" and self.counts.get(source, {}).get(split)
        ]

    def splits(self) -> list[str]:
        """Splits that have rows."""
        return [split for split in SPLITS if self.rows_in(split)]

    def counts_text(self) -> str:
        """For people: "8000 train, 500 val, 500 test"."""
        return ", ".join(f"{self.rows_in(split)} {split}" for split in SPLITS)


def new_checksum() -> "hashlib.blake2b":
    """Of a shard's file; to be updated with its bytes."""
    return hashlib.blake2b(digest_size=16)


def manifest_uri(uri: str) -> str:
    """Where a frame set's manifest lies."""
    return join(uri, MANIFEST_NAME)


def has_manifest(uri: str) -> bool:
    """Whether there is a (finished) frame set at a URI."""
    return exists(manifest_uri(uri))


def read_manifest(uri: str) -> Manifest:
    """The manifest of a frame set. Raises DataError where there is none, or one that this version cannot read."""
    if not has_manifest(uri):
        raise DataError(f"{uri}: no frame set here ({MANIFEST_NAME} is missing); make one with python -m jobs.ingest")
    values = read_json(manifest_uri(uri), _MAX_BYTES)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{manifest_uri(uri)}: has schema version {version}, this version of the project reads {SCHEMA_VERSION}; "
            "ingest the data again"
        )
    try:
        return Manifest.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{manifest_uri(uri)}: not a valid manifest ({where}: {first['msg']})") from None


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Publish a manifest, atomically."""
    write_bytes(manifest_uri(uri), manifest.model_dump_json(indent=1).encode())


def total_digest(shards: list[Shard]) -> str:
    """Digest of all rows of some shards."""
    return digest_to_hex(add_digests(int(shard.digest, 16) for shard in shards))


def merge(old: Manifest | None, new: Manifest, max_examples: int) -> Manifest:
    """A frame set's manifest with the rows of one more ingest added."""
    if old is None:
        return new
    shards = [*old.shards, *new.shards]
    examples = {
        reason: [*old.reject_examples.get(reason, []), *new.reject_examples.get(reason, [])][:max_examples]
        for reason in sorted({*old.reject_examples, *new.reject_examples})
    }
    return Manifest(
        created_at=new.created_at,
        image_size=new.image_size,
        group_size=new.group_size,
        num_rows=old.num_rows + new.num_rows,
        num_clips=old.num_clips + new.num_clips,
        counts={**old.counts, **new.counts},
        hands={hand: old.hands.get(hand, 0) + new.hands.get(hand, 0) for hand in {**old.hands, **new.hands}},
        rejects={**old.rejects, **new.rejects},
        reject_examples=examples,
        videos={**old.videos, **new.videos},
        notes={**old.notes, **new.notes},
        settings={**old.settings, **new.settings},
        digest=total_digest(shards),
        shards=shards,
    )
