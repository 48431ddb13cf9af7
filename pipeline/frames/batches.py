"""Cuts blocks of rows into batches that mix the sets evenly and do not cross an epoch's end."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.frames.epoch_plan import Item, Position, StreamPlan
from pipeline.frames.read_items import OPTIONAL_COLUMNS, TENSOR_COLUMNS, BadFrame, Block, bad_frame

if TYPE_CHECKING:
    import torch


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
    problems: list[BadFrame] = field(default_factory=list)
    """Rows that could not be used; each was replaced by another row of the same work item."""
    partners: "torch.Tensor | None" = None
    """Where mined pairs are read: the frames' partners, like `frames`; a frame without one is its own."""

    @property
    def num_frames(self) -> int:
        """Frames in this batch."""
        return int(self.frames.shape[0])

    def take(self, rows: slice) -> "Batch":
        """Some of its rows; `problems` stay with the whole."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        partners = None if self.partners is None else self.partners[rows]
        return Batch(self.epoch, self.step, self.frames[rows], columns, [], partners)


def cut_batches(
    blocks: Iterator[tuple[Item, Block]], rows: np.ndarray, steps: int, start: Position, plan: StreamPlan
) -> Iterator[Batch]:
    """Batches start.step to steps of start.epoch, and 0 to steps of those after it.

    rows: (batches, sources) of each source that a batch takes. Blocks of start.epoch, where any are left of it, begin with the
    rows that start.step takes.
    """
    coming = next(blocks, None)
    while coming is not None:
        epoch, pending = coming[0].epoch, [_Pending() for _ in rows[0]]
        for step in range(start.step if epoch == start.epoch else 0, min(steps, len(rows))):
            counts = rows[step].tolist()
            # Only what this batch needs: the first one comes before Ray Data has read anything.
            while any(of.num_rows < count for of, count in zip(pending, counts, strict=True)):
                coming = coming or next(blocks, None)
                if coming is None:
                    return
                pending[coming[0].source].add(coming[1])
                coming = None
            if any(counts):
                parts = [of.take(count) for of, count in zip(pending, counts, strict=True) if count]
                yield to_batch(_joined(parts), epoch, step, plan.columns)
        coming = coming or next(blocks, None)
        while coming is not None and coming[0].epoch == epoch:  # the rows that make no full batch
            coming = next(blocks, None)


def cut_as_they_come(blocks: Iterator[tuple[Item, Block]], plan: StreamPlan) -> Iterator[Batch]:
    """Batches of a single set whose items hold any number of rows, because only some clips are read."""
    pending, step, epoch = _Pending(), 0, None
    for item, block in blocks:
        if epoch is not None and item.epoch != epoch:
            if pending.num_rows and not plan.drop_last:
                yield to_batch(pending.take(pending.num_rows), epoch, step, plan.columns)
            pending, step = _Pending(), 0
        epoch = item.epoch
        pending.add(block)
        while pending.num_rows >= plan.batch_size:
            yield to_batch(pending.take(plan.batch_size), epoch, step, plan.columns)
            step += 1
    if epoch is not None and pending.num_rows and not plan.drop_last:
        yield to_batch(pending.take(pending.num_rows), epoch, step, plan.columns)


class _Pending:
    """Rows that no batch has taken yet."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self.num_rows = 0

    def add(self, block: Block) -> None:
        if len(block["problem"]):
            self._blocks.append(block)
            self.num_rows += len(block["problem"])

    def take(self, count: int) -> Block:
        self.num_rows -= count
        taken: list[Block] = []
        while count:
            head = self._blocks.pop(0)
            if len(head["problem"]) > count:
                self._blocks.insert(0, {name: values[count:] for name, values in head.items()})
                head = {name: values[:count] for name, values in head.items()}
            count -= len(head["problem"])
            taken.append(head)
        return _joined(taken)


def _joined(blocks: list[Block]) -> Block:
    return blocks[0] if len(blocks) == 1 else {n: np.concatenate([b[n] for b in blocks]) for n in blocks[0]}


def to_batch(block: Block, epoch: int, step: int, columns: tuple[str, ...]) -> Batch:
    """A block of rows as tensors of the batch's own."""
    import torch

    def tensor(values: np.ndarray) -> "torch.Tensor":
        # Ray Data's blocks lie read-only in shared memory; the training loop owns its batch.
        return torch.from_numpy(values if values.flags.writeable else np.array(values))

    return Batch(
        epoch=epoch,
        step=step,
        frames=tensor(block["frames"]).permute(0, 3, 1, 2),
        columns={
            n: tensor(block[n]) if n in TENSOR_COLUMNS or n in OPTIONAL_COLUMNS else list(block[n]) for n in columns
        },
        problems=[bad_frame(text) for text in block["problem"] if text],
        partners=tensor(block["partners"]).permute(0, 3, 1, 2) if "partners" in block else None,
    )
