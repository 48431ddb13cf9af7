"""The files for Kubernetes, clouds, Slurm and containers: their commands are those of the programs that they call."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.cli import cli as mlflow_cli
from ray.scripts import scripts

from cluster.check.kustomize import build, read_all
from pipeline import __version__

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"


def given(command: list[str]) -> dict[str, Any]:
    """The options of a `ray ...` command, as Ray reads them; it refuses those that it does not know."""
    ray, name, *arguments = command
    assert ray == "ray"
    return dict(scripts.cli.get_command(None, name).make_context(name, arguments).params)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("overlay", ["pretrain", "pretrain-gke", "search", "predict"])
def test_a_pod_that_is_deleted_drains_its_node(overlay):
    """With options that this version of Ray knows, and within the time that the pod is given."""
    (job,) = [each for each in build(CLUSTER / "kubernetes" / overlay) if each["kind"] == "RayJob"]
    (group,) = [
        group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "training"
    ]
    pod = group["template"]["spec"]
    shell, dash_c, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, dash_c) == ("/bin/sh", "-c")
    assert subprocess.run([shell, "-n", dash_c, script], check=False).returncode == 0
    options = given(shlex.split(script.split(";")[0]))
    assert options["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert options["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("file", ["aws.yaml", "gcp.yaml"])
def test_machines_of_a_launcher_file(file):
    (config,) = read_all(CLUSTER / file)
    types = config["available_node_types"]
    assert [kind for kind in types if "spot" in str(types[kind]["node_config"]).lower()] == ["spot_cpu", "spot_gpu"]
    assert [types[kind]["labels"]["ray-subcluster"] for kind in ("spot_cpu", "spot_gpu")] == ["data", "training"]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        words = shlex.split(config[name][-1])
        assert given(words[words.index("ray") :])["head"] is name.startswith("head")


def arguments_of_mlflow(words: list[str]) -> dict[str, Any]:
    assert words[:2] == ["mlflow", "server"]
    return dict(mlflow_cli.get_command(None, "server").make_context("server", words[2:]).params)


def test_mlflow_is_asked_by_the_name_that_it_answers_to():
    (deployment,) = [each for each in build(CLUSTER / "kubernetes/site") if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options = arguments_of_mlflow(container["command"] + container["args"])
    assert "equihand-mlflow:5000" in options["allowed_hosts"].split(",")
    assert (options["host"], options["port"]) == ("0.0.0.0", 5000)
    (compose,) = read_all(CLUSTER / "compose.yaml")
    assert "mlflow:5000" in arguments_of_mlflow(shlex.split(compose["services"]["mlflow"]["command"]))["allowed_hosts"]


def test_compose_starts_ray_as_ray_wants_to_be_started():
    (compose,) = read_all(CLUSTER / "compose.yaml")
    head, worker = (given(shlex.split(compose["services"][name]["command"])) for name in ("head", "worker"))
    assert (head["head"], head["num_cpus"], worker["address"]) == (True, 0, f"head:{head['port']}")


FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") RAY_ADDRESS=${RAY_ADDRESS:-} $*" >> "$LOG"
"""


def slurm(tmp_path: Path, nodes: int, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run slurm.sh where Slurm, Ray and Python only write down how they are called."""
    programs, log, token = tmp_path / "bin", tmp_path / "log", tmp_path / "token"
    programs.mkdir()
    token.write_text("token")
    for name in ("srun", "ray", "python"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)
    log.touch()
    environment = {
        "PATH": f"{programs}:{os.defpath}",
        "LOG": str(log),
        "HOME": str(tmp_path),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "SLURMD_NODENAME": "n1",
        "SLURM_JOB_ID": "1234567",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_NUM_NODES": str(nodes),
    }
    done = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), *arguments], env=environment, capture_output=True, text=True
    )
    return done, sorted(log.read_text().splitlines())


def test_slurm_script_starts_a_cluster_and_the_job_in_its_place(tmp_path):
    done, lines = slurm(tmp_path, 4, "pretrain", "--config", "my own.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    job, health, *nodes = lines
    assert job == "python RAY_ADDRESS=n1:24567 -m jobs.pretrain --config my own.yaml"
    assert health == "ray RAY_ADDRESS=n1:24567 health-check --address n1:24567"
    starts = [shlex.split(line[line.index(" ray start") :]) for line in nodes]
    options = {("head" if given(start)["head"] else "worker"): given(start) for start in starts}
    assert options["head"]["port"] == 24567
    assert options["worker"]["address"] == "n1:24567"
    assert all(each["num_cpus"] == 8 and each["block"] for each in options.values())
    assert all(line.startswith("srun RAY_ADDRESS= ") for line in nodes), (
        "ray start would join the cluster of RAY_ADDRESS"
    )
    assert any("--nodes=3 --ntasks=3 --exclude=n1" in line for line in nodes)
    assert "--signal=B:TERM@" in (CLUSTER / "slurm.sh").read_text()


def test_slurm_script_on_one_node_and_without_a_job(tmp_path):
    _, lines = slurm(tmp_path, 1, "pretrain")
    assert len(lines) == 3
    (tmp_path / "again").mkdir()
    done, lines = slurm(tmp_path / "again", 1)
    assert (done.returncode, lines) == (2, [])
    assert done.stderr == "usage: sbatch --nodes N cluster/slurm.sh JOB --setting value ...\n"


def test_container_has_the_python_that_was_tested():
    text = (CLUSTER / "Containerfile").read_text()
    assert re.search(r"^FROM python:(\d+\.\d+)", text, re.MULTILINE)[1] == "3.11"  # type: ignore[index]
    assert f"equihand:{__version__} " in text


def test_check_runs_as_a_program():
    command = [sys.executable, "-m", "cluster.check", "cluster/aws.yaml", "cluster/kubernetes/site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_file_holds_a_secret():
    for path in CLUSTER.rglob("*"):
        if path.is_file() and path.suffix in (".yaml", ".sh", ""):
            text = path.read_text()
            assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key|password)\s*[:=]\s*[^\s$%?]", text), path
