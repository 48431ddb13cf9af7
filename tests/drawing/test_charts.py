"""Rulers of errors: what lies where, and what those are told who do not see them."""

import re

from pipeline.drawing.charts import interval_chart


def test_an_error_lies_within_its_interval_and_all_on_one_axis() -> None:
    rows = {"A": (12.0, (11.0, 14.0), 20.0), "B": (16.0, None, None)}
    chart = str(interval_chart(rows, "mm"))
    places = [float(x) for x in re.findall(r'class="point" cx="([\d.]+)"', chart)]
    (low, high) = map(float, re.findall(r'class="interval" d="M([\d.]+) [\d.]+H([\d.]+)"', chart)[0])
    (stroke,) = (float(x) for x in re.findall(r'class="zero" d="M([\d.]+)', chart))
    assert low < places[0] < high
    # 1 mm is as long everywhere.
    assert abs((places[1] - places[0]) / 4 - (high - low) / 3) < 0.1
    assert abs((stroke - places[0]) / 8 - (high - low) / 3) < 0.1
    assert "A: 12 mm, 95 percent interval 11 to 14, one fixed hand 20; B: 16 mm" in chart


def test_one_error_alone_has_an_axis_too() -> None:
    assert 'class="point"' in interval_chart({"<b>": (12.0, None, None)}, "mm")
    assert "<b>" not in interval_chart({"<b>": (12.0, None, None)}, "mm")
