"""The Pareto front: trials of which no other is as good in everything and better in something."""

from collections.abc import Sequence

import numpy as np


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other point dominates; smaller is better in every coordinate. Equal points stand beside each
    other."""
    if not points:
        return []
    values = np.asarray(points, dtype=float)
    as_good = (values[:, None] <= values[None]).all(-1)
    better = (values[:, None] < values[None]).any(-1)
    dominated = (as_good & better).any(0)
    return np.flatnonzero(~dominated).tolist()
