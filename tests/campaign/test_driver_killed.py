"""A campaign whose driver is killed by force while its winner is trained anew, on a cluster that stays."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from pipeline.models.kept import checkpoints_in, read_history
from pipeline.storage import read_json
from tests.tiny_sets import write_tiny_set

ROOT = Path(__file__).resolve().parents[2]


def start(tmp_path: Path) -> subprocess.Popen[bytes]:
    config = {
        "finetune": {
            "frame_set": str(tmp_path / "set"),
            "encoder": {"width": 16},
            "views": {"size": 64},
            "epochs": 2,
            "validate_every": 1,
        },
        "space": {"batch_size": {"choice": [8]}},
        "searcher": "grid",
        "scheduler": "none",
        "num_trials": 1,
        "max_concurrent": 2,
        "winner": {"seeds": 2, "epochs": 6},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "run": {"storage": str(tmp_path / "runs"), "run_id": "killed"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "jobs.search", f"--config={tmp_path / 'config.json'}"]
    command += [f"--ray.address={ray.get_runtime_context().gcs_address}"]
    with open(tmp_path / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trainings_that_are_done_stay_and_the_others_go_on(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 400, "val": 16, "test": 24}, image_size=80)
    folder = tmp_path / "runs/killed/winner"
    driver = start(tmp_path)

    def trained() -> dict[str, float]:
        return {str(file.parent.relative_to(folder)): file.stat().st_mtime for file in folder.glob("*/*/result.json")}

    def going_on() -> list[str]:
        """Trainings that have a checkpoint and are not done."""
        begun = [str(path.relative_to(folder)) for path in folder.glob("*/seed-*") if checkpoints_in(str(path))]
        return [name for name in begun if name not in trained()]

    try:
        while not (trained() and going_on()):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        driver.kill()
    finally:
        driver.kill()
        driver.wait()
    done = trained()
    begun = {name: read_history(str(folder / name)) for name in going_on()}
    assert 1 <= len(done) < 4
    assert begun

    assert start(tmp_path).wait(300) == 0, (tmp_path / "log").read_text()
    after = trained()
    assert len(after) == 4
    assert {name: after[name] for name in done} == done
    for name, history in begun.items():  # gone on with: what it had reached, and when, is unchanged
        now = read_history(str(folder / name))
        assert now[: len(history)] == history
        assert [metrics["epoch"] for metrics in now] == [1, 2, 3, 4, 5, 6]
    winner = read_json(str(tmp_path / "runs/killed/result.json"))["winner"]
    assert {arm: len(of["seeds"]) for arm, of in winner["arms"].items()} == {"winner": 2, "default": 2}
    assert not (tmp_path / "runs/killed/lease.json").exists()

    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if "-seed-" in run.info.run_name]
    assert len(children) == 4
    for run in children:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "score")]
        assert len(steps) == len(set(steps)) == 6
