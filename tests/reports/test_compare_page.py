"""The page and the table of a comparison: whole, self-contained, with the numbers of the data."""

import itertools
import re

import numpy as np

from pipeline.drawing.figures import contact_sheet
from pipeline.drawing.page import Picture
from pipeline.reports.compare_data import ComparedRun, ComparedRuns, Curve, SeedGroup, Spread, letter_of
from pipeline.reports.compare_page import build_page
from pipeline.reports.compare_table import measured_lines, origin_lines, seed_text, setting_lines, terminal_table
from pipeline.reports.compare_words import answer
from pipeline.reports.report_data import Overlays
from tests.reports.made_up import errors_around, measured_with
from tests.reports.test_report import Page

EVIL = "<script>alert(1)</script>"
NAMES = ("base", EVIL, "pre")


def made_up() -> ComparedRuns:
    """Two models of which the second is better, and a pretraining."""
    measured = measured_with({"base": errors_around(15, 1), EVIL: errors_around(12, 2)})
    measured.others["pa_auc"] = {"base": 0.5, EVIL: 0.6}
    frames = np.zeros((2, 3, 32, 32), np.uint8)
    measured.overlays.append(
        Overlays(title="Good", picture=Picture(png=contact_sheet(frames), alt="hands", caption="f/1"))
    )
    spread = Spread(mean=13.5, sd=2.12, lowest=12, highest=15)
    group = SeedGroup(
        runs=["base", EVIL],
        seeds=[1, 2],
        errors={"pa_epe_mm": spread},
        skills={"pa_epe_mm": spread},
        recorded={"loss": spread},
    )
    kinds = ("finetune", "finetune", "pretrain")
    return ComparedRuns(
        created_at="2026-01-31T15:45:01+00:00",
        runs=[
            ComparedRun(name=name, letter=letter_of(i), kind=kind, uri=f"s3://runs/{name}", seed=i, note="a note" * i)
            for i, (name, kind) in enumerate(zip(NAMES, kinds, strict=True))
        ],
        answer=answer([], measured, []),
        notes=["what to know"],
        settings={
            "rate": {"base": 0.1, EVIL: 0.30000000000000004, "pre": None},
            "close": {"base": 0.1, EVIL: 0.1000000001, "pre": [1.0, True]},
            "temperature": {"pre": EVIL},
        },
        num_same_settings=41,
        origin={"git commit": {"base": "0123abc", EVIL: "4567def"}},
        recorded={"loss": {"base": 1.23456, EVIL: 0.5}},
        curves=[
            Curve(metric="loss", kind="finetune", x_label="step", points={"base": [(1, 900.0), (2, 1.0)]}),
            Curve(
                metric="probe_pa_epe_mm",
                kind="pretrain",
                x_label="step",
                points={"pre": [(1, 9.0), (2, 7.0)]},
                constant=8.0,
            ),
        ],
        groups=[group],
        measured=measured,
    )


def test_the_page_is_whole_and_fetches_nothing():
    html = build_page(made_up())
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {"runs", "errors", "seeds", "frames", "curves", "settings", "recorded"} <= set(page.ids)
    anchors = {attributes["href"] for attributes in page.all("a")}
    assert {f"#{name}" for name in page.ids if name not in ("theme",)} >= anchors
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    assert "url(" not in html
    assert all(attributes["alt"] for attributes in page.all("img") if attributes["src"] != "data:,")
    assert len(page.all("h1")) == 1
    assert len(page.all("caption")) == len(page.all("table")) == 7
    assert all(attributes.get("scope") for attributes in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    # A run's name is shown, not obeyed.
    assert "alert(1)" in page.text
    assert "<script>alert" not in html


def test_the_page_begins_with_the_answer():
    page = Page(build_page(made_up()))
    text = page.text.replace("\u00a0", " ")
    places = [
        text.index(words)
        for words in (
            f"{EVIL} has the smallest PA-EPE: 12.0 mm against 15.0 mm of base, −20.0 %. That is more than chance",
            "Every model is better than always answering one fixed hand",
            "what to know",
            "Errors on the same frames",
            "41 others are the same in all runs",
        )
    ]
    assert places == sorted(places)
    for words in (
        "not there",
        "not recorded",
        "0123abc",
        "a note",
        "13.5 ± 2.1",
        "How much one training differs",
        "1.235",
    ):
        assert words in text, words
    assert "loss fine-tuning" in text
    assert "10³" in text  # a curve that spans a factor of 900 has a logarithmic axis


def test_a_comparison_of_records_alone_has_a_page_too():
    full = made_up()
    bare = full.model_copy(
        update={
            "measured": None,
            "groups": [],
            "curves": [],
            "recorded": {},
            "origin": {},
            "answer": [],
            "settings": {},
        }
    )
    page = Page(build_page(bare))
    assert {"errors", "seeds", "frames", "curves", "recorded"} & set(page.ids) == set()
    assert "base" in page.text


def test_models_have_columns_and_others_have_none_in_the_table_of_errors():
    html = build_page(made_up())
    errors = html[html.index('id="errors"') : html.index('id="seeds"')]
    assert errors.count('<th scope="col" class="run">') == 2
    settings = html[html.index('id="settings"') : html.index('id="recorded"')]
    assert settings.count('<th scope="col" class="run">') == 9  # three tables


def test_settings_are_short_where_that_tells_them_apart():
    everywhere, partly = setting_lines(made_up())
    assert [[cell.text for cell in line.cells] for line in everywhere] == [
        ["0.1", "0.3", "none"],
        ["0.10000000000000001", "0.1000000001", "[1, true]"],
    ]
    (line,) = partly
    assert [cell.text for cell in line.cells] == ["not there", "not there", EVIL]
    assert [cell.text for cell in origin_lines(made_up())[0].cells] == ["0123abc", "4567def", "not recorded"]


def test_every_error_stands_with_its_interval_beside_one_fixed_hand_and_the_first_model():
    compared = made_up()
    assert compared.measured is not None
    error, constant, skill, against, area = measured_lines(compared, compared.measured)
    of_b = compared.measured.errors["pa_epe_mm"][EVIL]
    assert of_b.interval is not None
    assert (error.name, error.cells[1].text) == ("PA-EPE (mm)", "12.0")
    assert error.cells[1].detail == f"{of_b.interval[0]:.1f} to {of_b.interval[1]:.1f}"
    assert (constant.name, constant.cells[0].text, constant.level) == ("one fixed hand", "20.0", 1)
    assert (skill.name, skill.cells[1].text) == ("skill", "0.40")
    assert (against.name, against.cells[0].text, against.cells[1].outcome) == ("against A", "–", "better")
    assert against.cells[1].text.replace("\u00a0", " ") == "−20.0 %"
    assert against.cells[1].detail.endswith("p\u00a0<\u00a00.001")
    assert [cell.text for cell in area.cells] == ["0.500", "0.600", "–"]


def test_the_terminal_has_all_of_it_in_one_table():
    columns, rows = terminal_table(made_up())
    assert columns == ["", "A  base", f"B  {EVIL}", "C  pre"]
    assert all(len(row) == 4 for row in rows)
    assert [row[0] for row in rows if not any(row[1:])] == [
        "SETTINGS THAT DIFFER",
        "WHAT RAN",
        "RECORDED BY THE RUNS",
        "ON THE SAME 120 FRAMES",
    ]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["temperature"] == ["not there", "not there", EVIL]
    assert by_name["loss"] == ["1.235", "0.5", "–"]
    assert by_name["  one fixed hand"] == ["20.0", "20.0", "–"]


def test_seeds_are_told_by_the_error_that_is_judged_or_by_what_was_recorded():
    (group,) = made_up().groups
    assert seed_text(group, "pa_epe_mm").text.replace("\u00a0", " ") == "PA-EPE 13.5 ± 2.1 mm"
    assert seed_text(group, "pa_epe_mm").detail == "12 to 15"
    assert seed_text(group, None).text == "loss 13.5 ± 2.1"
    assert seed_text(group.model_copy(update={"recorded": {}}), None).text == "–"


def test_letters_go_on_after_z():
    assert [letter_of(number) for number in (0, 25, 26, 53)] == ["A", "Z", "A2", "B3"]
