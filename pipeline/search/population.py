"""Population-based training (Jaderberg et al. 2017): members train side by side, and the worst go on from the best.

Time is cut into generations of some epochs. What a member does in one generation is a trial of its own (records.py), which begins from
the last checkpoint of another: `parent`, of the generation before. A generation begins when the one before is over, so what it does
follows from the records and the seed alone: a search that was killed goes on as it would have.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.search.proposals import Start, drawn
from pipeline.search.records import FAILED, RUNNING, TrialRecord
from pipeline.search.space import Dimension, Space, applies

_QUANTILE = 0.25  # of the members: so many worst go on from so many best
_RESAMPLED = 0.25  # probability of a value drawn anew instead of one nearby, as in the paper
_FACTOR = 1.25
_SHIFT = 0.1  # of the range, where it is linear


class Population:
    """What proposals.Proposals is for other searches."""

    def __init__(
        self,
        space: Space,
        known: Sequence[TrialRecord],
        *,
        size: int,
        epochs: int,
        perturb_epochs: int,
        seed: int,
        first: dict[str, Any] | None,
    ) -> None:
        """known: trials so far. first: values of the first member at its begin."""
        self._space, self._size, self._epochs, self._perturb_epochs = space, size, epochs, perturb_epochs
        self._seed, self._first = seed, first
        self._records = {record.number: record for record in known}

    @property
    def num_trials(self) -> int:
        """All members in all generations."""
        return self._size * math.ceil(self._epochs / self._perturb_epochs)

    def until(self, number: int) -> int:
        """The epoch at which a trial is over."""
        return min(self._epochs, (number // self._size + 1) * self._perturb_epochs)

    def propose(self, number: int) -> Start | None:
        """How a trial of this number, which counts up from 0, begins; None as long as the generation before is not over."""
        generation, member = divmod(number, self._size)
        rng = np.random.default_rng([self._seed, number])
        if generation == 0:
            values = (
                self._first if member == 0 and self._first is not None else drawn(self._space, [self._seed, number])
            )
            return Start(values)
        first = number - member - self._size
        before = [self._records.get(first + each) for each in range(self._size)]
        over = [record for record in before if record is not None and record.state != RUNNING]
        if len(over) < self._size:
            return None
        ranked = sorted(over, key=lambda record: (_reached(record), record.number))
        exchanged = max(1, int(_QUANTILE * self._size))
        own = over[member]
        if own not in ranked[-exchanged:] and own.state != FAILED:
            return Start(own.values, parent=own.number)
        best = ranked[int(rng.integers(exchanged))]
        return Start(perturbed(self._space, best.values, rng), parent=best.number)

    def is_hopeless(self, number: int, metrics: dict[str, float]) -> bool:
        """None is ended before its generation is."""
        return False

    def ended(self, record: TrialRecord) -> None:
        """A trial is over."""
        self._records[record.number] = record


def _reached(record: TrialRecord) -> float:
    return math.inf if record.state == FAILED or not record.history else record.history[-1]["score"]


def perturbed(space: Space, values: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Values near others: each a step up or down, or drawn anew."""
    anew = drawn(space, [int(rng.integers(2**31))])
    found: dict[str, Any] = {}
    for name, dimension in space.items():
        if applies(dimension, found):
            is_new = rng.random() < _RESAMPLED or name not in values
            found[name] = anew[name] if is_new and name in anew else _near(dimension, values.get(name), rng)
    return found


def _near(dimension: Dimension, value: Any, rng: np.random.Generator) -> Any:
    up = bool(rng.integers(2))
    if dimension.choice is not None:
        place = dimension.place_of(value) + (1 if up else -1)
        return dimension.choice[min(max(place, 0), len(dimension.choice) - 1)]
    if dimension.limits is None or value is None:
        return dimension.examples()[0]
    low, high = dimension.limits
    if dimension.is_log:
        moved = value * (_FACTOR if up else 1 / _FACTOR)
    else:
        moved = value + (1 if up else -1) * _SHIFT * (high - low)
    if dimension.is_integer:
        moved = math.ceil(moved) if up else math.floor(moved)
    return type(value)(min(max(moved, low), high))
