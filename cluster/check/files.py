"""Files and folders: what each of them is, and who checks it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.check import kustomize, schemas
from cluster.check.compose import compose_findings
from cluster.check.container import container_findings
from cluster.check.jobs import job_findings
from cluster.check.launcher import launcher_findings
from cluster.check.pods import is_secret_name, pod_findings
from cluster.check.problems import Finding, Problem
from cluster.check.ray import ROOT, groups, ray_findings

_RAY = ("RayJob", "RayCluster")
_WITH_TEMPLATE = ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet")
_NOT_OURS = ".venv", ".git", "__pycache__"


def check(paths: list[Path], operator: Path | None = None) -> list[Problem]:
    """What is wrong with these files, and with those in these folders.

    operator: folder of the operator's schemas; None takes ours.
    """
    problems: list[Problem] = []
    for path in paths:
        if path.is_dir():
            for found in _in_folder(path):
                problems += _check_one(found, operator, asked=False)
        else:
            problems += _check_one(path, operator, asked=True)
    return problems


def check_objects(objects: list[Any], file: str, operator: Path | None = None) -> list[Problem]:
    """What is wrong with objects that are applied together."""
    problems = []
    maps = {
        each["metadata"]["name"]: each.get("data") or {}
        for each in objects
        if isinstance(each, dict) and each.get("kind") == "ConfigMap" and "name" in (each.get("metadata") or {})
    }
    for each in objects:
        if not isinstance(each, dict) or "kind" not in each:
            problems.append(Problem(file, "", "", "an object has no kind; write apiVersion, kind and metadata"))
            continue
        name = f"{each['kind']}/{(each.get('metadata') or {}).get('name', '')}"
        found = list(schemas.findings(each, operator)) or list(_rules(each, maps))
        problems += [Problem(file, name, *finding) for finding in found]
    return problems


def _in_folder(folder: Path) -> Iterator[Path]:
    """Kustomizations that no other one is made of, and files that belong to none."""
    if (folder / kustomize.NAME).is_file():
        yield folder
        return
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not set(path.parts) & set(_NOT_OURS))
    built = [path.parent for path in files if path.name == kustomize.NAME]
    parts: set[Path] = set()
    for each in built:
        try:
            parts |= {part for part in kustomize.resources_of(each) if part in {other.resolve() for other in built}}
        except kustomize.BuildError:
            continue  # said when it is built itself
    yield from (each for each in built if each.resolve() not in parts or (each / "settings.yaml").exists())
    for path in files:
        if not any(parent in built for parent in path.parents) and (
            path.suffix in (".yaml", ".yml") or _is_container(path)
        ):
            yield path


def _is_container(path: Path) -> bool:
    return path.name.startswith(("Containerfile", "Dockerfile"))


def _check_one(path: Path, operator: Path | None, asked: bool) -> list[Problem]:
    """asked: the file itself was named, so it must be of a known kind."""
    try:
        if path.is_dir():
            return check_objects(kustomize.build(path), str(path), operator)
        if _is_container(path):
            text = path.read_text(encoding="utf-8")
            return [Problem(str(path), "", *finding) for finding in container_findings(text, ROOT)]
        documents = kustomize.read_all(path)
    except kustomize.BuildError as error:
        return [Problem("", "", "", str(error))]
    except OSError as error:
        return [Problem(str(path), "", "", f"cannot be read: {error.strerror}")]
    first = documents[0] if documents and isinstance(documents[0], dict) else {}
    if first.get("kind") == "Kustomization":
        return _check_one(path.parent, operator, asked)
    if "apiVersion" in first or "kind" in first:
        return check_objects(documents, str(path), operator)
    if "services" in first:
        return [Problem(str(path), "", *finding) for finding in compose_findings(first)]
    if "cluster_name" in first or "available_node_types" in first:
        return [Problem(str(path), "", *finding) for finding in launcher_findings(first)]
    known = "is no manifest, kustomization, file of Ray's launcher, compose file or Containerfile; name one"
    return [Problem(str(path), "", "", known)] if asked else []


def _rules(value: dict[str, Any], maps: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """Of an object whose fields and types are right."""
    found = [finding for field, pod in _pods(value) for finding in pod_findings(pod, field)]
    if value["kind"] in _RAY:
        found += ray_findings(value)
    yield from found
    fields = " ".join(field for field, _ in found)
    if value["kind"] == "RayJob" and "spec.clusterSelector" not in fields:
        yield from job_findings(value, maps, sizes_are_known=".resources" not in fields)
    if value["kind"] == "Secret" and (value.get("data") or value.get("stringData")):
        yield (
            "data",
            "a secret in a file is known to all who read it; create it with kubectl create secret, and name it here",
        )
    if value["kind"] == "ConfigMap":
        for name in value.get("data") or {}:
            if is_secret_name(name):
                yield f"data.{name}", "a ConfigMap is open to all who may look at the namespace; put it into a Secret"


def _pods(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(field, spec) of each pod that an object describes."""
    kind, spec = value["kind"], value.get("spec") or {}
    if kind == "Pod":
        yield "spec", spec
    elif kind in _WITH_TEMPLATE:
        yield "spec.template.spec", spec["template"]["spec"]
    elif kind in _RAY:
        cluster, field = (spec, "spec") if kind == "RayCluster" else (spec.get("rayClusterSpec"), "spec.rayClusterSpec")
        for where, group in groups(cluster, field) if cluster else []:
            yield f"{where}.template.spec", group["template"]["spec"]
        if spec.get("submitterPodTemplate"):
            yield "spec.submitterPodTemplate.spec", spec["submitterPodTemplate"]["spec"]
