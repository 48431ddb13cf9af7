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
    objects = _without_nulls(objects)
    maps = {
        each["metadata"]["name"]: each["data"]
        for each in objects
        if _is_object(each) and each["kind"] == "ConfigMap" and isinstance(each.get("data"), dict)
    }
    for each in objects:
        if not _is_object(each):
            what = each.get("kind", "") if isinstance(each, dict) else ""
            problems.append(Problem(file, str(what), "", "no object; write apiVersion, kind, and metadata with a name"))
            continue
        name = f"{each['kind']}/{each['metadata']['name']}"
        found = list(schemas.findings(each, operator)) or _caught(_rules(each, maps))
        problems += [Problem(file, name, *finding) for finding in found]
    return problems


def _is_object(value: Any) -> bool:
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return isinstance(metadata, dict) and isinstance(metadata.get("name"), str) and isinstance(value.get("kind"), str)


def _without_nulls(value: Any) -> Any:
    """Kubernetes takes null for a field that is not there."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value if each is not None] if isinstance(value, list) else value


def _caught(findings: Iterator[Finding]) -> list[Finding]:
    """The findings; of a value that is shaped as no rule expects, those until there."""
    found: list[Finding] = []
    try:
        found.extend(findings)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(
            ("", f"could not be read to its end ({what}); look for a list, a mapping or a text in the wrong place")
        )
    return found


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
    # One that has a job's settings is applied by itself, too, whoever builds on it.
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
        return [Problem(str(path), "", *finding) for finding in _caught(compose_findings(first))]
    if "cluster_name" in first or "available_node_types" in first:
        return [Problem(str(path), "", *finding) for finding in _caught(launcher_findings(first))]
    known = "is no manifest, kustomization, file of Ray's launcher, compose file or Containerfile; name one"
    return [Problem(str(path), "", "", known)] if asked else []


def _rules(value: dict[str, Any], maps: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """Of an object whose fields and types are right."""
    empty = [field for field, pod in _pods(value) if not pod.get("containers")]
    if empty:
        yield f"{empty[0]}.containers", "the pod has no container; describe one"
        return
    found = [finding for field, pod in _pods(value) for finding in pod_findings(pod, field)]
    if value["kind"] in _RAY:
        found += ray_findings(value)
    yield from found
    fields = " ".join(field for field, _ in found)
    if value["kind"] == "RayJob" and "spec.clusterSelector" not in fields:
        yield from job_findings(value, maps, sizes_are_known=".resources" not in fields and ".num-" not in fields)
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
        yield "spec.template.spec", spec["template"].get("spec") or {}
    elif kind in _RAY:
        cluster, field = (spec, "spec") if kind == "RayCluster" else (spec.get("rayClusterSpec"), "spec.rayClusterSpec")
        for where, group in groups(cluster, field) if cluster else []:
            yield f"{where}.template.spec", group["template"].get("spec") or {}
        if spec.get("submitterPodTemplate"):
            yield "spec.submitterPodTemplate.spec", spec["submitterPodTemplate"].get("spec") or {}
