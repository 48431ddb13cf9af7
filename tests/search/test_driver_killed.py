"""A search whose driver is killed by force, on a cluster that stays, and started again with the same command."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from pipeline.search.records import COMPLETED, RUNNING, read_records
from pipeline.storage import read_json
from tests.tiny_sets import write_tiny_set

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 6


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    config = {
        "finetune": {
            "frame_set": str(tmp_path / "set"),
            "encoder": {"width": 16},
            "views": {"size": 64},
            "epochs": EPOCHS,
        },
        "space": {"batch_size": {"choice": [8, 16]}, "optimiser.learning_rate": {"log_uniform": [3e-4, 1e-2]}},
        "num_trials": 4,
        "winner": {"seeds": 0},
        "max_concurrent": 2,
        "grace_epochs": EPOCHS,  # none is ended early
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [
        *(sys.executable, "-m", "jobs.search", f"--config={tmp_path / 'config.json'}"),
        *(
            f"--run.storage={tmp_path / 'runs'}",
            "--run.run_id=killed",
            f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        ),
        f"--ray.address={ray.get_runtime_context().gcs_address}",
        *arguments,
    ]
    with open(tmp_path / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)


def steps_reported(tmp_path: Path) -> dict[str, list[tuple[int, float]]]:
    """{trial: (step, score) of its child run}, with its status before them."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len({run.info.run_name for run in children}) == len(children)
    assert {run.info.status for run in runs} == {"FINISHED"}
    return {
        run.info.run_name.removeprefix("killed-"): sorted(
            (metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "score")
        )
        for run in children
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_finished_stays_and_what_ran_goes_on(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 256, "val": 16}, image_size=64)
    search = str(tmp_path / "runs/killed")
    job = start(tmp_path)
    try:
        for _ in range(2400):
            assert job.poll() is None, (tmp_path / "log").read_text()[-3000:]
            records = read_records(search)
            if {COMPLETED, RUNNING} <= {record.state for record in records if record.history}:
                break
            time.sleep(0.1)
        job.kill()
        job.wait(60)
        before = read_records(search)
        over = {record.name: record for record in before if record.state == COMPLETED}
        under_way = {record.name: record for record in before if record.state == RUNNING and record.history}
        assert over
        assert under_way
        assert not (tmp_path / "runs/killed/result.json").exists()
        files = {name: {p: p.stat().st_mtime_ns for p in Path(search, "trials", name).rglob("*")} for name in over}
        job = start(tmp_path)
        assert job.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        job.kill()
        job.wait(60)
    for name, record in over.items():  # nothing was trained, and nothing written
        assert {p: p.stat().st_mtime_ns for p in Path(search, "trials", name).rglob("*")} == files[name]
        assert next(each for each in read_records(search) if each.name == name) == record
    after = {record.name: record for record in read_records(search)}
    for name, record in under_way.items():  # gone on with: what it had reached, and when, is unchanged
        assert after[name].history[: len(record.history)] == record.history
        assert after[name].values == record.values
    result = read_json(f"{search}/result.json")
    assert [trial["state"] for trial in result["trials"]] == [COMPLETED] * 4
    # MLflow: one child for each trial, ended, with every epoch once.
    expected = {name: sorted((int(m["step"]), m["score"]) for m in record.history) for name, record in after.items()}
    assert steps_reported(tmp_path) == expected
    assert all(len(steps) == EPOCHS for steps in expected.values())
