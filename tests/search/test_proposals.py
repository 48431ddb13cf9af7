"""Optuna, told by trial records instead of a storage of its own."""

from typing import Any

import optuna
import pytest

from pipeline.search.proposals import Proposals
from pipeline.search.records import COMPLETED, FAILED, RUNNING, STOPPED, TrialRecord
from pipeline.search.space import Dimension, as_parameters, suggested

SPACE = {"x": Dimension(uniform=(0.0, 1.0)), "kind": Dimension(choice=("a", "b"))}


def proposals(known=(), first=None, **changes) -> Proposals:
    options: Any = {
        "searcher": "tpe",
        "scheduler": "asha",
        "seed": 3,
        "epochs": 8,
        "grace_epochs": 1,
        "reduction_factor": 2,
        **changes,
    }
    return Proposals(SPACE, known, first=first, **options)


def at(epoch: int, score: float) -> dict[str, float]:
    return {"epoch": float(epoch), "score": score}


def run(study: Proposals, numbers, epochs: int = 8, loss=lambda values, epoch: values["x"]) -> list[TrialRecord]:
    """Trials one after the other."""
    records = []
    for number in numbers:
        record = TrialRecord(number, study.propose(number).values, COMPLETED)
        for epoch in range(1, epochs + 1):
            record.history.append(at(epoch, loss(record.values, epoch)))
            if study.is_hopeless(number, record.history[-1]):
                record.state = STOPPED
                break
        study.ended(record)
        records.append(record)
    return records


def test_the_same_seed_proposes_the_same_and_first_comes_first():
    first = {"x": 0.5, "kind": "b"}
    records = run(proposals(first=first), range(20))
    assert records[0].values == first
    assert records == run(proposals(first=first), range(20))
    assert records != run(proposals(first=first, seed=4), range(20))


def test_it_learns_from_what_was_reached():
    records = run(proposals(), range(40), epochs=1)
    assert sum(r.values["x"] for r in records[20:]) < 0.5 * sum(r.values["x"] for r in records[:10]) * 2


def test_bad_trials_are_ended_at_rungs_as_by_optuna_itself():
    """Against Optuna's own loop, with the same values."""
    records = run(proposals(), range(30), epochs=8)
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(1, 2))
    for record in records:
        study.enqueue_trial(as_parameters(SPACE, record.values))
        trial = study.ask()
        assert suggested(SPACE, trial) == record.values
        for epoch in range(1, 9):
            trial.report(record.values["x"], epoch)
            if trial.should_prune():
                break
        assert len(record.history) == epoch
    assert {record.state for record in records} == {COMPLETED, STOPPED}


@pytest.mark.parametrize("num", [1, 7, 20])
def test_a_study_told_by_records_judges_as_one_that_never_ended(num):
    whole = proposals()
    known = run(whole, range(num))
    again = proposals(known)
    for study in (whole, again):
        study.propose(num)
    for epoch, score in ((1, 0.3), (2, 0.5), (4, 0.9)):
        assert whole.is_hopeless(num, at(epoch, score)) == again.is_hopeless(num, at(epoch, score))


def test_a_study_that_goes_on_does_not_propose_the_same_once_more():
    known = run(proposals(), range(6))
    values = [record.values for record in run(proposals(known), range(6, 12))]
    assert not [each for each in values if each in [record.values for record in known]]


def test_what_a_trial_told_before_is_not_judged_again():
    """It went on then, and better ones came later."""
    slow = TrialRecord(0, {"x": 0.9, "kind": "a"}, RUNNING, history=[at(1, 0.9), at(2, 0.9)])
    better = [
        TrialRecord(
            number, {"x": 0.1 * number, "kind": "a"}, COMPLETED, history=[at(epoch, 0.1) for epoch in (1, 2, 4)]
        )
        for number in range(1, 5)
    ]
    study = proposals([slow, *better])
    assert not study.is_hopeless(0, at(1, 0.9))
    assert not study.is_hopeless(0, at(2, 0.9))
    assert study.is_hopeless(0, at(4, 0.9))


def test_failed_trials_and_those_without_a_score_do_no_harm():
    known = [TrialRecord(0, {"x": 0.1, "kind": "a"}, FAILED), TrialRecord(1, {"x": 0.2, "kind": "a"}, STOPPED)]
    study = proposals(known)
    records = run(study, range(2, 6))
    assert records[0].state == COMPLETED


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_other_schedulers_end_bad_trials_and_none_ends_none(scheduler):
    states = [record.state for record in run(proposals(scheduler=scheduler, searcher="random"), range(30))]
    assert STOPPED in states
    assert COMPLETED in states
    again = [record.state for record in run(proposals(scheduler=scheduler, searcher="random"), range(30))]
    assert states == again
    assert {record.state for record in run(proposals(scheduler="none"), range(10))} == {COMPLETED}


def test_a_grid_is_gone_through_in_order_also_after_a_restart():
    space = {"x": Dimension(choice=(0.1, 0.2)), "kind": Dimension(choice=("a", "b"))}
    options: Any = {
        "searcher": "grid",
        "scheduler": "none",
        "seed": 3,
        "epochs": 8,
        "grace_epochs": 1,
        "reduction_factor": 2,
    }
    study = Proposals(space, [], first={"x": 0.2, "kind": "b"}, **options)
    known = run(study, range(2))
    rest = run(Proposals(space, known, first=None, **options), range(2, 4))
    assert [record.values for record in known + rest] == [
        {"x": x, "kind": kind} for x in (0.1, 0.2) for kind in ("a", "b")
    ]


def test_several_objectives_are_minimised_together_and_none_is_ended_early():
    """A large x is accurate and slow; TPE's proposals come near the front x in [0, 1] of both."""
    study = proposals(scheduler="none", objectives=("latency_ms",))
    for number in range(30):
        record = TrialRecord(number, study.propose(number).values, COMPLETED)
        record.history = [at(8, 1 - record.values["x"])]
        record.objectives = {"latency_ms": record.values["x"]}
        assert not study.is_hopeless(number, record.history[0])
        study.ended(record)
    front = {trial.number for trial in study._study.best_trials}
    assert front == set(range(30))  # each x is a compromise of its own
    # One that a budget ended has no latency; it is no candidate.
    record = TrialRecord(30, study.propose(30).values, STOPPED, history=[at(2, 0.0)])
    study.ended(record)
    assert {trial.number for trial in study._study.best_trials} == front


def test_what_earlier_searches_reached_is_learnt_from():
    earlier = [
        TrialRecord(number, {"x": number / 20, "kind": "a"}, COMPLETED, history=[at(8, number / 20)])
        for number in range(20)
    ]
    warm = [record.values["x"] for record in run(proposals(earlier=earlier), range(12))]
    cold = [record.values["x"] for record in run(proposals(), range(12))]
    assert warm[0] == 0.0  # the best of them once more, here
    assert sum(warm) < 0.5 * sum(cold)


def test_earlier_trials_that_this_space_does_not_hold_are_left_out():
    earlier = [
        TrialRecord(0, {"x": 2.0, "kind": "a"}, COMPLETED, history=[at(8, 0.1)]),
        TrialRecord(1, {"x": 0.5}, COMPLETED, history=[at(8, 0.1)]),
        TrialRecord(2, {"x": 0.5, "kind": "a", "other": 1}, COMPLETED, history=[at(8, 0.1)]),
        TrialRecord(3, {"x": 0.5, "kind": "a"}, STOPPED, history=[at(2, 0.1)]),
    ]
    assert run(proposals(earlier=earlier), range(5)) == run(proposals(), range(5))


def test_a_trial_of_several_seeds_counts_with_their_mean():
    lucky = TrialRecord(0, {"x": 0.1, "kind": "a"}, COMPLETED, seed_scores=[0.1, 0.9], history=[at(8, 0.1)])
    study = proposals([lucky])
    assert study._study.trials[0].value == pytest.approx(0.5)
