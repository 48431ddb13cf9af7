"""Jobs on a cluster that has no node to work on when they begin: nodes come, the job runs, nodes go. On Ray's own autoscaler."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import local
from jobs.ray_token import headers
from pipeline.storage import read_json
from tests.chaos.world import free_port
from tests.frames.clips import write_clip
from tests.tiny_sets import write_tiny_set

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.State]:
    """A head without CPUs; up to three nodes of three CPUs come when they are asked for."""
    home = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
        yield local.up(home, num_workers=3, cpus=3, job_port=free_port(), autoscale=True, idle_s=6)
        local.down(home)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and a labelled frame set."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(6):
        write_clip(folder / "clips", f"clip_{number}", num_frames=24)
    write_tiny_set(str(folder / "labelled"), splits={"train": 64, "val": 16}, image_size=48)
    return folder


def num_nodes(state: local.State) -> int:
    request = urllib.request.Request(f"{state['job_server']}/nodes?view=summary", headers=headers())
    with urllib.request.urlopen(request, timeout=20) as answer:
        nodes = json.load(answer)["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes) - 1  # the head


def wait_until_empty(state: local.State) -> None:
    for _ in range(120):
        if num_nodes(state) == 0:
            return
        time.sleep(1)
    raise AssertionError("nodes do not go")


def run_from_zero(state: local.State, data: Path, *arguments: str, code: int = 0) -> tuple[str, int]:
    """What a submitted job printed, and the most nodes that there were at a time."""
    wait_until_empty(state)
    most, ended = [0], threading.Event()

    def count() -> None:
        while not ended.wait(1):
            most[0] = max(most[0], num_nodes(state))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.submit", "--address", state["job_server"], *arguments],
            cwd=ROOT,
            env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{data}/mlflow.db"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        ended.set()
        thread.join()
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed[-3000:]
    return printed, most[0]


def test_ingest_and_then_pretraining_on_two_nodes(cluster: local.State, data: Path) -> None:
    source = ["--source.kind=labelled_video", f"--source.uri={data}/clips", "--source.name=c"]
    shape = ["--image_size=48", "--rows_per_shard=24", "--row_group_size=8"]
    _, most = run_from_zero(cluster, data, "ingest", *source, *shape, f"--output={data}/frames")
    assert most >= 1
    assert read_json(f"{data}/frames/manifest.json")["shards"]

    small = ["--encoder.width=8", "--views.size=32", "--projection.hidden=32", "--projection.outputs=16"]
    run = [f"--frame_set={data}/frames", f"--run.storage={data}/runs", "--epochs=3", "--batch_size=16"]
    workers = ["--workers.num_workers=2", "--workers.cpus_per_worker=2"]
    printed, _ = run_from_zero(cluster, data, "--run-id=none", "pretrain", *run, *small, *workers, code=2)
    assert "error: setting 'workers.use_gpu' must be given: nodes of this cluster come and go" in printed
    arguments = ["--run-id=p", "pretrain", *run, *small, *workers, "--workers.use_gpu=false"]
    printed, most = run_from_zero(cluster, data, *arguments)
    assert most >= 2
    result = read_json(f"{data}/runs/p/result.json")
    assert (result["metrics"]["epoch"], result["world_size"]) == (3, 2)
    assert "error" not in printed

    # What no node can ever hold is not waited for.
    never = [each.replace("cpus_per_worker=2", "cpus_per_worker=5") for each in arguments]
    printed, _ = run_from_zero(cluster, data, "--run-id=never", *never[1:], code=2)
    assert "error: 2 x (5 CPU): no nodes that this cluster may start can hold that" in printed


def test_search(cluster: local.State, data: Path) -> None:
    """Its four trials, of two CPUs each, on nodes that come one after the other."""
    tune = [f"--finetune.frame_set={data}/labelled", "--finetune.encoder.width=8", "--finetune.views.size=32"]
    tune += ["--finetune.epochs=3", "--finetune.batch_size=16", "--space={batch_size: {choice: [8, 16]}}"]
    trials = [
        "--num_trials=4",
        "--cpus_per_trial=2",
        "--gpus_per_trial=0",
        f"--run.storage={data}/runs",
        "--winner.seeds=0",
    ]
    _, most = run_from_zero(cluster, data, "--run-id=s", "search", *tune, *trials)
    assert most >= 2
    result = read_json(f"{data}/runs/s/result.json")
    assert len(result["trials"]) == 4
    assert all(trial["value"] is not None for trial in result["trials"])


def test_predict(cluster: local.State, data: Path) -> None:
    if not (data / "frames/manifest.json").exists():
        write_tiny_set(str(data / "frames"), splits={"train": 32}, image_size=48)
    asked = ["--model=equihand-small", f"--input={data}/frames", f"--output={data}/poses", "--use_gpu=false"]
    _, most = run_from_zero(cluster, data, "predict", *asked)
    assert most >= 1
    assert list((data / "poses").glob("*.parquet"))
    wait_until_empty(cluster)
