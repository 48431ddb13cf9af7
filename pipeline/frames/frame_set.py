"""A frame set that is read: its URI and what its manifest says.

    frames = FrameSet.open("s3://bucket/frames")
    batch = frames.load("val", columns=("joints_3d", "camera"))                     # in memory, without Ray
    for batch in frames.stream(StreamPlan(split="train", batch_size=256, epochs=3)):  # needs a running Ray
        ...

Several sets are read together as a mixture (mixing.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import DataError
from pipeline.frames.batches import Batch, to_batch
from pipeline.frames.epoch_plan import StreamPlan, plan_epoch
from pipeline.frames.manifest import Manifest, Shard, read_manifest
from pipeline.frames.read_items import ItemReader, bad_frame, bad_frames_text
from pipeline.frames.stream import Stream
from pipeline.storage import absolute, join


@dataclass(frozen=True)
class FrameSet:
    """A frame set."""

    uri: str
    manifest: Manifest

    @classmethod
    def open(cls, uri: str) -> "FrameSet":
        """Read its manifest. Raises DataError where there is none, or one that this version cannot read."""
        uri = absolute(uri)
        return cls(uri, read_manifest(uri))

    def describe(self) -> dict[str, str]:
        """What a run records of the set that it read: where it lies, and the digest of its rows."""
        return {"frame_set": self.uri, "frame_set_digest": self.manifest.digest}

    def rows_in(self, split: str) -> int:
        """Rows of a split. Raises DataError where it has none."""
        rows = self.manifest.rows_in(split)
        if not rows:
            raise DataError(f"{self.uri}: split '{split}' has no frames; the set has {self.manifest.counts_text()}")
        return rows

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split."""
        return [shard for shard in self.manifest.shards if shard.split == split]

    def shard_uri(self, shard: Shard) -> str:
        """Where a shard lies."""
        return join(self.uri, shard.path)

    def stream(self, plan: StreamPlan) -> Stream:
        """Batches of the set, epoch after epoch. Raises DataError where the split has no rows."""
        return Stream([self], [self.rows_in(plan.split)], plan)

    def load(
        self,
        split: str,
        *,
        limit: int | None = None,
        columns: Sequence[str] = (),
        seed: int = 0,
        clips: frozenset[str] | None = None,
        max_bad_fraction: float = 0.0,
    ) -> Batch:
        """A whole split (or `limit` rows of it, drawn by seed as whole row groups' rows) in memory, without Ray.

        For probes, evaluation and pictures. Rows come in a fixed order; clips: only rows of these. Rows that cannot be used
        are left out, and named in the batch's `problems`. Raises DataError with their names where they are more than
        max_bad_fraction of those read.
        """
        rows = self.rows_in(split)
        drawn = limit is not None and limit < rows
        plan = StreamPlan(split=split, batch_size=rows, seed=seed, columns=tuple(columns), shuffle=drawn, clips=clips)
        reader = ItemReader(self.manifest.image_size, replace(plan, shuffle=False))
        blocks = []
        num_rows = num_good = 0
        for item in plan_epoch([self], [rows], plan, 0):
            block = reader.read(item)
            blocks.append(block)
            num_rows += len(block["problem"])
            num_good += int((block["problem"] == "").sum())
            if limit is not None and num_good >= limit:
                break
        problems = [bad_frame(text) for block in blocks for text in block["problem"] if text]
        if len(problems) > max_bad_fraction * num_rows:
            raise DataError(f"{self.uri}: {len(problems)} frames are unusable: {bad_frames_text(problems)}")
        if problems:
            blocks = [{name: values[block["problem"] == ""] for name, values in block.items()} for block in blocks]
        merged = {name: np.concatenate([block[name] for block in blocks])[:limit] for name in blocks[0]}
        return replace(to_batch(merged, 0, 0, plan.columns), problems=problems)
