"""`num_workers: [1, 2]` on a cluster whose nodes go and come while it trains."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from pipeline.storage import read_json
from tests.chaos.train import RECORDS
from tests.tiny_sets import write_tiny_set

ROOT = Path(__file__).resolve().parents[2]
ROWS, GLOBAL_BATCH, EPOCHS = 160, 16, 60
STEPS_PER_EPOCH = ROWS // GLOBAL_BATCH
PAUSE_S = 0.3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that takes no tasks, and one node, on which one worker and its reader fit."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(RECORDS, str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "pause").write_text(str(PAUSE_S))
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    yield found
    found.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=3, object_store_memory=200 << 20)


def records(folder: Path) -> list[dict[str, Any]]:
    """What all workers have trained on, in order of time."""
    found = []
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                found.append(json.loads(line))
    return sorted(found, key=lambda record: record["at"])


def workers_now(folder: Path, since: float) -> int:
    """Workers that did the newest step after a moment; 0 before there was one."""
    new = [record for record in records(folder) if record["at"] > since]
    newest = max((record["step"] for record in new), default=0) - 1  # of the very newest one may be missing still
    return len({record["rank"] for record in new if record["step"] == newest})


def wait_for(
    job: subprocess.Popen[bytes], log: Path, reached: Callable[[], bool], what: str, seconds: float = 240
) -> None:
    for _ in range(int(2 * seconds)):
        assert job.poll() is None, log.read_text()[-3000:]
        if reached():
            return
        time.sleep(0.5)
    raise AssertionError(f"{what} not seen:\n{log.read_text()[-3000:]}")


def test_it_shrinks_with_a_lost_node_and_grows_with_a_new_one(cluster: Any, tmp_path: Path) -> None:
    write_tiny_set(str(tmp_path / "set"), splits={"train": ROWS}, labelled=False, rows_per_shard=40, row_group_size=8)
    settings = {
        "frame_set": tmp_path / "set",
        "epochs": EPOCHS,
        "batch_size": GLOBAL_BATCH // 2,
        "precision": "float32",
        "views.size": 32,
        "encoder.width": 8,
        "projection.hidden": 32,
        "projection.outputs": 16,
        "checkpoint.every_steps": 5,
        "log_every": 5,
        "num_readers": 1,
        "workers.num_workers": "[1, 2]",
        "workers.cpus_per_worker": 2,
        "workers.threads": 1,
        "workers.use_gpu": "false",
        "workers.max_failures": 10,
        "tracking.uri": "none",
        "run.storage": tmp_path / "runs",
        "run.run_id": "elastic",
        "ray.address": cluster.address,
    }
    command = [sys.executable, "-m", "tests.chaos.train", *(f"--{name}={value}" for name, value in settings.items())]
    log = tmp_path / "log"
    add_node(cluster)
    with log.open("ab") as output:
        job = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ.copy())
    try:
        wait_for(job, log, lambda: workers_now(tmp_path, 0) == 1, "one worker")
        second = add_node(cluster)
        began = time.time()
        wait_for(job, log, lambda: workers_now(tmp_path, began) == 2, "a second worker on a new node")
        lost = time.time()
        cluster.remove_node(second, allow_graceful=False)
        wait_for(job, log, lambda: workers_now(tmp_path, lost + 1) == 1, "one worker on the node that is left")
        (tmp_path / "pause").unlink()
        assert job.wait(300) == 0, log.read_text()[-3000:]
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGKILL)
            job.wait(30)
    result = read_json(str(tmp_path / "runs/elastic/result.json"))
    assert (result["metrics"]["step"], result["global_batch"]) == (EPOCHS * STEPS_PER_EPOCH, GLOBAL_BATCH)

    # Each step as it was done last, by one worker or two: whole batches, and every frame once in each epoch.
    done = records(tmp_path)
    assert {record["rank"] for record in done} == {0, 1}
    frames: dict[int, dict[str, float]] = {}
    for record in done:
        frames.setdefault(record["step"], {}).update(dict.fromkeys(record["frames"], record["at"]))
    assert [*sorted(frames)] == [*range(1, EPOCHS * STEPS_PER_EPOCH + 1)]
    assert {len(each) for each in frames.values()} == {GLOBAL_BATCH}  # also where a step was done again by others
    for epoch in range(EPOCHS):
        steps = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        assert len({frame for step in steps for frame in frames[step]}) == ROWS
