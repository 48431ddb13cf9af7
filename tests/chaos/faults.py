"""What goes wrong. Each function does it, and puts back what a data centre would."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.chaos.world import World, end, write_credentials

NODE_COMES_S = 5.0
"""How long a lost machine takes to be replaced."""


def _to_a_worker(world: World, rng: random.Random, sign: int) -> None:
    rng.choice(world.processes("RayTrainWorker")).send_signal(sign)


def kill_worker(world: World, rng: random.Random) -> str:
    _to_a_worker(world, rng, signal.SIGKILL)
    return "kill -9 of a worker"


def kill_workers(world: World, rng: random.Random) -> str:
    for process in world.processes("RayTrainWorker"):
        process.send_signal(signal.SIGKILL)
    return "kill -9 of all workers"


def end_worker(world: World, rng: random.Random) -> str:
    _to_a_worker(world, rng, signal.SIGTERM)
    return "SIGTERM to a worker"


def kill_reader(world: World, rng: random.Random) -> str:
    """A task that reads frames, or a process that waits for one."""
    readers = world.processes("MapBatches") or world.processes("ray::IDLE")
    rng.choice(readers).send_signal(signal.SIGKILL)
    return "kill -9 of a reader of frames"


def kill_controller(world: World, rng: random.Random) -> str:
    for process in world.processes("TrainController"):
        process.send_signal(signal.SIGKILL)
    return "kill -9 of Ray Train's controller"


def stop_worker(world: World, rng: random.Random) -> str:
    _to_a_worker(world, rng, signal.SIGSTOP)
    return "SIGSTOP of a worker, which then hangs"


def kill_board(world: World, rng: random.Random) -> str:
    for process in world.processes("_Board"):
        process.send_signal(signal.SIGKILL)
    return "kill -9 of the actor that knows the progress"


def kill_driver(world: World, rng: random.Random) -> str:
    world.kill_job()
    return "kill -9 of the driver"


def end_driver(world: World, rng: random.Random) -> str:
    world.kill_job(signal.SIGTERM)
    return "SIGTERM to the driver"


def interrupt_driver(world: World, rng: random.Random) -> str:
    world.kill_job(signal.SIGINT)
    return "Ctrl-C at the driver"


def spoil_checkpoint(world: World, rng: random.Random) -> str:
    """The newest one, as a machine that dies while it writes may leave it."""
    import boto3

    world.kill_job()
    client: Any = boto3.client("s3", endpoint_url=f"{world.proxy.upstream.scheme}://{world.proxy.upstream.netloc}")
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="chaos", Prefix="runs/chaos/")["Contents"]]
    key = max(key for key in keys if "/checkpoint_" in key and key.endswith("trainer.pt"))
    body = client.get_object(Bucket="chaos", Key=key)["Body"].read()
    client.put_object(Bucket="chaos", Key=key, Body=body[: len(body) // 2])
    return "kill -9 of the driver, and the newest checkpoint's trainer.pt cut in half"


def lose_node(world: World, rng: random.Random) -> str:
    node = world.nodes.pop(rng.randrange(len(world.nodes)))
    world.cluster.remove_node(node, allow_graceful=False)
    time.sleep(NODE_COMES_S)
    world.add_node()
    return f"kill -9 of a node; another one {NODE_COMES_S:g} s later"


def notice_and_lose_node(world: World, rng: random.Random) -> str:
    """A spot machine: a notice with a deadline, and its end at the deadline."""
    node = world.nodes.pop(rng.randrange(len(world.nodes)))
    arguments = ["--address", world.cluster.address, "--node-id", node.node_id]
    arguments += [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "spot",
        "--deadline-remaining-seconds",
        "30",
    ]
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "drain-node"]
    subprocess.run([*ray, *arguments], check=True, capture_output=True, timeout=60)
    time.sleep(30)
    world.cluster.remove_node(node, allow_graceful=False)
    time.sleep(NODE_COMES_S)
    world.add_node()
    return "notice that a node will be taken away in 30 s, and its kill -9"


def lose_head(world: World, rng: random.Random) -> str:
    world.kill_job()  # it lives on the head's machine
    world.stop_cluster()
    world.start_cluster()
    return "the whole cluster with its head and the driver; a new one, same command"


def failing_storage(world: World, rng: random.Random) -> str:
    return _storage(world, 20, "S3 answers 20 % of requests with errors, resets and broken bodies, for 20 s", rate=0.2)


def slow_storage(world: World, rng: random.Random) -> str:
    return _storage(world, 20, "S3 takes 0.3 s more for every request, for 20 s", rate=1.0, faults=("delay",))


def no_storage(world: World, rng: random.Random) -> str:
    return _storage(world, 30, "S3 resets every connection, for 30 s", outage="reset")


def hanging_storage(world: World, rng: random.Random) -> str:
    return _storage(world, 30, "S3 answers nothing, for 30 s", outage="hang")


def _storage(world: World, seconds: float, text: str, **changes: Any) -> str:
    before = {name: getattr(world.proxy, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(world.proxy, name, value)
        time.sleep(seconds)
    finally:
        for name, value in before.items():
            setattr(world.proxy, name, value)
    return text


def expire_credentials(world: World, rng: random.Random) -> str:
    """The object store refuses the old ones a second before there are new ones."""
    key = f"key{rng.randrange(10**6)}"
    world.proxy.expired.add(world.key)
    time.sleep(1)
    write_credentials(world.folder, key)
    world.key = key
    return "S3 refuses the credentials, which have expired; new ones in their file 1 s later"


def lose_mlflow(world: World, rng: random.Random) -> str:
    end(world.mlflow)
    time.sleep(20)
    world.start_mlflow()
    return "MLflow's server killed, started again 20 s later"


def stop_mlflow(world: World, rng: random.Random) -> str:
    assert world.mlflow is not None
    os.killpg(world.mlflow.pid, signal.SIGSTOP)
    time.sleep(30)
    os.killpg(world.mlflow.pid, signal.SIGCONT)
    return "MLflow's server answers nothing, for 30 s"


FAULTS: tuple[Callable[[World, random.Random], str], ...] = (
    kill_worker,
    kill_workers,
    end_worker,
    stop_worker,
    kill_reader,
    kill_controller,
    kill_board,
    kill_driver,
    end_driver,
    interrupt_driver,
    spoil_checkpoint,
    lose_node,
    notice_and_lose_node,
    lose_head,
    failing_storage,
    slow_storage,
    no_storage,
    hanging_storage,
    expire_credentials,
    lose_mlflow,
    stop_mlflow,
)
