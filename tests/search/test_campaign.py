"""A whole search on a tiny labelled set: trials, the best model, MLflow child runs, and going on with it."""

import pytest

from pipeline.errors import TrainingError
from pipeline.models.kept import checkpoints_in
from pipeline.models.weights import load_pose_model
from pipeline.search.campaign import run_search
from pipeline.search.records import read_records, write_record
from pipeline.search.settings import SearchSettings
from pipeline.storage import delete, exists, join, read_json
from pipeline.tracking import TrackingSettings
from tests.tiny_sets import write_tiny_set
from tests.training.damage import damage

SPACE = {
    "optimiser.learning_rate": {"log_uniform": [3e-4, 1e-2]},
    "batch_size": {"choice": [8, 16]},
    "augmentation": {"uniform": [0.25, 1.0]},
}


def search_settings(frame_set: str, **changes) -> SearchSettings:
    return SearchSettings.model_validate(
        {
            "finetune": {
                "frame_set": frame_set,
                "encoder": {"width": 8},
                "views": {"size": 32},
                "epochs": 4,
                "batch_size": 16,
            },
            "space": SPACE,
            "num_trials": 3,
            "grace_epochs": 1,
            **changes,
        }
    )


def test_search_keeps_the_best_model_and_goes_on(s3, tmp_path, ray_cluster, caplog):
    write_tiny_set(join(s3, "set"), splits={"train": 48, "val": 16}, image_size=48)
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "search-test"}
    run = {"storage": join(s3, "runs"), "run_id": "search-1"}
    settings = search_settings(join(s3, "set"), run=run, tracking=tracking)
    result = run_search(settings)

    trials = {trial["name"]: trial for trial in result["trials"]}
    assert len(trials) == 3
    assert {trial["state"] for trial in trials.values()} <= {"completed", "stopped"}
    best = trials[result["best_trial"]]
    assert best["value"] == min(trial["value"] for trial in trials.values()) == result["metrics"]["score"]
    assert set(best["config"]) == set(SPACE)
    assert read_json(join(s3, "runs", "search-1", "result.json")) == result

    loaded = load_pose_model(join(s3, "runs", "search-1"))
    assert loaded.view_size == 32
    # What always answering one fixed hand reaches is in the result, with the model, and in every trial's run.
    assert loaded.constant is not None
    assert loaded.constant.num_poses == 48
    assert result["metrics"]["val_pa_skill"] == loaded.meta["metrics"]["val_pa_skill"]
    assert loaded.meta["metrics"]["val_pa_epe_mm"] == pytest.approx(best["value"])
    assert loaded.meta["settings"]["batch_size"] == best["config"]["batch_size"]

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=TrackingSettings.model_validate(tracking).uri)
    experiment = client.get_experiment_by_name("search-test")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == result["mlflow_run_id"]]
    assert len(children) == 3
    assert all(r.info.status == "FINISHED" and "score" in r.data.metrics for r in children)
    assert all("val_constant_pa_epe_mm" in r.data.metrics and "val_mpjpe_skill" in r.data.metrics for r in children)

    # The same id again: the stored result. Without it (an interrupted search): no trial runs twice.
    assert run_search(settings) == result
    delete(join(s3, "runs", "search-1", "result.json"))
    again = run_search(settings)
    assert again["trials"] == result["trials"]
    assert again["wall_s"] < result["wall_s"]
    assert exists(join(s3, "runs", "search-1", "best", "meta.json"))

    # One was not over, and its newest checkpoint is damaged: it goes on from the one before.
    delete(join(s3, "runs", "search-1", "result.json"))
    records = read_records(join(s3, "runs", "search-1"))
    best_record = next(record for record in records if record.name == result["best_trial"])
    best_record.state = "running"
    write_record(join(s3, "runs", "search-1"), best_record)
    trial = join(s3, "runs", "search-1", "trials", result["best_trial"])
    damage(join(checkpoints_in(trial)[-1], "trainer.pt"), "one byte changed")
    restored = run_search(settings)
    assert "/trainer.pt: damaged" in caplog.text
    values = {trial["name"]: (trial["config"], trial["value"]) for trial in result["trials"]}
    found = {trial["name"]: (trial["config"], trial["value"]) for trial in restored["trials"]}
    assert {**found, result["best_trial"]: None} == {**values, result["best_trial"]: None}
    assert restored["metrics"]["score"] == pytest.approx(result["metrics"]["score"], rel=1e-5)
    # More trials are asked for: those that there are stay as they are.
    more = run_search(settings.model_copy(update={"num_trials": 4}))
    assert len(more["trials"]) == 4
    kept = {trial["name"]: trial for trial in more["trials"]}
    assert {trial["name"]: trial for trial in restored["trials"]} == {n: t for n, t in kept.items() if n != "0003"}

    # Each trial still has one child, whose metrics are there once.
    runs = client.search_runs([experiment.experiment_id])
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == result["mlflow_run_id"]]
    assert sorted((r.info.run_name, r.info.status) for r in children) == [
        (f"search-1-{number:04d}", "FINISHED") for number in range(4)
    ]
    for child in children:
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "score")]
        if not child.info.run_name.endswith(result["best_trial"]):
            assert len(steps) == len(set(steps)) == len(values_of(more, child.info.run_name[-4:])["rungs"])


def values_of(result, name):
    return next(trial for trial in result["trials"] if trial["name"] == name)


@pytest.mark.slow
def test_trials_that_fail_are_marked_and_tried_again_by_the_same_command(tmp_path, ray_cluster):
    """A learning rate with which each diverges."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 48, "val": 16}, image_size=48)
    settings = search_settings(
        str(tmp_path / "set"),
        num_trials=1,
        space={"optimiser.learning_rate": {"uniform": [99, 100]}},
        run={"storage": str(tmp_path / "runs"), "run_id": "s"},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    with pytest.raises(TrainingError, match=r"no trial gave a model: .*not finite") as failed:
        run_search(settings)
    assert "\n" not in str(failed.value)
    records = read_records(str(tmp_path / "runs/s"))
    assert [record.state for record in records] == ["failed"]
    with pytest.raises(TrainingError, match="not finite"):
        run_search(settings)
    assert read_records(str(tmp_path / "runs/s")) == records  # no others instead
