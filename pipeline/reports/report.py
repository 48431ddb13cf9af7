"""The report: one self-contained HTML page of a run, with its pictures and charts inside.

The page asks nothing of the network (a content security policy inside it forbids even trying), follows the reader's
light or dark theme, and works from disk, on a phone and on paper.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from markupsafe import Markup

from pipeline.drawing.charts import difference_chart, finger_dots, legend, line_chart, marker_legend
from pipeline.drawing.curves import group_curves, moving_average
from pipeline.drawing.hand_drawings import hand_errors, hand_mark
from pipeline.drawing.page import duration, page_environment
from pipeline.drawing.parallel import ParallelLine, parallel_coordinates
from pipeline.drawing.svg import linear_axis, number
from pipeline.evaluation.metric_names import METRICS, PROBE_METRICS, MetricName, metric_name
from pipeline.frames.schema import SPLITS
from pipeline.hands import FINGER_JOINTS, NUM_JOINTS, WRIST
from pipeline.reports.report_data import Curve, ModelResult, Pretraining, ReportData, Results, Search, Trial
from pipeline.reports.verdict import Verdict


def build_report(data: ReportData) -> str:
    """The report as an HTML page. Names, paths and reasons in the data are shown as text, whatever they contain."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(
        duration=duration,
        splits=lambda counts: sorted({split for by_split in counts.values() for split in by_split}, key=_split_place),
        rejected=_rejected,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(
        data=data,
        mark=hand_mark(),
        difference=_differences(data.verdict) if data.verdict else None,
        curves=_curve_cards(data.pretraining) if data.pretraining else [],
        search=_search_view(data.search) if data.search and data.search.trials else None,
        results=_results_view(data.results) if data.results and data.results.models else None,
        probes=_probe_view(data.results.probes) if data.results and data.results.probes else None,
    )


def _differences(verdict: Verdict) -> Markup | None:
    named = [(f"{c.model} against one fixed hand", c) for c in verdict.against_constant]
    named += [(f"{c.model} against {c.baseline}", c) for c in verdict.between_models]
    rows = {name: (c.percent, c.interval_percent) for name, c in named}
    return difference_chart(rows) if rows else None


@dataclass(frozen=True)
class _Card:
    title: str
    unit: str
    note: str
    legend: Markup
    chart: Markup
    latest: str


def _curve_cards(pretraining: Pretraining) -> list[_Card]:
    cards = []
    for chart in group_curves(pretraining.history):
        latest = [number(_shown(points, chart.smooth)[-1][1]) for points in chart.series.values()]
        several = len(latest) > 1
        key = legend(list(chart.series), latest) if several else Markup()
        drawing = line_chart(chart.series, chart.title, smooth=chart.smooth)
        cards.append(_Card(chart.title, chart.unit, chart.note, key, drawing, "" if several else latest[0]))
    return cards


def _shown(points: Sequence[tuple[float, float]], smooth: bool) -> Sequence[tuple[float, float]]:
    return moving_average(points) if smooth else points


@dataclass(frozen=True)
class _TrialRow:
    trial: Trial
    is_best: bool
    cells: list[str]
    value: str


@dataclass(frozen=True)
class _SearchView:
    columns: list[str]
    rows: list[_TrialRow]
    parallel: Markup | None
    rungs: Markup | None
    rungs_narrow: Markup | None
    constant: str
    """How many trials beat always answering one fixed hand; empty where that is not known."""
    num_stopped: int
    num_failed: int


def _search_view(search: Search) -> _SearchView:
    """Trials from the best to the worst; those without a value last."""
    sign = 1 if search.lower_is_better else -1
    trials = sorted(search.trials, key=lambda t: (not _known(t.value), sign * (t.value if _known(t.value) else 0.0)))
    columns = list(dict.fromkeys(key for trial in trials for key in trial.config))
    metric = search.metric + (f" ({search.unit})" if search.unit else "")
    ranked = [t for t in trials if _known(t.value)]
    lines = [
        ParallelLine(
            name=f"{t.name}: {number(t.value)} {search.unit}".rstrip(),
            values={**{c: _plain(t.config.get(c)) for c in columns}, metric: t.value if _known(t.value) else None},
            rank=ranked.index(t) / max(1, len(ranked) - 1) if _known(t.value) else None,
            best=t.name == search.best,
        )
        for t in trials
    ]
    rungs = {t.name: t.rungs for t in ranked if t.rungs}
    level = ("constant pose", search.constant) if search.constant is not None else None
    largest = max((abs(t.value) for t in ranked if _known(t.value)), default=0.0)
    decimals = 2 if 1 <= largest < 1000 else 4 if largest < 1 else 0
    return _SearchView(
        columns=columns,
        rows=[
            _TrialRow(t, t.name == search.best, [_cell(t.config.get(c)) for c in columns], _fixed(t.value, decimals))
            for t in trials
        ],
        parallel=parallel_coordinates(lines, [*columns, metric], "Trials of the search")
        if columns and ranked
        else None,
        rungs=_rung_chart(rungs, metric, level, width=1030, height=320),
        rungs_narrow=_rung_chart(rungs, metric, level, width=340, height=260),
        constant=_against_constant(search, ranked),
        num_stopped=sum(t.state == "stopped" for t in trials),
        num_failed=sum(t.state == "failed" for t in trials),
    )


def _fixed(value: float | None, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−") if _known(value) else "–"


def _against_constant(search: Search, ranked: Sequence[Trial]) -> str:
    """ranked: the trials with a value."""
    if search.constant is None:
        return ""
    sign = 1 if search.lower_is_better else -1
    beaten = sum(sign * t.value < sign * search.constant for t in ranked if _known(t.value))
    value = f"{number(search.constant)} {search.unit}".rstrip()
    return f"Always answering one fixed hand gives {value}; {beaten or 'none'} of {len(ranked)} trials are better."


def _rung_chart(
    rungs: Mapping[str, Sequence[tuple[float, float]]],
    metric: str,
    level: tuple[str, float] | None,
    width: int,
    height: int,
) -> Markup | None:
    """None where no trial reported more than once. The page shows the wide or the narrow one, so that its text fits."""
    if not any(len(points) > 1 for points in rungs.values()):
        return None
    title = "Every trial over its epochs"
    return line_chart(rungs, title, "epoch", metric, width=width, height=height, ranked=True, dots=True, level=level)


@dataclass(frozen=True)
class _MetricCell:
    text: str
    is_best: bool = False
    difference: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class _ResultsView:
    metrics: list[MetricName]
    rows: list[tuple[str, bool, list[_MetricCell]]]
    """Name, whether it answers without looking, cells."""
    pck: list[tuple[str, Markup, Markup]] = field(default_factory=list)
    """Title, legend and chart."""
    fingers: Markup | None = None
    finger_legend: Markup = field(default_factory=Markup)
    hands: list[tuple[str, float, Markup]] = field(default_factory=list)


def _results_view(results: Results) -> _ResultsView:
    rows = [*results.models, *results.yardsticks]
    keys = [k for k in METRICS if any(m.metrics.get(k) is not None for m in rows)]
    keys += [k for k in dict.fromkeys(k for m in rows for k in m.metrics) if k not in METRICS]
    baseline = next((m for m in results.models if m.name == results.baseline), None)
    with_joints = {
        m.name: m.joint_errors_mm for m in rows if m.joint_errors_mm and len(m.joint_errors_mm) == NUM_JOINTS
    }
    largest = max((e for errors in with_joints.values() for e in errors if math.isfinite(e)), default=0.0)
    return _ResultsView(
        metrics=[metric_name(k) for k in keys],
        rows=[
            *((m.name, False, [_metric_cell(k, m, rows, baseline) for k in keys]) for m in results.models),
            *((m.name, True, [_metric_cell(k, m, rows, None) for k in keys]) for m in results.yardsticks),
        ],
        pck=[
            (title, legend([m.name if getattr(m, kind) else "" for m in rows]), _pck_chart(title, rows, kind))
            for title, kind in (("PCK", "pck"), ("PCK after Procrustes alignment", "pa_pck"))
            if any(getattr(m, kind) for m in rows)
        ],
        fingers=finger_dots(_finger_means(with_joints), "Error by finger") if with_joints else None,
        finger_legend=marker_legend(list(with_joints)),
        hands=[
            (name, sum(errors) / NUM_JOINTS, hand_errors(errors, f"Joint errors of {name}", largest))
            for name, errors in with_joints.items()
        ],
    )


@dataclass(frozen=True)
class _ProbeView:
    metrics: list[MetricName]
    rows: list[tuple[str, list[str]]]


def _probe_view(probes: Mapping[str, Mapping[str, float]]) -> _ProbeView:
    keys = [key for key in PROBE_METRICS if any(key in scores for scores in probes.values())]
    rows = [
        (name, [_fixed(scores.get(key), PROBE_METRICS[key].decimals) for key in keys])
        for name, scores in probes.items()
    ]
    return _ProbeView([PROBE_METRICS[key] for key in keys], rows)


def _metric_cell(
    key: str, model: ModelResult, models: Sequence[ModelResult], baseline: ModelResult | None
) -> _MetricCell:
    name = metric_name(key)
    value = model.metrics.get(key)
    if value is None or not math.isfinite(value):
        return _MetricCell("–" if value is None else number(value))
    text = f"{value:,.{name.decimals}f}".replace("-", "−")
    if name.lower_is_better is None:
        return _MetricCell(text)
    others = [v for m in models if (v := m.metrics.get(key)) is not None and math.isfinite(v)]
    best = min(others) if name.lower_is_better else max(others)
    reference = baseline.metrics.get(key) if baseline is not None and baseline is not model else None
    difference, outcome = "", ""
    if reference is not None and math.isfinite(reference) and reference != 0 and not name.is_ratio:
        percent = 100 * (value - reference) / abs(reference)
        difference = f"{percent:+.1f} %".replace("-", "−")
        outcome = "better" if (percent < 0) == name.lower_is_better else "worse"
        outcome = outcome if abs(percent) >= 0.05 else ""
    return _MetricCell(text, len(others) > 1 and value == best, difference, outcome)


def _pck_chart(title: str, models: Sequence[ModelResult], kind: str) -> Markup:
    # Every model keeps its colour, also where another one has no curve.
    curves: dict[str, Curve | None] = {model.name: getattr(model, kind) for model in models}
    series: dict[str, Sequence[tuple[float, float]]] = {
        name: [(t, 100 * s) for t, s in zip(curve.thresholds_mm, curve.shares, strict=True)] if curve else []
        for name, curve in curves.items()
    }
    return line_chart(
        series,
        title,
        "threshold (mm)",
        "correct joints (%)",
        y_axis=linear_axis([], 4, 0.0, 100.0),
        width=460,
        height=300,
    )


def _finger_means(joint_errors: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    parts = {"wrist": (WRIST,), **FINGER_JOINTS}
    return {
        part: {model: sum(errors[j] for j in joints) / len(joints) for model, errors in joint_errors.items()}
        for part, joints in parts.items()
    }


def _rejected(rejects: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, int]]:
    """(source, reason, number) of what was left out, the most frequent first."""
    rows = [(source, reason, n) for source, reasons in rejects.items() for reason, n in reasons.items() if n]
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def _split_place(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _plain(value: Any) -> float | str | bool | None:
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return number(value)
