"""A job as objects of Kubernetes: a RayJob with a cluster of its own, and the job's settings as a ConfigMap.

The cluster is that of cluster/kubernetes/base, or of another file with a RayJob in it. The image brings the code.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import SettingsError, one_line

BASE = Path(__file__).resolve().parents[1] / "cluster/kubernetes/base/rayjob.yaml"
_FOLDER = "/etc/equihand"
_MAX_NAME = 47  # KubeRay puts its own endings to the name of a RayJob
_PLACEHOLDER = re.compile(r"\b(REGISTRY|ACCOUNT|REGION)\b")


def objects(job: str, run_id: str, settings: str, base: Path = BASE, image: str | None = None) -> list[dict[str, Any]]:
    """A ConfigMap with the settings (YAML), and a RayJob that runs `job` with them, both named after the run.

    Raises SettingsError: `base` holds no RayJob, a run id that Kubernetes does not take as a name, or no image.
    """
    name = _name(run_id)
    rayjob = copy.deepcopy(_rayjob(base))
    rayjob["metadata"] = {**rayjob.get("metadata", {}), "name": name}
    rayjob["spec"]["entrypoint"] = f"python -m jobs.{job} --config {_FOLDER}/settings.yaml"
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            container["image"] = image or container["image"]
            if _PLACEHOLDER.search(container["image"]):
                raise SettingsError(f"--image is needed: {base} has only the placeholder {container['image']}")
    _mount(cluster["headGroupSpec"]["template"]["spec"], name)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"settings.yaml": settings},
    }
    return [config, rayjob]


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """For `kubectl apply -f -`."""
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)


def _rayjob(base: Path) -> dict[str, Any]:
    try:
        documents = [*yaml.safe_load_all(base.read_text(encoding="utf-8"))]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{base}: cannot be read ({one_line(error)})") from None
    found = [each for each in documents if isinstance(each, dict) and each.get("kind") == "RayJob"]
    if len(found) != 1:
        raise SettingsError(f"{base}: holds {len(found)} RayJobs; one is needed, whose cluster the job gets")
    return found[0]


def _name(run_id: str) -> str:
    name = re.sub(r"[._]", "-", run_id.lower())
    if len(name) > _MAX_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise SettingsError(
            f"run id '{run_id}': Kubernetes takes names of at most {_MAX_NAME} letters, digits and '-', which begin with a letter; give "
            "another --run-id"
        )
    return name


def _mount(pod: dict[str, Any], name: str) -> None:
    """Show the settings to the head, where the job's process runs."""
    volumes = [each for each in pod.get("volumes", []) if each["name"] != "settings"]
    pod["volumes"] = [{"name": "settings", "configMap": {"name": name}}, *volumes]
    container = pod["containers"][0]
    mounts = [each for each in container.get("volumeMounts", []) if each["name"] != "settings"]
    container["volumeMounts"] = [{"name": "settings", "mountPath": _FOLDER}, *mounts]
