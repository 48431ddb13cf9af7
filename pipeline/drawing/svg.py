"""The strokes of the report's charts: axes, lines, texts and figures as inline SVG.

Everything returns safe markup. Colours come from the page's stylesheet by class (`s0`, `s1`, ...), text inherits the
page's ink, and every chart carries a description for screen readers. Coordinates are rounded to tenths of a pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

_LOG_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8))
_MIN_LOG_TICKS = 4
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """One axis of a chart: its range, its ticks, and how a value becomes a position between 0 and 1."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False
    names: list[str] | None = None
    """What stands at the ticks; none: their numbers."""

    def labels(self) -> list[str]:
        """What stands at the ticks: all with the same decimals; powers of ten where the axis is logarithmic."""
        if self.names is not None:
            return self.names
        if self.log:
            return [f"10{str(round(math.log10(tick))).translate(_SUPERSCRIPTS)}" for tick in self.ticks]
        same = (d for d in range(4) if all(math.isclose(round(t, d), t, abs_tol=1e-9) for t in self.ticks))
        decimals = next(same, None)
        if decimals is None:
            return [number(tick) for tick in self.ticks]
        return [f"{tick + 0.0:,.{decimals}f}".replace("-", "−") for tick in self.ticks]

    def position(self, value: float) -> float:
        """Where the value lies between the axis' ends, 0 to 1."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def linear_axis(
    values: Sequence[float], num_ticks: int = 5, low: float | None = None, high: float | None = None
) -> Axis:
    """An axis that holds the values, with ticks at 1, 2, 2.5 or 5 times a power of ten. low, high: fixed ends."""
    start = min(values, default=0.0) if low is None else low
    end = max(values, default=1.0) if high is None else high
    if end <= start:
        room = abs(start) * 0.1 or 1.0
        start, end = start - room, end + room
    step = _nice_step((end - start) / num_ticks)
    first = math.floor(start / step + 1e-9) * step if low is None else start
    last = math.ceil(end / step - 1e-9) * step if high is None else end
    count = math.floor((last - math.ceil(first / step - 1e-9) * step) / step + 1e-9)
    begin = math.ceil(first / step - 1e-9)
    return Axis(first, last, [(begin + i) * step for i in range(count + 1)])


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis; all values must be positive."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Axis(10.0**low, 10.0 ** max(high, low + 1), [10.0**e for e in range(low, max(high, low + 1) + 1)], log=True)


def close_log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis that ends just beyond the values, with round numbers as ticks; all values must be positive."""
    room = 1.04
    low, high = min(values) / room, max(values) * room
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _LOG_STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= _MIN_LOG_TICKS:
            break
    else:
        ticks = [tick for tick in linear_axis([low, high], 4).ticks if low <= tick <= high]
    return Axis(low, high, ticks, log=True, names=[number(tick) for tick in ticks])


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: about `digits` significant digits, thousands set apart, a real minus sign."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    if size >= 10**digits or (float(value).is_integer() and size < 1e6):
        text = f"{value:,.0f}"
    elif size == 0 or size >= 1e-3:
        decimals = max(0, digits - 1 - math.floor(math.log10(size))) if size else 0
        text = f"{value:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def drawing(
    width: int,
    height: int,
    title: str,
    description: str,
    body: Sequence[Markup],
    style: str = "",
    data: str = "",
) -> Markup:
    return Markup('<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}"{}>{}</svg>').format(
        style, width, height, f"{title}. {description}", data, Markup("").join(body)
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(style, short(x1), short(y1), short(x2), short(y2))


def text(x: float, y: float, text: str, style: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        style, short(x), short(y), anchor, text
    )


def path(points: Points) -> str:
    return "M" + "L".join(f"{short(x)} {short(y)}" for x, y in points) if points else ""


def _nice_step(rough: float) -> float:
    """The 1, 2, 2.5 or 5 times a power of ten that is nearest to the rough step."""
    power = 10.0 ** math.floor(math.log10(rough))
    return min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / rough)))


def short(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"
