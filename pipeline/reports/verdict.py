"""Is a model worth anything, and is one better than another? Differences in percent with their intervals, and sentences
that say no more than those: first whether each model beats one fixed hand, only then which of two models is better."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from pipeline.evaluation.statistics import MIN_CLIPS, p_value

Outcome = Literal["better", "worse", "unclear"]

_SPACE = "\u00a0"  # keeps a number and its unit on one line
_SAME_PERCENT = 1.0  # without an interval, a smaller difference than this is called none
_SMALLEST = 1e-6  # of an error to divide by


class _Data(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class Comparison(_Data):
    """A model against another model, or against a constant pose, by one error on the same frames."""

    model: str
    """Name of the model in question, as in the results table."""
    baseline: str
    """Name of what it is compared with."""
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
    p_value: float | None = None
    """Of no difference, from the same resamples (evaluation/statistics.py)."""
    num_runs: int = 1
    """Training runs of each model behind the numbers."""

    @property
    def percent(self) -> float:
        """Difference in percent of the baseline; negative when the model's error is smaller."""
        return 100 * (self.value - self.baseline_value) / max(self.baseline_value, _SMALLEST)

    @property
    def outcome(self) -> Outcome:
        """ "unclear" when the interval holds zero; without an interval, when the difference is below one percent."""
        low, high = self.interval_percent or (self.percent - _SAME_PERCENT, self.percent + _SAME_PERCENT)
        if high < 0:
            return "better"
        return "worse" if low > 0 else "unclear"

    def against_constant(self) -> str:
        """The result in words, where the baseline is a constant pose."""
        beaten = {
            "better": "is better than",
            "worse": "is worse than",
            "unclear": "is not clearly better than",
        }[self.outcome]
        return f"{self.model} {beaten} always answering one fixed hand: {self._numbers()}."

    def against_model(self) -> str:
        """The result in words, where the baseline is another model."""
        if self.outcome == "unclear":
            return f"No clear difference between {self.model} and {self.baseline}: {self._numbers()}."
        return f"{self.model} is {self.outcome} than {self.baseline}: {self._numbers()}."

    def _numbers(self) -> str:
        """Such as "PA-EPE 23.7 mm against 24.4 mm, −2.9 % (95 % interval −5.0 % to −0.8 %)"."""
        values = [f"{value:.1f}{_SPACE}{self.unit}" for value in (self.value, self.baseline_value)]
        text = f"{self.metric} {values[0]} against {values[1]}, {_signed(self.percent)}"
        if self.interval_percent:
            low, high = (_signed(percent) for percent in self.interval_percent)
            text += f" (95{_SPACE}% interval {low} to {high})"
        return text


class Verdict(_Data):
    """What an evaluation says of its models."""

    against_constant: list[Comparison] = []
    """Each model against the constant pose of its training labels; models without one are not in it."""
    without_constant: list[str] = []
    """Names of models of which no constant pose is known."""
    between_models: list[Comparison] = []
    """Models against the baseline among them."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _accept_single_comparison(cls, values: Any) -> Any:
        """Also accept what reports held before there were constants: one comparison of two models."""
        return {"between_models": [values]} if isinstance(values, dict) and "baseline_value" in values else values

    @property
    def outcome(self) -> Outcome:
        """Of the models against their constants; where none is known, of the comparison of models."""
        outcomes = {comparison.outcome for comparison in self.against_constant or self.between_models}
        return outcomes.pop() if len(outcomes) == 1 else "unclear"

    def headline(self) -> str:
        """The outcome in a few words."""
        if self.against_constant:
            beaten = [comparison.outcome == "better" for comparison in self.against_constant]
            if all(beaten):
                return "Better than one fixed hand"
            return "Not all better than one fixed hand" if any(beaten) else "No better than one fixed hand"
        return {"better": "Lower error", "worse": "Higher error", "unclear": "No clear difference"}[self.outcome]

    def sentences(self) -> list[str]:
        """The result in words: the constant pose comes first."""
        sentences = [comparison.against_constant() for comparison in self.against_constant]
        if self.without_constant:
            names = " and ".join(self.without_constant)
            sentences.append(
                f"Whether {names} can do more than answer one fixed hand is not known: there is no constant pose, neither "
                "with the model nor from labels in the frame set's training split."
            )
        beaten = {comparison.model: comparison.outcome == "better" for comparison in self.against_constant}
        for comparison in self.between_models:
            sentence = comparison.against_model()
            if not any(beaten.get(name, True) for name in (comparison.model, comparison.baseline)):
                sentence += " Neither is better than one fixed hand, so this difference means little."
            sentences.append(sentence)
        return sentences

    def caveat(self) -> str:
        """What the numbers rest on, and what they do not show."""
        comparisons = [*self.against_constant, *self.between_models]
        if not comparisons:
            return ""
        first = comparisons[0]
        text = f"Measured on {first.num_frames:,} frames"
        text += f" of {first.num_clips:,} clips." if first.num_clips else "."
        if first.interval_percent:
            text += " Intervals come from resampling the clips."
        if first.metric == "PA-EPE":
            text += " PA-EPE is about the pose alone: how the hand is turned counts in the root-relative error."
        if first.num_runs == 1:
            text += " Each model was trained once: how much one training differs from the next is not in these numbers."
        else:
            text += f" Means of {first.num_runs} training runs of each model."
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
    unit: str = "mm",
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two answers by their error of each test frame, with a bootstrap interval.

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
    interval, p = None, None
    if len(names) >= MIN_CLIPS:
        drawn = np.random.default_rng(seed).integers(0, len(names), (num_resamples, len(names)))
        # Both means are over the same drawn frames, so their number cancels out of the ratio.
        percent = 100 * (our_sums[drawn].sum(axis=1) / their_sums[drawn].sum(axis=1).clip(_SMALLEST) - 1)
        low, high = np.percentile(percent, [2.5, 97.5])
        interval, p = (float(low), float(high)), p_value(percent, len(names))
    return Comparison(
        model=model,
        baseline=baseline,
        metric=metric,
        unit=unit,
        value=float(ours.mean()),
        baseline_value=float(theirs.mean()),
        num_frames=len(ours),
        num_clips=len(names),
        interval_percent=interval,
        p_value=p,
    )
