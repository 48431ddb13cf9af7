"""See the package."""

import argparse
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.kept import checkpoints_in
from pipeline.storage import read_json
from tests.chaos.faults import FAULTS
from tests.chaos.train import RECORDS
from tests.chaos.world import World, end, free_port, start_server, write_credentials
from tests.conftest import s3_environment
from tests.faulty_s3 import FaultyS3
from tests.tiny_sets import write_tiny_set

ROWS, GLOBAL_BATCH = 960, 32
STEPS_PER_EPOCH, EPOCHS = ROWS // GLOBAL_BATCH, 30
NUM_STEPS = STEPS_PER_EPOCH * EPOCHS
PAUSE_S = 0.25  # so long that there are steps left for all faults
RECOVERY_S = 240.0
SETTLES_S = 3.0  # until what was killed is seen to be gone
QUIET_STEPS = 6  # between a recovery and the next fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="A pretraining under faults.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="each draws faults and their times")
    parser.add_argument("--minutes", type=float, default=10, help="for each seed; no fault comes later")
    parser.add_argument(
        "--faults", nargs="+", choices=[fault.__name__ for fault in FAULTS], help="these, in this order"
    )
    parser.add_argument("--workers", type=int, default=2, choices=[1, 2], help="training processes")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a run, and name it")
    options = parser.parse_args()
    went_well = [
        one_run(seed, options.minutes, options.faults, options.workers, options.keep) for seed in options.seeds
    ]
    return 0 if all(went_well) else 1


def one_run(seed: int, minutes: float, names: list[str] | None, workers: int, keep: bool) -> bool:
    """A run without faults and one with; whether all is as it should be."""
    rng = random.Random(seed)
    faults = (
        [fault for name in names for fault in FAULTS if fault.__name__ == name]
        if names
        else rng.sample(FAULTS, len(FAULTS))
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    s3_port = free_port()
    s3 = start_server(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)], s3_port, folder / "s3.log")
    proxy = FaultyS3(f"http://127.0.0.1:{s3_port}", seed)
    world = None
    print(f"seed {seed}: {', '.join(fault.__name__ for fault in faults)}", flush=True)
    try:
        with proxy.running():
            world = build_world(folder, proxy, workers)
            reference = train_without_faults(world)
            return run(world, faults, rng, time.monotonic() + 60 * minutes, reference)
    finally:
        if world is not None:
            end(world.job)
            world.stop_cluster()
            end(world.mlflow)
        end(s3)
        if keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def build_world(folder: Path, proxy: FaultyS3, workers: int) -> World:
    """Servers, cluster, data, and the command."""
    import boto3

    os.environ.update(s3_environment(proxy.uri), RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # as on a machine where a program keeps a file fresh
        os.environ.pop(name, None)
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(folder / "credentials")
    write_credentials(folder, "first")
    client: Any = boto3.client("s3")
    client.create_bucket(Bucket="chaos")
    write_tiny_set("s3://chaos/set", splits={"train": ROWS}, labelled=False, rows_per_shard=240, row_group_size=40)
    (folder / "records").mkdir()
    environment = {**os.environ, RECORDS: str(folder / "records"), "PYTHONPATH": os.getcwd()}
    os.environ.update({name: environment[name] for name in (RECORDS, "PYTHONPATH")})  # the nodes' workers get these
    world = World(folder, proxy, [], environment)
    world.command = [sys.executable, "-m", "tests.chaos.train"]
    for name, value in {
        "frame_set": "s3://chaos/set",
        "epochs": EPOCHS,
        "batch_size": GLOBAL_BATCH // workers,
        "precision": "float32",
        "views.size": 32,
        "encoder.width": 8,
        "projection.hidden": 32,
        "projection.outputs": 16,
        "log_every": 5,
        "checkpoint.every_steps": 10,
        "num_readers": 1,
        "workers.num_workers": workers,
        "workers.threads": 1,
        "workers.use_gpu": "false",
        "workers.max_failures": 20,
        "workers.hang_timeout_s": 20,
        "workers.start_timeout_s": 200,
        "tracking.uri": f"http://127.0.0.1:{world.mlflow_port}",
        "run.storage": "s3://chaos/runs",
        "run.run_id": "chaos",
    }.items():
        world.command += [f"--{name}", str(value)]
    world.start_mlflow()
    world.start_cluster()
    return world


def train_without_faults(world: World) -> dict[str, torch.Tensor]:
    """The weights that there should be."""
    command = world.command
    world.command = [*command, "--run.run_id", "reference"]
    records = world.records
    started = time.monotonic()
    world.start_job()
    assert world.job is not None
    if world.job.wait(900):
        raise SystemExit("the job fails without any fault:\n" + "\n".join(world.said()[-20:]))
    print(f"without faults: {time.monotonic() - started:.0f} s", flush=True)
    for path in records.glob("*.jsonl"):
        path.unlink()
    world.command = command
    (records / "pause").write_text(str(PAUSE_S))
    return final_weights("reference")


def final_weights(run_id: str) -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoints_in(f"s3://chaos/runs/{run_id}")[-1])[0]


def sha256(weights: dict[str, torch.Tensor]) -> str:
    """Of all names and numbers."""
    found = hashlib.sha256()
    for name, values in sorted(weights.items()):
        found.update(name.encode() + values.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def run(
    world: World, faults: list[Any], rng: random.Random, deadline: float, reference: dict[str, torch.Tensor]
) -> bool:
    """The job with faults; prints the table and the verdict."""
    world.starts, began = 0, time.monotonic()
    world.start_job()
    rows: list[tuple[str, ...]] = []
    for fault in faults:
        if not wait_for(world, last_step(world) + rng.randint(QUIET_STEPS, 2 * QUIET_STEPS)):
            break
        if last_step(world) >= NUM_STEPS - QUIET_STEPS or time.monotonic() > deadline:
            break
        rows.append(strike(world, fault, rng))
        print("  " + " | ".join(rows[-1]), flush=True)
        if rows[-1][-1] != "survived":
            break
    finished = wait_for(world, NUM_STEPS + 1, ends=True)
    print("\n| fault | what the run did | steps done again | longest pause, s | what it said | verdict |")
    print("| --- | --- | ---: | ---: | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    problems = check(world, reference) if finished else ["the run has not finished"]
    print(f"\n{len(rows)} faults in {time.monotonic() - began:.0f} s, the command started {world.starts} times")
    for problem in problems:
        print(f"WRONG: {problem}")
    if problems:
        print("\n".join(world.said()[-30:]))
    else:
        print("steps, frames of every epoch, MLflow's records and weights (bit for bit): as without faults")
        print(f"SHA-256 of the weights without faults, and with: {sha256(reference)}, {sha256(final_weights('chaos'))}")
    return not problems and all(row[-1] == "survived" for row in rows)


def strike(world: World, fault: Any, rng: random.Random) -> tuple[str, ...]:
    """One fault, until the run has done a step that it had not done before."""
    lines, starts, pids = len(world.said()), world.starts, {p.pid for p in world.processes("RayTrainWorker")}
    began = time.time()
    text = fault(world, rng)
    time.sleep(SETTLES_S)
    assert world.job is not None
    if world.job.poll() is not None:  # its workers may outlive it for a moment
        for _ in range(600):
            if not {p.pid for p in world.processes("RayTrainWorker")} & pids:
                break
            time.sleep(0.1)
    survived = wait_for(world, min(last_step(world) + 1, NUM_STEPS))
    repeated, pause = after(world, began)
    did = "went on"
    if world.starts > starts:
        did = "went on with the same command"
    elif {p.pid for p in world.processes("RayTrainWorker")} != pids:
        did = "restarted its workers"
    said = [line for line in world.said()[lines:] if line.startswith(("warning: ", "error: ", "run '", "interrupted"))]
    return (
        text,
        did,
        str(repeated),
        f"{pause:.0f}",
        said[0][:160].replace("|", "/") if said else "",
        "survived" if survived else "NOT RECOVERED",
    )


def after(world: World, began: float) -> tuple[int, float]:
    """Steps done again since then, and the longest time in which none was done that had not been done before."""
    furthest = repeated = 0
    new_at, pause = began, 0.0
    for each in world.steps():
        if each["rank"] != 0:
            continue
        if each["at"] > began and each["step"] <= furthest:
            repeated += 1
        if each["step"] > furthest and each["at"] > began:
            pause, new_at = max(pause, each["at"] - new_at), each["at"]
        furthest = max(furthest, each["step"])
    return repeated, pause


def last_step(world: World) -> int:
    return max((each["step"] for each in world.steps()), default=0)


def wait_for(world: World, step: int, ends: bool = False) -> bool:
    """Until a step is done (or the job has finished); starts the job again where it has ended before its end."""
    deadline = time.monotonic() + RECOVERY_S
    seen = -1
    while time.monotonic() < deadline:
        assert world.job is not None
        code = world.job.poll()
        if code == 0:
            return True
        if code is not None:
            world.start_job()
        now = last_step(world)
        if now != seen:
            seen, deadline = now, time.monotonic() + RECOVERY_S
        if now >= step and not ends:
            return True
        time.sleep(0.5)
    return False


def check(world: World, reference: dict[str, torch.Tensor]) -> list[str]:
    """What is not as it should be."""
    problems = []
    of_step: dict[tuple[int, int], list[str]] = {}
    for each in world.steps():
        place = each["step"], each["rank"]
        if of_step.setdefault(place, each["frames"]) != each["frames"]:
            problems.append(f"step {place[0]} of worker {place[1]} had other frames when it was done again")
    if sorted({step for step, _ in of_step}) != [*range(1, NUM_STEPS + 1)]:
        problems.append(f"{len({step for step, _ in of_step})} steps of {NUM_STEPS}")
    for epoch in range(EPOCHS):
        steps = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        counts = Counter(name for (step, _), names in of_step.items() if step in steps for name in names)
        if len(counts) != ROWS or set(counts.values()) != {1}:
            problems.append(f"epoch {epoch}: {len(counts)} of {ROWS} frames, some up to {max(counts.values())} times")
    weights = final_weights("chaos")
    different = [name for name, values in reference.items() if not torch.equal(values, weights[name])]
    if different:
        problems.append(f"{len(different)} of {len(reference)} tensors differ from the run without faults")
    result = read_json("s3://chaos/runs/chaos/result.json")
    problems += tracked(world, result["mlflow_run_id"])
    return problems


def tracked(world: World, run_id: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{world.mlflow_port}")
    steps = {metric.step for metric in client.get_metric_history(run_id, "loss")}
    missing = sorted({*range(5, NUM_STEPS + 1, 5)} - steps)
    problems = [f"MLflow lacks {len(missing)} logged steps, e.g. {missing[:5]}"] if missing else []
    status = client.get_run(run_id).info.status
    return problems + ([f"MLflow says {status}"] if status != "FINISHED" else [])


if __name__ == "__main__":
    sys.exit(main())
