"""Fine-tuning as a run: on two workers, one of which is lost; with another number of workers than before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import to_yaml
from pipeline.errors import SettingsError
from pipeline.models.checkpoints import read_trainer_state
from pipeline.models.weights import load_pose_model
from pipeline.tracking import StoredRun
from pipeline.training.finetune_run import FinetuneRunSettings, worker_batch
from tests.tiny_sets import write_tiny_set
from tests.training.killing import wait_for_worker

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 14


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_lose_one_and_finish(tmp_path):
    """The whole job; a worker is killed by force in mid-run, and the run goes on by itself from its last checkpoint."""
    frame_set, runs = str(tmp_path / "set"), tmp_path / "runs"
    write_tiny_set(frame_set, splits={"train": 64, "val": 8})
    settings = [
        f"--frame_set={frame_set}",
        f"--epochs={EPOCHS}",
        "--validate_every=2",
        "--batch_size=16",
        "--views.size=32",
        "--encoder.width=8",
        "--precision=float32",
        "--workers.num_workers=2",
        "--workers.threads=1",
        f"--run.storage={runs}",
        "--run.run_id=killed",
        f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "--ray.num_cpus=4",
        "--ray.object_store_mb=100",
    ]
    # Ray Train takes what workers report at each of its looks at them, every 2 seconds by default.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
    environment.pop("RAY_ADDRESS", None)
    with open(tmp_path / "log", "wb") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.finetune", *settings], stdout=log, stderr=log, env=environment, cwd=ROOT
        )
        try:
            wait_for_worker(job, runs / "killed").kill()
            assert job.wait(200) == 0, (tmp_path / "log").read_text()[-2000:]
        finally:
            job.terminate()
            job.wait(30)
    result = json.loads((runs / "killed/result.json").read_text())
    assert result["epoch"] == EPOCHS
    assert result["world_size"] == 2
    assert read_trainer_state(result["last_checkpoint"])["epoch"] == EPOCHS
    assert load_pose_model(result["best_checkpoint"]).view_size == 32

    history = StoredRun(f"sqlite:///{tmp_path}/mlflow.db", result["mlflow_run_id"]).history()
    # Every epoch once, also those around the kill: two steps each.
    assert [step for step, _ in history["loss"]] == [2 * (epoch + 1) for epoch in range(EPOCHS)]
    losses = [loss for _, loss in history["loss"]]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_with_other_workers_a_run_keeps_its_global_batch(tmp_path):
    def settings(workers: int) -> FinetuneRunSettings:
        return FinetuneRunSettings.model_validate(
            {
                "frame_set": "frames",
                "batch_size": 6,
                "workers": {"num_workers": workers},
                "run": {"storage": str(tmp_path), "run_id": "r"},
            }
        )

    assert worker_batch(settings(3)) == 6  # a new run
    (tmp_path / "r").mkdir()
    (tmp_path / "r/settings.yaml").write_text(to_yaml(settings(2)))
    assert [worker_batch(settings(workers)) for workers in (1, 2, 3, 4, 6)] == [12, 6, 4, 3, 2]
    with pytest.raises(
        SettingsError, match=r"'workers.num_workers' = 5: run 'r' was started with 2 workers and 12 frames"
    ):
        worker_batch(settings(5))
