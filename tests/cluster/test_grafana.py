"""The dashboard and the alert rules ask for metrics that a run exports, in expressions that Prometheus can evaluate."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.gauges import METRICS, TAGS, exported

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "grafana"
DASHBOARD = json.loads((FOLDER / "equihand.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = {f"{panel['title']}, {t['refId']}": t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]}
EXPRESSIONS = PANELS | {rule["alert"]: rule["expr"] for rule in RULES}
EXPORTED = {name for metric in METRICS for name in exported(metric)}


def names(text: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", text))


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_asks_for_what_there_is(expression):
    assert names(expression)
    assert names(expression) <= EXPORTED
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= {*TAGS, "le"}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_an_expression_can_be_parsed_and_has_the_right_types(expression):
    promql_parser = pytest.importorskip("promql_parser")
    promql_parser.parse(expression)


def test_every_metric_is_on_the_dashboard():
    shown = set().union(*map(names, PANELS.values()))
    assert [metric for metric in METRICS if not shown & {*exported(metric)}] == []


def test_the_page_tells_what_each_metric_means():
    page = (FOLDER.parents[1] / "docs" / "cluster.md").read_text()
    told = set(re.findall(r"^\| `(ray_equihand_\w+)`", page, re.MULTILINE))
    assert told == {re.sub("_(bucket|count|sum)$", "", exported(metric)[0]) for metric in METRICS}


def test_the_list_of_runs_is_one_of_a_metric_that_every_run_has():
    (query,) = [each["query"] for each in DASHBOARD["templating"]["list"] if each["name"] == "run_id"]
    assert names(query) == {"ray_equihand_waiting_for_nodes_seconds"}  # the driver tells it from the start
    assert query.endswith(", run_id)")


def test_panels_do_not_lie_on_each_other():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_alerts_say_what_to_do():
    assert {rule["alert"] for rule in RULES} >= {
        "EquihandStalled",
        "EquihandDataBound",
        "EquihandBadSteps",
        "EquihandCheckpointTooOld",
    }
    for rule in RULES:
        assert "{{ $labels.run_id }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
