"""The rows that measurements give, and the Markdown table made of them."""

from collections.abc import Sequence
from typing import TypedDict


class Row(TypedDict):
    """One measured value."""

    what: str
    value: float | None
    """None where it could not be measured; `against` then says why."""
    unit: str
    against: str
    """What the value is compared with, or a remark."""
    ratio: float | None
    """value over what it is compared with."""
    target: str
    """What the ratio (or the value) should be, such as ">= 6"; empty for values that are only reported."""


def row(
    what: str, value: float | None, unit: str, against: str = "", ratio: float | None = None, target: str = ""
) -> Row:
    """A row; what is left out stays empty in the table."""
    return Row(what=what, value=value, unit=unit, against=against, ratio=ratio, target=target)


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = ["| | measured | | against | ratio | target |", "| --- | ---: | --- | --- | ---: | --- |"]
    for item in rows:
        ratio = "" if item["ratio"] is None else f"{item['ratio']:.2f}"
        cells = [item["what"], _figure(item["value"]), item["unit"], item["against"], ratio, item["target"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    """Three significant digits, more for large values; "n/a" for none."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
