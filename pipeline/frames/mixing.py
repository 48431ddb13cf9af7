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

from pipeline.config import Settings, Uri
from pipeline.errors import DataError, SettingsError
from pipeline.frames.epoch_plan import StreamPlan
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.groups import apportion
from pipeline.frames.schema import add_digests, digest_to_hex
from pipeline.frames.stream import Stream


class FrameSetShare(Settings):
    """One of several frame sets that are read together."""

    uri: Uri
    """URI of the frame set."""
    weight: float | None = Field(default=None, gt=0)
    """Its part of every batch, relative to the other sets' weights; left out for all: each as large as it is."""


FrameSets = Annotated[
    Annotated[Uri, Tag("uri")] | Annotated[list[FrameSetShare], Tag("list"), Field(min_length=1)],
    Discriminator(lambda value: "list" if isinstance(value, list) else "uri"),
]
"""One frame set's URI, or several: `[{uri: s3://b/videos, weight: 3}, {uri: s3://b/photos, weight: 1}]`."""


@dataclass(frozen=True)
class Mixture:
    """One frame set, or several that are read together.

    Raises DataError or SettingsError, in one line, where they cannot be.
    """

    sets: tuple[FrameSet, ...]
    weights: tuple[float | None, ...]
    """All of them None: each set as large as it is."""

    def __post_init__(self) -> None:
        first = self.sets[0]
        for each, weight in zip(self.sets, self.weights, strict=True):
            if each.manifest.image_size != first.manifest.image_size:
                raise DataError(
                    f"{each.uri}: its crops have {each.manifest.image_size} px, those of {first.uri} "
                    f"{first.manifest.image_size} px; sets that are mixed need the same size, ingest one of them again"
                )
            if (weight is None) != (self.weights[0] is None):
                raise SettingsError("setting 'frame_set': give a weight to every set, or to none of them")
        if len(set(self.uris)) < len(self.sets):
            raise SettingsError("setting 'frame_set': the same URI is given twice; give it once, with a larger weight")

    @classmethod
    def open(cls, frame_sets: str | Sequence[FrameSetShare], split: str) -> "Mixture":
        """Read the manifests. Raises DataError also where a set has no rows of the split."""
        if isinstance(frame_sets, str):
            frame_sets = [FrameSetShare(uri=frame_sets)]
        sets = tuple(FrameSet.open(each.uri) for each in frame_sets)
        for each in sets:
            each.rows_in(split)
        return cls(sets, tuple(each.weight for each in frame_sets))

    @property
    def uris(self) -> list[str]:
        """Of the sets."""
        return [each.uri for each in self.sets]

    @property
    def digest(self) -> str:
        """Of all rows of all sets; that of a single set is its manifest's."""
        return digest_to_hex(add_digests(int(each.manifest.digest, 16) for each in self.sets))

    def quotas(self, split: str) -> list[int]:
        """Rows that an epoch takes of each set; they add up to the rows of all sets."""
        rows = [each.rows_in(split) for each in self.sets]
        weights = [weight for weight in self.weights if weight is not None]
        return apportion(sum(rows), weights) if weights else rows

    def stream(self, plan: StreamPlan) -> Stream:
        """Batches that take rows of every set."""
        return Stream(self.sets, self.quotas(plan.split), plan)

    def describe(self, split: str) -> dict[str, Any]:
        """What a run records of the sets that it read, in plain values."""
        return {
            "frame_set_digest": self.digest,
            "frame_sets": [
                {
                    "uri": each.uri,
                    "digest": each.manifest.digest,
                    "weight": weight,
                    "rows": each.rows_in(split),
                    "rows_per_epoch": quota,
                }
                for each, weight, quota in zip(self.sets, self.weights, self.quotas(split), strict=True)
            ],
        }


def uris_of(frame_sets: str | Sequence[FrameSetShare]) -> list[str]:
    """The URIs behind the setting."""
    return [frame_sets] if isinstance(frame_sets, str) else [each.uri for each in frame_sets]
