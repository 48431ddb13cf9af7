"""Line charts and dot charts of the report, as inline SVG (see svg.py)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.drawing import svg
from pipeline.drawing.curves import moving_average, thin
from pipeline.drawing.svg import Axis, Points, linear_axis, number
from pipeline.hands import FINGER_COLOURS, WRIST_COLOUR

_MARGIN_TOP, _MARGIN_RIGHT, _MARGIN_BOTTOM, _MARGIN_LEFT = 12, 14, 34, 46


def line_chart(
    series: Mapping[str, Points],
    title: str,
    x_label: str = "step",
    y_label: str = "",
    *,
    x_axis: Axis | None = None,
    y_axis: Axis | None = None,
    width: int = 380,
    height: int = 230,
    dots: bool = False,
    ranked: bool = False,
    smooth: bool = False,
    level: tuple[str, float] | None = None,
    spread: Mapping[str, Sequence[tuple[float, float, float]]] = {},
    references: Mapping[str, Points] = {},
    styles: Mapping[str, str] = {},
) -> Markup:
    """Lines over a common axis.

    series: {name: [(x, y), ...]}; at least one of them has a point. dots: mark every point. ranked: the series are
    many, the best first; it alone is strong. smooth: curves of many points get their moving average, the raw curve faint
    behind. level: name of a value to compare with, and the value: a dashed line across. spread: {name: [(x, lowest, highest)]},
    upright bars of a series. references: lines to compare with, thin, with their names on them; they need an axis that holds
    them. styles: classes of a series' line in place of the colours in turn.
    """
    points = [p for line in series.values() for p in line if all(map(math.isfinite, p))]
    x_axis = x_axis or linear_axis(
        [x for x, _ in points], 4, low=min(x for x, _ in points), high=max(x for x, _ in points)
    )
    y_axis = y_axis or linear_axis([*(y for _, y in points), *([level[1]] if level else [])], 4)
    frame = Frame(width, height, x_axis, y_axis)
    body = [frame.grid(x_label, y_label)]
    if level:
        body.append(frame.level(*level))
    for name, line in references.items():
        body.append(
            Markup('<path class="line reference" data-name="{}" d="{}"><title>{}</title></path>').format(
                name, frame.path(line), name
            )
        )
        body.append(svg.text(frame.x(line[-1][0]), frame.y(line[-1][1]) - 4, name, "tick halo", "end"))
    in_turn = {name: _rank_style(i) if ranked else f"s{i % 6} d{i % 6}" for i, name in enumerate(series)}
    styles = {**in_turn, **styles}
    # The last line drawn lies on top: the best of a ranking, the first of the others.
    for name, line in reversed(list(series.items())):
        finite = [p for p in line if all(map(math.isfinite, p))]
        drawn = moving_average(finite) if smooth else finite
        if drawn is not finite:
            body.append(Markup('<path class="line raw {}" d="{}"/>').format(styles[name], frame.path(thin(finite))))
        body.append(
            Markup('<path class="line {}" data-name="{}" d="{}"><title>{}</title></path>').format(
                styles[name], name, frame.path(thin(drawn)), name
            )
        )
        body.extend(
            svg.line(frame.x(x), frame.y(low), frame.x(x), frame.y(high), f"line {styles[name]} spread")
            for x, low, high in spread.get(name, ())
        )
        if dots or len(finite) == 1:
            body.extend(
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(
                    styles[name], svg.short(frame.x(x)), svg.short(frame.y(y))
                )
                for x, y in finite
            )
    description = "; ".join(
        f"{name}: from {number(line[0][1])} to {number(line[-1][1])} over {number(len(line))} points"
        for name, line in list(series.items())[:8]
        if line
    )
    if level:
        description += f"; {level[0]}: {number(level[1])}"
    return frame.drawing(title, description, body, x_label)


def _rank_style(place: int) -> str:
    return "best" if place == 0 else "other"


def legend(names: Sequence[str], values: Sequence[str] = ()) -> Markup:
    """The key of a line chart: colour and dash pattern of each series. values: texts to set beside the names.

    A series without a name is left out; those after it keep their colours.
    """
    items = Markup("").join(
        Markup(
            '<li><svg class="key" viewBox="0 0 26 8" width="26" height="8" aria-hidden="true">'
            '<path class="line s{0} d{0}" d="M1 4H25"/></svg>{1}{2}</li>'
        ).format(index % 6, name, Markup(" <b>{}</b>").format(values[index]) if values else "")
        for index, name in enumerate(names)
        if name
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def finger_dots(rows: Mapping[str, Mapping[str, float]], title: str, unit: str = "mm") -> Markup:
    """One line a finger with a dot for each model: where models differ. rows: {finger: {model: value}}."""
    values = [value for row in rows.values() for value in row.values()]
    # From zero: the distance between the dots then is in proportion to the error itself.
    axis = linear_axis([0.0, *values], 5, low=0.0)
    width, line_height, left, right, top = 480, 34, 64, 16, 8
    height = top + line_height * len(rows) + 30

    def x(value: float) -> float:
        return left + axis.position(value) * (width - left - right)

    body = []
    for tick, label in zip(axis.ticks, axis.labels(), strict=True):
        body.append(svg.line(x(tick), top, x(tick), height - 30, "grid"))
        body.append(svg.text(x(tick), height - 14, label, "tick", "middle"))
    body.append(svg.text(width - right, height - 1, unit, "tick", "end"))
    for index, (finger, row) in enumerate(rows.items()):
        y = top + line_height * (index + 0.5)
        colour = "rgb({},{},{})".format(*FINGER_COLOURS.get(finger, WRIST_COLOUR))
        body.append(Markup('<circle cx="6" cy="{}" r="4.5" fill="{}"/>').format(svg.short(y), colour))
        body.append(svg.text(16, y + 4, finger, "name", "start"))
        if row:
            body.append(svg.line(x(min(row.values())), y, x(max(row.values())), y, "span"))
        for number_, (model, value) in enumerate(row.items()):
            body.append(
                Markup('<g class="s{}">{}<title>{}: {} {}</title></g>').format(
                    number_ % 6, _marker(number_, x(value), y), model, number(value), unit
                )
            )
    description = "; ".join(f"{f}: " + ", ".join(f"{m} {number(v)}" for m, v in row.items()) for f, row in rows.items())
    return svg.drawing(width, height, title, description, body)


def marker_legend(names: Sequence[str]) -> Markup:
    """The key of `finger_dots`: colour and shape of each model."""
    items = Markup("").join(
        Markup(
            '<li><svg class="key" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">'
            '<g class="s{}">{}</g></svg>{}</li>'
        ).format(index % 6, _marker(index, 7, 7), name)
        for index, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def difference_chart(rows: Mapping[str, tuple[float, tuple[float, float] | None]]) -> Markup:
    """Rulers of differences in percent on one axis: a dot, its interval, and the zero to stay clear of.

    rows: {what is compared: (percent, interval)}, one at least.
    """
    width, top, line_height = 480, 14, 44
    bottom = top + line_height * len(rows)
    values = [v for percent, interval in rows.values() for v in (percent, *(interval or ()))]
    reach = max(2.0, *map(abs, values)) * 1.2
    axis = linear_axis([-reach, reach], 6)
    end = max(-axis.low, axis.high)
    axis = linear_axis([], 6, -end, end)

    def x(value: float) -> float:
        return 24 + axis.position(value) * (width - 48)

    body = [
        Markup('<rect class="better" x="24" y="{}" width="{}" height="{}"/>').format(
            top, svg.short(x(0) - 24), bottom - top
        ),
        *(svg.line(x(tick), top, x(tick), bottom, "zero" if abs(tick) < 1e-9 else "grid") for tick in axis.ticks),
        *(
            svg.text(
                x(tick), bottom + 15, f"{tick:+g}".replace("-", "−") if abs(tick) > 1e-9 else "0 %", "tick", "middle"
            )
            for tick in axis.ticks
        ),
        svg.text(24, 9, "← smaller error", "tick", "start"),
        svg.text(width - 24, 9, "larger error →", "tick", "end"),
    ]
    descriptions = []
    for index, (name, (percent, interval)) in enumerate(rows.items()):
        y = top + line_height * index + 30
        body.append(svg.text(28, y - 15, name, "name", "start"))
        descriptions.append(f"{name}: {number(percent)} percent")
        if interval:
            low, high = x(interval[0]), x(interval[1])
            body.append(Markup('<path class="interval" d="M{} {}H{}"/>').format(svg.short(low), y, svg.short(high)))
            descriptions[-1] += f", 95 percent interval {number(interval[0])} to {number(interval[1])}"
        body.append(Markup('<circle class="point" cx="{}" cy="{}" r="7"/>').format(svg.short(x(percent)), y))
    return svg.drawing(width, bottom + 26, "Differences in error", "; ".join(descriptions), body, "ruler")


def interval_chart(rows: Mapping[str, tuple[float, tuple[float, float] | None, float | None]], unit: str) -> Markup:
    """Rulers of an error on one axis: a dot, its interval, and an upright stroke where the constant is.

    rows: {what has the error: (value, interval, the constant's)}, one at least.
    """
    width, top, line_height = 480, 18, 44
    bottom = top + line_height * len(rows)
    values = [
        v for value, ends, level in rows.values() for v in (value, *(ends or ()), *([] if level is None else [level]))
    ]
    room = 0.05 * (max(values) - min(values))
    axis = linear_axis([min(values) - room, max(values) + room], 6)

    def x(value: float) -> float:
        return 24 + axis.position(value) * (width - 48)

    body = [svg.line(x(tick), top, x(tick), bottom, "grid") for tick in axis.ticks]
    body += [
        svg.text(x(tick), bottom + 15, label, "tick", "middle")
        for tick, label in zip(axis.ticks, axis.labels(), strict=True)
    ]
    body += [
        svg.text(24, 10, "← smaller error", "tick", "start"),
        svg.text(width - 24, 10, f"{unit}; stroke: one fixed hand", "tick", "end"),
    ]
    descriptions = []
    for index, (name, (value, interval, level)) in enumerate(rows.items()):
        y = top + line_height * index + 30
        body.append(svg.text(28, y - 15, name, "name", "start"))
        descriptions.append(f"{name}: {number(value)} {unit}")
        if interval:
            low, high = x(interval[0]), x(interval[1])
            body.append(Markup('<path class="interval" d="M{} {}H{}"/>').format(svg.short(low), y, svg.short(high)))
            descriptions[-1] += f", 95 percent interval {number(interval[0])} to {number(interval[1])}"
        if level is not None:
            body.append(svg.line(x(level), y - 11, x(level), y + 11, "zero"))
            descriptions[-1] += f", one fixed hand {number(level)}"
        body.append(Markup('<circle class="point" cx="{}" cy="{}" r="7"/>').format(svg.short(x(value)), y))
    return svg.drawing(width, bottom + 26, "Errors", "; ".join(descriptions), body, "ruler")


@dataclass(frozen=True)
class Frame:
    """The area that a chart is drawn in: where its values lie in the drawing, its axes, and the drawing itself."""

    width: int
    height: int
    x_axis: Axis
    y_axis: Axis

    def x(self, value: float) -> float:
        return _MARGIN_LEFT + self.x_axis.position(value) * (self.width - _MARGIN_LEFT - _MARGIN_RIGHT)

    def y(self, value: float) -> float:
        return self.height - _MARGIN_BOTTOM - self.y_axis.position(value) * (self.height - _MARGIN_TOP - _MARGIN_BOTTOM)

    def path(self, points: Points) -> str:
        return svg.path([(self.x(x), self.y(y)) for x, y in points])

    def level(self, name: str, value: float) -> Markup:
        """A dashed line across at a value to compare with, and its name where it has one."""
        y, right = self.y(value), self.width - _MARGIN_RIGHT
        text = svg.text(right, y - 5, f"{name}: {number(value)}", "name halo", "end") if name else Markup()
        return svg.line(_MARGIN_LEFT, y, right, y, "level") + text

    def grid(self, x_label: str, y_label: str) -> Markup:
        """The axes with their ticks, the lines behind the values, and what the axes are called."""
        left, right = _MARGIN_LEFT, self.width - _MARGIN_RIGHT
        base = self.height - _MARGIN_BOTTOM
        parts = []
        for tick, label in zip(self.y_axis.ticks, self.y_axis.labels(), strict=True):
            parts.append(svg.line(left, self.y(tick), right, self.y(tick), "grid"))
            parts.append(svg.text(left - 7, self.y(tick) + 4, label, "tick", "end"))
        for tick, label in zip(self.x_axis.ticks, self.x_axis.labels(), strict=True):
            parts.append(svg.line(self.x(tick), base, self.x(tick), base + 4, "axis"))
            parts.append(svg.text(self.x(tick), base + 17, label, "tick", "middle"))
        parts.append(svg.line(left, base, right, base, "axis"))
        parts.append(svg.text(right, self.height - 3, x_label, "tick label", "end"))
        if y_label:
            parts.append(svg.text(left, self.height - 3, y_label, "tick label", "start"))
        return Markup("").join(parts)

    def drawing(
        self, title: str, description: str, body: Sequence[Markup], x_label: str, style: str = "plot"
    ) -> Markup:
        """The page's script reads values back from the drawing through these ranges."""
        left, top, right, bottom = _MARGIN_LEFT, _MARGIN_TOP, self.width - _MARGIN_RIGHT, self.height - _MARGIN_BOTTOM
        ends = (self.x_axis.low, self.x_axis.high, self.y_axis.low, self.y_axis.high)
        data = Markup(' data-x="{}" data-plot="{}" data-range="{}" data-log="{}"').format(
            x_label,
            f"{left} {top} {right} {bottom}",
            " ".join(f"{end:.8g}" for end in ends),
            "x" * self.x_axis.log + "y" * self.y_axis.log,
        )
        return svg.drawing(self.width, self.height, title, description, body, style, data)


def _marker(index: int, x: float, y: float) -> Markup:
    """Shape as well as colour tells models apart."""
    shapes = (
        f'<circle class="dot" cx="{svg.short(x)}" cy="{svg.short(y)}" r="6"/>',
        f'<path class="dot hollow" d="M{svg.short(x)} {svg.short(y - 6)}l6 6-6 6-6-6z"/>',
        f'<path class="dot" d="M{svg.short(x - 5)} {svg.short(y - 5)}h10v10h-10z"/>',
        f'<path class="dot hollow" d="M{svg.short(x)} {svg.short(y - 6)}l6 11h-12z"/>',
    )
    return Markup(shapes[index % len(shapes)])  # noqa: S704 - made of numbers only
