"""How a run on workers ends: errors that would come again are not tried again, and MLflow knows what happened."""

import os
from pathlib import Path

import pytest

from pipeline.errors import DataError, EquihandError, TrainingError
from pipeline.progress import SILENT
from pipeline.tracking import TrackingSettings
from pipeline.training.launch import RunSettings, WorkerSettings, train_on_workers


def train(loop, tmp_path, tracking):
    Path(tmp_path, "runs", "broken").mkdir(parents=True)
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


@pytest.mark.timeout(180)
def test_an_error_in_the_data_is_met_once(ray_cluster, tmp_path):
    def loop(config):
        tries = Path(config["folder"], "tries")
        with open(tries, "a") as file:
            file.write(f"{os.getpid()}\n")
        raise DataError("row 7 of the set is damaged")

    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(TrainingError, match="row 7 of the set is damaged"):
        train(loop, tmp_path, tracking)
    assert len((tmp_path / "runs/broken/tries").read_text().splitlines()) == 1

    from mlflow import MlflowClient

    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


@pytest.mark.timeout(180)
def test_without_mlflow_nothing_is_trained(ray_cluster, tmp_path, monkeypatch):
    """The workers start while MLflow opens its run, and end when it cannot."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def loop(config):
        Path(config["folder"], "ran").touch()

    with pytest.raises(EquihandError, match=r"^MLflow at http://127.0.0.1:1: "):
        train(loop, tmp_path, TrackingSettings(uri="http://127.0.0.1:1"))
    assert not (tmp_path / "runs/broken/ran").exists()
    assert not (tmp_path / "runs/broken/result.json").exists()
