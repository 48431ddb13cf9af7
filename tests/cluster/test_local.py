import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import local

ROOT = Path(__file__).resolve().parents[2]

# A job like any other, small enough to be quick: two tasks too big to share a node say where they are.
WHERE = '''
"""Say where the work is done."""
import os
from jobs.runtime import Job, run_job
from pipeline.config import Settings

class WhereJob(Settings):
    run_id: str | None = None
    """The run's name."""

def run(settings, progress, session):
    import ray

    @ray.remote(num_cpus=2)
    def where():
        import time
        import pipeline
        time.sleep(0.5)
        return ray.get_runtime_context().get_node_id(), os.path.dirname(pipeline.__file__)

    with session():
        found = ray.get([where.remote() for _ in range(2)])
        print("nodes", len({node for node, _ in found}), "copies", len({path for _, path in found}))
        print("endpoint", os.environ.get("AWS_ENDPOINT_URL"), "run", settings.run_id)
    return {}

JOB = Job("where", WhereJob, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with one more job."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "jobs" / "where.py").write_text(WHERE)
    table = folder / "jobs" / "main.py"
    table.write_text(table.read_text().replace("JOBS = {", 'JOBS = {"where": "which nodes",', 1))
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, local.State]]:
    home = tmp_path_factory.mktemp("cluster")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
        yield home, local.up(home, num_workers=2, cpus=2, job_port=port)
        local.down(home)


def submit(checkout: Path, address: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "jobs.submit", "--address", address, *arguments],
        cwd=checkout,
        env={**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_submitted_job_runs_on_both_nodes_with_its_own_code(checkout: Path, cluster: tuple[Path, local.State]) -> None:
    home, state = cluster
    assert local.up(home) == state, "a running cluster is left as it is"
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    done = submit(checkout, state["job_server"], "--run-id", "w", "where")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nodes 2 copies 2" in done.stdout
    assert "endpoint http://127.0.0.1:9 run w" in done.stdout

    jobs = submit(checkout, state["job_server"], "--list").stdout
    assert [line.split()[:2] for line in jobs.splitlines()] == [["w", "SUCCEEDED"]]


def test_down_ends_the_nodes_and_nothing_else(cluster: tuple[Path, local.State]) -> None:
    home, state = cluster
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    nodes = [psutil.Process(pid) for pid, _ in state["processes"].values()]
    family = [member for node in nodes for member in [node, *node.children(recursive=True)]]
    assert len(family) > 10
    try:
        # A process id that has been used again must not be taken for a node's.
        recorded = json.loads((home / "state.json").read_text())
        recorded["processes"]["another"] = [bystander.pid, 0.0]
        (home / "state.json").write_text(json.dumps(recorded))
        assert local.status(home) is None
        with pytest.raises(local.ClusterError, match="a node of the local cluster has ended"):
            local.up(home)
        assert local.down(home)
        psutil.wait_procs(family, timeout=10)
        assert [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE] == []
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n", timeout=10)
    assert not Path(state["folder"]).exists()
    assert not local.down(home)


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(local.ClusterError, match="is in use"):
            local.up(tmp_path, job_port=taken.getsockname()[1])
    assert not (tmp_path / "state.json").exists()
