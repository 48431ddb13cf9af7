"""The report of a study: a self-contained HTML page and a Markdown table, made from results.parquet alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.drawing.charts import difference_chart
from pipeline.drawing.page import duration, page_environment
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM
from pipeline.storage import join, write_bytes
from pipeline.study.charts import Panel, panels
from pipeline.study.findings import (
    Finding,
    Runs,
    against_constant,
    by_method,
    difference,
    findings,
    signed,
)
from pipeline.study.results import METRIC_NAMES, Metric, Results, Row
from pipeline.study.settings import SCRATCH

_TABLE_METRICS: tuple[Metric, ...] = ("pa_epe", "root_relative_epe", "probe_pa_epe", "probe_root_relative_epe")
_BADGES = {"shown": "better", "not shown": "worse", "not judged": "unclear"}


def write_report(folder: str) -> list[Finding]:
    """Write report.html and table.md beside results.parquet in a study's folder; the findings."""
    results = Results.read(join(folder, "results.parquet"))
    write_bytes(join(folder, "report.html"), build_report(results).encode())
    write_bytes(join(folder, "table.md"), markdown(results).encode())
    return findings(results)


def build_report(results: Results) -> str:
    """The HTML page."""
    environment = page_environment(Path(__file__).parent)
    environment.filters.update(duration=duration, signed=signed)
    found = findings(results)
    return environment.get_template("study.html.jinja").render(
        about=results.about,
        complete=len(_models(results)) >= results.about.num_cells,
        num_done=len(_models(results)),
        findings=[
            (
                each,
                _BADGES[each.outcome],
                difference_chart({"": (each.difference.percent, each.difference.interval)})
                if each.difference
                else None,
            )
            for each in found
        ],
        others=_other_errors(results),
        sections=_sections(results),
        cost=_cost(results),
        seeds=sorted({row.seed for row in _models(results)}),
    )


@dataclass(frozen=True)
class TableRow:
    """A method in a table; texts."""

    method: str
    objective: str
    used: str
    undone: str
    cells: list[tuple[str, str]]
    """Mean of each error, and its spread over the seeds."""
    skill: str
    note: str
    """What has to be said of it."""
    gain: tuple[str, str]
    """PA-EPE against scratch, and its interval."""
    seeds: int


@dataclass(frozen=True)
class Table:
    """Methods at one place of the other axes."""

    title: str
    rows: list[TableRow]


@dataclass(frozen=True)
class Section:
    """What the report shows of a grid."""

    name: str
    axis: str
    tables: list[Table]
    panels: list[Panel]


def markdown(results: Results) -> str:
    """The tables of the grids over methods, and the verdicts, for a README."""
    lines = []
    for section in _sections(results):
        for table in section.tables:
            lines += [f"**{section.name}**: {table.title}", ""]
            names = " | ".join(f"{METRIC_NAMES[metric]}, mm" for metric in _TABLE_METRICS)
            lines += [f"| method | undone | {names} | skill | PA-EPE against scratch | seeds |"]
            lines += ["| --- | --- |" + " ---: |" * (len(_TABLE_METRICS) + 3)]
            for row in table.rows:
                cells = " | ".join(_both(*cell) for cell in (*row.cells, (row.skill, row.note), row.gain))
                lines.append(f"| {row.method} | {row.undone} | {cells} | {row.seeds} |")
            lines.append("")
    lines += [f"* {each.title}: {each.sentence}" for each in findings(results)]
    return "\n".join(lines) + "\n"


def _sections(results: Results) -> list[Section]:
    sections = []
    for grid in results.about.grids:
        name, axis = grid["name"], grid["axis"]
        rows = results.of_grid(name)
        if rows:
            tables = _tables(results, name, rows) if axis == "methods" else []
            sections.append(Section(name, axis, tables, panels(results, name, axis)))
    return sections


def _tables(results: Results, grid: str, rows: Sequence[Row]) -> list[Table]:
    """A table for each labels, encoder, unlabelled share and length; scratch belongs to all of the latter two, and alone has
    nothing to be compared with yet."""
    places = dict.fromkeys(
        (row.labels, row.encoder, row.unlabelled, row.pretrain_frames) for row in rows if row.method != SCRATCH
    )
    tables = []
    for labels, encoder, unlabelled, frames in places:
        here = [
            row
            for row in rows
            if (row.labels, row.encoder) == (labels, encoder)
            and (row.method == SCRATCH or (row.unlabelled, row.pretrain_frames) == (unlabelled, frames))
        ]
        blind = [
            row
            for row in results.rows
            if row.method in (CONSTANT, RANDOM) and row.labels == labels and grid in row.grids
        ]
        labelled, unlabelled_frames = (
            float(np.mean([getattr(row, name) for row in here if row.method != SCRATCH]))
            for name in ("labelled_frames", "unlabelled_frames")
        )
        title = (
            f"{100 * labels:g} % of the labels ({labelled:,.0f} frames), {unlabelled_frames:,.0f} unlabelled frames, "
            f"{frames:,} seen in pretraining, {results.about.finetune_frames:,} in fine-tuning, {encoder}"
        )
        tables.append(Table(title, _table_rows(results, [*here, *blind])))
    return tables


def _table_rows(results: Results, rows: Sequence[Row]) -> list[TableRow]:
    arms = by_method(rows)
    found = []
    for method, arm in arms.items():
        first = next(iter(arm.values()))
        blind = method in (CONSTANT, RANDOM)
        against = None if blind else against_constant(results, arm, "pa_epe")
        found.append(
            TableRow(
                method=method,
                objective=first.objective,
                used=first.used,
                undone=first.undone,
                cells=[_spread([row.error(metric) for row in arm.values()]) for metric in _TABLE_METRICS],
                skill=f"{100 * np.mean([row.pa_skill for row in arm.values()]):.0f} %".replace("-", "−"),
                note="" if against is None or against.lower else "not better than the constant",
                gain=("", "") if blind or method == SCRATCH else _gain(results, arm, arms.get(SCRATCH, {})),
                seeds=len(arm),
            )
        )
    return found


def _gain(results: Results, arm: Runs, scratch: Runs) -> tuple[str, str]:
    change = difference(arm, scratch, results.about.clip_frames, "pa_epe")
    if change is None:
        return "", ""
    if change.num_seeds == 1:
        return signed(change.percent), ""  # its interval would know nothing of how trainings differ
    low, high = (signed(value) for value in change.interval)
    return signed(change.percent), f"{low} to {high}"


def _spread(values: Sequence[float | None]) -> tuple[str, str]:
    """Such as ("13.2", "12.9–13.6"): the mean, and the ends where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "–", ""
    return f"{np.mean(known):.1f}", f"{min(known):.1f}–{max(known):.1f}" if len(known) > 1 else ""


def _both(text: str, detail: str) -> str:
    return f"{text} ({detail})" if detail else text


def _other_errors(results: Results) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The verdicts by the other errors: (error, [(title, outcome, sentence)])."""
    if not results.about.judged.claims:
        return []
    return [
        (METRIC_NAMES[metric], [(each.title, each.outcome, each.sentence) for each in findings(results, metric)])
        for metric in _TABLE_METRICS[1:]
    ]


def _cost(results: Results) -> dict[str, str]:
    rows = _models(results)
    arms = {(row.method, row.unlabelled, row.pretrain_frames, row.encoder, row.seed): row for row in rows}
    pretraining = sum(row.pretrain_wall_s for row in arms.values())
    finetuning = sum(row.wall_s for row in rows)
    seen = sum(row.pretrain_frames_seen for row in arms.values()) + sum(row.frames_seen for row in rows)
    return {
        "fine-tunings": f"{len(rows)} of {results.about.num_cells}",
        "pretrainings": str(sum(row.pretrain_frames > 0 for row in arms.values())),
        "cell time of pretraining": duration(pretraining),
        "cell time of fine-tuning": duration(finetuning),
        "frames seen": f"{seen:,}",
        "test frames": f"{sum(results.about.clip_frames):,} of {len(results.about.clips):,} clips",
    }


def _models(results: Results) -> list[Row]:
    return [row for row in results.rows if row.method not in (CONSTANT, RANDOM)]
