"""The report of a search campaign: one self-contained HTML page, made from what lies in the search's folder.

It can be drawn at any time, also while the search runs, and reads well on a phone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

from markupsafe import Markup

from pipeline.campaign.card import card_of
from pipeline.campaign.charts import (
    BEST,
    CONSTANT,
    FRONT_STYLES,
    STYLES,
    curves_chart,
    history_chart,
    kind_of,
    num_beyond,
    parallel_chart,
    pareto_chart,
    score_axis,
    slice_chart,
    value_text,
)
from pipeline.campaign.importance import LEAST_TRIALS, SHUFFLES, Importance, importances, num_best
from pipeline.campaign.reading import Campaign, read_campaign
from pipeline.campaign.scores import Score, ranked, score_of
from pipeline.campaign.words import commands, facts, failures, headline, machine, progress
from pipeline.drawing.page import duration, page_environment
from pipeline.drawing.scatter import dot_legend
from pipeline.drawing.svg import Axis, number
from pipeline.evaluation.yardsticks import skill
from pipeline.search.campaign import pareto_front
from pipeline.search.records import TrialRecord
from pipeline.storage import join, write_bytes

_UNITS = {"ms": "ms", "mb": "MB"}
_NUM_FIRST = 15  # trials of the table that are shown at once


def write_campaign_report(folder: str) -> str:
    """Write <folder>/report.html of a search's folder, over or not; returns its URI. Raises DataError where it is no search's."""
    campaign = read_campaign(folder)
    uri = join(campaign.folder, "report.html")
    write_bytes(uri, build_campaign_report(campaign).encode())
    return uri


def build_campaign_report(campaign: Campaign) -> str:
    """The HTML page."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(decimals=_decimals)
    records = campaign.records
    score = score_of(campaign.finetune, records)
    order = ranked(score, records)
    columns = list(dict.fromkeys([*campaign.space, *(name for record in records for name in record.values)]))
    scores = [_score(score, record) for record in order]
    axis = score_axis(score, scores) if order else None
    found = importances(campaign.space, [record.values for record in order], scores)
    rows = trial_rows(score, records, columns)
    return environment.get_template("campaign.html.jinja").render(
        campaign=campaign,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        headline=headline(campaign, score),
        progress=progress(campaign),
        score=score,
        columns=columns,
        rows=rows[:_NUM_FIRST],
        more_rows=rows[_NUM_FIRST:],
        has_seeds=any(row.seeds for row in rows),
        has_parents=any(record.parent is not None for record in records),
        failures=failures(records),
        key=_key(score, records),
        history=history_chart(score, records, axis) if axis else None,
        num_beyond=num_beyond(axis, scores) if axis else 0,
        curves=curves_chart(score, records) if order else None,
        importances=found,
        importance_note=importance_note(found, len(order)),
        num_best=num_best(len(order)),
        num_shuffles=SHUFFLES,
        parallel=parallel_chart(score, campaign.space, records, columns, axis) if axis and columns else None,
        slices=_slices(campaign, score, order, columns, axis) if axis else [],
        front=_front(campaign, score),
        card=card_of(campaign, score, order[0]) if order else None,
        facts=facts(campaign, score),
        machine=machine(campaign),
        commands=commands(campaign),
    )


@dataclass(frozen=True)
class TrialRow:
    """A trial in the table; texts."""

    record: TrialRecord
    is_best: bool
    score: str
    skill: str
    seeds: str
    """Lowest and highest of its seeds, where there are several."""
    parent: str
    """The trial that it goes on from, as members of a population do."""
    epochs: str
    time: str
    cells: list[str]


def trial_rows(score: Score, records: Sequence[TrialRecord], columns: Sequence[str]) -> list[TrialRow]:
    """The trials, the best first; those without a score last, by number."""
    order = ranked(score, records)
    known = {record.number for record in order}
    rest = [record for record in records if record.number not in known]
    return [_row(score, record, columns, record in order[:1]) for record in [*order, *rest]]


def _row(score: Score, record: TrialRecord, columns: Sequence[str], is_best: bool) -> TrialRow:
    value = score.of(record)
    seeds = [score.factor * each for each in record.seed_scores]
    last = record.history[-1] if record.history else {}
    return TrialRow(
        record=record,
        is_best=is_best,
        score=_decimals(value),
        skill="–" if value is None or score.constant is None else _decimals(skill(value, score.constant)),
        seeds=f"{_decimals(min(seeds))}–{_decimals(max(seeds))} ({len(seeds)})" if len(seeds) > 1 else "",
        parent="–" if record.parent is None else f"{record.parent:04d}",
        epochs=f"{last['epoch']:g}" if "epoch" in last else "–",
        time=duration(record.seconds) if record.history else "–",
        cells=[value_text(record.values[name]) if name in record.values else "–" for name in columns],
    )


def _score(score: Score, record: TrialRecord) -> float:
    """Of a trial that has one."""
    value = score.of(record)
    assert value is not None
    return value


def _decimals(value: float | None, num: int = 2) -> str:
    return "–" if value is None else f"{value:,.{num}f}".replace("-", "−")


def _key(score: Score, records: Sequence[TrialRecord]) -> Markup:
    """The colours of the trials that there are."""
    there = {kind_of(record) for record in ranked(score, records)[1:]}
    level = None if score.constant is None else (CONSTANT, score.constant)
    return dot_legend({name: style for name, style in STYLES.items() if name == BEST or name in there}, level)


def importance_note(found: Sequence[Importance], num_trials: int) -> str:
    """What the importances show, or why there are none. num_trials: those with a score."""
    if num_trials < LEAST_TRIALS:
        have = "1 has" if num_trials == 1 else f"{num_trials} have"
        return f"Too few trials to tell which settings matter: {have} a score, and {LEAST_TRIALS} are needed."
    if not found:
        return "No setting tells the best trials from the others."
    *others, last = [each.name for each in found if each.is_clear] or [""]
    if not last:
        return "No setting matters more than chance makes it seem: with these scores dealt to the trials at random, the bars are as long."
    clear = f"{', '.join(others)} and {last} matter" if others else f"{last} matters"
    return f"{clear}; what is pale may be chance."


@dataclass(frozen=True)
class Slice:
    """The scores over one setting."""

    name: str
    note: str
    chart: Markup


def _slices(
    campaign: Campaign, score: Score, order: Sequence[TrialRecord], columns: Sequence[str], axis: Axis
) -> list[Slice]:
    """Of the settings that vary. order: the trials with a score. axis: of scores."""
    slices = []
    for name in columns:
        having = [record for record in order if name in record.values]
        dimension = campaign.space.get(name)
        if not having or (dimension is not None and dimension.limits is None and len(dimension.choice or ()) < 2):
            continue
        when = dimension.when if dimension is not None else {}
        condition = " and ".join(f"{other} is {value_text(value)}" for other, value in when.items())
        note = f"Only where {condition}: {len(having)} of {len(order)} trials." if condition else ""
        slices.append(Slice(name, note, slice_chart(name, dimension, score, order, axis)))
    return slices


@dataclass(frozen=True)
class Front:
    """What there is to choose between."""

    names: list[str]
    rows: list[tuple[str, list[str]]]
    """Trial and its objectives; those that no other dominates."""
    num_trials: int
    """With all objectives."""
    charts: list[tuple[str, Markup, Markup]]
    """Title, key, chart."""


def _front(campaign: Campaign, score: Score) -> Front | None:
    """None where trials are judged by their score alone."""
    some = [record for record in ranked(score, campaign.records) if record.objectives]
    if not some:
        return None
    names = [score.title, *map(_objective_name, some[0].objectives)]
    points = {record.name: [_score(score, record), *record.objectives.values()] for record in some}
    best = [record.name for record in pareto_front(some)]
    level = None if score.constant is None else (CONSTANT, score.constant)
    charts = []
    for a, b in combinations(range(len(names)), 2):
        here = level if a == 0 else None
        plane = {name: (values[a], values[b]) for name, values in points.items()}
        chart = pareto_chart(plane, best, (names[a], names[b]), is_line=len(names) == 2, level=here)
        charts.append((f"{names[a]} and {names[b]}", dot_legend(FRONT_STYLES, here), chart))
    rows = [(name, [_decimals(points[name][0]), *map(number, points[name][1:])]) for name in best]
    return Front(names, rows, len(some), charts)


def _objective_name(name: str) -> str:
    """latency_ms -> latency (ms)."""
    words, _, unit = name.rpartition("_")
    return f"{words.replace('_', ' ')} ({_UNITS[unit]})" if words and unit in _UNITS else name
