"""The charts of a study: error against one axis, with what needs no looking beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline.drawing.charts import legend, line_chart
from pipeline.drawing.svg import Axis, Points, close_log_axis, number
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM
from pipeline.study.results import METRIC_NAMES, Metric, Results, Row
from pipeline.study.settings import SCRATCH

_AXES = {
    "labels": ("labels", "labelled frames", "the labels"),
    "unlabelled": ("unlabelled", "unlabelled frames", "unlabelled frames"),
    "length": ("pretrain_frames", "frames seen in pretraining", "pretraining length"),
}
_CHART_WIDTH, _CHART_HEIGHT = 460, 300


@dataclass(frozen=True)
class Panel:
    """The charts of one grid at one value of its other axes."""

    title: str
    note: str
    legend: Markup
    charts: list[tuple[str, Markup]]
    """Name of the error, chart."""


def panels(results: Results, grid: str, axis: str) -> list[Panel]:
    """A panel for each combination of the axes that the charts are not over. Grids over methods have none."""
    if axis not in _AXES:
        return []
    field = _AXES[axis][0]
    others = [name for name in ("labels", "unlabelled", "pretrain_frames", "encoder") if name != field]
    rows = results.of_grid(grid)
    pretrained = [row for row in rows if row.method != SCRATCH]
    places = dict.fromkeys(tuple(getattr(row, name) for name in others) for row in pretrained)
    return [_panel(results, rows, dict(zip(others, place, strict=True)), grid, axis) for place in places]


def _panel(results: Results, rows: Sequence[Row], place: dict[str, float | str], grid: str, axis: str) -> Panel:
    field, x_label, over = _AXES[axis]
    here = [row for row in rows if all(getattr(row, name) == value for name, value in place.items())]
    scratch = [
        row
        for row in rows
        if row.method == SCRATCH and all(getattr(row, n) == place[n] for n in ("labels", "encoder") if n in place)
    ]
    on_axis = here if axis != "labels" else here + scratch
    methods = list(dict.fromkeys(row.method for row in [*(scratch if axis == "labels" else []), *here]))
    blind = [row for row in results.rows if row.method in (CONSTANT, RANDOM) and grid in row.grids]
    blind = [row for row in blind if "labels" not in place or row.labels == place["labels"]]
    xs = _positions(on_axis, field)
    charts = []
    for metric in METRIC_NAMES:
        series, spread = {}, {}
        for method in methods:
            points = _by_x([row for row in on_axis if row.method == method], field, xs, metric)
            series[method] = [(x, float(np.mean(values))) for x, values in points]
            spread[method] = [(x, min(values), max(values)) for x, values in points if len(values) > 1]
        references = _references(blind, scratch if axis != "labels" else [], field, xs, axis, metric)
        values = [y for line in [*series.values(), *references.values()] for _, y in line]
        values += [y for bars in spread.values() for _, *ends in bars for y in ends]
        chart = line_chart(
            series,
            f"{METRIC_NAMES[metric]} over {over}",
            x_label,
            "mm",
            x_axis=_x_axis(xs),
            y_axis=close_log_axis(values),
            width=_CHART_WIDTH,
            height=_CHART_HEIGHT,
            dots=True,
            spread=spread,
            references=references,
        )
        charts.append((METRIC_NAMES[metric], chart))
    seeds = len({row.seed for row in on_axis})
    return Panel(
        title=", ".join(_words(name, value) for name, value in place.items()),
        note="One seed." if seeds == 1 else f"Means of {seeds} seeds; bars reach from the lowest to the highest.",
        legend=legend(methods),
        charts=charts,
    )


def _words(name: str, value: float | str) -> str:
    if name == "encoder":
        return str(value)
    if name == "pretrain_frames":
        return f"{value:,.0f} frames seen in pretraining"
    return f"{100 * float(value):g} % of the {'labels' if name == 'labels' else 'unlabelled clips'}"


def _positions(rows: Sequence[Row], field: str) -> dict[float, float]:
    """Value on the axis -> place: the frames behind it, of which seeds have slightly different numbers."""
    frames = {"labels": "labelled_frames", "unlabelled": "unlabelled_frames"}.get(field, field)
    values = sorted({getattr(row, field) for row in rows})
    return {
        value: float(np.mean([getattr(row, frames) for row in rows if getattr(row, field) == value]))
        for value in values
    }


def _by_x(rows: Iterable[Row], field: str, xs: dict[float, float], metric: Metric) -> list[tuple[float, list[float]]]:
    found: dict[float, list[float]] = {}
    for row in rows:
        value = row.error(metric)
        if value is not None:
            found.setdefault(xs[getattr(row, field)], []).append(value)
    return sorted(found.items())


def _references(
    blind: Sequence[Row], scratch: Sequence[Row], field: str, xs: dict[float, float], axis: str, metric: Metric
) -> dict[str, Points]:
    """Lines of what is the same everywhere on the axis, and of what needs no looking, which has no probes."""
    lines: dict[str, Points] = {}
    plain: Metric = "root_relative_epe" if "root_relative" in metric else "pa_epe"
    ends = [min(xs.values()), max(xs.values())]
    for method in (CONSTANT, RANDOM):
        own = [row for row in blind if row.method == method]
        if axis == "labels":
            points = _by_x([row for row in own if row.labels in xs], field, xs, plain)
            lines[method] = [(x, float(np.mean(values))) for x, values in points]
        elif own:
            level = float(np.mean([row.error(plain) for row in own]))
            lines[method] = [(x, level) for x in ends]
    if scratch:
        level = float(np.mean([row.error(metric) for row in scratch]))
        name = "random encoder" if metric.startswith("probe") else "from scratch"
        lines[name] = [(x, level) for x in ends]
    return {name: line for name, line in lines.items() if line}


def _x_axis(xs: dict[float, float]) -> Axis:
    """Logarithmic, with a tick at every value."""
    values = sorted(xs.values())
    low, high = (values[0] / 1.3, values[-1] * 1.3) if len(values) == 1 else (values[0] * 0.93, values[-1] * 1.07)
    return Axis(low, high, values, log=True, names=[number(round(value)) for value in values])
