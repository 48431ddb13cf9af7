"""What the trials of a search reached: what their score is, which are the best, and what one fixed hand reaches beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.evaluation.metric_names import METRICS, MetricName, metric_name
from pipeline.search.records import TrialRecord

_ROOT_RELATIVE = METRICS["root_relative_epe_mm"]
_SKILL = "% of one fixed hand's"


@dataclass(frozen=True)
class Score:
    """What trials are compared by; smaller is better. Its values here are in `unit`."""

    label: str
    unit: str
    factor: float = 1.0
    """Units in one of the records' score."""
    constant: float | None = None
    """What always answering one fixed hand reaches on the same frames; None where that is not known."""

    @property
    def title(self) -> str:
        """Label and unit, for axes."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def of(self, record: TrialRecord) -> float | None:
        """A trial's best so far, the mean over its seeds where it has several; None before the first, and where it is no number."""
        seeds = record.seed_scores
        found = [sum(seeds) / len(seeds)] if seeds else [metrics["score"] for metrics in record.history]
        finite = [value for value in found if math.isfinite(value)]
        return self.factor * min(finite) if finite else None

    def curve(self, record: TrialRecord) -> list[tuple[float, float]]:
        """(epoch, score) at each of a trial's validations."""
        points = [(metrics.get("epoch", float(i)), metrics["score"]) for i, metrics in enumerate(record.history, 1)]
        return [(epoch, self.factor * value) for epoch, value in points if math.isfinite(value)]

    def text(self, value: float | None) -> str:
        """A score for people, with two decimals."""
        return "–" if value is None else f"{value:,.2f} {self.unit}".rstrip()


# Score of the settings -> what it is called, and the metric that tells the constant's. The score of a skill is 1 - skill.
_SCORES = {
    "pa_epe_mm": (Score("PA-EPE", "mm"), "val_constant_pa_epe_mm"),
    "mpjpe_mm": (Score(_ROOT_RELATIVE.label, "mm"), "val_constant_mpjpe_mm"),
    "epe_mm": (Score("EPE", "mm"), ""),
    "epe_2d": (Score("2D EPE", "% of the hand", 100), "val_constant_epe_2d"),
    "pa_skill": (Score("PA-EPE", _SKILL, 100, 100), ""),
    "mpjpe_skill": (Score(_ROOT_RELATIVE.label, _SKILL, 100, 100), ""),
}


def score_of(finetune: Mapping[str, Any], records: Sequence[TrialRecord]) -> Score:
    """What the records' score is. finetune: settings of the trials."""
    # Of the best trial: each has the constant of its own labels, and only where these vary are there several.
    metrics = min((best_metrics(record) for record in records if best_metrics(record)), key=_score_in, default={})
    in_the_image = "val_epe_2d" in metrics and "val_pa_epe_mm" not in metrics
    key = finetune.get("best_by") or ("epe_2d" if in_the_image else "pa_epe_mm")
    score, constant = _SCORES.get(key, (Score("score", ""), ""))
    value = metrics.get(constant)
    return score if value is None else replace(score, constant=score.factor * value)


def ranked(score: Score, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those with a score, the best first. Trials with fewer seeds than others come after those, because one seed may have been lucky."""
    known = {record.number: value for record in records if (value := score.of(record)) is not None}
    some = [record for record in records if record.number in known]
    return sorted(some, key=lambda record: (-len(record.seed_scores), known[record.number], record.number))


def best_so_far(score: Score, records: Sequence[TrialRecord]) -> list[tuple[int, float]]:
    """(number of a trial, best score up to it), for the trials with a score in their order."""
    found: list[tuple[int, float]] = []
    for record in sorted(records, key=lambda record: record.number):
        value = score.of(record)
        if value is not None:
            found.append((record.number, min(value, found[-1][1]) if found else value))
    return found


def best_metrics(record: TrialRecord) -> dict[str, float]:
    """Metrics of the validation at which a trial was best."""
    finite = [metrics for metrics in record.history if math.isfinite(metrics["score"])]
    return min(finite, key=_score_in, default={})


def _score_in(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def metric_label(key: str) -> MetricName:
    """What a metric is called, also where it has the name that validations give it."""
    return metric_name({"mpjpe_mm": "root_relative_epe_mm", "mpjpe_skill": "root_relative_skill"}.get(key, key))
