"""The files for Kubernetes, AWS and containers, checked without any of them."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.pretrain import PretrainJob
from pipeline.config import load

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads(Path(__file__).with_name("rayjob_v1.schema.json").read_text())


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def problems(rayjob: Any) -> list[str]:
    """What KubeRay would refuse: fields, types, and the rules between fields that a schema does not express."""
    found = [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(rayjob)]
    if found:
        return found
    spec = rayjob["spec"]
    if "deletionStrategy" in spec and ("shutdownAfterJobFinishes" in spec or "ttlSecondsAfterFinished" in spec):
        found.append("deletionRules exclude shutdownAfterJobFinishes and ttlSecondsAfterFinished")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    delays: dict[str, list[tuple[str, int]]] = {}
    for rule in spec.get("deletionStrategy", {}).get("deletionRules", []):
        condition = dict(rule["condition"])
        delay = condition.pop("ttlSeconds", 0)
        delays.setdefault(str(condition), []).append((rule["policy"], delay))
    order = ["DeleteWorkers", "DeleteCluster", "DeleteSelf"]
    for when, rules in delays.items():
        if len({policy for policy, _ in rules}) < len(rules):
            found.append(f"two rules with one policy for {when}")
        staged = [delay for policy, delay in sorted(rules, key=lambda rule: order.index(rule[0]))]
        if staged != sorted(staged):
            found.append(f"{when}: what deletes more must come later")
    for group in spec["rayClusterSpec"].get("workerGroupSpecs", []):
        if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            found.append(f"{group['groupName']}: minReplicas <= replicas <= maxReplicas")
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            if not {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes:
                found.append(f"{group['groupName']}: a mount without its volume")
            gpus = [container["resources"][kind].get("nvidia.com/gpu") for kind in ("limits", "requests")]
            if gpus[0] != gpus[1]:
                found.append(f"{group['groupName']}: GPU limits and requests must agree")
    return found


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
        _set("spec/deletionStrategy/deletionRules/2/condition/ttlSeconds", -1),
        _set("spec/deletionStrategy/deletionRules/1/condition/ttlSeconds", 7200),
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
    settings = load(PretrainJob, arguments)
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
