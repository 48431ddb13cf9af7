"""Who goes on from whom, and with which values."""

import numpy as np
import pytest

from pipeline.search.population import Population, perturbed
from pipeline.search.records import COMPLETED, FAILED, RUNNING, TrialRecord
from pipeline.search.space import Dimension, applies

SPACE = {
    "rate": Dimension(log_uniform=(1e-4, 1.0)),
    "share": Dimension(uniform=(0.0, 1.0)),
    "count": Dimension(integer=(1, 9)),
    "kind": Dimension(choice=("a", "b", "c")),
    "only_a": Dimension(uniform=(0.0, 1.0), when={"kind": "a"}),
    "same": Dimension(fixed=7),
}


def population(known=(), size=8, **changes) -> Population:
    options = {"size": size, "epochs": 8, "perturb_epochs": 2, "seed": 3, "first": None, **changes}
    return Population(SPACE, known, **options)


def generation(study: Population, numbers, score=lambda record: float(record.number), state=COMPLETED):
    records = []
    for number in numbers:
        start = study.propose(number)
        assert start is not None
        record = TrialRecord(number, start.values, state, parent=start.parent)
        record.history = [{"epoch": float(study.until(number)), "score": score(record)}]
        study.ended(record)
        records.append(record)
    return records


def test_a_generation_begins_when_the_one_before_is_over():
    study = population(size=3)
    assert study.num_trials == 12
    assert [study.until(number) for number in (0, 2, 3, 11)] == [2, 2, 4, 8]
    generation(study, [0, 1])
    assert study.propose(3) is None
    generation(study, [2])
    assert study.propose(3) is not None


def test_the_worst_quarter_goes_on_from_the_best_one_with_other_values():
    study = population()
    before = generation(study, range(8))
    after = generation(study, range(8, 16))
    assert [record.parent for record in after[:6]] == [0, 1, 2, 3, 4, 5]
    assert [record.values for record in after[:6]] == [record.values for record in before[:6]]
    for record in after[6:]:
        assert record.parent in (0, 1)
        assert record.values != before[record.parent].values


def test_a_member_that_failed_goes_on_from_a_good_one():
    study = population(size=4)
    records = generation(study, range(4))
    for number in (0, 1, 3):
        records[number].state = FAILED
        study.ended(records[number])
    starts = [study.propose(number) for number in range(4, 8)]
    assert [start.parent for start in starts if start is not None] == [2, 2, 2, 2]


def test_what_happens_follows_from_records_and_seed():
    whole = population()
    records = [*generation(whole, range(8)), *generation(whole, range(8, 16))]
    again = population(records[:11])
    assert [again.propose(number) for number in range(11, 16)] == [
        (record.values, record.parent) for record in records[11:]
    ]
    assert again.propose(16) is None
    records[12].state = RUNNING
    assert population(records).propose(16) is None
    assert population(seed=4).propose(1) != population().propose(1)


def test_the_first_member_has_the_settings_own_values():
    first = {"rate": 0.1, "share": 0.5, "count": 3, "kind": "b", "same": 7}
    study = population(first=first)
    own, other = study.propose(0), study.propose(1)
    assert own is not None
    assert own.values == first
    assert other is not None
    assert other.values != first


@pytest.mark.parametrize("seed", range(40))
def test_changed_values_stay_in_the_space_and_near(seed):
    rng = np.random.default_rng(seed)
    values = {"rate": 0.9, "share": 0.95, "count": 9, "kind": "a", "only_a": 0.02, "same": 7}
    for _ in range(20):
        found = perturbed(SPACE, values, rng)
        assert [*found] == [name for name, dimension in SPACE.items() if applies(dimension, found)]
        assert all(SPACE[name].holds(value) for name, value in found.items())
        assert isinstance(found["count"], int)
        values = found


def test_values_that_are_not_drawn_anew_move_one_step():
    rng = np.random.default_rng(0)
    moved = [perturbed({"rate": SPACE["rate"]}, {"rate": 0.01}, rng)["rate"] for _ in range(200)]
    near = [value for value in moved if value in (pytest.approx(0.0125), pytest.approx(0.008))]
    assert 0.65 < len(near) / 200 < 0.85
