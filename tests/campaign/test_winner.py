"""What a winner is trained with, and what is refused before any search."""

from typing import Any

import pydantic
import pytest

from pipeline.campaign.winner import WinnerSettings, check_winner, choose_seeds, recipes, where_it_can_be_tested
from pipeline.errors import SettingsError
from pipeline.frames.frame_set import FrameSet
from pipeline.search.settings import SearchSettings
from tests.tiny_sets import write_tiny_set


def searching(pretrain: dict[str, Any] | None = None, **finetune) -> SearchSettings:
    finetune = {"frame_set": "frames", "epochs": 12, "batch_size": 16, **finetune}
    return SearchSettings.model_validate({"finetune": finetune, "pretrain": pretrain})


def test_the_budget_is_that_of_a_trial_unless_it_is_given():
    values = {"batch_size": 32, "optimiser.learning_rate": 0.01}
    both = recipes(WinnerSettings(), searching(), values, 96)
    winner, default = both["winner"].finetune, both["default"].finetune
    assert (winner.epochs, default.epochs) == (12, 12)
    assert (winner.batch_size, winner.optimiser.learning_rate) == (32, 0.01)
    assert (default.batch_size, default.optimiser) == (16, searching().finetune.optimiser)
    # In frames, whatever the batch size: as a search counts them for its trials.
    for settings, search, epochs in (
        (WinnerSettings(epochs=40), searching(frames=960), 40),
        (WinnerSettings(frames=1920), searching(), 20),
        (WinnerSettings(), searching(frames=1920), 20),
    ):
        both = recipes(settings, search, values, 96)
        assert {(each.finetune.epochs, each.finetune.frames) for each in both.values()} == {(epochs, None)}


def test_all_labels_of_the_search_are_used_whatever_a_trial_had():
    both = recipes(WinnerSettings(), searching(labels={"fraction": 0.8}), {"labels.fraction": 0.1, "batch_size": 8}, 96)
    assert {each.finetune.labels.fraction for each in both.values()} == {0.8}
    assert both["winner"].finetune.batch_size == 8


def test_each_has_its_own_pretraining():
    pretrain = {"frame_set": "unlabelled", "epochs": 5}
    values = {"pretrain.objective.temperature": 0.2}
    both = recipes(WinnerSettings(), searching(pretrain), values, 96)
    winner, default = both["winner"].pretrain, both["default"].pretrain
    assert winner is not None
    assert winner.objective.temperature == 0.2
    assert default == searching(pretrain).pretrain
    assert both["winner"].finetune == both["default"].finetune
    assert recipes(WinnerSettings(), searching(), {"batch_size": 8}, 96)["winner"].pretrain is None


def test_the_best_settings_may_be_the_default_ones():
    assert set(recipes(WinnerSettings(), searching(), {"batch_size": 16}, 96)) == {"winner"}
    assert set(recipes(WinnerSettings(), searching(), {"batch_size": 16, "seed": 77}, 96)) == {"winner"}


def test_seeds_are_none_that_the_search_has_used():
    seeds = choose_seeds(3, own=5, taken={106})
    assert seeds == [105, 107, 108]
    assert choose_seeds(3, own=5, taken={106}) == seeds


def search(tmp_path, **changes) -> SearchSettings:
    write_tiny_set(str(tmp_path / "set"), splits={"train": 8, "val": 4, "test": 8})
    return SearchSettings.model_validate({"finetune": {"frame_set": str(tmp_path / "set")}, **changes})


@pytest.mark.parametrize(
    ("winner", "changes", "said"),
    [
        ({"split": "train"}, {}, r"'winner.split' = 'train': it is the search's finetune.split"),
        ({"split": "val"}, {}, r"'winner.split' = 'val': it is the search's finetune.validation_split"),
        ({"split": "tset"}, {}, r"'winner.split' = 'tset': .* has no frames in it \(8 train, 4 val, 8 test\)"),
        ({"register_as": "hand"}, {"tracking": {"uri": None}}, r"'winner.register_as': tracking.uri is none"),
    ],
)
def test_what_cannot_be_tested_or_registered_is_refused_in_one_line(winner, changes, said, tmp_path):
    with pytest.raises(SettingsError, match=said) as refused:
        check_winner(WinnerSettings.model_validate(winner), search(tmp_path, **changes))
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_without_seeds_nothing_is_needed(tmp_path):
    assert check_winner(WinnerSettings(seeds=0, split="train"), search(tmp_path)) is None
    about = check_winner(WinnerSettings(), search(tmp_path))
    assert about is not None
    assert (about.num_frames, about.split) == (8, "test")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 3, "frames": 100}, "give one of them"),
        ({"register_as": "hand", "seeds": 0}, "give 'seeds' of 1 or more"),
        ({"register_as": "a/b"}, "pattern"),
        ({"register_as": "o'hara"}, "pattern"),
    ],
)
def test_settings_that_contradict_each_other(values, said):
    with pytest.raises(pydantic.ValidationError, match=said):
        WinnerSettings.model_validate(values)


def test_a_set_without_a_split_to_test_on_ends_with_the_search_unless_more_was_asked_for(tmp_path, caplog):
    write_tiny_set(str(tmp_path / "without"), splits={"train": 8, "val": 4})
    write_tiny_set(str(tmp_path / "with"), splits={"train": 8, "val": 4, "test": 8})
    without, complete = FrameSet.open(str(tmp_path / "without")), FrameSet.open(str(tmp_path / "with"))
    assert where_it_can_be_tested(WinnerSettings(), complete).num_seeds == 3
    assert caplog.text == ""
    assert where_it_can_be_tested(WinnerSettings(), without).num_seeds == 0
    assert "no split 'test' to test on (8 train, 4 val, 0 test)" in caplog.text
    for asked in (WinnerSettings(seeds=2), WinnerSettings(register_as="hand")):
        assert where_it_can_be_tested(asked, without) == asked  # and check_winner refuses it
