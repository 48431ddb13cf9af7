"""Dots lie where their values are."""

import re

import pytest

from pipeline.drawing.scatter import Dot, dot_legend, scatter_chart
from pipeline.drawing.svg import Axis, linear_axis


def chart(**changes) -> str:
    options = {
        "x_axis": Axis(0.001, 1.0, [0.001, 1.0], log=True),
        "y_axis": linear_axis([], 4, 10.0, 20.0),
        "styles": {"best": "best", "others": "s5 hollow", "so far": "s1"},
        **changes,
    }
    kinds = {"best": [Dot(0.01, 11.0, "a <b>")], "others": [Dot(0.1, 15.0, "c"), Dot(1.0, 99.0, "far away")]}
    return str(scatter_chart(kinds, "Scores", "rate", "mm", **options))


def frame_of(svg: str) -> list[float]:
    found = re.search(r'data-plot="([^"]*)"', svg)
    assert found is not None
    return [float(each) for each in found[1].split()]


def test_dots_lie_where_their_values_are():
    svg = chart()
    left, top, right, bottom = frame_of(svg)
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    # The best is drawn last, over the others.
    assert dots == [
        pytest.approx((left + 2 / 3 * (right - left), bottom - 0.5 * (bottom - top)), abs=0.1),
        pytest.approx((left + 1 / 3 * (right - left), bottom - 0.1 * (bottom - top)), abs=0.1),
    ]
    assert 'data-log="x"' in svg


def test_what_lies_beyond_the_axis_stands_at_its_end():
    svg = chart()
    _, top, right, _ = frame_of(svg)
    assert f'<path class="dot" d="M{right:g} {top:g}l4 7h-8z"><title>far away</title>' in svg


def test_lines_levels_and_names():
    svg = chart(lines={"so far": [(0.001, 20.0), (1.0, 10.0)]}, level=("one fixed hand", 14.6))
    left, top, right, bottom = frame_of(svg)
    assert f'data-name="so far" d="M{left:g} {top:g}L{right:g} {bottom:g}"' in svg
    level = re.search(r'class="level" d="M[\d.]+ ([\d.]+)L', svg)
    assert level is not None
    assert float(level[1]) == pytest.approx(bottom - 0.46 * (bottom - top), abs=0.1)
    assert "a &lt;b&gt;" in svg
    assert "<b>" not in svg
    assert "one fixed hand: 14.6" in svg  # for those who do not see it
    key = dot_legend({"best": "best", "<i>": "s0"}, ("one fixed hand", 14.6))
    assert key.count("<li>") == 3
    assert "&lt;i&gt;" in key
    assert "<b>14.6</b>" in key
