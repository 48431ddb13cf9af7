import pytest
from pydantic import ValidationError

from pipeline.errors import SettingsError
from pipeline.search.settings import SearchSettings, check_population

PBT = {"scheduler": "pbt", "space": {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-2]}}, "num_trials": 4}


def settings(**values) -> SearchSettings:
    return SearchSettings.model_validate({"finetune": {"frame_set": "frames"}, **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"objectives": ["latency_ms"]}, "setting 'objectives': .* use scheduler none instead of asha"),
        ({**PBT, "num_trials": 1}, "setting 'num_trials': a population .* has at least two members"),
        ({**PBT, "seeds_per_trial": 3}, "setting 'seeds_per_trial': not with scheduler pbt"),
        ({**PBT, "add_trials": 2}, "setting 'add_trials': not with scheduler pbt"),
        ({**PBT, "warm_start": ["a"]}, "setting 'warm_start': not with scheduler pbt"),
        ({**PBT, "pretrain": {"frame_set": "a"}}, "setting 'pretrain': not with scheduler pbt"),
        ({**PBT, "searcher": "grid"}, "setting 'searcher' = 'grid'"),
        ({"trial_workers": 2, "gpus_per_trial": 0.5}, "setting 'gpus_per_trial' = 0.5"),
        (
            {"trial_workers": 2, "space": {"labels.fraction": {"choice": [0.1, 1.0]}}},
            "setting 'space.labels.fraction': all trials have the same labels",
        ),
        ({"trial_workers": 2, "pretrain": {"frame_set": "a"}}, "setting 'pretrain': trials of several workers"),
        ({"objectives": ["beauty"]}, "latency_ms"),
        ({"finetune": {"frame_set": "f", "best_by": "loss"}}, "pa_epe_mm"),
        ({"budget_hours": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        settings(**values)


def test_how_many_trials_there_are_to_be():
    assert settings(num_trials=16).wanted(0) == 16
    assert settings(num_trials=16).wanted(20) == 16
    # Given again while the search is not finished it means the same, and once it is, some more.
    assert settings(num_trials=16, add_trials=5).wanted(0) == 21
    assert settings(num_trials=16, add_trials=5).wanted(16) == 21
    assert settings(num_trials=16, add_trials=5).wanted(21) == 26
    grid = {
        "searcher": "grid",
        "space": {"batch_size": {"choice": [8, 16]}, "head.kind": {"choice": ["peclr", "spatial"]}},
    }
    assert settings(num_trials=16, **grid).wanted(0) == 4
    assert settings(num_trials=3, add_trials=9, **grid).wanted(3) == 4


def test_a_population_keeps_its_size():
    check_population(settings(**PBT), {})
    check_population(settings(**PBT), {"num_trials": 4})
    check_population(settings(num_trials=9), {"num_trials": 4})
    with pytest.raises(SettingsError, match="the population of this search has 8 members"):
        check_population(settings(**PBT), {"num_trials": 8})
