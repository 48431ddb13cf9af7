"""The files for Kubernetes, AWS and containers, checked without any of them."""

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.scripts import scripts

from jobs.pretrain import JOB

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(Path(__file__).with_name("rayjob_v1.schema.json").read_text())


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def problems(rayjob: Any) -> list[str]:
    """What KubeRay would refuse: fields and types, and the rules between fields that its operator checks (v1.7)."""
    found = [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(rayjob)]
    if found:
        return found
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", rayjob["metadata"]["name"]):
        found.append("the name must begin with a letter and have 47 characters at most")
    if cluster.get("authOptions", {}).get("mode") == "token" and "rayVersion" not in cluster:
        found.append("a token needs rayVersion")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        found.append("suspend needs shutdownAfterJobFinishes")
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        found += _problems_of_group(group, cluster)
    return found + _problems_of_deletion(spec)


def _problems_of_group(group: Any, cluster: Any) -> list[str]:
    found = []
    name = group.get("groupName", "head")
    pod = group["template"]["spec"]
    parameters = group.get("rayStartParams", {})
    if "labels" in parameters:
        found.append(f"{name}: labels are a field of the group")
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
        found.append(f"{name}: resources in two places")
    if cluster.get("autoscalerOptions", {}).get("version") == "v2" and pod.get("restartPolicy", "Never") != "Never":
        found.append(f"{name}: autoscaler v2 needs restartPolicy Never")
    if "groupName" in group and not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
        found.append(f"{name}: minReplicas <= replicas <= maxReplicas")
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        if not {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes:
            found.append(f"{name}: a mount without its volume")
        if len({container["resources"][kind].get("nvidia.com/gpu") for kind in ("limits", "requests")}) > 1:
            found.append(f"{name}: GPU limits and requests must agree")
    return found


def _problems_of_deletion(spec: Any) -> list[str]:
    found = []
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules and spec.get("shutdownAfterJobFinishes"):
        found.append("deletionRules exclude shutdownAfterJobFinishes")
    if spec["rayClusterSpec"].get("enableInTreeAutoscaling") and "DeleteWorkers" in [rule["policy"] for rule in rules]:
        found.append("DeleteWorkers excludes autoscaling")
    delays: dict[str, list[tuple[str, int]]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        delay = condition.pop("ttlSeconds", 0)
        delays.setdefault(str(condition), []).append((rule["policy"], delay))
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf", "DeleteNone"]
    for when, staged in delays.items():
        if len({policy for policy, _ in staged}) < len(staged):
            found.append(f"two rules with one policy for {when}")
        in_order = [delay for _, delay in sorted(staged, key=lambda stage: order.index(stage[0]))]
        if in_order != sorted(in_order):
            found.append(f"{when}: what deletes more must come later")
    return found


def test_a_pod_that_is_deleted_drains_its_node():
    """With options that this version of Ray knows, and within the time that the pod is given."""
    (group,) = read("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    shell, dash_c, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, dash_c) == ("/bin/sh", "-c")
    assert subprocess.run([shell, "-n", dash_c, script], check=False).returncode == 0
    ray, command, *arguments = shlex.split(script.split(";")[0])
    assert (ray, command) == ("ray", "drain-node")
    given = scripts.drain_node.make_context(command, arguments).params
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert given["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"]


def test_rayjob_is_what_kuberay_accepts() -> None:
    assert problems(read("rayjob.yaml")) == []


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(rayjob: Any) -> None:
        *parents, last = [int(p) if p.isdigit() else p.replace("~1", "/") for p in path.split("/")]
        for parent in parents:
            rayjob = rayjob[parent]
        rayjob[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("spec/rayClusterSpec/workerGroupSpecs/0/maxReplica", 4),
        _set("spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", "4"),
        _set("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
        _set("spec/submissionMode", "k8sJobMode"),
        _set("spec/shutdownAfterJobFinishes", True),
        _set("spec/deletionStrategy/deletionRules/0/policy", "DeleteAll"),
        _set("spec/deletionStrategy/deletionRules/1/condition/ttlSeconds", -1),
        _set("spec/deletionStrategy/deletionRules/1/condition", {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}),
        _set("spec/deletionStrategy/deletionRules/1/policy", "DeleteWorkers"),
        _set(
            "spec/deletionStrategy/deletionRules/1", {"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}
        ),
        _set("spec/rayClusterSpec/headGroupSpec/rayStartParams/labels", "a=b"),
        _set("spec/rayClusterSpec/headGroupSpec/resources", {"CPU": "0"}),
        _set("spec/rayClusterSpec/headGroupSpec/template/spec/restartPolicy", "Always"),
        _set("spec/suspend", True),
        _set("metadata/name", "3-runs"),
        _set("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/restartPolicy", "never"),
        _set("spec/rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/resources/limits/nvidia.com~1gpu", "2"),
        _set("apiVersion", "ray.io/v1alpha1"),
    ],
)
def test_mistakes_in_a_rayjob_are_found(change: Callable[[Any], None]) -> None:
    rayjob = copy.deepcopy(read("rayjob.yaml"))
    change(rayjob)
    assert problems(rayjob)


def test_rayjob_runs_a_resumable_pretraining_that_fits_its_cluster() -> None:
    spec = read("rayjob.yaml")["spec"]
    python, dash_m, module, *arguments = shlex.split(spec["entrypoint"])
    assert (python, dash_m, module) == ("python", "-m", "jobs.pretrain")
    settings = JOB.load(arguments)
    assert settings.run.run_id is not None, "each retry would begin a new run"
    assert spec["backoffLimit"] >= 1
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert settings.workers.num_workers == group["maxReplicas"]
    assert settings.workers.cpus_per_worker < int(worker["resources"]["limits"]["cpu"]), "no CPU left for reading"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_aws_file_is_what_ray_accepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("token")
    config = prepare_config(read("aws.yaml"))
    validate_config(config)
    types = config["available_node_types"]
    assert types["spot_gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["spot_gpu"]["max_workers"] <= config["max_workers"]
    mistaken = read("aws.yaml")
    mistaken["max_worker"] = 4
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(mistaken))


def test_container_gets_files_that_exist_and_the_python_that_was_tested() -> None:
    lines = (ROOT / "cluster" / "Containerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {name for name in copied if not (ROOT / name).exists()} == set()
    version = next(match[1] for line in lines if (match := re.match(r"FROM python:(\d+\.\d+)", line)))
    assert version == "3.11"


def test_no_file_holds_a_secret() -> None:
    for path in (ROOT / "cluster").iterdir():
        if path.suffix in (".yaml", "") and path.is_file():
            assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key|password)\s*[:=]\s*\S", path.read_text()), (
                path
            )
