"""What a study will do: its pretrainings and fine-tunings in order, and what they will cost."""

import math
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from pipeline.study.grid import Arm, Cell, arm_key, cell_key, cells_of, relative_cost
from pipeline.study.settings import StudySettings


@dataclass(frozen=True)
class Work:
    """One pretraining, or one fine-tuning with its tests."""

    key: str
    arm: Arm
    cell: Cell | None
    """None: the pretraining of the arm."""
    after: str | None
    """Key of the pretraining that it starts from."""
    frames: int
    """To be seen, about."""
    seconds: float
    """Alone, about."""
    grid: str
    """The first grid that asks for it."""

    def words(self) -> str:
        """For people."""
        arm = self.arm
        text = arm.method
        if arm.pretrained:
            text += f", {100 * arm.unlabelled:g} % of the unlabelled clips, {arm.frames:,} frames"
        if self.cell is not None:
            text += f", {100 * self.cell.labels:g} % of the labels"
        return f"{'pretraining' if self.cell is None else 'fine-tuning'}: {text}, {arm.encoder}, seed {arm.seed}"


def works_of(settings: StudySettings, unlabelled: str, labelled: str) -> list[Work]:
    """Every piece of work once, in the order in which it is worth having. unlabelled, labelled: see grid.identity."""
    works: dict[str, Work] = {}
    for cell in cells_of(settings):
        arm, speed, before = cell.arm, settings.speed, None
        if arm.pretrained:
            before = arm_key(settings, arm, unlabelled)
            seconds = speed.cell_s + arm.frames * relative_cost(settings, arm, True) / speed.pretrain
            works.setdefault(before, Work(before, arm, None, None, arm.frames, seconds, cell.grids[0]))
        key = cell_key(settings, cell, before, labelled)
        frames = settings.finetune.frames
        seconds = speed.cell_s + frames * relative_cost(settings, arm, False) / speed.finetune
        works[key] = Work(key, arm, cell, before, frames, seconds, cell.grids[0])
    return list(works.values())


def done_of(works: Sequence[Work], results: Container[str], kept: Container[str] = ()) -> set[str]:
    """Keys of what is done. results: of the files of cells; kept: of the rows of a table that was kept.

    A fine-tuning is by its row, or by its file and that of its pretraining; a pretraining also where nothing that is left starts from it.
    """
    tuned = {
        work.key
        for work in works
        if work.cell is not None
        and (work.key in kept or (work.key in results and (work.after is None or work.after in results)))
    }
    needed = {work.after for work in works if work.cell is not None and work.key not in tuned}
    return tuned | {work.key for work in works if work.cell is None and (work.key in results or work.key not in needed)}


def minutes(settings: StudySettings, works: Sequence[Work]) -> float:
    """How long the works take together, about."""
    at_a_time = settings.speed.at_a_time
    if settings.max_concurrent is not None:
        at_a_time = min(at_a_time, settings.max_concurrent)
    return sum(work.seconds for work in works) / at_a_time / 60


def plan_table(
    settings: StudySettings, works: Sequence[Work], done: Collection[str]
) -> tuple[str, list[str], list[list[str | float]]]:
    """Title, column titles and rows of the plan, for a terminal: by grid, what it adds to the grids before it."""
    columns = ["grid", "over", "pretrainings", "fine-tunings", "done", "frames", "minutes left"]
    rows: list[list[str | float]] = []
    for grid in settings.grids:
        own = [work for work in works if work.grid == grid.name]
        left = [work for work in own if work.key not in done]
        num_arms = sum(work.cell is None for work in own)
        rows.append(
            [
                grid.name,
                grid.axis,
                num_arms,
                len(own) - num_arms,
                len(own) - len(left),
                sum(work.frames for work in own),
                math.ceil(minutes(settings, left)),
            ]
        )
    left = [work for work in works if work.key not in done]
    title = f"{len(works)} cells, {len(left)} left, about {minutes(settings, left):.0f} minutes"
    return title, columns, rows
