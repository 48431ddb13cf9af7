"""Parallel coordinates: the trials of a search, each a line through its settings and its result."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup

from pipeline.drawing import svg
from pipeline.drawing.svg import Axis, close_log_axis, linear_axis, log_axis

Value = float | str | bool | None

_MANY, _NUM_STRONG = 60, 25  # lines


@dataclass(frozen=True)
class ParallelLine:
    """One trial: its value on each axis, and how good it is."""

    name: str
    values: Mapping[str, Value]
    rank: float | None
    """0 = best, 1 = worst; None = no result."""
    best: bool = False


def parallel_coordinates(
    lines: Sequence[ParallelLine], columns: Sequence[str], title: str, log: Collection[str] | None = None
) -> Markup:
    """One vertical axis a column, one line a trial; the better the trial, the stronger its line.

    log: columns that are logarithmic; None takes those of positive numbers that span more than a factor of 20. Texts become evenly
    spaced names.
    """
    width, height, top, bottom, side = max(860, 150 * len(columns)), 340, 46, 16, 80
    gap = (width - 2 * side) / max(1, len(columns) - 1)
    scales = {
        column: _column_scale([line.values.get(column) for line in lines], None if log is None else column in log)
        for column in columns
    }
    body, labels = [], []
    for index, column in enumerate(columns):
        x = side + index * gap
        body.append(svg.line(x, top, x, height - bottom, "axis"))
        # Every second name a line higher: long setting names would run into each other.
        labels.append(svg.text(x, 12 if index % 2 == 0 else 28, column, "name", "middle"))
        for label, position in scales[column].labels:
            y = height - bottom - position * (height - bottom - top)
            body.append(svg.line(x - 4, y, x, y, "axis"))
            labels.append(svg.text(x - 8, y + 4, label, "tick halo", "end"))
    for line in sorted(lines, key=lambda item: (item.best, -(2.0 if item.rank is None else item.rank))):
        places = [scales[column].position(line.values.get(column)) for column in columns]
        points = [
            (side + index * gap, height - bottom - place * (height - bottom - top))
            for index, place in enumerate(places)
            if place is not None
        ]
        strength = 0.15 if line.rank is None else _strength(line.rank, len(lines))
        style = "best" if line.best else ("s5" if line.rank is None else "s0")
        body.append(
            Markup('<path class="line trial {}" style="opacity:{}" d="{}"><title>{}</title></path>').format(
                style, 1 if line.best else svg.short(strength, 2), svg.path(points), line.name
            )
        )
    return svg.drawing(width, height, title, f"{len(lines)} trials over {', '.join(columns)}.", body + labels, "wide")


def _strength(rank: float, num_lines: int) -> float:
    """Opacity. Of many lines only the best are strong, because all together would be one dark patch."""
    return 0.9 - 0.65 * rank if num_lines <= _MANY else 0.06 + 0.84 * math.exp(-rank * num_lines / _NUM_STRONG)


@dataclass(frozen=True)
class _ColumnScale:
    labels: list[tuple[str, float]]
    axis: Axis | None
    names: dict[str, float]

    def position(self, value: Value) -> float | None:
        if self.axis is None:
            return self.names.get(str(value))
        return self.axis.position(float(value)) if _is_number(value) else None


def _column_scale(values: Sequence[Value], log: bool | None) -> _ColumnScale:
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        numbers = [float(v) for v in known if _is_number(v)]
        axis = linear_axis(numbers, 4)
        if numbers and min(numbers) > 0:
            if log:
                axis = close_log_axis(numbers)
            elif log is None and max(numbers) / min(numbers) > 20:
                axis = log_axis(numbers)
        return _ColumnScale(
            [(label, axis.position(tick)) for label, tick in zip(axis.labels(), axis.ticks, strict=True)], axis, {}
        )
    names = sorted({str(v) for v in known})
    positions = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
    return _ColumnScale(list(positions.items()), None, positions)


def _is_number(value: Value) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
