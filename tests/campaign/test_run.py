"""A whole campaign on a tiny set: search, winner, MLflow, registry; going on after a kill, and with more trials."""

import json
from pathlib import Path

import pytest

from pipeline.campaign.run import CampaignSettings, run_campaign
from pipeline.errors import SettingsError, TrainingError
from pipeline.models.weights import load_pose_model
from pipeline.registry import champion, rollback, versions
from pipeline.storage import delete, exists, read_json
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
                "optimiser": {"learning_rate": 1e-5},  # with which nothing is learnt
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


@pytest.mark.timeout(600)
def test_a_campaign_crowns_its_winner_once(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64, "val": 16, "test": 48}, image_size=48, wobble=0.004)
    settings = campaign(tmp_path)
    result = run_campaign(settings)
    winner, folder = result["winner"], tmp_path / "runs/c/winner"

    # Both arms, with the same seeds, none of them the search's, with their own budget and on the test split.
    assert set(winner["arms"]) == {"winner", "default"}
    for name, rate in (("winner", 3e-3), ("default", 1e-5)):
        arm = winner["arms"][name]
        assert [each["seed"] for each in arm["seeds"]] == [105, 106]
        assert (arm["settings"]["epochs"], arm["settings"]["optimiser.learning_rate"]) == (8, rate)
        for each in arm["seeds"]:
            meta = load_pose_model(each["uri"]).meta
            assert (meta["settings"]["seed"], meta["settings"]["optimiser"]["learning_rate"]) == (each["seed"], rate)
            assert read_json(f"{each['uri']}/result.json")["num_labels"] == 64
            assert read_json(f"{each['uri']}/test.json")["about"]["num_frames"] == 48
        errors = [each["metrics"]["pa_epe_mm"] for each in arm["seeds"]]
        assert arm["mean"]["pa_epe_mm"] == pytest.approx(sum(errors) / 2)
    means = {name: arm["mean"]["root_relative_epe_mm"] for name, arm in winner["arms"].items()}
    assert means["winner"] < means["default"]
    assert winner["verdict"]["against_default"]["num_clips"] == 12
    assert len(winner["conclusions"]) == 3
    scores = {each["seed"]: each["score"] for each in winner["arms"]["winner"]["seeds"]}
    assert winner["chosen"]["seed"] == min(scores, key=scores.__getitem__)
    assert load_pose_model(str(folder)).meta["metrics"]["score"] == min(scores.values())

    # In MLflow below the search, each training with its own run.
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=str(settings.tracking.uri))
    experiment = client.get_experiment_by_name("campaigns")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs["c-winner"].data.tags["mlflow.parentRunId"] == runs["c"].info.run_id == result["mlflow_run_id"]
    for arm in ("winner", "default"):
        (run,) = (each for name, each in runs.items() if name.startswith(f"c-{arm}-seed-105-"))
        assert run.data.tags["mlflow.parentRunId"] == runs["c-winner"].info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test_pa_epe_mm"] == pytest.approx(
            winner["arms"][arm]["seeds"][0]["metrics"]["pa_epe_mm"]
        )
        assert len(client.get_metric_history(run.info.run_id, "score")) == 8
    assert runs["c-winner"].data.metrics["winner_test_pa_epe_mm"] == pytest.approx(
        winner["arms"]["winner"]["mean"]["pa_epe_mm"]
    )

    # In the registry; and the same command again changes nothing.
    (version,) = versions(settings.tracking, "hand")
    assert winner["registration"]["version"] == version.number == 1
    assert version.tags["equihand.verdict"] == winner["registration"]["verdict"]
    assert (version.tags["equihand.search"], version.tags["equihand.git_commit"]) == ("c", "0123456789")
    assert winner["registration"]["alias"] in version.aliases
    assert result == {**run_campaign(settings), "wall_s": result["wall_s"]}
    assert read_json(str(tmp_path / "runs/c/result.json"))["winner"] == winner
    times = trained_at(folder)

    # Killed after some of it: what is trained stays, what is not tested is, and nothing is registered twice.
    delete(str(folder / "result.json"))
    delete(str(folder / "default/seed-106/test.json"))
    delete(str(folder / "winner/seed-105"))
    again = run_campaign(settings)["winner"]
    assert {name for name, at in trained_at(folder).items() if at != times[name]} == {"winner/seed-105"}
    assert again["arms"]["default"] == winner["arms"]["default"]
    assert again["conclusions"] == winner["conclusions"]  # the same numbers, as it is the same training
    assert len(versions(settings.tracking, "hand")) == 1

    # More trials, with another best one: only its arm is trained anew.
    times = trained_at(folder)
    more = run_campaign(settings.model_copy(update={"num_trials": 2}))
    changed = {name for name, at in trained_at(folder).items() if at != times[name]}
    assert changed == (set() if more["best_trial"] == "0000" else {"winner/seed-105", "winner/seed-106"})
    assert more["winner"]["best_values"] == more["best_values"]

    # Another campaign, on other frames: its model is measured against the champion, which is tested on the new frames.
    before = champion(settings.tracking, "hand")
    other = tmp_path / "other"
    write_tiny_set(str(other / "set"), splits={"train": 64, "val": 16, "test": 24}, image_size=48, seed=4, wobble=0.004)
    second = campaign(other, tracking=settings.tracking.model_dump(), winner={"seeds": 1, "register_as": "hand"})
    found = run_campaign(second)["winner"]
    registration = found["registration"]
    assert found["verdict"]["seeds_interval"] is None
    if before is not None:
        assert registration["champion_before"]["version"] == before.number
        assert not registration["champion_before"]["was_tested_on_these"]
        assert registration["champion_before"]["metrics"]["pa_epe_mm"] > 0
        assert not exists(str(other / "runs/c/winner/champion"))
        if registration["alias"] == "champion":
            assert rollback(settings.tracking, "hand") == (registration["version"], before.number)


def trained_at(folder: Path) -> dict[str, float]:
    """When each training's result was written."""
    return {str(file.parent.relative_to(folder)): file.stat().st_mtime for file in folder.glob("*/seed-*/result.json")}


@pytest.mark.timeout(300)
def test_what_fails_is_named_and_tried_again(tmp_path, ray_cluster):
    """The default settings diverge; the search has found others."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32, "val": 8, "test": 24}, image_size=48)
    settings = campaign(tmp_path, winner={"seeds": 1})
    finetune = settings.finetune.model_dump() | {"epochs": 1, "optimiser": {"learning_rate": 1e6, "max_bad_steps": 0}}
    settings = CampaignSettings.model_validate({**settings.model_dump(), "finetune": finetune})
    said = r"^the search is done, but 1 of 2 trainings .* such as default with seed 105: .*not finite"
    with pytest.raises(TrainingError, match=said) as failed:
        run_campaign(settings)
    assert "\n" not in str(failed.value)
    assert exists(str(tmp_path / "runs/c/winner/winner/seed-105/test.json"))
    assert "winner" not in read_json(str(tmp_path / "runs/c/result.json"))
    with pytest.raises(TrainingError, match=said):
        run_campaign(settings)
    result = run_campaign(settings.model_copy(update={"winner": settings.winner.model_copy(update={"seeds": 0})}))
    assert result["best_trial"] == "0000"


def test_what_is_refused_is_refused_before_the_search(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32, "val": 8}, image_size=48)
    with pytest.raises(SettingsError, match=r"'winner\.split' = 'test': .* has no frames in it"):
        run_campaign(campaign(tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.timeout(300)
def test_a_best_trial_with_the_default_settings_is_trained_once(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 32, "val": 8, "test": 24}, image_size=48)
    settings = campaign(tmp_path, winner={"seeds": 1}, tracking={"uri": None})
    values = json.loads(settings.model_dump_json())
    values["finetune"]["optimiser"]["learning_rate"] = 3e-3
    winner = run_campaign(CampaignSettings.model_validate(values))["winner"]
    assert set(winner["arms"]) == {"winner"}
    assert winner["conclusions"][-1].startswith("The best trial has the default settings")
    assert not winner["beats_default"]
    assert winner["registration"] is None
