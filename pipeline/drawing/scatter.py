"""Scatter charts: many results, each a dot of its kind, beside lines and a level to compare them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.drawing import svg
from pipeline.drawing.charts import Frame
from pipeline.drawing.svg import Axis, Points, number

_RADIUS = 3.4


@dataclass(frozen=True)
class Dot:
    """One result."""

    x: float
    y: float
    name: str
    """What is said of it under the pointer."""


def scatter_chart(
    kinds: Mapping[str, Sequence[Dot]],
    title: str,
    x_label: str,
    y_label: str,
    *,
    x_axis: Axis,
    y_axis: Axis,
    styles: Mapping[str, str],
    width: int = 380,
    height: int = 230,
    lines: Mapping[str, Points] = {},
    level: tuple[str, float] | None = None,
) -> Markup:
    """Dots over two axes.

    kinds: {name: its dots}; the first lies on top. styles: {name: classes of its dots or its line}, such as "s0", "s5 hollow",
    "best". A dot above the upper end of `y_axis` is a triangle at that end. lines: {name: [(x, y), ...]}, below the dots. level:
    name of a value to compare with, and the value: a dashed line across, which `dot_legend` names.
    """
    frame = Frame(width, height, x_axis, y_axis)
    body = [frame.grid(x_label, y_label)]
    for name, line in lines.items():
        body.append(
            Markup('<path class="line {}" data-name="{}" d="{}"><title>{}</title></path>').format(
                styles[name], name, frame.path(line), name
            )
        )
    for kind, dots in reversed(list(kinds.items())):
        drawn = Markup("").join(_dot(frame, dot, is_large=styles[kind] == "best") for dot in dots)
        body.append(Markup('<g class="{}">{}</g>').format(styles[kind], drawn))
    if level:
        body.append(frame.level("", level[1]))
    description = "; ".join(f"{kind}: {len(dots)}" for kind, dots in kinds.items())
    if level:
        description += f"; {level[0]}: {number(level[1])}"
    return frame.drawing(title, description, body, x_label, "plot scatter")


def _dot(frame: Frame, dot: Dot, is_large: bool) -> Markup:
    x, y = frame.x(dot.x), frame.y(min(dot.y, frame.y_axis.high))
    if dot.y > frame.y_axis.high:
        shape = Markup('<path class="dot" d="M{} {}l4 7h-8z">').format(svg.short(x), svg.short(y))
        return shape + Markup("<title>{}</title></path>").format(dot.name)
    return Markup('<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
        svg.short(x), svg.short(y), _RADIUS + 2 * is_large, dot.name
    )


def dot_legend(styles: Mapping[str, str], level: tuple[str, float] | None = None) -> Markup:
    """The key of a scatter chart. styles: {name: classes of its dots}."""
    items = Markup("").join(
        Markup(
            '<li><svg class="key" viewBox="0 0 10 10" width="10" height="10" aria-hidden="true">'
            '<g class="{}"><circle class="dot" cx="5" cy="5" r="4"/></g></svg>{}</li>'
        ).format(style, name)
        for name, style in styles.items()
    )
    if level:
        items += Markup(
            '<li><svg class="key chart" viewBox="0 0 26 8" width="26" height="8" aria-hidden="true">'
            '<path class="level" d="M1 4H25"/></svg>{} <b>{}</b></li>'
        ).format(level[0], number(level[1]))
    return Markup('<ul class="legend">{}</ul>').format(items)
