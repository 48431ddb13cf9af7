"""Is one model better than another? The difference in percent, its interval, and a sentence that says no more than that."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydantic

Outcome = Literal["better", "worse", "unclear"]

_SPACE = "\u00a0"  # keeps a number and its unit on one line
_SAME_PERCENT = 1.0  # without an interval, a smaller difference than this is called none


class Verdict(pydantic.BaseModel):
    """A comparison of a pretrained model with its baseline by one error on the same frames."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")

    model: str
    """Name of the model in question, as in the results table."""
    baseline: str
    """Name of the model that it is compared with."""
    metric: str = "PA-EPE"
    """Which error is compared; smaller is better."""
    unit: str = "mm"
    value: float
    """Mean error of the model."""
    baseline_value: float
    """Mean error of the baseline."""
    num_frames: int
    num_clips: int | None = None
    interval_percent: tuple[float, float] | None = None
    """95 % interval of the difference in percent of the baseline, from resampling test clips."""
    num_runs: int = 1
    """Training runs of each model behind the numbers."""

    @property
    def percent(self) -> float:
        """Difference in percent of the baseline; negative when the model's error is smaller."""
        return 100 * (self.value - self.baseline_value) / self.baseline_value

    @property
    def outcome(self) -> Outcome:
        """ "unclear" when the interval holds zero; without an interval, when the difference is below one percent."""
        low, high = self.interval_percent or (self.percent - _SAME_PERCENT, self.percent + _SAME_PERCENT)
        if high < 0:
            return "better"
        return "worse" if low > 0 else "unclear"

    def sentence(self) -> str:
        """The result in words."""
        numbers = f"{self.value:.1f}{_SPACE}{self.unit} against {self.baseline_value:.1f}{_SPACE}{self.unit}"
        numbers += f" ({self.baseline})"
        size = f"{abs(self.percent):.1f}{_SPACE}%"
        if self.outcome == "better":
            return f"With pretraining, {self.metric} is {size} lower: {numbers}."
        if self.outcome == "worse":
            return f"With pretraining, {self.metric} is not lower but {size} higher: {numbers}."
        return f"No clear difference in {self.metric}: {numbers}, {_signed(self.percent)}."

    def caveat(self) -> str:
        """What the numbers rest on, and what they do not show."""
        text = f"Measured on {self.num_frames:,} frames" + (f" of {self.num_clips:,} clips." if self.num_clips else ".")
        if self.interval_percent:
            low, high = (_signed(percent) for percent in self.interval_percent)
            text += f" The 95{_SPACE}% interval of the difference, {low} to {high}, comes from resampling the clips."
        if self.num_runs == 1:
            text += " Each model was trained once: how much one training differs from the next is not in these numbers."
        else:
            text += f" Means of {self.num_runs} training runs of each model."
        return text


def _signed(percent: float) -> str:
    return f"{percent:+.1f}{_SPACE}%".replace("-", "−")


def compare(
    model: str,
    errors: npt.ArrayLike,
    baseline: str,
    baseline_errors: npt.ArrayLike,
    clips: Sequence[str],
    metric: str = "PA-EPE",
    num_resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """The verdict on two models from their error of each test frame (mm), with a bootstrap interval.

    errors, baseline_errors: (N,) of the same frames in the same order. clips: the clip of each frame; whole clips are
    resampled (a cluster bootstrap), because frames of one clip are alike and would make the interval too narrow.
    With fewer than 5 clips there is no interval. Raises ValueError where the lengths differ.
    """
    ours, theirs = np.asarray(errors, dtype=float), np.asarray(baseline_errors, dtype=float)
    if not len(ours) == len(theirs) == len(clips) or len(ours) == 0:
        raise ValueError(
            f"a comparison needs the errors of the same frames: {len(ours)}, {len(theirs)} and {len(clips)} clips"
        )
    names, clip_of = np.unique(np.asarray(clips), return_inverse=True)
    our_sums, their_sums = np.bincount(clip_of, weights=ours), np.bincount(clip_of, weights=theirs)
    interval = None
    if len(names) >= 5:
        drawn = np.random.default_rng(seed).integers(0, len(names), (num_resamples, len(names)))
        # Both means are over the same drawn frames, so their number cancels out of the ratio.
        percent = 100 * (our_sums[drawn].sum(axis=1) / their_sums[drawn].sum(axis=1) - 1)
        low, high = np.percentile(percent, [2.5, 97.5])
        interval = (float(low), float(high))
    return Verdict(
        model=model,
        baseline=baseline,
        metric=metric,
        value=float(ours.mean()),
        baseline_value=float(theirs.mean()),
        num_frames=len(ours),
        num_clips=len(names),
        interval_percent=interval,
    )
