"""How a run on workers ends: errors that would come again are not tried again, and MLflow knows what happened."""

import os
from pathlib import Path

import pytest

from pipeline.errors import DataError, TrainingError
from pipeline.progress import SILENT
from pipeline.tracking import TrackingSettings
from pipeline.training.launch import RunSettings, WorkerSettings, train_on_workers


@pytest.mark.timeout(180)
def test_an_error_in_the_data_is_met_once(ray_cluster, tmp_path):
    def loop(config):
        tries = Path(config["folder"], "tries")
        with open(tries, "a") as file:
            file.write(f"{os.getpid()}\n")
        raise DataError("row 7 of the set is damaged")

    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    Path(tmp_path, "runs", "broken").mkdir(parents=True)
    with pytest.raises(TrainingError, match="row 7 of the set is damaged"):
        train_on_workers(
            loop,
            {},
            settings=WorkerSettings(),
            run=RunSettings(storage=str(tmp_path / "runs")),
            run_id="broken",
            kind="pretrain",
            workers=WorkerSettings(max_failures=3),
            tracking=tracking,
            num_to_keep=1,
            score="score",
            total=1,
            unit="frames",
            progress=SILENT,
            tags={},
        )
    assert len((tmp_path / "runs/broken/tries").read_text().splitlines()) == 1

    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
