"""Groups of runs that differ in their seed only: who belongs together, mean and spread, and one group against another."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.reports.compare_models import FrameErrors
from pipeline.reports.compare_seeds import seed_groups
from tests.reports.made_up import CLIPS, errors_around, measured_with, run_with


def run(name: str, seed: int, rate: float = 0.1, **metrics: float):
    return run_with(name, settings={"seed": seed, "rate": rate}, metrics=metrics)


def test_runs_belong_together_where_only_the_seed_differs():
    runs = [
        run("a", 1, loss=1.0),
        run("b", 2, loss=2.0),
        run("c", 3, loss=6.0),
        run("d", 1, rate=0.2),
        run("e", 1),  # the same settings and seed as a
        run_with("f", "pretrain", settings={"seed": 4, "rate": 0.1}),
        run_with("g", settings={"rate": 0.1}),
        run_with("h", settings={"seed": 5, "rate": 0.1, "more": None}),
    ]
    (group,) = seed_groups(runs, None, None)
    assert (group.runs, group.seeds) == (["a", "b", "c"], [1, 2, 3])
    spread = group.recorded["loss"]
    assert (spread.mean, spread.lowest, spread.highest) == (3, 1, 6)
    assert spread.sd == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert (group.errors, group.against_first) == ({}, None)


def test_searches_and_other_frames_are_no_seeds():
    searches = [run_with(name, "search", settings={"seed": seed}) for seed, name in enumerate("ab")]
    assert seed_groups(searches, None, None) == []
    other = [run("a", 1), run("b", 2)]
    other[1].origin["digest of the frames"] = "another"
    assert seed_groups(other, None, None) == []


def models_with(errors: dict[str, np.ndarray]) -> Any:
    """As measure() gives them, as far as groups need it."""
    of_runs = {name: {"pa_epe_mm": FrameErrors(values, None)} for name, values in errors.items()}
    return SimpleNamespace(errors=of_runs, clips=lambda error: CLIPS)


def test_groups_are_compared_over_common_seeds_as_a_plain_loop_does():
    """Seeds and clips are drawn apart from each other, the same for both groups."""
    luck = {1: -0.4, 2: 0.1, 3: 0.5, 4: 9.0}
    errors = {f"a{seed}": errors_around(15 + luck[seed], seed) for seed in (1, 2, 3)}
    errors |= {f"b{seed}": errors_around(14.5 - luck[seed], 10 + seed) for seed in (1, 2, 3, 4)}
    runs = [run(name, int(name[1]), rate=ord(name[0])) for name in errors]
    first, second = seed_groups(runs, models_with(errors), measured_with(errors))
    assert (first.runs, second.runs) == (["a1", "a2", "a3"], ["b1", "b2", "b3", "b4"])
    assert first.against_first is None
    assert first.errors["pa_epe_mm"].mean == pytest.approx(15 + np.mean([-0.4, 0.1, 0.5]))
    assert second.errors["pa_epe_mm"].highest == pytest.approx(14.9)
    assert first.skills["pa_epe_mm"].mean == pytest.approx(1 - (15 + np.mean([-0.4, 0.1, 0.5])) / 20)

    found = second.against_first
    assert found is not None
    assert (found.model, found.baseline, found.num_runs) == ("b1, b2, b3", "a1, a2, a3", 3)
    clips, names = np.array(CLIPS), sorted(set(CLIPS))
    rng, percent = np.random.default_rng(3), []
    for _ in range(3000):
        seeds = rng.integers(1, 4, 3)
        rows = np.concatenate([np.flatnonzero(clips == clip) for clip in rng.choice(names, len(names))])
        ours, theirs = (sum(errors[f"{arm}{seed}"][rows].sum() for seed in seeds) for arm in "ba")
        percent.append(100 * (ours / theirs - 1))
    spread = np.ptp(np.percentile(percent, [2.5, 97.5]))
    assert found.interval_percent == pytest.approx(np.percentile(percent, [2.5, 97.5]), abs=0.06 * spread)
    beyond = min(np.mean(np.array(percent) <= 0), np.mean(np.array(percent) >= 0))
    assert found.p_value == pytest.approx(2 * beyond, abs=0.04)
    assert second.p_adjusted is None  # one comparison


def test_two_seeds_say_too_little_and_several_groups_are_corrected():
    errors = {f"{arm}{seed}": errors_around(15 - k, 3 * k + seed) for k, arm in enumerate("abcd") for seed in (1, 2, 3)}
    del errors["d3"]
    runs = [run(name, int(name[1]), rate=ord(name[0])) for name in errors]
    groups = seed_groups(runs, models_with(errors), measured_with(errors))
    assert [group.against_first is not None for group in groups] == [False, True, True, False]
    found = [group.p_adjusted for group in groups[1:3]]
    raw = [group.against_first.p_value or 0.0 for group in groups[1:3] if group.against_first]
    assert found == [min(1, 2 * min(raw))] * 2  # Holm's: both are as small as resamples can tell
    assert groups[3].errors["pa_epe_mm"].mean == pytest.approx(12)


def test_groups_are_not_compared_where_the_first_model_is_in_none():
    errors = {"x": errors_around(15, 0)} | {f"b{seed}": errors_around(14, seed) for seed in (1, 2, 3)}
    runs = [run("x", 1, rate=9.0)] + [run(f"b{seed}", seed) for seed in (1, 2, 3)]
    (group,) = seed_groups(runs, models_with(errors), measured_with(errors))
    assert group.against_first is None
    assert group.errors["pa_epe_mm"].mean == pytest.approx(14)
