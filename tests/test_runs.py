"""What makes another run, and what does not."""

from typing import Any

import pytest

from pipeline.campaign.run import CampaignSettings
from pipeline.config import flatten, flatten_values
from pipeline.errors import SettingsError
from pipeline.runs import RunSettings, changes, open_run, saved_settings, started_with

SPACE = {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
PRETRAIN = {"frame_set": "frames"}


def search(**values: Any) -> CampaignSettings:
    return CampaignSettings.model_validate({"finetune": {"frame_set": "frames"}, "space": SPACE, **values})


@pytest.mark.parametrize(
    ("now", "name", "then_and_now"),
    [
        ({"finetune": {"frame_set": "frames", "batch_size": 8}}, "finetune.batch_size", (128, 8)),
        ({"pretrain": PRETRAIN}, "pretrain", ("none", "given")),
        (
            {"space": SPACE | {"encoder_lr_factor": {"uniform": [0.1, 1.0]}}},
            "space.encoder_lr_factor.uniform",
            ("not given", [0.1, 1.0]),
        ),
        (
            {"space": {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-2], "when": {"head.kind": "peclr"}}}},
            "space.optimiser.learning_rate.when",
            ("none", "given"),
        ),
    ],
)
def test_what_makes_another_run_is_named_both_ways(now, name, then_and_now, tmp_path):
    one, other = search(), search(**now)
    assert changes(one.model_dump(mode="json"), other)[name] == then_and_now
    assert name in changes(other.model_dump(mode="json"), one)
    run = RunSettings(storage=str(tmp_path), run_id="s")
    open_run(one, run, "s")
    with pytest.raises(SettingsError, match=rf"was started with {name}") as refused:
        open_run(other, run, "s")
    assert "\n" not in str(refused.value)


def test_what_came_with_a_version_or_only_says_where_it_runs_makes_none(tmp_path):
    values = search(num_trials=9, trial_labels={"a": "b"}, budget_hours=2).model_dump(mode="json")
    del values["finetune"]["best_by"]
    values["finetune"]["gone"] = 3
    del values["space"]["optimiser.learning_rate"]["fixed"]
    assert changes(values, search()) == {}
    assert changes(search().model_dump(mode="json"), search(pretrain=None)) == {}


def test_the_settings_of_a_run_are_read_by_its_folder_too(tmp_path):
    run = RunSettings(storage=str(tmp_path), run_id="s")
    assert started_with(run) == {}
    open_run(search(), run, "s")
    assert started_with(run) == flatten_values(saved_settings(str(tmp_path / "s")) or {})
    assert started_with(run)["finetune.frame_set"] == flatten(search())["finetune.frame_set"] == "frames"
