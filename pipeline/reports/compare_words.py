"""The answer of a comparison in words: which run is better, by how much, whether that is more than chance, and whether any is
worse than one fixed hand."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from pipeline.drawing.svg import number
from pipeline.evaluation.metric_names import METRICS, recorded_name
from pipeline.evaluation.statistics import MIN_CLIPS
from pipeline.reports.compare_data import Measured, SeedGroup, Sentence
from pipeline.reports.compare_folders import RunFolder
from pipeline.reports.verdict import Comparison, Outcome

LEVEL = 0.05
_SMALLEST = 1e-9  # of an error to divide by
_SPACE = "\u00a0"  # keeps a number and its unit on one line
_RECORDED = {
    "val_pa_epe_mm": "val_constant_pa_epe_mm",
    "val_epe_2d": "val_constant_epe_2d",
    "probe_pa_epe_mm": "probe_constant_pa_epe_mm",
    "loss": None,
}
"""Metrics by which runs are compared that were not measured, the first that all of them have, and one fixed hand's."""


class Chance(NamedTuple):
    """A difference and how many such were tested beside it."""

    comparison: Comparison
    p_adjusted: float | None
    num_tests: int

    @property
    def p_value(self) -> float | None:
        """The one that counts."""
        return self.comparison.p_value if self.p_adjusted is None else self.p_adjusted

    @property
    def outcome(self) -> Outcome:
        """ "better" or "worse" where the difference is more than chance."""
        is_sure = self.comparison.interval_percent is not None and (self.p_value or 1.0) < LEVEL
        return self.comparison.outcome if is_sure else "unclear"

    def short(self) -> str:
        """The interval and p."""
        if self.comparison.interval_percent is None or self.p_value is None:
            return "too few clips"
        low, high = map(signed, self.comparison.interval_percent)
        return f"{low} to {high}, p{_SPACE}{p_text(self.p_value)}"

    def sentence(self) -> str:
        """Whether the difference is more than chance, in a sentence."""
        if self.comparison.interval_percent is None or self.p_value is None:
            return f"Whether that is more than chance cannot be said: there are fewer than {MIN_CLIPS} clips."
        low, high = map(signed, self.comparison.interval_percent)
        seeds = (
            f" over the {self.comparison.num_runs} seeds that both have, and clips"
            if self.comparison.num_runs > 1
            else ""
        )
        interval = f"95{_SPACE}% interval {low} to {high}{seeds}"
        corrected = f" after Holm's correction for {self.num_tests} comparisons" if self.p_adjusted is not None else ""
        p = f"p{_SPACE}{p_text(self.p_value)}{corrected}"
        if self.outcome != "unclear":
            return f"That is more than chance: {interval}, {p}."
        if self.comparison.outcome == "unclear":
            return f"That may be chance: the {interval} holds zero, {p}."
        why = "among so many comparisons" if self.p_adjusted is not None else f"with {self.comparison.num_clips} clips"
        return f"That may be chance: the {interval} leaves out zero, but {why} this is not enough, {p}."


def model_tests(measured: Measured, error: str | None = None) -> dict[str, Chance]:
    """Each model against the first, by an error; none: that which is judged."""
    errors = measured.errors[error or measured.judged]
    found = {run: (each.against_first, each.p_adjusted) for run, each in errors.items() if each.against_first}
    return {run: Chance(against, p, len(found)) for run, (against, p) in found.items()}


def group_tests(groups: Sequence[SeedGroup]) -> dict[tuple[str, ...], Chance]:
    """Each group of seeds against that of the first model, by its runs."""
    found = {tuple(group.runs): (group.against_first, group.p_adjusted) for group in groups if group.against_first}
    return {runs: Chance(against, p, len(found)) for runs, (against, p) in found.items()}


def answer(runs: Sequence[RunFolder], measured: Measured | None, groups: Sequence[SeedGroup]) -> list[Sentence]:
    """The answer; about the models that were measured first, then about the other runs by what they recorded."""
    found = []
    if measured is not None:
        if len(measured.errors[measured.judged]) > 1:
            found.append(_which_model(measured, groups))
        found.append(_one_fixed_hand(measured))
    others = [run for run in runs if measured is None or run.name not in measured.errors[measured.judged]]
    recorded = _which_by_record(others)
    return [*found, *([recorded] if recorded else [])]


def _which_model(measured: Measured, groups: Sequence[SeedGroup]) -> Sentence:
    """The model, or group of seeds, with the smallest error against the first, or of the first against the next."""
    errors = {run: each.value for run, each in measured.errors[measured.judged].items()}
    arms = [tuple(run for run in group.runs if run in errors) for group in groups]
    arms = [arm for arm in arms if arm]
    arms += [(run,) for run in errors if not any(run in arm for arm in arms)]
    means = {arm: fmean(errors[run] for run in arm) for arm in arms}
    first = next(arm for arm in arms if next(iter(errors)) in arm)
    order = sorted(arms, key=means.__getitem__)
    if len(order) == 1:
        low, high = (_value(measured.judged, each) for each in (min(errors.values()), max(errors.values())))
        text = f"The models differ in their seed only: {_value(measured.judged, means[first])} on average, {low} to {high}."
        return Sentence(badge="One setting, several seeds", text=text)
    best, other = order[0], first if order[0] != first else order[1]
    test = _test(measured, groups, best if best != first else other)
    have = f"{_names(best)} {'has' if len(best) == 1 else 'have'} the smallest {METRICS[measured.judged].label}"
    mine, its = (_value(measured.judged, means[arm]) + _on_average(arm) for arm in (best, other))
    if best == first:  # what is tested is the other against it
        change = signed(100 * (means[other] / max(means[best], _SMALLEST) - 1))
        text = f"{have}: {mine}; next {'comes' if len(other) == 1 else 'come'} {_names(other)} with {its}, {change}."
    else:
        change = signed(100 * (means[best] / max(means[other], _SMALLEST) - 1))
        text = f"{have}: {mine} against {its} of {_names(other)}, {change}."
    if test is None:
        text += " Whether that is more than chance was not tested: three seeds that both have are needed for that."
        return Sentence(badge="Smaller error, not tested", text=text)
    is_sure = test.outcome != "unclear"
    beats_constant = not measured.verdict.against_constant or _beaten(measured)
    return Sentence(
        badge="A clear difference" if is_sure else "No clear difference",
        text=f"{text} {test.sentence()}",
        outcome="better" if is_sure and beats_constant else "unclear",
    )


def _test(measured: Measured, groups: Sequence[SeedGroup], arm: tuple[str, ...]) -> Chance | None:
    """Of an arm against that of the first model; None where they are not tested against each other."""
    of_group = next((test for runs, test in group_tests(groups).items() if set(arm) <= set(runs)), None)
    first = next(iter(measured.errors[measured.judged]))
    is_alone = len(arm) == 1 and not any(first in group.runs or arm[0] in group.runs for group in groups)
    return model_tests(measured)[arm[0]] if is_alone else of_group


def _one_fixed_hand(measured: Measured) -> Sentence:
    """How the models stand to always answering one fixed hand."""
    verdict = measured.verdict
    by_outcome: dict[Outcome, list[Comparison]] = {"worse": [], "unclear": [], "better": []}
    for each in verdict.against_constant:
        by_outcome[each.outcome].append(each)
    told = {
        "worse": "worse than always answering one fixed hand",
        "unclear": "not clearly better than always answering one fixed hand",
        "better": "better than always answering one fixed hand",
    }
    parts = []
    for outcome, comparisons in by_outcome.items():
        if comparisons:
            values = ", ".join(f"{signed(each.percent)} for {each.model}" for each in comparisons)
            are_all = len(comparisons) > 1 and len(comparisons) == len(verdict.against_constant)
            parts.append(f"{'Every model is' if are_all else _is(comparisons)} {told[outcome]} (error {values}).")
    if verdict.without_constant:
        parts.append(
            f"Of {_names(verdict.without_constant)} it is not known: there is no constant pose, neither with the model nor from the "
            f"frame set's training split."
        )
    if len(verdict.against_constant) > 1 and not _beaten(measured):
        parts.append("So the differences between the models mean little.")
    badge = verdict.headline() if verdict.against_constant else "No fixed hand to compare with"
    return Sentence(
        badge=badge, text=" ".join(parts), outcome=verdict.outcome if verdict.against_constant else "unclear"
    )


def _beaten(measured: Measured) -> bool:
    """Whether any model is better than one fixed hand."""
    return any(each.outcome == "better" for each in measured.verdict.against_constant)


def _is(comparisons: Sequence[Comparison]) -> str:
    return f"{_names([each.model for each in comparisons])} {'is' if len(comparisons) == 1 else 'are'}"


def _which_by_record(runs: Sequence[RunFolder]) -> Sentence | None:
    """The smallest of what runs recorded of themselves; None where no two of them recorded the same."""
    for key, constant in _RECORDED.items():
        values = {run.name: run.metrics[key] for run in runs if key in run.metrics}
        if len(values) < 2:
            continue
        name = recorded_name(key)
        best, second = sorted(values, key=values.__getitem__)[:2]
        unit = f"{_SPACE}{name.unit}" if name.unit else ""
        known = {run.name: run.metrics[constant] for run in runs if constant is not None and constant in run.metrics}
        hands = dict.fromkeys(number(known[run], 4) for run in (best, second) if run in known)
        beside = f" (one fixed hand: {' and '.join(hands)}{unit})" if hands else ""
        text = (
            f"By what the runs recorded, {best} ends with the smallest {name.label}: {number(values[best], 4)}{unit} against "
            f"{number(values[second], 4)}{unit} of {second}{beside}. Whether that is more than chance is not known: a run records "
            "means only."
        )
        if key == "loss":
            text += " Losses can be compared only where objective, temperature and batch are the same."
        worse = [run for run, value in values.items() if value >= known.get(run, float("inf"))]
        if worse:
            text += f" {_names(worse)}: no better than always answering one fixed hand."
        return Sentence(badge="As recorded", text=text)
    return None


def signed(percent: float) -> str:
    """Such as "-3.1 %", with a real minus."""
    return f"{percent:+.1f}{_SPACE}%".replace("-", "−")


def p_text(p: float) -> str:
    """Such as "= 0.031"; small ones as a bound."""
    return f"={_SPACE}{p:.3f}" if p >= 0.001 else f"<{_SPACE}0.001"


def _value(key: str, value: float) -> str:
    if key == "epe_2d":
        return f"{100 * value:.1f}{_SPACE}% of the hand"
    return f"{value:.1f}{_SPACE}{METRICS[key].unit}"


def _names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _on_average(arm: Sequence[str]) -> str:
    return f" on average of {len(arm)} seeds" if len(arm) > 1 else ""
