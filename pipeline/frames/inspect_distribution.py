"""How values are distributed, in little memory whatever their number, and so that parts add up to the whole.

Values from 0 to a million are counted in classes 1 % wide (the idea of DDSketch, Masson et al. 2019), so quantiles and
histograms are exact to 1 % of the value; number, mean, smallest and largest are exact.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_EDGES = np.concatenate([[0.0], np.geomspace(1e-6, 1e6, 2778)])
"""Class i holds _EDGES[i] <= value < _EDGES[i + 1]; the last edge is 1 % above the one before."""


class Distribution:
    """See the file's docstring."""

    def __init__(self, values: npt.ArrayLike = ()) -> None:
        self._counts = np.zeros(len(_EDGES) - 1, dtype=np.int64)
        self.num = 0
        self.num_unusable = 0
        """Values that are negative or not finite; they are only counted."""
        self._total = 0.0
        self.low, self.high = np.inf, -np.inf
        self.add(values)

    def add(self, values: npt.ArrayLike) -> None:
        """Count some more values, an array of any shape."""
        every = np.asarray(values, dtype=np.float64).ravel()
        good = every[np.isfinite(every) & (every >= 0)]
        self.num_unusable += len(every) - len(good)
        if len(good):
            classes = np.searchsorted(_EDGES, good, side="right") - 1
            self._counts += np.bincount(classes.clip(max=len(self._counts) - 1), minlength=len(self._counts))
            self.num += len(good)
            self._total += float(good.sum())
            self.low, self.high = min(self.low, float(good.min())), max(self.high, float(good.max()))

    def merge(self, other: "Distribution") -> None:
        """Add another's values."""
        self._counts += other._counts
        self.num += other.num
        self.num_unusable += other.num_unusable
        self._total += other._total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        """Of all values; NaN where there are none."""
        return self._total / self.num if self.num else np.nan

    def quantile(self, share: float) -> float:
        """The value below which this share (0 to 1) lies; NaN where there are none."""
        if not self.num:
            return float("nan")
        below = np.concatenate([[0], np.cumsum(self._counts)])
        # Only classes that hold something, or the search would end in the gap before the value.
        edges = np.flatnonzero(self._counts)
        index = edges[np.searchsorted(below[edges + 1], share * self.num, side="left").clip(max=len(edges) - 1)]
        if index == 0:
            return 0.0
        within = (share * self.num - below[index]) / self._counts[index]
        value = _EDGES[index] + within * (_EDGES[index + 1] - _EDGES[index])
        return float(np.clip(value, self.low, self.high))

    def histogram(self, edges: npt.ArrayLike) -> np.ndarray:
        """How many values lie between each two edges; a class that an edge cuts is shared out evenly."""
        below = np.concatenate([[0], np.cumsum(self._counts)])
        return np.diff(np.interp(np.asarray(edges, dtype=np.float64), _EDGES, below))

    def summary(self) -> dict[str, Any]:
        """Number, mean, ends and quantiles as plain values; only the number where there are none."""
        if not self.num:
            return {"num": 0, "num_unusable": self.num_unusable}
        quantiles = {f"p{100 * share:g}": self.quantile(share) for share in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)}
        return {
            "num": self.num,
            "num_unusable": self.num_unusable,
            "mean": self.mean,
            "min": self.low,
            **quantiles,
            "max": self.high,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with the classes that hold something: a shard's result stays small."""
        used = np.flatnonzero(self._counts)
        return {**self.__dict__, "_counts": (used, self._counts[used])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        used, counts = state["_counts"]
        self.__dict__.update(state)
        self._counts = np.zeros(len(_EDGES) - 1, dtype=np.int64)
        self._counts[used] = counts


def merged(parts: "list[Distribution]") -> Distribution:
    """All values of several."""
    total = Distribution()
    for part in parts:
        total.merge(part)
    return total
