"""Is the winner of a search worth it? Its retrainings against those of the default settings, and against always answering one hand."""

from collections.abc import Sequence
from typing import Any

import pydantic

from pipeline.campaign.held_out import ClipErrors
from pipeline.evaluation.metric_names import metric_name
from pipeline.evaluation.statistics import MIN_CLIPS, compare, welch_interval
from pipeline.reports.verdict import Comparison

_SPACE = "\u00a0"
_DECIDES = {
    "pa_skill": "pa_epe_mm",
    "mpjpe_mm": "root_relative_epe_mm",
    "mpjpe_skill": "root_relative_epe_mm",
    "epe_mm": "epe_mm",
    "epe_2d": "epe_2d",
}


def deciding_error(best_by: str | None, errors: dict[str, Any]) -> str:
    """Which of the errors decides: the one by which the search judged, or that behind the skill by which it did; else PA-EPE, or the
    error in the image where no test frame has joints in 3D."""
    wanted = _DECIDES.get(best_by or "", "pa_epe_mm")
    return wanted if wanted in errors else "epe_2d"


def comparison(
    model: str, errors: Sequence[ClipErrors], baseline: str, others: Sequence[Sequence[float]], name: str
) -> Comparison:
    """A model, or several trainings of one, against another on the same clips, with a paired bootstrap over trainings and clips.

    errors: of each training. others: as many lists of the baseline's mean errors on the same clips. name: of the error.
    """
    first, (factor, unit) = errors[0], _unit(name)
    difference = compare([each.means for each in errors], others, first.frames)
    return Comparison(
        model=model,
        baseline=baseline,
        metric=metric_name(name).label,
        unit=unit,
        value=factor * difference.value,
        baseline_value=factor * difference.other,
        num_frames=sum(first.frames),
        num_clips=len(first.clips),
        interval_percent=difference.interval if len(first.clips) >= MIN_CLIPS else None,
        num_runs=len(errors),
    )


def is_surely_better(comparison: Comparison) -> bool:
    """Whether there are enough test clips to say so, and they do."""
    return comparison.interval_percent is not None and comparison.outcome == "better"


class Judgement(pydantic.BaseModel):
    """What a campaign says of its winner; by one error, on the test split."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    error: str
    """Name of the error, as in held_out.ModelErrors."""
    against_constant: list[Comparison]
    """The winner, then the default settings, against the constant pose; empty where that is not known."""
    against_default: Comparison | None
    """The winner against the default settings; none where the two are the same."""
    seeds_interval: tuple[float, float] | None = None
    """95 % interval of the difference of their means, in the unit of the error: Welch's, of the seeds. none with one seed."""

    @property
    def beats_constant(self) -> bool:
        """Whether the winner is surely better than always answering one fixed hand."""
        return bool(self.against_constant) and is_surely_better(self.against_constant[0])

    @property
    def beats_default(self) -> bool:
        """Whether the winner is better than the default settings by more than the seeds differ, and than the test clips differ."""
        by_seeds = self.seeds_interval is not None and self.seeds_interval[1] < 0
        return by_seeds and self.against_default is not None and is_surely_better(self.against_default)

    def sentences(self) -> list[str]:
        """It in words."""
        found = [each.against_constant() for each in self.against_constant]
        if not found:
            found = [
                "Whether the winner can do more than answer one fixed hand is not known: its labels give no constant pose."
            ]
        return [*found, self._against_default()]

    def _against_default(self) -> str:
        against = self.against_default
        if against is None:
            return "The best trial has the default settings: the search found none that are better."
        by, unit = against.value - against.baseline_value, against.unit
        values = [f"{value:.1f}{_SPACE}{unit}" for value in (against.value, against.baseline_value)]
        numbers = f"{against.metric} {values[0]} against {values[1]}, {_signed(by, unit)}"
        if self.seeds_interval is None:
            return (
                f"Whether the winner is better than the default settings is not known: {numbers}, with one seed of each, which does "
                "not tell how much seeds differ."
            )
        low, high = self.seeds_interval
        numbers += (
            f" (95{_SPACE}% interval {_signed(low, unit)} to {_signed(high, unit)} by {against.num_runs} seeds of each"
        )
        if against.interval_percent:
            percent = [_signed(each, "%") for each in against.interval_percent]
            numbers += f"; {percent[0]} to {percent[1]} over seeds and clips"
        than = "than the default settings by more than the seeds differ"
        if self.beats_default:
            said = f"The winner is better {than}"
        elif high < 0:
            said = f"The winner is better {than}, but the test clips are too few, or differ too much, to be sure"
        elif low > 0:
            said = f"The winner is worse {than}"
        else:
            said = f"The winner is not better {than}"
        return f"{said}: {numbers}).{self._means_little()}"

    def _means_little(self) -> str:
        beaten = [each.outcome == "better" for each in self.against_constant]
        return (
            " Neither is better than one fixed hand, so this difference means little."
            if beaten and not any(beaten)
            else ""
        )


def judge(winner: Sequence[ClipErrors], default: Sequence[ClipErrors], error: str) -> Judgement:
    """winner, default: errors of one kind (called `error`) of a training with each seed, the same ones; default: none where the
    settings are the same."""
    constants = [
        comparison(name, arm, "the constant pose", [each.constant for each in arm if each.constant], error)
        for name, arm in (("The winner", winner), ("The default model", default))
        if arm and all(each.constant for each in arm)
    ]
    if not default:
        return Judgement(error=error, against_constant=constants, against_default=None)
    against = comparison("the winner", winner, "the default settings", [each.means for each in default], error)
    factor, _ = _unit(error)
    interval = welch_interval([factor * each.mean for each in winner], [factor * each.mean for each in default])
    return Judgement(error=error, against_constant=constants, against_default=against, seeds_interval=interval)


def _unit(error: str) -> tuple[float, str]:
    """In which an error is told: how many of it are one of its own, and its name."""
    return (100.0, "% of the hand") if error == "epe_2d" else (1.0, metric_name(error).unit)


def _signed(value: float, unit: str) -> str:
    return f"{value:+.{1 if unit == '%' else 2}f}{_SPACE}{unit}".replace("-", "−")
