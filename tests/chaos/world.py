"""What a job needs, on this machine: a cluster of several nodes, S3 behind a proxy, MLflow. Each can be killed and come back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.faulty_s3 import FaultyS3

NODE_CPUS = 3
_STORE_BYTES = 200 << 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(arguments: list[str], port: int, log: Path) -> subprocess.Popen[bytes]:
    """A server of this Python, once it listens on loopback."""
    with log.open("ab") as output:
        server = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output, start_new_session=True)
    for _ in range(1200):
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return server
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"{' '.join(arguments)} does not listen; see {log}")


def end(process: subprocess.Popen[bytes] | None) -> None:
    """A server's process group."""
    if process is not None and process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def write_credentials(folder: Path, key: str) -> None:
    """The file from which the AWS SDK takes credentials, as a program that keeps them fresh writes it."""
    fresh = folder / "credentials.new"
    fresh.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = of-{key}\n")
    fresh.replace(folder / "credentials")


class World:
    """The machine room. `job` is the process under test."""

    def __init__(self, folder: Path, proxy: FaultyS3, command: list[str], environment: dict[str, str]) -> None:
        self.folder, self.proxy, self.command, self.environment = folder, proxy, command, environment
        self.records = Path(environment["CHAOS_RECORDS"])
        self.job: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.key = "first"
        """The access key that S3 takes."""
        self.mlflow: subprocess.Popen[bytes] | None = None
        self.mlflow_port = free_port()
        self.cluster: Any = None
        self.nodes: list[Any] = []

    def start_cluster(self) -> None:
        """A head that takes no tasks, and two nodes, either of which has room for the run."""
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _STORE_BYTES // 2}
        )
        self.nodes = [self._node() for _ in range(2)]

    def _node(self) -> Any:
        return self.cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=_STORE_BYTES)

    def add_node(self) -> None:
        self.nodes.append(self._node())

    def stop_cluster(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None

    def start_mlflow(self) -> None:
        database = f"sqlite:///{self.folder}/mlflow.db"
        options = [
            "--backend-store-uri",
            database,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
            "--workers",
            "1",
        ]
        arguments = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.mlflow_port), *options]
        self.mlflow = start_server(arguments, self.mlflow_port, self.folder / "mlflow.log")

    def start_job(self) -> None:
        """The same command every time."""
        self.starts += 1
        with (self.folder / "job.log").open("ab") as output:
            output.write(f"--- start {self.starts}\n".encode())
            output.flush()
            command = [*self.command, "--ray.address", self.cluster.address]
            self.job = subprocess.Popen(
                command, stdout=output, stderr=output, env=self.environment, start_new_session=True
            )

    def kill_job(self, sign: int = signal.SIGKILL) -> None:
        assert self.job is not None
        self.job.send_signal(sign)
        self.job.wait(180)

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of the cluster whose command line holds a name, like the actors' classes."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def steps(self) -> list[dict[str, Any]]:
        """What the first worker has trained on, in order of time."""
        done = []
        for path in self.records.glob("*.jsonl"):
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # a process that was killed while it wrote
                    continue
                done.append(record)
        return sorted(done, key=lambda each: float(each["at"]))

    def said(self) -> list[str]:
        """Lines of the job's terminal so far."""
        return (self.folder / "job.log").read_text(errors="replace").replace("\r", "\n").splitlines()
