"""What differs between runs, which metrics they share, and their curves."""

from typing import Any

from pipeline.reports.compare_values import curves, differing, num_same, shared_metrics
from tests.reports.made_up import run_with


def test_only_what_differs_is_listed_and_what_a_run_lacks_is_missing():
    settings: dict[str, dict[str, Any]] = {
        "a": {"rate": 0.1, "size": 32, "only": None, "list": [1, 2]},
        "b": {"rate": 0.2, "size": 32, "list": [1, 2]},
        "c": {"rate": 0.1, "size": 32, "list": [1, 3], "more": 1},
    }
    found = differing(settings)
    assert found == {
        "rate": {"a": 0.1, "b": 0.2, "c": 0.1},
        "list": {"a": [1, 2], "b": [1, 2], "c": [1, 3]},
        "only": {"a": None},
        "more": {"c": 1},
    }
    assert [*found] == ["rate", "list", "only", "more"]  # first what all have
    assert num_same(settings) == 1
    assert differing({"a": {"x": 1}, "b": {"x": 1}}) == {}


def test_metrics_are_those_that_two_runs_have_in_the_order_of_their_names():
    runs = [
        run_with("a", metrics={"loss": 1.0, "val_epe_2d": 0.2, "val_pa_epe_mm": 12.0, "val_constant_pa_epe_mm": 20.0}),
        run_with("b", metrics={"loss": 2.0, "val_pa_epe_mm": 13.0, "val_constant_pa_epe_mm": 20.0, "alone": 1.0}),
        run_with("c", "pretrain", metrics={"loss": 3.0, "val_epe_2d": 0.3}),
    ]
    found = shared_metrics(runs)
    assert [*found] == ["val_pa_epe_mm", "val_constant_pa_epe_mm", "val_epe_2d", "loss"]
    assert found["val_epe_2d"] == {"a": 0.2, "c": 0.3}
    assert found["loss"] == {"a": 1, "b": 2, "c": 3}


def history(*losses: float, **last: float) -> list[dict[str, float]]:
    points = [{"step": 10.0 * (place + 1), "epoch": place + 1.0, "loss": loss} for place, loss in enumerate(losses)]
    points[-1] |= last
    return points


def test_curves_of_pretrainings_with_other_batches_are_over_the_frames_seen():
    settings = {"batch_size": 8, "shares": 2, "workers.num_workers": [1, 2]}
    runs = [
        run_with(
            "a", "pretrain", settings, history=history(3, 2, 1, probe_pa_epe_mm=9.0, probe_constant_pa_epe_mm=11.0)
        ),
        run_with("b", "pretrain", {**settings, "batch_size": 16}, history=history(4, 3)),
        run_with("c", history=history(5, 4, val_pa_epe_mm=12.0)),
        run_with("d", history=history(7)),
    ]
    found = {(each.kind, each.metric): each for each in curves(runs)}
    loss = found["pretrain", "loss"]
    assert loss.x_label == "frames seen"
    assert loss.points == {"a": [(160, 3), (320, 2), (480, 1)], "b": [(320, 4), (640, 3)]}
    assert loss.constant is None
    probe = found["pretrain", "probe_pa_epe_mm"]
    assert (probe.points, probe.constant) == ({"a": [(480, 9.0)]}, 11.0)
    assert found["finetune", "loss"].points == {"c": [(10, 5), (20, 4)]}  # one point is no curve
    assert found["finetune", "loss"].x_label == "step"
    assert [*found] == [
        ("pretrain", "loss"),
        ("pretrain", "probe_pa_epe_mm"),
        ("finetune", "loss"),
        ("finetune", "val_pa_epe_mm"),
    ]
    # With the same batch steps say as much; so they do where the settings do not tell the batch.
    assert curves([runs[0], run_with("b", "pretrain", settings, history=history(4, 3))])[0].x_label == "step"
    assert curves([runs[0], run_with("b", "pretrain", {}, history=history(4, 3))])[0].x_label == "step"


def test_a_constant_that_differs_is_no_line_for_all():
    runs = [
        run_with(name, history=history(2, 1, val_pa_epe_mm=9.0, val_constant_pa_epe_mm=constant))
        for name, constant in (("a", 11.0), ("b", 12.0))
    ]
    assert [each.constant for each in curves(runs) if each.metric == "val_pa_epe_mm"] == [None]
