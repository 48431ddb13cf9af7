"""A comparison of runs as tables with a column for each run: sections of the page, and one table for the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.drawing.svg import number
from pipeline.evaluation.metric_names import METRICS, MetricName, recorded_name
from pipeline.reports.compare_data import ComparedRuns, Measured, ModelError, SeedGroup, Spread
from pipeline.reports.compare_words import model_tests, signed

_NOT_THERE = "not there"
_NOT_RECORDED = "not recorded"
_SPACE = "\u00a0"  # keeps a number and its unit on one line


@dataclass(frozen=True)
class Cell:
    """One value in words."""

    text: str
    detail: str = ""
    """What stands small beside it, such as an interval."""
    outcome: str = ""
    """"better" or "worse" where it is more than chance; "missing"."""


@dataclass(frozen=True)
class Line:
    """What is in one line of a table."""

    name: str
    cells: list[Cell]
    """By run."""
    meaning: str = ""
    level: int = 0
    """1 for what belongs to the line above."""


@dataclass(frozen=True)
class Section:
    """Lines that belong together."""

    title: str
    lines: list[Line]


def setting_lines(compared: ComparedRuns) -> tuple[list[Line], list[Line]]:
    """Settings that differ: of all runs, and those that not all have."""
    lines = {name: _line(compared, name, by_run, _NOT_THERE) for name, by_run in compared.settings.items()}
    num_runs = len(compared.runs)
    everywhere = [line for name, line in lines.items() if len(compared.settings[name]) == num_runs]
    return everywhere, [line for name, line in lines.items() if len(compared.settings[name]) < num_runs]


def origin_lines(compared: ComparedRuns) -> list[Line]:
    """What ran, where that differs."""
    return [_line(compared, name, by_run, _NOT_RECORDED) for name, by_run in compared.origin.items()]


def recorded_lines(compared: ComparedRuns) -> list[Line]:
    """Metrics as the runs recorded them."""
    lines = []
    for key, by_run in compared.recorded.items():
        cells = {run: Cell(number(value, 4)) for run, value in by_run.items()}
        lines.append(Line(title_of(recorded_name(key)), _by_run(compared, cells, "–"), recorded_name(key).meaning))
    return lines


def measured_lines(compared: ComparedRuns, measured: Measured) -> list[Line]:
    """Every error of every model on the same frames, beside one fixed hand and the first model; then the other metrics."""
    lines = []
    tests = {key: model_tests(measured, key) for key in measured.errors}
    for key, by_run in measured.errors.items():
        name = METRICS[key]
        lines.append(
            Line(
                title_of(name),
                _by_run(compared, {run: _error(name, each) for run, each in by_run.items()}, "–"),
                name.meaning,
            )
        )
        constants = {
            run: Cell(_decimals(name, each.constant)) for run, each in by_run.items() if each.constant is not None
        }
        skills = {run: _skill(each) for run, each in by_run.items() if each.skill is not None}
        against = {
            run: Cell(signed(test.comparison.percent), test.short(), test.outcome) for run, test in tests[key].items()
        }
        for label, cells in (
            ("one fixed hand", constants),
            ("skill", skills),
            (f"against {compared.letters[next(iter(by_run))]}", against),
        ):
            if cells:
                lines.append(Line(label, _by_run(compared, cells, "–"), level=1))
    for key, values in measured.others.items():
        cells = {run: Cell(_decimals(METRICS[key], value)) for run, value in values.items()}
        lines.append(Line(title_of(METRICS[key]), _by_run(compared, cells, "–"), METRICS[key].meaning))
    return lines


def seed_text(group: SeedGroup, judged: str | None) -> Cell:
    """The mean over seeds and their spread, by the error that is judged, or by what the runs recorded."""
    if judged is not None and judged in group.errors:
        name, spread = METRICS[judged], group.errors[judged]
    else:
        key = next((each for each in ("score", "probe_pa_epe_mm", "loss") if each in group.recorded), None)
        if key is None:
            return Cell("–")
        name, spread = recorded_name(key), group.recorded[key]
    return Cell(f"{name.label} {spread_text(spread)}{_SPACE}{name.unit}".rstrip(), _range(spread))


def spread_text(spread: Spread) -> str:
    """Such as "12.3 ± 0.4"."""
    return f"{number(spread.mean)} ± {number(spread.sd, 2)}"


def skill_text(spread: Spread) -> str:
    """The same for a skill."""
    return f"{_two_decimals(spread.mean)} ± {spread.sd:.2f}"


def terminal_table(compared: ComparedRuns) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows."""
    everywhere, partly = setting_lines(compared)
    sections = [
        Section("settings that differ", [*everywhere, *partly]),
        Section("what ran", origin_lines(compared)),
        Section("recorded by the runs", recorded_lines(compared)),
    ]
    if compared.measured is not None:
        title = f"on the same {compared.measured.num_frames:,} frames"
        sections.append(Section(title, measured_lines(compared, compared.measured)))
    rows = []
    for section in sections:
        if section.lines:
            rows.append([section.title.upper(), *[""] * len(compared.runs)])
        for line in section.lines:
            cells = [f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in line.cells]
            rows.append(["  " * line.level + line.name, *cells])
    return ["", *(f"{run.letter}  {run.name}" for run in compared.runs)], rows


def title_of(name: MetricName) -> str:
    """Such as "PA-EPE (mm)"."""
    return f"{name.label} ({name.unit})" if name.unit else name.label


def _line(compared: ComparedRuns, name: str, values: Mapping[str, Any], missing: str) -> Line:
    short, full = ({run: _shown(value, digits) for run, value in values.items()} for digits in (6, 17))
    is_told = len({*short.values()}) == len({*full.values()})
    return Line(
        name, _by_run(compared, {run: Cell(text) for run, text in (short if is_told else full).items()}, missing)
    )


def _by_run(compared: ComparedRuns, cells: Mapping[str, Cell], missing: str) -> list[Cell]:
    return [cells.get(run.name, Cell(missing, outcome="missing")) for run in compared.runs]


def _error(name: MetricName, error: ModelError) -> Cell:
    ends = [_decimals(name, end) for end in error.interval or ()]
    return Cell(_decimals(name, error.value), " to ".join(ends))


def _skill(error: ModelError) -> Cell:
    ends = [_two_decimals(end) for end in error.skill_interval or ()]
    low, high = error.skill_interval or (0.0, 0.0)
    outcome = "better" if low > 0 else "worse" if high < 0 else ""
    return Cell(_two_decimals(error.skill or 0.0), " to ".join(ends), outcome)


def _decimals(name: MetricName, value: float) -> str:
    return f"{value:,.{name.decimals}f}".replace("-", "−")


def _two_decimals(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")  # no minus before a zero


def _range(spread: Spread) -> str:
    return f"{number(spread.lowest)} to {number(spread.highest)}"


def _shown(value: Any, digits: int) -> str:
    """A setting's value for people, as in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(_shown(each, digits) for each in value)}]"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
