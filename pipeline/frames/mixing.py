"""The frame sets that a run reads, how much of each, and what an epoch of several sets is.

An epoch has as many rows as all sets have together, N. Set i of n_i rows gives q_i of them, its part of the weights; without
weights that is n_i. Its rows come in passes, each a fresh permutation of the whole set, and every epoch takes the next q_i
of them: a set smaller than its part is repeated within the epoch, a larger one goes on in the next epoch where this one
ended, and a set whose weight is just its size gives every row exactly once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pipeline.config import Settings
from pipeline.errors import DataError, SettingsError
from pipeline.frames.groups import apportion
from pipeline.frames.manifest import Manifest, read_manifest
from pipeline.frames.schema import add_digests, digest_to_hex


class FrameSetShare(Settings):
    """One of several frame sets that are read together."""

    uri: str
    """URI of the frame set."""
    weight: float | None = Field(default=None, gt=0)
    """Its part of every batch, relative to the other sets' weights; left out for all: each as large as it is."""


FrameSets = Annotated[
    Annotated[str, Tag("uri")] | Annotated[list[FrameSetShare], Tag("list"), Field(min_length=1)],
    Discriminator(lambda value: "list" if isinstance(value, list) else "uri"),
]
"""One frame set's URI, or several: `[{uri: s3://b/videos, weight: 3}, {uri: s3://b/photos, weight: 1}]`."""


@dataclass(frozen=True)
class FrameSet:
    """A frame set that is being read."""

    uri: str
    manifest: Manifest
    weight: float | None = None


def uris_of(frame_sets: str | Sequence[FrameSetShare]) -> list[str]:
    """The URIs behind the setting."""
    return [frame_sets] if isinstance(frame_sets, str) else [each.uri for each in frame_sets]


def open_frame_sets(frame_sets: str | Sequence[FrameSetShare], split: str) -> list[FrameSet]:
    """Read the manifests. Raises DataError or SettingsError where the sets cannot be read together."""
    if isinstance(frame_sets, str):
        frame_sets = [FrameSetShare(uri=frame_sets)]
    sets = [FrameSet(each.uri, read_manifest(each.uri), each.weight) for each in frame_sets]
    check_together(sets, split)
    return sets


def check_together(sets: Sequence[FrameSet], split: str) -> None:
    """Raise DataError or SettingsError, in one line, where the sets cannot be read together."""
    for each in sets:
        if each.manifest.rows_in(split) == 0:
            raise DataError(f"{each.uri}: split '{split}' has no frames; the set has {each.manifest.counts_text()}")
        if each.manifest.image_size != sets[0].manifest.image_size:
            raise DataError(
                f"{each.uri}: its crops have {each.manifest.image_size} px, those of {sets[0].uri} "
                f"{sets[0].manifest.image_size} px; sets that are mixed need the same size, ingest one of them again"
            )
        if (each.weight is None) != (sets[0].weight is None):
            raise SettingsError("setting 'frame_set': give a weight to every set, or to none of them")
    if len({each.uri for each in sets}) < len(sets):
        raise SettingsError("setting 'frame_set': the same URI is given twice; give it once, with a larger weight")


def total_rows(sets: Sequence[FrameSet], split: str) -> int:
    """Rows of an epoch, over all workers."""
    return sum(each.manifest.rows_in(split) for each in sets)


def quotas(sets: Sequence[FrameSet], split: str) -> list[int]:
    """Rows that an epoch takes of each set; they add up to `total_rows`."""
    rows = [each.manifest.rows_in(split) for each in sets]
    weights = [each.weight for each in sets if each.weight is not None]
    return apportion(sum(rows), weights) if weights else rows


def digest_of(sets: Sequence[FrameSet]) -> str:
    """Digest of all rows of all sets; that of a single set is its manifest's."""
    return digest_to_hex(add_digests(int(each.manifest.digest, 16) for each in sets))


def describe(sets: Sequence[FrameSet], split: str) -> list[dict[str, Any]]:
    """What a run records about the sets that it read, in plain values."""
    return [
        {
            "uri": each.uri,
            "digest": each.manifest.digest,
            "weight": each.weight,
            "rows": each.manifest.rows_in(split),
            "rows_per_epoch": quota,
        }
        for each, quota in zip(sets, quotas(sets, split), strict=True)
    ]
