"""A setting that was made to matter is found, and those that were not are not."""

import math

import numpy as np
import pytest
import scipy.stats

from pipeline.campaign.importance import LEAST_TRIALS, importances, num_best
from pipeline.search.records import TrialRecord
from pipeline.search.space import Space
from tests.campaign.made_up_searches import drawn, records_of, search_settings

RATE = "optimiser.learning_rate"


def scored(records: list[TrialRecord]) -> tuple[list[dict], list[float]]:
    """Values and best scores of the trials that have one."""
    some = [record for record in records if record.history]
    return [record.values for record in some], [min(each["score"] for each in record.history) for record in some]


def space_of(**dimensions) -> Space:
    return search_settings({name.replace("__", "."): values for name, values in dimensions.items()}).space


def test_the_setting_that_decides_is_the_most_important():
    found = importances(search_settings().space, *scored(records_of(60)))
    assert found[0].name == RATE
    assert found[0].is_clear
    assert found[0].share > 0.5
    assert sum(each.share for each in found) == pytest.approx(1)
    assert [each.share for each in found] == sorted((each.share for each in found), reverse=True)
    # It is what rank statistics say: the scores do depend on it, and do not on the others.
    values, scores = scored(records_of(60))
    distance = [abs(math.log(each[RATE] / 2e-3)) for each in values]
    assert scipy.stats.spearmanr(distance, scores).pvalue < 1e-6


def test_a_conditional_setting_is_judged_where_it_applies():
    """The weight matters only with the spatial head, which half of the trials have."""
    space = search_settings().space
    found = {each.name: each for each in importances(space, *scored(records_of(400)))}
    assert [*found][:2] == [RATE, "loss.weight_3d"]
    assert found["loss.weight_3d"].is_clear
    assert not any(found[name].is_clear for name in ("batch_size", "views.scale", "head_epochs", "augmentation"))


def test_noise_has_no_important_setting():
    """Of 12 searches with five settings each, chance lets about one setting in 100 seem clear."""
    space = space_of(
        seed={"integer": [0, 9]},
        batch_size={"choice": [16, 32]},
        views__scale={"choice": [[1.0, 1.2], [1.0, 1.4]]},
        optimiser__learning_rate={"log_uniform": [1e-4, 1e-2]},
        encoder_lr_factor={"uniform": [0.1, 1.0]},
    )
    num_clear = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        values = [drawn(space, rng) for _ in range(30)]
        num_clear += sum(each.is_clear for each in importances(space, values, rng.normal(size=30).tolist()))
    assert num_clear <= 3


def test_of_few_or_equal_trials_nothing_is_told():
    space = search_settings().space
    values, scores = scored(records_of(30))
    assert importances(space, values[: LEAST_TRIALS - 1], scores[: LEAST_TRIALS - 1]) == []
    assert importances(space, values[:LEAST_TRIALS], scores[:LEAST_TRIALS])
    assert importances(space, values, [1.0] * len(values)) == []
    assert importances(space_of(batch_size={"choice": [16]}, seed={"fixed": 3}), values, scores) == []
    assert importances({}, values, scores) == []


def test_values_that_the_space_does_not_hold_are_left_out():
    """As those of an earlier search can be, from which this one has learnt."""
    space = space_of(batch_size={"choice": [16, 32]}, encoder_lr_factor={"uniform": [0.1, 1.0]})
    values = [{"batch_size": 16 * (1 + i % 2), "encoder_lr_factor": 0.1 + 0.01 * i, "gone": i} for i in range(40)]
    values[3] = {"batch_size": 999, "encoder_lr_factor": 7.0}
    found = importances(space, values, [float(i) for i in range(40)])
    assert next(each.name for each in found) == "encoder_lr_factor"
    assert len(found) == 2


@pytest.mark.parametrize(("num", "best"), [(20, 5), (21, 5), (40, 10), (500, 125)])
def test_the_best_quarter(num, best):
    assert num_best(num) == best
