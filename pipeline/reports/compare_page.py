"""The page of a comparison of runs: one self-contained HTML file, made from plain data."""

from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from pipeline.drawing.charts import difference_chart, interval_chart, legend, line_chart
from pipeline.drawing.page import page_environment
from pipeline.drawing.svg import log_axis
from pipeline.evaluation.metric_names import METRICS, recorded_name
from pipeline.reports.compare_data import ComparedRun, ComparedRuns, Measured
from pipeline.reports.compare_table import (
    Cell,
    Line,
    measured_lines,
    origin_lines,
    recorded_lines,
    seed_text,
    setting_lines,
    skill_text,
)
from pipeline.reports.compare_words import group_tests, model_tests, signed

_WIDE = 50  # from the smallest to the largest value: on a linear axis the small ones would be one line
_MANY = 30  # points of a curve: without dots
_KINDS = {
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "search": "search",
    "evaluate": "evaluation",
    "study": "study",
}


@dataclass(frozen=True)
class _SeedRow:
    runs: str
    seeds: str
    value: Cell
    skill: str
    against: Cell


@dataclass(frozen=True)
class _Card:
    title: str
    detail: str
    legend: Markup
    chart: Markup


def build_page(compared: ComparedRuns) -> str:
    """The page. Names, paths and settings are shown as text, whatever they contain."""
    everywhere, partly = setting_lines(compared)
    measured = compared.measured
    models = [run for run in compared.runs if measured and run.name in measured.errors[measured.judged]]
    template = page_environment(Path(__file__).parent).get_template("compare.html.jinja")
    return template.render(
        data=compared,
        kinds=_KINDS,
        errors=_errors(compared, measured) if measured else None,
        differences=_differences(compared, measured) if measured else [],
        measured=_only(compared, measured_lines(compared, measured), models) if measured else [],
        models=models,
        terms=[METRICS[key] for key in (*measured.errors, *measured.others)] if measured else [],
        seeds=_seed_rows(compared),
        cards=_cards(compared),
        settings=everywhere,
        partly=partly,
        recorded=recorded_lines(compared),
        origin=origin_lines(compared),
    )


def _only(compared: ComparedRuns, lines: list[Line], runs: list[ComparedRun]) -> list[Line]:
    """The lines with the columns of some runs."""
    places = [place for place, run in enumerate(compared.runs) if run in runs]
    return [replace(line, cells=[line.cells[place] for place in places]) for line in lines]


def _errors(compared: ComparedRuns, measured: Measured) -> Markup:
    """Every model by the error that is judged."""
    name = METRICS[measured.judged]
    rows = {
        f"{compared.letters[run]}  {run}": (each.value, each.interval, each.constant)
        for run, each in measured.errors[measured.judged].items()
    }
    return interval_chart(rows, f"{name.label}, {name.unit}")


def _differences(compared: ComparedRuns, measured: Measured) -> list[tuple[str, Markup]]:
    """(error, every model against the first by it), of the error that is judged and of the next one."""
    charts = []
    for key in dict.fromkeys([measured.judged, *measured.errors]):
        tests = model_tests(measured, key)
        rows = {
            f"{compared.letters[run]} against {compared.letters[test.comparison.baseline]}": (
                test.comparison.percent,
                test.comparison.interval_percent,
            )
            for run, test in tests.items()
        }
        if rows:
            charts.append((METRICS[key].label, difference_chart(rows)))
    return charts[:2]


def _seed_rows(compared: ComparedRuns) -> list[_SeedRow]:
    judged = compared.measured.judged if compared.measured else None
    tests = group_tests(compared.groups)
    rows = []
    for group in compared.groups:
        test = tests.get(tuple(group.runs))
        rows.append(
            _SeedRow(
                runs=", ".join(f"{compared.letters[run]} {run}" for run in group.runs),
                seeds=", ".join(map(str, group.seeds)),
                value=seed_text(group, judged),
                skill=skill_text(group.skills[judged]) if judged is not None and judged in group.skills else "–",
                against=Cell(signed(test.comparison.percent), test.short(), test.outcome) if test else Cell("–"),
            )
        )
    return rows


def _cards(compared: ComparedRuns) -> list[_Card]:
    cards = []
    kinds = {curve.kind for curve in compared.curves}
    for curve in compared.curves:
        name = recorded_name(curve.metric)
        # Every run keeps its colour and its strokes, also where another one has no curve.
        series = {f"{run.letter} {run.name}": curve.points.get(run.name, []) for run in compared.runs}
        level = ("one fixed hand", curve.constant) if curve.constant is not None else None
        values = [value for points in curve.points.values() for _, value in points]
        values += [] if curve.constant is None else [curve.constant]
        is_wide = min(values) > 0 and max(values) / min(values) > _WIDE
        y_axis = log_axis(values) if is_wide else None
        dots = all(len(points) < _MANY for points in curve.points.values())
        chart = line_chart(series, name.label, curve.x_label, y_axis=y_axis, smooth=True, dots=dots, level=level)
        key = legend([label if series[label] else "" for label in series])
        words = [name.unit, _KINDS[curve.kind] if len(kinds) > 1 else ""]
        cards.append(_Card(name.label, ", ".join(filter(None, words)), key, chart))
    return cards
