"""Whole runs that are asked to end, lose what they run on, or never get it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.kept import Kept
from pipeline.training.pretrain import run_epochs
from pipeline.training.pretrain_recipe import PretrainRecipe, check_recipe
from pipeline.training.worker import Worker
from tests.tiny_sets import write_tiny_set
from tests.training.killing import wait_for_worker

ROOT = Path(__file__).resolve().parents[2]
LONG = 300

RECIPE = {
    "epochs": 8,
    "batch_size": 4,
    "log_every": 50,
    "num_readers": 1,
    "precision": "float32",
    "views": {"size": 32},
    "encoder": {"width": 8},
    "projection": {"hidden": 32, "outputs": 16},
}


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    config = tmp_path / "config.json"  # which is YAML, too
    config.write_text(json.dumps({**RECIPE, "frame_set": str(tmp_path / "set")}))
    command = [
        *(sys.executable, "-m", "jobs.pretrain", f"--config={config}"),
        *(f"--run.storage={tmp_path / 'runs'}", "--run.run_id=left", f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
        *("--workers.threads=1", "--ray.num_cpus=4", "--ray.object_store_mb=200", *arguments),
    ]
    return process(tmp_path, command)


def process(tmp_path: Path, command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with open(tmp_path / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


def ended(job: subprocess.Popen[bytes], tmp_path: Path) -> tuple[int, str]:
    """Exit code, and all that was printed so far."""
    try:
        code = job.wait(LONG)
    finally:
        job.kill()
        job.wait(LONG)
    return code, (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_costs_no_step_and_the_same_command_ends_with_the_same_weights(tmp_path, monkeypatch):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 512}, labelled=False)
    folder = tmp_path / "runs/left"
    job = start(tmp_path)
    wait_for_worker(job, folder)  # and a first checkpoint, after an epoch
    job.send_signal(signal.SIGTERM)
    code, printed = ended(job, tmp_path)
    assert code == 143, printed[-2000:]
    left = re.search(
        r"^run 'left' left at step (\d+), epoch [\d.]+, with checkpoint (\S+); no step is lost, and", printed, re.M
    )
    assert left is not None, printed[-2000:]
    assert printed.splitlines()[-1] == left.string[left.start() :].strip()
    assert read_checkpoint(left[2])[1]["step"] == int(left[1]) < 1024
    assert not (folder / "result.json").exists()

    code, printed = ended(start(tmp_path), tmp_path)
    assert code == 0, printed[-2000:]
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"]["step"] == 1024
    placed = [
        json.loads(line)["going_on_from"]
        for file in sorted((folder / "logs").glob("*worker-0.jsonl"))
        for line in file.read_text().splitlines()
        if json.loads(line)["message"] == "placed"
    ]
    assert placed == [None, left[2]]

    monkeypatch.setattr(
        "pipeline.frames.windows.read_items", lambda items, reader: ((item, reader.read(item)) for item in items)
    )
    recipe = PretrainRecipe.model_validate({**RECIPE, "frame_set": str(tmp_path / "set")})
    kept, threads = Kept(str(tmp_path / "whole")), torch.get_num_threads()

    def report(metrics, snapshot) -> None:
        if snapshot is not None:
            kept.keep(snapshot, metrics)

    torch.set_num_threads(1)
    try:
        run_epochs(recipe, check_recipe(recipe, 1), Worker(report=report))
    finally:
        torch.set_num_threads(threads)
    whole, mine = read_checkpoint(str(kept.newest))[0], read_checkpoint(result["last_checkpoint"])[0]
    assert all(torch.equal(whole[name], mine[name]) for name in whole)


NEVER = """
import sys
import ray
from jobs.runtime import Job, RaySettings, run_job
from pipeline.training.launch import train_on_workers
from pipeline.training.workers import LaunchSettings

@ray.remote(num_cpus=3)
class Neighbour:
    def here(self): ...

def run(settings, progress, session):
    with session():
        neighbour = Neighbour.remote()
        ray.get(neighbour.here.remote())
        return train_on_workers(
            lambda *_: {}, settings, None, kind="pretrain", num_best=1, total=1, progress=progress, tags={}
        )

run_job(Job("never", LaunchSettings, run, "", RaySettings(address="local", num_cpus=4, object_store_mb=100)))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_that_find_no_place_are_waited_for_only_so_long(tmp_path):
    """The cluster is large enough, but others have what is missing."""
    arguments = [
        *("--workers.cpus_per_worker=2", "--workers.start_timeout_s=14", f"--run.storage={tmp_path / 'runs'}"),
        f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]
    code, printed = ended(process(tmp_path, [sys.executable, "-c", NEVER, *arguments]), tmp_path)
    assert code == 1, printed[-2000:]
    there = r"1 of 1 workers of \(2 CPU\) for \d+ s; the cluster has 1 node of \(4 CPU\), free: 1 CPU"
    assert re.search(rf"^warning: waiting for {there}$", printed, re.M), printed[-2000:]
    (error,) = re.findall(r"^error: .*$", printed, re.M)
    assert re.match(rf"error: gave up waiting for {there}\. The deadline is workers\.start_timeout_s = 14; ", error)


MOVES = """
import json, logging, os, sys, time
import ray
from pathlib import Path
from ray.cluster_utils import Cluster
from torch import nn
from jobs.runtime import RaySettings, ray_session
from pipeline.models.checkpoints import Snapshot, read_trainer_state
from pipeline.progress import SILENT
from pipeline.training.launch import train_on_workers
from pipeline.training.workers import LaunchSettings

def loop(settings, data, worker):
    folder = Path(worker.folder)
    node = ray.get_runtime_context().get_node_id()
    step = 0 if worker.resume is None else read_trainer_state(worker.resume)["step"]
    began = step
    while worker.resume is None or step < began + 20:
        leaving = worker.leaving()
        time.sleep(0.05)
        step += 1
        worker.notice(step, {})
        with open(folder / "steps", "a") as file:
            file.write(f"{step} {node}\\n")
        if leaving:
            metrics = {"step": step, "epoch": step / 10}
            worker.report(metrics, Snapshot(nn.Linear(1, 1).state_dict(), {"step": step}, {"metrics": metrics}))
    return {"began": began, "place": os.getcwd()}

def drain(folder):
    steps = folder / "steps"
    while not steps.exists() or not steps.read_text().strip():
        time.sleep(0.1)
    node = steps.read_text().splitlines()[0].split()[1]
    client = ray._raylet.GcsClient(address=cluster.address)
    print("drained:", client.drain_node(node, 2, "spot", int(1000 * (time.time() + 250))), flush=True)

if __name__ == "__main__":
    import threading
    logging.basicConfig(format="%(message)s")
    folder = Path(sys.argv[1], "runs", "moves")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    for _ in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=10**8)
    os.chdir(sys.argv[1])  # the nodes were started elsewhere
    with ray_session(RaySettings(address=cluster.address)):
        settings = LaunchSettings.model_validate({
            "workers": {"num_workers": 1, "cpus_per_worker": 2, "start_timeout_s": 200},
            "run": {"storage": sys.argv[1] + "/runs", "run_id": "moves"},
            "tracking": {"uri": "sqlite:///" + sys.argv[1] + "/mlflow.db"},
        })
        threading.Thread(target=drain, args=(folder,), daemon=True).start()
        result = train_on_workers(loop, settings, None, kind="pretrain", num_best=1, total=1, progress=SILENT, tags={})
        print("began:", result["began"], "in", result["place"], flush=True)
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_moves_away_from_a_node_that_will_be_taken_away(tmp_path):
    script = tmp_path / "moves.py"
    script.write_text(MOVES)
    code, printed = ended(process(tmp_path, [sys.executable, str(script), str(tmp_path)]), tmp_path)
    assert code == 0, printed[-2000:]
    assert re.search(r"^run 'moves' left at step \d+, .* because a node will be taken away", printed, re.M), printed[
        -2000:
    ]
    assert f"in {tmp_path}\n" in printed  # a relative path means to workers what it means to the driver
    done = [line.split() for line in (tmp_path / "runs/moves/steps").read_text().splitlines()]
    assert [int(step) for step, _ in done] == [*range(1, len(done) + 1)]  # none is lost, none comes twice
    nodes = [node for _, node in done]
    assert len(set(nodes)) == 2
    assert nodes == sorted(nodes, key=nodes.index)  # it moved once
