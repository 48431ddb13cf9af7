"""The charts of a campaign."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.campaign.scores import Score, best_so_far, ranked
from pipeline.drawing.charts import line_chart
from pipeline.drawing.parallel import ParallelLine, Value, parallel_coordinates
from pipeline.drawing.scatter import Dot, scatter_chart
from pipeline.drawing.svg import Axis, Points, close_log_axis, linear_axis, number
from pipeline.search.records import COMPLETED, FAILED, RUNNING, STOPPED, TrialRecord
from pipeline.search.space import Dimension, Space

CONSTANT = "one fixed hand"
FRONT_STYLES = {"on the front": "best", "another is better": "s5 hollow"}
BEST, BEST_SO_FAR = "best", "best so far"
KINDS = {COMPLETED: "trained to the end", RUNNING: "not over", FAILED: "failed", STOPPED: "stopped early"}
"""What trials of each state are called; the first lie on top."""
STYLES = {
    BEST: "best",
    KINDS[COMPLETED]: "s0",
    KINDS[RUNNING]: "s2 hollow",
    KINDS[FAILED]: "s3",
    KINDS[STOPPED]: "s5 hollow",
}
_WIDE, _NARROW = (1030, 320), (340, 260)
_SLICE = (340, 220)
_SLICE_SIGNS = 42  # that stand beside each other on its axis
_MANY = 60  # trials; the curves of more are thin
_JITTER = 0.5  # of the room that a choice has
_GOLDEN = 0.618034


def kind_of(record: TrialRecord) -> str:
    """What became of a trial, in words."""
    return KINDS.get(record.state, KINDS[RUNNING])


def both(draw: Callable[[int, int], Markup]) -> Markup:
    """A chart for wide pages and one for phones, of which the page shows one, so that its text fits. draw: of width and height."""
    return Markup('<div class="on-wide">{}</div><div class="on-narrow">{}</div>').format(draw(*_WIDE), draw(*_NARROW))


def score_axis(score: Score, values: Sequence[float]) -> Axis:
    """An axis for scores, one at least, and the constant. Few very bad ones do not press the others together: they lie beyond its end."""
    ordered = sorted(values)
    low, most = ordered[0], ordered[round(0.9 * (len(ordered) - 1))]
    high = min(ordered[-1], most + (most - low)) if most > low else ordered[-1]
    level = [] if score.constant is None else [score.constant]
    return linear_axis([low, high, *level], 4)


def num_beyond(axis: Axis, values: Sequence[float]) -> int:
    """How many scores lie above the axis."""
    return sum(value > axis.high for value in values)


def history_chart(score: Score, records: Sequence[TrialRecord], axis: Axis) -> Markup:
    """Each trial's score in their order, and the best so far. Some of them have a score."""
    last = max(record.number for record in records)
    best = best_so_far(score, records)
    steps = _steps([*best, (last, best[-1][1])])
    places = linear_axis([-0.5, max(last + 0.5, 4)], 6, low=-0.5, high=max(last + 0.5, 4))
    whole = Axis(places.low, places.high, [tick for tick in places.ticks if tick == round(tick)])
    kinds = _kinds(score, records, ranked(score, records)[0], lambda record: record.number)
    return both(
        lambda width, height: scatter_chart(
            kinds,
            "Every trial in order",
            "trial",
            score.title,
            x_axis=whole,
            y_axis=axis,
            styles={**STYLES, BEST_SO_FAR: "s1"},
            width=width,
            height=height,
            lines={BEST_SO_FAR: steps},
            level=_level(score),
        )
    )


def curves_chart(score: Score, records: Sequence[TrialRecord]) -> Markup | None:
    """Every trial over its epochs; None where none was validated twice."""
    order = [*KINDS.values()]
    some = [record for record in records if score.curve(record)]
    some.sort(key=lambda record: (order.index(kind_of(record)), record.number))
    best = ranked(score, records)[:1]
    series: dict[str, Points] = {record.name: score.curve(record) for record in [*best, *some]}
    if not any(len(points) > 1 for points in series.values()):
        return None
    axis = score_axis(score, [value for points in series.values() for _, value in points])
    series = {name: [(x, min(y, axis.high)) for x, y in points] for name, points in series.items()}
    number_of = "some" if len(some) <= _MANY else "many"
    styles = {record.name: f"{STYLES[kind_of(record)].split()[0]} {number_of}" for record in some}
    styles |= {record.name: "best" for record in best}
    return both(
        lambda width, height: line_chart(
            series,
            "Every trial over its epochs",
            "epoch",
            score.title,
            y_axis=axis,
            width=width,
            height=height,
            level=_level(score),
            styles=styles,
        )
    )


def slice_chart(
    name: str, dimension: Dimension | None, score: Score, records: Sequence[TrialRecord], axis: Axis
) -> Markup:
    """Scores over the values of one setting. records: with a score; one at least has the setting. dimension: None where this version
    does not know it."""
    having = [record for record in records if name in record.values]
    values = [record.values[name] for record in having]
    is_scale = all(map(_is_number, values)) if dimension is None else dimension.limits is not None
    x_axis, place = _scale(dimension, values) if is_scale else _choices(dimension, values)
    return scatter_chart(
        _kinds(
            score,
            having,
            ranked(score, records)[0],
            lambda record: place(record.values[name], record.number),
            lambda record: f"{record.name}, {value_text(record.values[name])}",
        ),
        f"{score.label} over {name}",
        "",
        "",
        x_axis=x_axis,
        y_axis=axis,
        styles=STYLES,
        width=_SLICE[0],
        height=_SLICE[1],
        level=_level(score),
    )


_Place = Callable[[Any, int], float]
"""Of a value, and the number of its trial, on an axis."""


def _scale(dimension: Dimension | None, values: Sequence[Any]) -> tuple[Axis, _Place]:
    """An axis of numbers as the space draws them."""
    known = [*((dimension and dimension.limits) or ()), *values]
    if dimension is not None and dimension.is_log:
        return close_log_axis(known), lambda value, number: float(value)
    return linear_axis(known, 4, low=min(known), high=max(known)), lambda value, number: float(value)


def _choices(dimension: Dimension | None, values: Sequence[Any]) -> tuple[Axis, _Place]:
    """An axis with a place for each choice; trials of the same one stand beside each other."""
    choices = list(dict.fromkeys(map(_json, [*((dimension and dimension.choice) or ()), *values])))
    room = max(3, round(_SLICE_SIGNS / len(choices)))
    texts = [shortened(value_text(json.loads(choice)), room) for choice in choices]
    axis = Axis(-0.5, len(choices) - 0.5, [float(i) for i in range(len(choices))], names=texts)
    return axis, lambda value, number: choices.index(_json(value)) + _JITTER * (number * _GOLDEN % 1 - 0.5)


def parallel_chart(
    score: Score, space: Space, records: Sequence[TrialRecord], columns: Sequence[str], axis: Axis
) -> Markup:
    """A line for each trial through its settings to its score; scores beyond the axis end at its end."""
    order = ranked(score, records)
    places = {record.number: place / max(1, len(order) - 1) for place, record in enumerate(order)}
    lines = [
        ParallelLine(
            name=f"{record.name}: {score.text(score.of(record))}",
            values={
                **{name: _plain(record.values[name]) for name in columns if name in record.values},
                score.title: None if (value := score.of(record)) is None else min(value, axis.high),
            },
            rank=places.get(record.number),
            best=places.get(record.number) == 0,
        )
        for record in records
    ]
    log = [name for name, dimension in space.items() if dimension.is_log]
    return parallel_coordinates(lines, [*columns, score.title], "Settings and score of all trials", log)


def pareto_chart(
    points: Mapping[str, tuple[float, float]],
    on_front: Sequence[str],
    names: tuple[str, str],
    is_line: bool,
    level: tuple[str, float] | None,
) -> Markup:
    """Trials over two of their objectives. points: {trial: (upright, across)}. names: of both. is_line: the front is a line in this plane."""
    kinds = {
        kind: [
            Dot(x, y, f"{name}: {number(y)}, {number(x)}")
            for name, (y, x) in points.items()
            if (name in on_front) == is_on
        ]
        for kind, is_on in zip(FRONT_STYLES, (True, False), strict=True)
    }
    steps = _steps(sorted((x, y) for name, (y, x) in points.items() if name in on_front))
    y_values = [y for y, _ in points.values()] + ([level[1]] if level else [])
    x_axis, y_axis = linear_axis([x for _, x in points.values()], 4), linear_axis(y_values, 4)
    return both(
        lambda width, height: scatter_chart(
            kinds,
            f"{names[0]} and {names[1]}",
            names[1],
            names[0],
            x_axis=x_axis,
            y_axis=y_axis,
            styles={**FRONT_STYLES, "front": "s1"},
            width=width,
            height=height,
            lines={"front": steps} if is_line else {},
            level=level,
        )
    )


def value_text(value: Any) -> str:
    """A setting's value for people."""
    if _is_number(value):
        return number(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else value if isinstance(value, str) else _json(value)


def shortened(text: str, length: int) -> str:
    """The text, cut off where it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _kinds(
    score: Score,
    records: Sequence[TrialRecord],
    best: TrialRecord,
    place: Callable[[TrialRecord], float],
    say: Callable[[TrialRecord], str] = lambda record: record.name,
) -> dict[str, list[Dot]]:
    """Dots by what became of the trials, the best one's for itself."""
    dots = {
        record.number: Dot(place(record), value, f"{say(record)}: {score.text(value)}")
        for record in records
        if (value := score.of(record)) is not None
    }
    kinds = {BEST: [dots[best.number]] if best.number in dots else []}
    for name in KINDS.values():
        kinds[name] = [
            dots[record.number]
            for record in records
            if kind_of(record) == name and record.number in dots and record is not best
        ]
    return {name: some for name, some in kinds.items() if some}


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A line through the points that goes across first, then down."""
    steps: list[tuple[float, float]] = []
    for x, y in points:
        steps += [(x, steps[-1][1]), (x, y)] if steps else [(x, y)]
    return steps


def _level(score: Score) -> tuple[str, float] | None:
    return None if score.constant is None else (CONSTANT, score.constant)


def _plain(value: Any) -> Value:
    return float(value) if _is_number(value) else shortened(value_text(value), 16)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(value: Any) -> str:
    return json.dumps(value)
