"""What a study shows, in plain words: three findings, each shown, not shown, or not judged.

Which cells are judged is said in the settings, before there are results. A gain is claimed only where

- the model is better than the constant pose, for sure: an error that one fixed hand has as well is no achievement,
- at least three seeds were trained, with equal budgets,
- the whole interval of the difference, over seeds and clips, lies on one side of zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from pipeline.evaluation.statistics import Difference, compare
from pipeline.evaluation.yardsticks import CONSTANT
from pipeline.study.grid import is_same_budget
from pipeline.study.results import METRIC_NAMES, Metric, Results, Row
from pipeline.study.settings import SCRATCH

MIN_SEEDS = 3
_MIN_SHARES = 3
_SPACE = "\u00a0"  # keeps a number and its unit on one line

Outcome = Literal["shown", "not shown", "not judged"]
Runs = Mapping[int, Row]
"""Cells of one method that differ by their seed only, by seed."""

TITLES = (
    "Pretraining on unlabelled hands lowers the error",
    "Equivariant contrast lowers it more than invariant contrast",
    "More unlabelled frames keep helping",
)


@dataclass(frozen=True)
class Finding:
    """A verdict."""

    title: str
    """What was to be shown."""
    outcome: Outcome
    sentence: str
    """The verdict and its reason."""
    difference: Difference | None = None
    """What it rests on, where there are cells for it."""


def findings(results: Results, metric: Metric = "pa_epe") -> list[Finding]:
    """The three verdicts by one error."""
    judged = results.about.judged
    if not judged.claims:
        sentence = "No claim: this study only tries out that everything runs, and is too small to show anything."
        return [Finding(title, "not judged", sentence) for title in TITLES]
    judge = _Judge(results, metric)
    arms = judge.arms("methods")
    ours = arms.get(judged.ours, {})
    invariant = [(name, arms[name]) for name in judged.invariant if name in arms]
    missing = [name for name in judged.invariant if name not in arms]
    best = min(invariant, key=lambda each: _mean(each[1].values(), metric), default=(judged.invariant[0], {}))
    second = judge.lower(TITLES[1], judged.ours, ours, *best)
    if missing:
        second = Finding(TITLES[1], "not judged", f"Not judged: no cell of {missing[0]} is done.")
    return [
        judge.lower(TITLES[0], judged.ours, ours, SCRATCH, arms.get(SCRATCH, {})),
        second,
        judge.keeps_falling(TITLES[2], judged.ours),
    ]


def difference(ours: Runs, others: Runs, clip_frames: Sequence[int], metric: Metric) -> Difference | None:
    """The difference of two arms over the seeds that both have; None where there is none."""
    seeds = sorted(ours.keys() & others.keys())
    if not seeds:
        return None
    one, other = (np.array([arm[seed].clip_errors(metric) for seed in seeds], dtype=float) for arm in (ours, others))
    return compare(one, other, clip_frames)


def against_constant(results: Results, arm: Runs, metric: Metric) -> Difference | None:
    """The difference of an arm to the constant pose of the same labels and seeds; None where there is none."""
    constants = {(row.labels, row.seed): row for row in results.rows if row.method == CONSTANT}
    seeds = sorted(seed for seed, row in arm.items() if (row.labels, seed) in constants)
    if not seeds:
        return None
    # A constant has no features to probe: a probe is measured by the same constant as a model.
    of_constant: Metric = "root_relative_epe" if "root_relative" in metric else "pa_epe"
    ours = [arm[seed].clip_errors(metric) for seed in seeds]
    theirs = [constants[arm[seed].labels, seed].clip_errors(of_constant) for seed in seeds]
    return compare(np.array(ours, dtype=float), np.array(theirs, dtype=float), results.about.clip_frames)


def by_method(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Arms by their method, of rows that differ by method and seed only."""
    arms: dict[str, dict[int, Row]] = {}
    for row in rows:
        arms.setdefault(row.method, {})[row.seed] = row
    return arms


def signed(percent: float) -> str:
    """Such as "-3.1 %", with a real minus."""
    return f"{percent:+.1f}{_SPACE}%".replace("-", "−")


class _Judge:
    def __init__(self, results: Results, metric: Metric) -> None:
        self.results, self.metric = results, metric
        self.judged = results.about.judged
        name = METRIC_NAMES[metric]
        self.name = name[0].upper() + name[1:]

    def rows(self, axis: str) -> list[Row]:
        """The judged cells of the first grid over an axis, of one encoder and the longest pretraining."""
        grid = next((each["name"] for each in self.results.about.grids if each["axis"] == axis), None)
        rows = [] if grid is None else self.results.of_grid(grid)
        rows = [row for row in rows if abs(row.labels - self.judged.labels) < 1e-9]
        if not rows:
            return []
        encoder, frames = rows[0].encoder, max(row.pretrain_frames for row in rows)
        return [row for row in rows if row.encoder == encoder and row.pretrain_frames in (0, frames)]

    def arms(self, axis: str) -> dict[str, dict[int, Row]]:
        """The judged arms, pretrained on most of the unlabelled frames."""
        rows = self.rows(axis)
        most = max((row.unlabelled for row in rows), default=0.0)
        return by_method(row for row in rows if row.unlabelled in (0.0, most))

    def lower(self, title: str, name: str, ours: Runs, other_name: str, others: Runs) -> Finding:
        """Whether an arm's error is below another's."""
        for arm, of in ((ours, name), (others, other_name)):
            if not arm:
                return Finding(title, "not judged", f"Not judged: no cell of {of} {self._labels()} is done.")
        found = difference(ours, others, self.results.about.clip_frames, self.metric)
        if found is None:
            return Finding(title, "not judged", f"Not judged: {name} and {other_name} have no seed in common.")
        numbers = f"{self.name} {_mm(found.value)} against {_mm(found.other)} ({other_name}), {_interval(found)}"
        problem = self._problem(name, ours, found, others)
        if problem:
            sentence = f"Not shown: {problem} {numbers}."
            return Finding(title, "not shown", sentence, found)
        if found.lower:
            return Finding(title, "shown", f"Shown: {name} is better than {other_name}. {numbers}.", found)
        reason = f"{name} is worse than {other_name}" if found.higher else "no clear difference"
        return Finding(title, "not shown", f"Not shown: {reason}. {numbers}.", found)

    def keeps_falling(self, title: str, name: str) -> Finding:
        """Whether the error of an arm falls from each share of the unlabelled frames to the next larger one."""
        rows = [row for row in self.rows("unlabelled") if row.method == name]
        shares = sorted({row.unlabelled for row in rows})
        arms = [{row.seed: row for row in rows if row.unlabelled == share} for share in shares]
        seeds = set.intersection(*(set(arm) for arm in arms)) if arms else set()
        if len(shares) < _MIN_SHARES or not seeds:
            return Finding(title, "not judged", f"Not judged: {_MIN_SHARES} numbers of unlabelled frames are needed.")
        arms = [{seed: arm[seed] for seed in seeds} for arm in arms]
        found = difference(arms[-1], arms[0], self.results.about.clip_frames, self.metric)
        assert found is not None
        means = [_mean(arm.values(), self.metric) for arm in arms]
        frames = [float(np.mean([row.unlabelled_frames for row in arm.values()])) for arm in arms]
        numbers = (
            f"{self.name} of {name} with {' / '.join(f'{n:,.0f}' for n in frames)} unlabelled frames, as many seen: "
            f"{' / '.join(f'{mean:.1f}' for mean in means)}{_SPACE}mm; from the fewest to the most {_interval(found)}"
        )
        problem = self._problem(name, arms[-1], found, arms[0])
        if problem:
            return Finding(title, "not shown", f"Not shown: {problem} {numbers}.", found)
        if all(after < before for before, after in pairwise(means)) and found.lower:
            sentence = f"Shown: the error falls at every step over a factor of {frames[-1] / frames[0]:.1f}. {numbers}."
            return Finding(title, "shown", sentence, found)
        reason = (
            "with more frames the error rises"
            if found.higher
            else "the error falls, but not at every step"
            if found.lower
            else "no clear difference between the fewest and the most"
        )
        return Finding(title, "not shown", f"Not shown: {reason}. {numbers}.", found)

    def _problem(self, name: str, ours: Runs, found: Difference, others: Runs) -> str:
        """Why nothing can be claimed of an arm, whatever it is compared with; empty where something can."""
        against = against_constant(self.results, ours, self.metric)
        if against is None or not against.lower:
            worse = "" if against is None else f" ({_mm(against.other)}; {_interval(against)})"
            return f"{name} is not clearly better than one fixed hand, the constant pose{worse}."
        if found.num_seeds < MIN_SEEDS:
            return f"{found.num_seeds} {'seed' if found.num_seeds == 1 else 'seeds'} in common, {MIN_SEEDS} are needed."
        budgets = [
            [row.frames_seen for arm in (ours, others) for row in arm.values()],
            [row.pretrain_frames_seen for arm in (ours, others) for row in arm.values() if row.pretrain_frames_seen],
        ]
        if not all(is_same_budget(min(seen, default=0), max(seen, default=0)) for seen in budgets):
            return "the arms have not seen equally many frames."
        return ""

    def _labels(self) -> str:
        return f"with {100 * self.judged.labels:g}{_SPACE}% of the labels"


def _mean(rows: Iterable[Row], metric: Metric) -> float:
    return float(np.mean([row.error(metric) for row in rows]))


def _mm(value: float) -> str:
    return f"{value:.1f}{_SPACE}mm"


def _interval(found: Difference) -> str:
    low, high = (signed(value) for value in found.interval)
    seeds = f"{found.num_seeds} {'seed' if found.num_seeds == 1 else 'seeds'}"
    return f"{signed(found.percent)}, 95{_SPACE}% interval {low} to {high}, {seeds}, {found.num_clips} test clips"
