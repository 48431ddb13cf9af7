"""A whole campaign on a tiny set and a cluster: search, winner, registry; the same command again, and with more trials."""

from pathlib import Path

import pytest

from pipeline.campaign.run import CampaignSettings, run_campaign
from pipeline.errors import SettingsError
from pipeline.models.weights import load_pose_model
from pipeline.registry import Version, champion, promote, versions
from pipeline.storage import exists, read_json
from tests.tiny_sets import write_tiny_set


def campaign(folder: Path, **changes) -> CampaignSettings:
    return CampaignSettings.model_validate(
        {
            "finetune": {
                "frame_set": str(folder / "set"),
                "encoder": {"width": 8},
                "views": {"size": 32},
                "epochs": 3,
                "batch_size": 16,
                # With which nothing is learnt, and a head that knows nothing before.
                "optimiser": {"learning_rate": 1e-5},
                "head": {"kind": "spatial"},
            },
            "space": {"optimiser.learning_rate": {"choice": [3e-3, 4e-3]}},
            "searcher": "grid",
            "scheduler": "none",
            "num_trials": 1,
            "winner": {"seeds": 2, "epochs": 8, "register_as": "hand"},
            "run": {"storage": str(folder / "runs"), "run_id": "c"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "campaigns"},
            **changes,
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_campaign_crowns_its_winner_and_goes_on(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64, "val": 16, "test": 48}, image_size=48, wobble=0.004)
    settings = campaign(tmp_path)
    result = run_campaign(settings)
    winner, folder = result["winner"], tmp_path / "runs/c/winner"
    assert read_json(str(tmp_path / "runs/c/result.json"))["winner"] == winner
    for name, rate in (("winner", 3e-3), ("default", 1e-5)):
        arm = winner["arms"][name]
        assert [each["seed"] for each in arm["seeds"]] == [105, 106]
        assert (arm["settings"]["epochs"], arm["settings"]["optimiser.learning_rate"]) == (8, rate)
        for each in arm["seeds"]:
            assert read_json(f"{each['uri']}/result.json")["num_labels"] == 64
            assert read_json(f"{each['uri']}/test.json")["about"]["num_frames"] == 48
    means = {name: arm["mean"]["root_relative_epe_mm"] for name, arm in winner["arms"].items()}
    assert means["winner"] < means["default"]
    assert load_pose_model(str(folder)).meta["settings"]["seed"] == winner["chosen"]["seed"]
    (version,) = versions(settings.tracking, "hand")
    assert winner["registration"]["version"] == version.number == 1
    assert winner["registration"]["alias"] in version.aliases

    # The same command again: the same result, at once.
    times = trained_at(folder)
    assert run_campaign(settings) == result
    assert trained_at(folder) == times

    # More trials, of which another one may be the best: only its arm is trained anew.
    more = run_campaign(settings.model_copy(update={"num_trials": 2}))
    assert len(more["trials"]) == 2
    changed = {name for name, at in trained_at(folder).items() if at != times[name]}
    assert changed == (set() if more["best_trial"] == "0000" else {"winner/seed-105", "winner/seed-106"})
    assert more["winner"]["best_values"] == more["best_values"]

    # Another campaign, on other frames: the champion is tested on these, on the cluster.
    if champion(settings.tracking, "hand") is None:
        promote(settings.tracking, "hand", 1)
    before = champion(settings.tracking, "hand")
    assert before is not None
    other = tmp_path / "other"
    write_tiny_set(str(other / "set"), splits={"train": 64, "val": 16, "test": 24}, image_size=48, seed=4, wobble=0.004)
    second = campaign(other, tracking=settings.tracking.model_dump(), winner={"seeds": 1, "register_as": "hand"})
    found = run_campaign(second)["winner"]
    assert found["verdict"]["seeds_interval"] is None
    registration = found["registration"]
    assert registration["champion_before"]["version"] == before.number
    assert not registration["champion_before"]["was_tested_on_these"]
    assert registration["champion_before"]["metrics"]["constant_pa_epe_mm"] > 0
    assert not exists(str(other / "runs/c/winner/champion"))
    number = registration["version"] if registration["alias"] == "champion" else before.number
    assert number_of(champion(settings.tracking, "hand")) == number


def number_of(version: Version | None) -> int | None:
    return None if version is None else version.number


def trained_at(folder: Path) -> dict[str, float]:
    """When each training's result was written."""
    return {str(file.parent.relative_to(folder)): file.stat().st_mtime for file in folder.glob("*/seed-*/result.json")}


def test_what_is_refused_is_refused_before_the_search(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32, "val": 8}, image_size=48)
    with pytest.raises(SettingsError, match=r"'winner\.split' = 'test': .* has no frames in it"):
        run_campaign(campaign(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.timeout(400)
def test_a_pretraining_that_no_trial_has_done_is_done_for_the_default_settings(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 48, "val": 8, "test": 24}, image_size=48, wobble=0.01)
    pretrain = {
        "frame_set": str(tmp_path / "set"),
        "epochs": 1,
        "batch_size": 16,
        "encoder": {"width": 8},
        "views": {"size": 32},
        "probe": {"enabled": False},
    }
    space = {"pretrain.objective.temperature": {"choice": [0.2]}}
    settings = campaign(tmp_path, pretrain=pretrain, space=space, winner={"seeds": 1}, tracking={"uri": None})
    winner = run_campaign(settings)["winner"]
    made = {
        read_json(str(path / "result.json"))["settings"]["objective"]["temperature"]: read_json(
            str(path / "result.json")
        )["encoder"]
        for path in (tmp_path / "runs/c/pretrainings").iterdir()
    }
    assert set(made) == {0.2, settings.pretrain.objective.temperature}  # type: ignore[union-attr]
    for arm in winner["arms"].values():
        init = load_pose_model(arm["seeds"][0]["uri"]).meta["settings"]["init"]
        assert init == made[arm["settings"]["pretrain.objective.temperature"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_of_several_workers(tmp_path, ray_cluster):
    """As its trials were: with twice the batch in each step."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64, "val": 8, "test": 24}, image_size=48)
    settings = campaign(tmp_path, trial_workers=2, winner={"seeds": 1}, tracking={"uri": None})
    winner = run_campaign(settings)["winner"]
    for arm in winner["arms"].values():
        (seed,) = arm["seeds"]
        result = read_json(f"{seed['uri']}/result.json")
        assert (result["world_size"], result["epoch"]) == (2, 3)
        assert load_pose_model(seed["uri"]).meta["step"] <= 3 * 2  # of 32 frames
        assert seed["metrics"]["pa_epe_mm"] > 0
    assert run_campaign(settings)["winner"] == winner
