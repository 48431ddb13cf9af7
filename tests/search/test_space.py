"""From a trial's values to fine-tuning settings."""

import pytest

from pipeline.search.space import SearchSpace, augmented, distributions, first_guess, trial_settings
from pipeline.training.finetune_recipe import FINETUNE_VIEWS, FinetuneSettings

BASE = FinetuneSettings(frame_set="labelled")


def test_values_land_in_their_settings():
    values = {"learning_rate": 0.002, "weight_decay": 0.05, "encoder_lr_factor": 0.3, "batch_size": 32}
    settings = trial_settings(BASE, values)
    assert (settings.optimiser.learning_rate, settings.optimiser.weight_decay) == (0.002, 0.05)
    assert (settings.encoder_lr_factor, settings.batch_size) == (0.3, 32)
    assert settings.views == BASE.views


def test_augmentation_goes_from_the_plain_view_to_the_full_ranges():
    full, none = augmented(FINETUNE_VIEWS, 1.0), augmented(FINETUNE_VIEWS, 0.0)
    assert full.scale == pytest.approx(FINETUNE_VIEWS.scale)
    assert full.model_dump(exclude={"scale"}) == FINETUNE_VIEWS.model_dump(exclude={"scale"})
    assert (none.rotation_deg, none.translation, none.scale, none.brightness) == (0.0, 0.0, (1.2, 1.2), (1.0, 1.0))
    half = augmented(FINETUNE_VIEWS, 0.5)
    assert half.rotation_deg == 22.5
    assert half.scale == pytest.approx((1.1, 1.325))


def test_none_is_not_searched():
    space = SearchSpace(batch_size=None, augmentation=None)
    assert set(distributions(space)) == {"learning_rate", "encoder_lr_factor", "weight_decay"}


def test_own_values_are_the_first_trial_where_the_space_holds_them():
    guess = first_guess(SearchSpace(), BASE)
    assert guess == {
        "learning_rate": 1e-3,
        "encoder_lr_factor": 1.0,
        "weight_decay": 0.01,
        "batch_size": 128,
        "augmentation": 1.0,
    }
    assert trial_settings(BASE, guess).optimiser == BASE.optimiser
    assert first_guess(SearchSpace(batch_size=(16, 32)), BASE) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": (1e-2, 1e-4)}, "space.learning_rate"),
        ({"weight_decay": (0, 0.1)}, "above 0"),
        ({"augmentation": (0.5, 1.5)}, "must not exceed 1"),
        ({"batch_size": (1, 8)}, "2 frames or more"),
        (dict.fromkeys(SearchSpace.model_fields), "nothing to search"),
    ],
)
def test_impossible_spaces_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**values)
