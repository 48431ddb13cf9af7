"""Streams frame sets to training workers with Ray Data.

What a worker reads, and when, is decided by `epoch_plan.py`; `windows.py` runs it through Ray Data, `read_items.py` is what its
tasks do, `batches.py` cuts batches from what comes back.

Unusable rows are replaced where they are found, and counted here: a run goes on while a worker's bad rows of an epoch are
at most max_bad_fraction of its rows of an epoch, and stops with their list otherwise.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import DataError
from pipeline.frames import windows
from pipeline.frames.batches import Batch, cut_as_they_come, cut_batches
from pipeline.frames.epoch_plan import Item, Position, StreamPlan, plan_epoch, rows_of_steps, steps_per_epoch
from pipeline.frames.read_items import BadFrame, ItemReader, bad_frames_text

if TYPE_CHECKING:
    from pipeline.frames.frame_set import FrameSet

_HANDFUL = 8  # bad rows that are borne where a worker's rows of an epoch are not known beforehand


class Stream:
    """Batches of a worker's share of frame sets, from a place in the data to the end of the plan. Needs a running Ray.

    The place is where the last batch that was given ended, at first the beginning. Whoever reads batches ahead saves that of
    the batch that was used last instead: {"epoch": batch.epoch, "step": batch.step + 1}.

    Raises DataError naming the rows when more than max_bad_fraction of an epoch's could not be used: a JPEG that does not
    decode, missing fields, a shard that vanished, is damaged or cannot be reached.
    """

    def __init__(self, sets: "Sequence[FrameSet]", quotas: Sequence[int], plan: StreamPlan) -> None:
        """quotas: rows that an epoch takes of each set."""
        if plan.clips is not None and len(sets) > 1:
            raise ValueError("clips are chosen from a single frame set")
        self._sets, self._quotas, self._plan = sets, quotas, plan
        self._place = Position()

    def state_dict(self) -> dict[str, int]:
        """The place in the data: {"epoch", "step"}, of the batch that comes next."""
        return self._place._asdict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a place. Raises ValueError for one within an epoch of chosen clips."""
        place = Position(**state)
        if self._plan.clips is not None and place.step:
            raise ValueError("a stream of chosen clips goes on from the start of an epoch")
        self._place = place

    def __iter__(self) -> Iterator[Batch]:
        plan, start = self._plan, self._place
        if start.epoch >= plan.epochs:
            return
        rows = rows_of_steps(self._quotas, plan)
        reader = ItemReader(self._sets[0].manifest.image_size, plan)
        blocks = windows.read_items(self._items(), reader)
        if plan.clips is None:
            steps = steps_per_epoch(self._quotas, plan.batch_size, plan.shares, plan.drop_last)
            batches = cut_batches(blocks, rows, steps, start, plan)
        else:
            batches = cut_as_they_come(blocks, plan)
        bad: list[BadFrame] = []
        epoch, num_read = start.epoch, 0
        for batch in batches:
            if batch.epoch != epoch:
                bad, epoch = [], batch.epoch
            num_read += batch.num_frames
            bad.extend(batch.problems)
            limit = plan.max_bad_fraction
            of = int(rows.sum()) if plan.clips is None else max(num_read, round(_HANDFUL / max(limit, 1e-9)))
            if batch.problems and len(bad) > limit * of:
                raise DataError(
                    f"{', '.join(each.uri for each in self._sets)}: {len(bad)} of {of} frames of an epoch are unusable "
                    f"already, above max_bad_fraction={limit}: {bad_frames_text(bad)}"
                )
            self._place = Position(batch.epoch, batch.step + 1)
            yield batch

    def _items(self) -> Iterator[Item]:
        """Those from the place on, each epoch planned when it is reached."""
        start = self._place
        for epoch in range(start.epoch, self._plan.epochs):
            yield from plan_epoch(
                self._sets, self._quotas, self._plan, epoch, start.step if epoch == start.epoch else 0
            )
