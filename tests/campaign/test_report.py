"""The report of a campaign says what lies in its folder: right, whole, safe and self-contained, whatever became of the trials."""

import json
import math
import re
import shlex
import socket
import time
from dataclasses import replace
from html import unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import finetune, search
from pipeline.campaign.card import finetune_yaml
from pipeline.campaign.charts import score_axis, value_text
from pipeline.campaign.reading import Campaign, read_campaign
from pipeline.campaign.report import build_campaign_report, importance_note, trial_rows, write_campaign_report
from pipeline.campaign.scores import best_so_far, ranked, score_of
from pipeline.campaign.words import commands, failures, headline, progress
from pipeline.config import flatten
from pipeline.errors import DataError
from pipeline.run_log import log, run_log
from pipeline.search.records import COMPLETED, FAILED, RUNNING, STOPPED, TrialRecord
from pipeline.search.space import trial_settings
from pipeline.storage import join, write_bytes, write_json
from pipeline.training.finetune_recipe import FinetuneSettings
from tests.campaign.made_up_searches import CONSTANT_MM, SPACE, history_of, records_of, search_settings, write_search
from tests.reports.test_report import EVIL, Page

RESULT = {
    "best_checkpoint": "s3://bucket/runs/search-1/best",
    "num_labels": 1600,
    "frame_set_digest": "ab" * 16,
    "wall_s": 4023.5,
    "mlflow_run_id": "f" * 32,
}


def campaign_of(records: list[TrialRecord], **changes: Any) -> Campaign:
    """One that was not read."""
    settings = search_settings()
    plain = json.loads(settings.model_dump_json())
    values = {"folder": "/runs/search-1", "settings": plain, "space": settings.space, "records": records, **changes}
    return Campaign(**values)


def html_of(records: list[TrialRecord], **changes: Any) -> str:
    return build_campaign_report(campaign_of(records, **changes))


def plain(html: str) -> str:
    """The words of a page, between single spaces; those of different cells and lines, too."""
    return " ".join(Page(html.replace("<", " <")).text.split())


def trial(number: int, score: float, state: str = COMPLETED, epochs: int = 24, **values: Any) -> TrialRecord:
    return TrialRecord(number, values, state, history=history_of(score, epochs, 1.8e9))


def charts_of(html: str, title: str) -> list[str]:
    return [
        each for each in re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL) if f'aria-label="{title}' in each
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Of a search that is over."""
    records = records_of(50)[:-1]
    return write_search(tmp_path_factory.mktemp("runs") / "search-1", records, search_settings(num_trials=49), RESULT)


@pytest.fixture(scope="module")
def html(folder: str) -> str:
    uri = write_campaign_report(folder)
    assert uri == f"{folder}/report.html"
    return Path(uri).read_text()


def test_the_page_is_whole_safe_and_self_contained(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert [each["id"] for each in page.all("section")] == ["trials", "progress", "settings", "winner", "campaign"]
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (name, value)
    without_namespace = html.replace("http://www.w3.org/2000/svg", "")
    assert not any(word in without_namespace for word in ("http:", "https:", "@import", "url("))
    assert all(each.get("aria-label") or each.get("aria-hidden") for each in page.all("svg"))
    assert all(each.get("scope") for each in page.all("th"))
    assert any(each.get("name") == "viewport" for each in page.all("meta"))
    assert not re.search(r"\bnan\b", html, re.IGNORECASE)


def test_it_says_how_good_the_best_is_beside_one_fixed_hand(folder, html):
    records = read_campaign(folder).records
    scores = {record.name: min(each["score"] for each in record.history) for record in records if record.history}
    best = min(scores, key=lambda name: scores[name])
    words = plain(html)
    removed = 100 * (1 - scores[best] / CONSTANT_MM)
    assert (
        f"Trial {best}, the best of {len(scores)} trials with a score, reaches {scores[best]:.2f} mm PA-EPE on the validation frames, "
        f"where always answering one fixed hand gives 14.60 mm: it removes {removed:.0f} % of that error."
    ) in words
    assert "Not tested yet" in words
    assert "Better than one fixed hand" not in words
    assert "its score flatters it" in words
    assert "Not over" not in words
    for fact in ("labels 1,600", "searcher tpe", "scheduler asha", f"digest {'ab' * 16}", "last start 1 h 07 min"):
        assert fact in words


def test_no_better_than_one_fixed_hand_is_said_plainly():
    words = plain(html_of(records_of(12, shift_mm=5.0)))
    assert "No better than one fixed hand" in words
    assert "So even the best is no better than one fixed hand." in words
    assert "Better than one fixed hand" not in words
    equal = headline(campaign_of([]), replace(score_of({}, []), constant=14.0))
    assert equal.badge == "No score yet"
    records = [trial(0, CONSTANT_MM - 6 * math.exp(-24 / 5))]  # exactly as good
    assert headline(campaign_of(records), score_of({}, records)).outcome == "worse"


def test_without_a_constant_nothing_is_judged():
    record = trial(0, 12.0)
    record.history = [{k: v for k, v in each.items() if "constant" not in k} for each in record.history]
    words = plain(html_of([record]))
    assert "Not judged" in words
    assert "What one fixed hand reaches on them is not known." in words
    assert "Trial PA-EPE (mm) ↓ state" in words
    assert "one fixed hand's error" not in words


def winner_of(records: list[TrialRecord], **changes: Any) -> dict[str, Any]:
    """What comes of a winner, as the campaign writes it."""
    recipe = trial_settings(search_settings().finetune, records[1].values).model_dump(mode="json")
    seeds = [{"seed": 105 + i, "metrics": {"pa_epe_mm": 12.4 + 0.2 * i}} for i in range(3)]
    arm = {"mean": {"pa_epe_mm": 12.6, "constant_pa_epe_mm": 14.9, "pa_skill": 0.154}, "deviation": {"pa_epe_mm": 0.2}}
    return {
        "best_trial": "0001",
        "test": {"split": "test", "num_frames": 4800},
        "arms": {"winner": {**arm, "seeds": seeds}, "default": {"mean": {"pa_epe_mm": 13.31}, "seeds": seeds}},
        "verdict": {"error": "pa_epe_mm"},
        "beats_constant": True,
        "conclusions": ["It beats the default settings.", f"And {EVIL}."],
        "chosen": {"seed": 106},
        "best_checkpoint": "s3://bucket/winner/checkpoint_000007",
        "registration": {"name": "hand-pose", "version": 4, "alias": "challenger"},
        "identity": {"arms": {"winner": recipe}},
        **changes,
    }


def test_what_the_winner_showed_comes_first(tmp_path):
    records = records_of(30)
    html = html_of(records, winner=winner_of(records))
    words = plain(html)
    assert "It beats the default settings." in words
    assert f"And {EVIL}." in words
    assert EVIL not in html
    assert "the best of" not in words
    assert "4,800 frames of split 'test', which the search never saw; means of 3 seeds" in words
    assert "Metric winner default settings one fixed hand PA-EPE (mm) ↓ 12.6 ±0.2 13.3 14.9" in words
    assert "PA skill ↑ 0.15 – 0.00" in words
    assert "PA-EPE of its seeds: 12.40, 12.60, 12.80." in words
    assert "s3://bucket/winner/checkpoint_000007" in words
    assert "In MLflow's registry: models:/hand-pose/4, challenger." in words
    text = html[html.index("Its settings</h3>") :]
    path = tmp_path / "winner.yaml"
    path.write_text(unescape(text[text.index('<pre class="paste">') + 19 : text.index("</pre>")]))
    loaded = finetune.JOB.load(["--config", str(path)])
    assert loaded.seed == 106
    assert loaded.optimiser.learning_rate == records[1].values["optimiser.learning_rate"]


def test_the_winner_names_the_pretraining_that_its_settings_need():
    records = records_of(3)
    winner = winner_of(records)
    winner["identity"]["pretrainings"] = {"winner": {"epochs": 3}}
    winner["best_values"] = {"pretrain.epochs": 3}
    text = unescape(html_of(records, winner=winner))
    assert (
        "# As init it needs its pretraining, which is in /runs/search-1/pretrainings and had\n#   pretrain.epochs: 3\n"
        in text
    )


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "better"),
        ({"beats_constant": False}, "unclear"),
        (
            {"beats_constant": False, "arms": {"winner": {"mean": {"pa_epe_mm": 14.9, "constant_pa_epe_mm": 14.9}}}},
            "worse",
        ),
        ({"beats_constant": False, "arms": {"winner": {"mean": {"pa_epe_mm": 14.9}}}}, "unclear"),
    ],
)
def test_the_winners_badge_is_that_of_its_test(changes, outcome):
    records = records_of(5)
    found = headline(campaign_of(records, winner=winner_of(records, **changes)), score_of({}, records))
    assert found.outcome == outcome
    assert (
        found.badge
        == {
            "better": "Better than one fixed hand",
            "worse": "No better than one fixed hand",
            "unclear": "Not surely better than one fixed hand",
        }[outcome]
    )


def test_what_was_said_of_an_earlier_winner_is_called_so():
    records = [trial(0, 13.0), trial(1, 12.0)]
    score = score_of({}, records)
    assert headline(campaign_of(records, winner=winner_of(records)), score).caveat == ""
    records.append(trial(2, 11.0))
    caveat = headline(campaign_of(records, winner=winner_of(records)), score).caveat
    assert caveat.startswith("This was said of trial 0001. By now trial 0002 is the best")


def test_a_winner_that_is_the_default_or_not_registered():
    records = records_of(5)
    winner = winner_of(records, registration=None)
    del winner["arms"]["default"]
    words = plain(html_of(records, winner=winner))
    assert "Metric winner one fixed hand PA-EPE" in words
    assert "registry" not in words
    words = plain(html_of(records, winner=winner_of(records, registration={"name": "a", "problem": "no answer"})))
    assert "In MLflow's registry: no answer." in words


def test_trials_are_ranked_and_the_best_so_far_only_falls():
    records = records_of(60)
    score = score_of({}, records)
    order = ranked(score, records)
    values = [score.of(record) for record in order]
    assert values == sorted(value for value in values if value is not None)
    line = dict(best_so_far(score, records))
    lowest = math.inf
    for record in records:  # a naive loop
        if record.history:
            lowest = min(lowest, *(each["score"] for each in record.history))
            assert line[record.number] == lowest
    assert len(line) == len(order)
    rows = trial_rows(score, records, [*SPACE])
    assert [row.record for row in rows[: len(order)]] == order
    assert [row.is_best for row in rows] == [True, *[False] * (len(records) - 1)]
    assert {row.record.state for row in rows[len(order) :]} == {FAILED}


def test_a_table_row():
    seeds = TrialRecord(
        3,
        {"a": 1e-3, "c": [1.0, 1.45], "d": None, "e": True},
        COMPLETED,
        history=history_of(12.0, 24, 0.0),
        seed_scores=[12.0, 13.0],
    )
    score = score_of({}, [seeds])
    row = trial_rows(score, [seeds], ["a", "b", "c", "d", "e"])[0]
    assert (row.score, row.skill, row.seeds, row.epochs, row.time) == (
        "12.50",
        "0.14",
        "12.00–13.00 (2)",
        "24",
        "1 min 14 s",
    )
    assert row.cells == ["0.001", "–", "[1.0, 1.45]", "none", "yes"]


def test_the_history_chart_shows_every_score_and_the_constant(html, folder):
    campaign = read_campaign(folder)
    chart = charts_of(html, "Every trial in order")[0]
    num = sum(bool(record.history) for record in campaign.records)
    assert chart.count('class="dot"') == num
    assert 'class="level"' in chart
    assert len(charts_of(html, "Every trial in order")) == 2  # for wide pages and for phones
    # The best so far, read back through the ranges that the page's script uses, is that of the data.
    left, top, right, bottom = map(float, re.findall(r'data-plot="([^"]*)"', chart)[0].split())
    x0, x1, y0, y1 = map(float, re.findall(r'data-range="([^"]*)"', chart)[0].split())
    line = re.findall(r'data-name="best so far" d="M([^"]*)"', chart)[0]
    corners = [tuple(map(float, each.split())) for each in line.split("L")]
    expected = best_so_far(score_of({}, campaign.records), campaign.records)
    steps = {
        round(x0 + (px - left) / (right - left) * (x1 - x0)): y0 + (bottom - py) / (bottom - top) * (y1 - y0)
        for px, py in corners
    }
    assert steps == pytest.approx(dict(expected) | {campaign.records[-1].number: expected[-1][1]}, abs=0.02)


def test_curves_tell_promoted_from_stopped_trials(html, folder):
    chart = charts_of(html, "Every trial over its epochs")[0]
    styles = {name: style for style, name in re.findall(r'<path class="line ([^"]*)" data-name="(\d{4})"', chart)}
    records = [record for record in read_campaign(folder).records if record.history]
    best = ranked(score_of({}, records), records)[0].name
    assert styles.pop(best) == "best"
    assert styles == {
        record.name: "s0 some" if record.state == COMPLETED else "s5 some" for record in records if record.name != best
    }
    assert {record.state for record in records} == {COMPLETED, STOPPED}


def test_a_few_very_bad_trials_do_not_press_the_others_together():
    records = [trial(i, 12 + 0.1 * i) for i in range(20)] + [trial(20, 4000.0)]
    score = score_of({}, records)
    values = [value for record in records if (value := score.of(record)) is not None]
    assert 14 < score_axis(score, values).high < 20
    words = plain(html_of(records))
    assert "1 score lies above the upper end, where a triangle stands." in words
    assert score_axis(score, [12.0, 12.5, 15.0]).high >= 15.0


def test_slices_are_logarithmic_where_the_space_is(html):
    def chart(name: str) -> str:
        return charts_of(html, f"PA-EPE over {name}.")[0]

    assert 'data-log="x"' in chart("optimiser.learning_rate")
    assert 'data-log="x"' in chart("head_epochs")
    assert 'data-log=""' in chart("augmentation")
    assert 'data-log=""' in chart("loss.weight_3d")  # although it spans a factor of 100
    assert ">[1.0, 1.45]<" in chart("views.scale")
    assert re.search(r"Only where head.kind is spatial: \d+ of \d+ trials", plain(html))
    parallel = charts_of(html, "Settings and score of all trials")[0]
    assert parallel.count('class="line trial') == 49


def test_importance_in_words():
    words = plain(html_of(records_of(60)))
    assert re.search(r"optimiser.learning_rate(, | )(and loss.weight_3d )?matters?; what is pale may be chance", words)
    assert "PED-ANOVA" in words
    few = plain(html_of(records_of(10)))
    assert "Too few trials to tell which settings matter: 9 have a score, and 20 are needed." in few
    assert "PED-ANOVA" not in few
    assert importance_note([], 30) == "No setting tells the best trials from the others."


def naive(points: list[tuple[float, ...]]) -> list[int]:
    """Indices of those that are not dominated, by the definition, word for word."""

    def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def test_the_pareto_front_is_that_of_a_naive_loop():
    rng = np.random.default_rng(1)
    some = [
        TrialRecord(
            number,
            {},
            COMPLETED,
            history=history_of(float(rng.uniform(12, 14)), 4, 0.0),
            objectives={
                "latency_ms": float(rng.integers(2, 100)),
                "model_mb": float(rng.integers(1, 9)),
            },
        )
        for number in range(40)
    ]
    points: list[tuple[float, ...]] = [
        (
            min(each["score"] for each in record.history),
            record.objectives["latency_ms"],
            record.objectives["model_mb"],
        )
        for record in some
    ]
    expected = {some[i].name for i in naive(points)}
    assert len(expected) > 3
    not_measured = TrialRecord(40, {}, COMPLETED, history=history_of(10.0, 4, 0.0))
    html = html_of([*some, not_measured])
    section = html[html.index('<section id="front">') : html.index('<section id="winner">')]
    assert set(re.findall(r'<th scope="row">(\d{4})', section)) == expected
    words = plain(section)
    assert f"{len(expected)} of 40 trials" in words
    assert "Trial PA-EPE (mm) ↓ latency (ms) ↓ model (MB) ↓" in words
    assert section.count('<svg class="chart') == 6  # three planes, wide and narrow
    front = charts_of(section, "PA-EPE (mm) and latency (ms)")[0]
    best = re.findall(r'<g class="best">(.*?)</g>', front)[0]
    assert set(re.findall(r"<title>(\d{4}):", best)) == expected
    assert 'id="front"' not in html_of(records_of(5))


def test_a_front_of_two_objectives_is_a_line():
    pairs = [(12.0, 9.0), (13.0, 5.0), (13.5, 7.0), (14.0, 2.0)]
    records: list[TrialRecord] = [
        TrialRecord(i, {}, COMPLETED, history=[{"epoch": 1.0, "score": score}], objectives={"latency_ms": latency})
        for i, (score, latency) in enumerate(pairs)
    ]
    chart = charts_of(html_of(records), "PA-EPE (mm) and latency (ms)")[0]
    line = re.findall(r'data-name="front" d="M([^"]*)"', chart)[0].split("L")
    x0, x1, y0, y1 = map(float, re.findall(r'data-range="([^"]*)"', chart)[0].split())
    left, top, right, bottom = map(float, re.findall(r'data-plot="([^"]*)"', chart)[0].split())
    corners = [
        (x0 + (px - left) / (right - left) * (x1 - x0), y0 + (bottom - py) / (bottom - top) * (y1 - y0))
        for px, py in (map(float, each.split()) for each in line)
    ]
    expected = [(2.0, 14.0), (5.0, 14.0), (5.0, 13.0), (9.0, 13.0), (9.0, 12.0)]
    assert [each for corner in corners for each in corner] == pytest.approx(
        [each for corner in expected for each in corner], abs=0.02
    )


def test_the_winners_settings_can_be_trained_with(folder, tmp_path):
    campaign = read_campaign(folder)
    best = ranked(score_of({}, campaign.records), campaign.records)[0]
    text, note = finetune_yaml(campaign, best.values)
    assert note == ""
    path = tmp_path / "winner.yaml"
    path.write_text(text)
    loaded = finetune.JOB.load(["--config", str(path)])
    base = FinetuneSettings.model_validate(campaign.finetune)
    expected = trial_settings(base, best.values).model_dump()
    # The search validates by a number of epochs that it has worked out.
    found = {name: value for name, value in loaded.model_dump().items() if name in expected}
    assert found | {"validate_every": None} == expected | {"validate_every": None}
    assert found["validate_every"] == 1
    pretrained = replace(campaign, settings={**campaign.settings, "pretrain": {"epochs": 9}})
    before, _ = finetune_yaml(pretrained, {**best.values, "pretrain.epochs": 3})
    head = f"# As init it needs its pretraining, which is in {folder}/pretrainings and had"
    assert before == f"{head}\n#   pretrain.epochs: 3\n{text}"
    odd = replace(campaign, settings={**campaign.settings, "finetune": {"frame_set": "x", "of_tomorrow": 1}})
    assert finetune_yaml(odd, best.values)[1].startswith("This version cannot tell the settings")
    assert "This version cannot tell" in plain(build_campaign_report(odd))


def test_the_commands_are_those_of_the_jobs(folder, html):
    campaign = read_campaign(folder)
    lines = {each.what: shlex.split(each.text.replace("\\\n", " ")) for each in commands(campaign)}
    go_on = lines["Go on, with more trials"]
    assert go_on[:3] == ["python", "-m", "jobs.search"]
    settings = search.JOB.load(go_on[3:])
    assert (settings.num_trials, settings.run.run_id) == (98, "search-1")
    assert join(settings.run.storage, "search-1") == folder
    assert lines["Do it again, and compare"] == ["python", "-m", "jobs.reproduce", folder]
    assert lines["Draw this page anew"] == ["python", "-m", "jobs.campaign_report", folder]
    assert all(part in html for part in go_on)
    # What has not ended cannot be done again, goes on with as many trials, and on object storage without its settings file.
    running = replace(campaign, result={}, folder="s3://bucket/my runs/search-2")
    first, *others = commands(running)
    assert "--num_trials 49" in first.text
    assert "--run.storage 's3://bucket/my runs'" in first.text
    assert "--config settings.yaml" in first.text
    assert first.note
    assert [each.what for each in others] == ["Draw this page anew"]
    population = replace(campaign, settings={**campaign.settings, "scheduler": "pbt", "num_trials": 8})
    assert "--num_trials" not in commands(population)[0].text


@pytest.mark.parametrize("num", [0, 1, 2])
def test_of_hardly_any_trials(num, tmp_path):
    folder = write_search(tmp_path / "search-1", records_of(num))
    words = plain(Path(write_campaign_report(folder)).read_text())
    assert f"{num} of 16 trials are over" in words
    assert ("No trial has begun yet." in words) == (num == 0)
    assert ("the only trial with a score" in words) == (num == 1)


def test_of_a_search_that_still_runs(tmp_path):
    folder = write_search(tmp_path / "search-1", records_of(9))
    for num_trials in (12, 24):  # the second start asks for more
        with run_log(folder, "driver"):
            log("settings", settings=flatten(search_settings(num_trials=num_trials)))
            log("resumed")
    with run_log(folder, "trial-0001"):
        log("settings", settings={})
    words = plain(Path(write_campaign_report(folder)).read_text())
    assert (
        "Not over 8 of 24 trials are over, 1 has begun and not ended; the last score is of 15 January 2027, 08:05 UTC."
        in words
    )
    assert "--num_trials 24" in words
    assert "jobs.reproduce" not in words
    assert f"driver's host {socket.gethostname()}" in words
    assert f"torch {version('torch')}" in words
    assert "starts 2" in words


def test_trials_without_a_score(tmp_path):
    waiting = [TrialRecord(i, {"batch_size": 16}) for i in range(3)]
    assert "None of 3 trials has a score." in plain(html_of(waiting))
    reasons = ["out of memory", EVIL, "out of memory", ""]
    failed = [TrialRecord(i, {"batch_size": 16}, FAILED, reason) for i, reason in enumerate(reasons)]
    html = html_of(failed)
    words = plain(html)
    assert "None of 4 trials has a score, as all have failed." in words
    assert "out of memory 2 trials: 0000, 0002" in words
    assert failures(failed)[0] == ("out of memory", ["0000", "0002"])
    assert "no reason given 1 trial: 0003" in words
    assert EVIL in words
    assert EVIL not in html
    no_numbers = TrialRecord(0, {}, COMPLETED, history=[{"step": 1.0, "epoch": 1.0, "score": math.nan}])
    assert "None of 1 trial has a score." in plain(html_of([no_numbers]))


def test_names_and_values_are_shown_not_obeyed():
    values = {EVIL: EVIL, "batch_size": [EVIL, 1], "head.kind": {"a": EVIL}}
    records = [
        TrialRecord(
            i, values if i % 2 else {**values, "x": float(i)}, STOPPED, EVIL, history=history_of(12.0 + i, 8, 0.0)
        )
        for i in range(25)
    ]
    records[3].state = EVIL
    html = html_of(
        records,
        folder=f"/runs/{EVIL}",
        settings_text=EVIL,
        starts=[{"host": EVIL, "versions": {EVIL: EVIL}, "time": EVIL, "settings": {}}],
    )
    assert EVIL not in html
    assert len(Page(html).all("script")) == 1
    assert plain(html).count(EVIL) > 25


def test_spaces_of_choices_alone():
    space = {"head.kind": {"choice": ["spatial", "peclr"]}, "views.scale": SPACE["views.scale"], "seed": {"fixed": 3}}
    settings = search_settings(space, searcher="grid")
    html = html_of(records_of(40, space), space=settings.space, settings=json.loads(settings.model_dump_json()))
    assert {f"PA-EPE over {name}" for name in space if charts_of(html, f"PA-EPE over {name}.")} == {
        "PA-EPE over head.kind",
        "PA-EPE over views.scale",
    }
    assert charts_of(html, "Settings and score of all trials")
    assert "PED-ANOVA" in html or "No setting" in html


@pytest.mark.parametrize(
    ("key", "label", "constant"),
    [
        ("mpjpe_mm", "root-relative EPE (mm)", "38.00"),
        ("pa_skill", "PA-EPE (% of one fixed hand's)", "100.00"),
        ("tomorrow", "score", None),
    ],
)
def test_other_scores(key, label, constant):
    records = records_of(6)
    for record in records:
        for metrics in record.history:
            metrics["score"] = 1 - metrics["val_pa_skill"] if key == "pa_skill" else metrics.get(f"val_{key}", 0.3)
    settings = json.loads(search_settings().model_dump_json())
    settings["finetune"]["best_by"] = key
    words = plain(html_of(records, settings=settings))
    assert f"Trial {label} ↓" in words
    assert (f"one fixed hand {constant} 0.00" in words) if constant else ("one fixed hand gives" not in words)


def test_in_the_image_alone():
    history = [{"step": 1.0, "epoch": 1.0, "score": 0.08, "val_epe_2d": 0.08, "val_constant_epe_2d": 0.1}]
    words = plain(html_of([TrialRecord(0, {"batch_size": 16}, COMPLETED, history=history)]))
    assert "reaches 8.00 % of the hand 2D EPE" in words
    assert "it removes 20 % of that error" in words


def test_five_hundred_trials_are_drawn_in_seconds(tmp_path):
    records = records_of(500)
    started = time.process_time()
    html = html_of(records)
    assert time.process_time() - started < 20
    assert len(html) < 3_000_000
    Page(html)
    assert len(re.findall(r'<th scope="row">\d{4}', html)) == 500


def test_folders_that_are_no_searches(tmp_path):
    with pytest.raises(DataError, match=r"/none: not the folder of a search \(settings.yaml is missing\)"):
        write_campaign_report(str(tmp_path / "none"))
    write_bytes(str(tmp_path / "other/settings.yaml"), b"epochs: 3\n")
    with pytest.raises(DataError, match="the run in this folder is not a search"):
        write_campaign_report(str(tmp_path / "other"))
    write_bytes(str(tmp_path / "cut/settings.yaml"), b"a: [1,\n")
    with pytest.raises(DataError, match=r"cut/settings.yaml: damaged"):
        write_campaign_report(str(tmp_path / "cut"))


def test_what_is_damaged_or_unknown_is_said_and_left_out(tmp_path, caplog):
    folder = write_search(tmp_path / "search-1", records_of(4))
    text = Path(folder, "settings.yaml").read_text().replace("uniform: null", "of_tomorrow: 1", 1)
    Path(folder, "settings.yaml").write_text(text)
    write_bytes(join(folder, "winner/result.json"), b"{")
    write_bytes(join(folder, "logs/1-driver.jsonl"), b"\x00")
    words = plain(Path(write_campaign_report(folder)).read_text())
    assert "optimiser.learning_rate" in words
    for said in (
        "setting 'space.optimiser.learning_rate' of the search: not known",
        "leaves the winner out",
        "less of where the search ran",
    ):
        assert said in caplog.text
    write_json(join(folder, "winner/result.json"), winner_of(records_of(4), conclusions=["It won."]))
    assert "It won." in plain(Path(write_campaign_report(folder)).read_text())


def test_it_lies_beside_the_search_on_object_storage(s3, tmp_path):
    from pipeline.storage import copy_from_local, read_bytes

    copy_from_local(Path(write_search(tmp_path / "search-1", records_of(3))), join(s3, "runs/search-1"))
    uri = write_campaign_report(join(s3, "runs/search-1"))
    assert uri == join(s3, "runs/search-1/report.html")
    assert b"3 trials with a score" in read_bytes(uri)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3e-4, "3e−4"),
        (16, "16"),
        (True, "yes"),
        (None, "none"),
        ("a", "a"),
        ([1, "b"], '[1, "b"]'),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_values_for_people(value, text):
    assert value_text(value) == text


def test_progress_of_a_search_that_is_over():
    records = [trial(0, 12.0)]
    assert progress(campaign_of(records, result=RESULT)) == ""
    records.append(trial(1, 12.0, state=RUNNING))
    assert progress(campaign_of(records, result=RESULT)).startswith("1 of 16 trials are over, 1 has begun")


def test_members_of_a_population_name_whom_they_go_on_from():
    settings = json.loads(search_settings().model_dump_json()) | {"scheduler": "pbt", "num_trials": 2}
    records = [
        TrialRecord(
            i,
            {"encoder_lr_factor": 0.1 + 0.1 * i},
            COMPLETED,
            parent=None if i < 2 else i - 2,
            history=history_of(13.0 - i, 4, 0.0),
        )
        for i in range(4)
    ]
    words = plain(html_of(records, settings=settings))
    assert "goes on from" in words
    assert re.search(r"0003 ★ best .{9,12} 0001 completed", words)
    assert "Not over 4 trials are over" in words  # of how many is not known


def test_trials_with_fewer_seeds_come_after_the_others():
    """As the search itself chooses."""
    records = [
        TrialRecord(0, {}, STOPPED, history=history_of(11.0, 8, 0.0)),
        TrialRecord(1, {}, COMPLETED, seed_scores=[12.0, 13.0], history=history_of(11.8, 8, 0.0)),
        TrialRecord(2, {}, COMPLETED, seed_scores=[12.5, 12.1], history=history_of(12.0, 8, 0.0)),
    ]
    assert [record.number for record in ranked(score_of({}, records), records)] == [2, 1, 0]
