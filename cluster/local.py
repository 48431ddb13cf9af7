"""A Ray cluster of one head and two worker nodes on this machine, to rehearse what runs on a real one.

    python -m cluster.local up        start it (nothing happens when it already runs)
    python -m cluster.local up --autoscale    start the head alone; nodes come when jobs ask for them, and go
    python -m cluster.local status    what runs
    python -m cluster.local down      stop it, and nothing else

Like a real cluster: the head takes no tasks, a submitted job's code reaches each node by itself, every node has its
own folder for temporary files and its own object store, and two training workers of three CPUs land on two nodes. The
nodes are processes in the background; they outlive the terminal. Which ones they are stands in .cluster/state.json,
and `down` stops exactly those (`ray stop` would stop every Ray of the user).

Ray's ports are open to the network, so the cluster lets in only who has the user's token (~/.ray/auth_token).
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import psutil

from jobs.ray_token import ensure_token, headers
from pipeline.errors import EquihandError

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
WORKER_OBJECT_STORE_MB = 256
HEAD_OBJECT_STORE_MB = 100
IDLE_S = 20.0
"""After which a node that nobody uses goes, where nodes come and go."""
_HEAD_ID = "f" * 51 + "00000"

# address, job_server, num_workers, cpus, folder; processes: {node: [process id, start time]}, `ray start` of each node;
# members: [[process id, start time], ...], what these had started when the cluster was ready
State = dict[str, Any]


class ClusterError(EquihandError):
    """The local cluster could not be started."""


def up(
    home: Path,
    num_workers: int = 2,
    cpus: int = 4,
    job_port: int = 8265,
    autoscale: bool = False,
    idle_s: float = IDLE_S,
) -> State:
    """Start a cluster and wait until all of its nodes are there. One that runs already is left as it is.

    home: folder of the state file and of the nodes' output. autoscale: start no worker node before it is asked for, and not more than
    num_workers; one that nobody uses for idle_s seconds goes.
    cpus: logical CPUs of each worker node; more than the machine has is fine for a rehearsal.
    job_port: port of the job server and dashboard, on loopback.
    Raises ClusterError; whatever had been started is stopped then.
    """
    running = _read(home)
    if running is not None and _processes(running):
        if len(_processes(running)) < len(running["processes"]):
            raise ClusterError(
                "a node of the local cluster has ended, others still run; stop it with make cluster-down"
            )
        _wait(running, home, 1 + running["num_workers"], time.monotonic() + START_TIMEOUT_S)
        return running
    down(home)  # the files of a cluster that has ended
    if _port_in_use(job_port):
        raise ClusterError(f"port {job_port} is in use, so the job server cannot have it; choose one with --port")
    ensure_token()
    gcs_port = _free_ports(1)[0]
    # Short, because the path of a Unix socket below it may have some hundred characters at most.
    folder = Path("/tmp") / f"equihand-{os.getuid()}-{zlib.crc32(str(home.resolve()).encode()):08x}"  # noqa: S108 - Ray's own default
    state: State = {
        "address": f"127.0.0.1:{gcs_port}",
        "job_server": f"http://127.0.0.1:{job_port}",
        "num_workers": num_workers,
        "cpus": cpus,
        "folder": str(folder),
        "processes": {},
        "members": [],
    }
    home.mkdir(parents=True, exist_ok=True)
    head = ["--head", f"--port={gcs_port}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    head += [f"--dashboard-port={job_port}", "--num-cpus=0", f"--object-store-memory={HEAD_OBJECT_STORE_MB << 20}"]
    worker = [f"--address=127.0.0.1:{gcs_port}", f"--num-cpus={cpus}"]
    worker += [f"--object-store-memory={WORKER_OBJECT_STORE_MB << 20}"]
    deadline = time.monotonic() + START_TIMEOUT_S
    if autoscale:
        shutil.copy(Path(__file__).with_name("nodes.py"), home)
        config = home / "autoscaling.json"  # which is YAML, too
        config.write_text(json.dumps(_autoscaling(gcs_port, num_workers, cpus, str(folder), idle_s)), encoding="utf-8")
        head.append(f"--autoscaling-config={config.resolve()}")
        state["num_workers"] = num_workers = 0
    try:
        _start_node(home, state, "head", head)
        _wait(state, home, 1, deadline)
        for number in range(1, num_workers + 1):
            _start_node(home, state, f"worker-{number}", worker)
        _wait(state, home, 1 + num_workers, deadline)
        state["members"] = [[member.pid, member.create_time()] for member in _with_children(_processes(state))]
        _record(home, state)
    except BaseException:
        down(home, keep_files=True)
        raise
    return state


def status(home: Path) -> State | None:
    """The state of the cluster when all of its nodes are alive, else None."""
    state = _read(home)
    if state is None or len(_processes(state)) < len(state["processes"]):
        return None
    return state if _alive_nodes(state) >= 1 + state["num_workers"] else None


def down(home: Path, keep_files: bool = False) -> bool:
    """Stop the recorded processes and what they started, and remove Ray's files. False: there was nothing.

    keep_files: leave Ray's files, logs among them, for a look at what went wrong.
    """
    state = _read(home)
    if state is None:
        return False
    roots = _processes(state)
    members = [process for entry in state["members"] if (process := _process(*entry)) is not None]
    family = _with_children([*roots, *members])  # a member may have lost its parent
    for process in reversed(roots):  # worker nodes first, so that the head sees them leave
        _signal(process, signal.SIGTERM)
    _, remaining = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for process in _with_children(remaining):
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(remaining, timeout=STOP_TIMEOUT_S)
    if not keep_files:
        shutil.rmtree(state["folder"], ignore_errors=True)
    (home / "state.json").unlink()
    return True


def _autoscaling(gcs_port: int, most: int, cpus: int, folder: str, idle_s: float) -> dict[str, Any]:
    """Configuration of Ray's autoscaler, whose nodes are processes of this machine (nodes.py)."""
    lists = ["initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"]
    lists += [
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
    ]
    return {
        "cluster_name": "local",
        "max_workers": most,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "nodes.ProcessNodes",
            "folder": folder,
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
            "gcs_address": f"127.0.0.1:{gcs_port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": cpus, "object_store_memory": WORKER_OBJECT_STORE_MB << 20},
                "node_config": {},
                "labels": {},
                "min_workers": 0,
                "max_workers": most,
            },
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


def _start_node(home: Path, state: State, name: str, options: list[str]) -> None:
    agent_listen, agent_grpc, runtime_env, metrics, client = _free_ports(5)
    command = [
        *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"),
        *("--node-ip-address=127.0.0.1", "--disable-usage-stats", "--log-style=record"),
        # Several nodes on one host: the ports with fixed defaults must differ, workers bind to whatever is free.
        f"--dashboard-agent-listen-port={agent_listen}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
        f"--runtime-env-agent-port={runtime_env}",
        f"--metrics-export-port={metrics}",
        f"--temp-dir={state['folder']}/{name}",
        f"--labels=node-name={name}",
        *options,
    ]
    if "--head" in options:
        command.append(f"--ray-client-server-port={client}")
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_JOB_ID")}
    environment["RAY_AUTH_MODE"] = "token"
    if any(option.startswith("--autoscaling-config") for option in options):
        environment |= {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        environment["PYTHONPATH"] = str(home.resolve())  # of the autoscaler, which imports nodes.py
        environment |= {"RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID}
    # A job's entry point says `python`: it shall be the one that has the dependencies.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    Path(state["folder"], name).mkdir(parents=True, exist_ok=True)
    with (home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=state["folder"],  # not the checkout: nodes of a real cluster have only what a job brings
            env=environment,
            start_new_session=True,
        )
    state["processes"][name] = [process.pid, psutil.Process(process.pid).create_time()]
    _record(home, state)


def _wait(state: State, home: Path, num_nodes: int, deadline: float) -> None:
    while _alive_nodes(state) < num_nodes:
        ended = len(_processes(state)) < len(state["processes"])
        if ended or time.monotonic() > deadline:
            what = "a node ended" if ended else f"not ready after {START_TIMEOUT_S:.0f} s"
            raise ClusterError(f"the local cluster is not there: {what}; see {home}/*.log and {state['folder']}")
        time.sleep(0.3)


def _alive_nodes(state: State) -> int:
    """Nodes that the job server reports as alive; 0 while it does not answer."""
    # No proxy: the environment's proxy settings are not for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(f"{state['job_server']}/nodes?view=summary", headers=headers())  # noqa: S310 - http, to this machine
        with opener.open(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
    except (OSError, ValueError, KeyError):
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def _processes(state: State) -> list[psutil.Process]:
    """The nodes' processes that are alive, head first."""
    return [process for entry in state["processes"].values() if (process := _process(*entry)) is not None]


def _process(pid: int, start_time: float) -> psutil.Process | None:
    """The process if it is still the one that was recorded (process ids are used again), else None."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - start_time) > 1 or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def _with_children(processes: list[psutil.Process]) -> list[psutil.Process]:
    family: dict[int, psutil.Process] = {}
    for process in processes:
        try:
            family |= {member.pid: member for member in [process, *process.children(recursive=True)]}
        except psutil.NoSuchProcess:
            continue
    return list(family.values())


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _port_in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _record(home: Path, state: State) -> None:
    temporary = home / "state.json.tmp"
    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
    temporary.replace(home / "state.json")


def _read(home: Path) -> State | None:
    path = home / "state.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.local", description="A local Ray cluster for rehearsals.")
    parser.add_argument("action", choices=["up", "status", "down"])
    parser.add_argument("--workers", type=int, default=2, help="worker nodes (default: 2)")
    parser.add_argument("--autoscale", action="store_true", help="start worker nodes only when jobs ask for them")
    parser.add_argument("--cpus", type=int, default=4, help="logical CPUs of each worker node (default: 4)")
    parser.add_argument("--port", type=int, default=8265, help="port of the job server (default: 8265)")
    arguments = parser.parse_args()
    home = ROOT / ".cluster"
    if arguments.action == "down":
        print("the local cluster is stopped" if down(home) else "no local cluster is running")
        return 0
    try:
        state = (
            status(home)
            if arguments.action == "status"
            else up(home, arguments.workers, arguments.cpus, arguments.port, arguments.autoscale)
        )
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if state is None:
        broken = _read(home) is not None
        print("the local cluster is not whole: make cluster-down" if broken else "no local cluster is running")
        return 1
    print(
        f"local cluster: 1 head, {state['num_workers']} worker nodes of {state['cpus']} CPUs"
        + (f", up to {arguments.workers} more when jobs ask for them" if arguments.autoscale else "")
        + " ("
        + ", ".join(f"{name}: process {pid}" for name, (pid, _) in state["processes"].items())
        + ")\n"
        f"  submit:  python -m jobs.submit --address {state['job_server']} JOB [--setting value ...]\n"
        f"  stop:    make cluster-down"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
