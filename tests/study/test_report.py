"""Results come back from their file, and the report says what they hold, from that file alone."""

import re
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.yardsticks import CONSTANT, RANDOM
from pipeline.study.report import build_report, markdown, write_report
from pipeline.study.results import METRIC_NAMES, Results
from tests.reports.test_report import Page
from tests.study.made_up import study
from tests.study.test_findings import FALLING, GOOD, plain


@pytest.fixture(scope="module")
def results() -> Results:
    """The good study, with a grid over labels and one over length beside it."""
    made = study(GOOD, unlabelled=FALLING)
    more = []
    for row in made.rows:
        if "Findings" not in row.grids:
            continue
        for labels, factor in ((0.01, 1.3), (1.0, 0.8)):
            better = 1.0 if row.method in (CONSTANT, RANDOM) else factor
            values: dict[str, Any] = {
                name: getattr(row, name) * better if getattr(row, name) is not None else None
                for name in ("pa_epe_mm", "root_relative_epe_mm", "probe_pa_epe_mm", "probe_root_relative_epe_mm")
            }
            more.append(replace(row, labels=labels, labelled_frames=round(16_000 * labels), grids=["Labels"], **values))
        if row.method in ("peclr", "scratch", CONSTANT, RANDOM):
            more.append(replace(row, grids=["Labels", "Length"]))
        if row.method == "peclr":
            more.append(replace(row, pretrain_frames=16_000, grids=["Length"], pa_epe_mm=13.1))
    return Results(made.about, made.rows + more)


def test_results_come_back_as_they_were(results, tmp_path):
    uri = str(tmp_path / "results.parquet")
    results.write(uri)
    assert Results.read(uri) == results
    with pytest.raises(DataError, match="no results here; run the study first"):
        Results.read(str(tmp_path / "none.parquet"))
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not the results of a study"):
        Results.read(str(tmp_path / "other.parquet"))


def test_a_report_is_made_of_the_results_file_alone(results, tmp_path):
    results.write(str(tmp_path / "results.parquet"))
    found = write_report(str(tmp_path))
    assert [each.outcome for each in found] == ["shown"] * 3
    first = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    write_report(str(tmp_path))
    assert (tmp_path / "report.html").read_text() == first == build_report(results)


def test_the_page_is_whole_safe_and_says_it_all(results):
    page = Page(build_report(results))
    text = plain(page.text)
    assert "Made up <study>" in text
    assert "Made up <study>" not in build_report(results)
    assert text.count("Shown") >= 3
    assert "peclr is better than scratch" in text
    assert all(name in text for name in METRIC_NAMES.values())
    assert "Not finished" not in text
    links = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    assert all(link.startswith(("data:", "#")) for link in links)


def test_every_chart_shows_the_constant_and_chance(results):
    html = build_report(results)
    charts = re.findall(r'<svg class="chart plot".*?</svg>', html, re.DOTALL)
    # Over labels, unlabelled frames and length, four errors each.
    assert len(charts) == 12
    for chart in charts:
        assert f'data-name="{CONSTANT}"' in chart
        assert f'data-name="{RANDOM}"' in chart
        assert 'data-log="xy"' in chart
        assert "nan" not in chart.lower()
    over_labels = [chart for chart in charts if "over the labels" in chart]
    assert len(over_labels) == 4
    assert all(len(re.findall(r'class="line s\d d\d" data-name', chart)) == 4 for chart in over_labels)
    assert all("spread" in chart for chart in over_labels)
    over_length = [chart for chart in charts if "over pretraining length" in chart]
    assert len(over_length) == 4  # the made-up grid over unlabelled frames has no cells from scratch
    assert all("from scratch" in chart or "random encoder" in chart for chart in over_length)


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None
    return match[1]


def test_points_lie_where_their_numbers_are(results):
    """A mean read back from a drawn line through the ranges that the page's script uses."""
    html = build_report(results)
    chart = next(
        c for c in re.findall(r'<svg class="chart plot".*?</svg>', html, re.DOTALL) if "PA-EPE over the labels" in c
    )
    left, top, right, bottom = map(float, found(r'data-plot="([^"]*)"', chart).split())
    x0, x1, y0, y1 = map(float, found(r'data-range="([^"]*)"', chart).split())
    line = found(r'data-name="peclr" d="M([^"]*)"', chart)
    points = [tuple(map(float, pair.split())) for pair in line.split("L")]
    x = [x0 * (x1 / x0) ** ((px - left) / (right - left)) for px, _ in points]
    y = [y0 * (y1 / y0) ** ((bottom - py) / (bottom - top)) for _, py in points]
    assert x == pytest.approx([160, 1600, 16_000], rel=0.01)
    expected = sum(r.pa_epe_mm for r in results.of_grid("Labels") if (r.method, r.labels) == ("peclr", 0.1)) / 3
    assert y[1] == pytest.approx(expected, rel=0.005)
    assert y == pytest.approx([1.3 * expected, expected, 0.8 * expected], rel=0.005)


def test_a_model_that_is_no_better_than_the_constant_is_called_so():
    bad = study({"scratch": 25.0, "simclr": 20.0, "simclr-same-views": 20.0, "peclr": 15.5})
    text = plain(Page(build_report(bad)).text)
    assert "not clearly better than one fixed hand" in text
    assert text.count("not better than the constant") == 4  # every method in the table
    table = plain(markdown(bad))
    assert re.search(r"\| peclr \| rotation, translation \| 1\d\.\d \(1", table)
    assert "not better than the constant" in table
    assert "not better than the constant" not in plain(markdown(study(GOOD)))


def test_unfinished_empty_and_claimless_studies():
    some = study({"scratch": 14.0}, seeds=1)
    assert "1 of 12 fine-tunings are done" in plain(Page(build_report(some)).text)
    empty = Results(replace(some.about, clips=[], clip_frames=[]), [])
    assert "0 of 12 fine-tunings are done" in plain(Page(build_report(empty)).text)
    assert "Not judged" in markdown(empty)
    claimless = plain(Page(build_report(study(GOOD, claims=False, unlabelled=FALLING))).text)
    assert claimless.count("No claim") == 3
    assert "The same by other errors" not in claimless


def test_the_markdown_table(results):
    table = plain(markdown(results))
    lines = table.splitlines()
    assert lines[0].startswith("**Findings**: 10 % of the labels (1,600 frames), 16,000 unlabelled frames, 64,000 seen")
    body = [line for line in lines if line.startswith("| ")]
    assert len({line.count("|") for line in body}) == 1
    names = [line.split("|")[1].strip() for line in body[2:]]
    assert names == ["scratch", "simclr", "simclr-same-views", "peclr", CONSTANT, RANDOM]
    assert "% (-" in next(line for line in body if line.startswith("| peclr"))
    assert lines[-1].startswith("* More unlabelled frames keep helping: Shown")
