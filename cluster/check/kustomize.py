"""The part of kustomize that cluster/kubernetes uses, so that its files can be checked where no kustomize is.

Known: resources, patches (merge and JSON 6902), configMapGenerator. What uses more is built by `kustomize` or `kubectl`, where there is one.
"""

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

NAME = "kustomization.yaml"
_KNOWN = {"apiVersion", "kind", "resources", "patches", "configMapGenerator", "generatorOptions"}
_KNOWN_IN = {
    "patches": {"path", "patch", "target"},
    "configMapGenerator": {"name", "files", "literals"},
    "generatorOptions": {"disableNameSuffixHash"},
}

Object = dict[str, Any]


class BuildError(Exception):
    """A kustomization cannot be built; the message is one line."""


def build(folder: Path) -> list[Object]:
    """The objects that a kustomization gives. Raises BuildError."""
    file = folder / NAME
    given = read_all(file)[0] if file.is_file() else None
    if not isinstance(given, dict):
        raise BuildError(f"{file}: no kustomization; name a folder that has one")
    unknown = sorted(_unknown(given))
    if unknown:
        return _built_by_program(folder, unknown)
    objects = [entry for name in given.get("resources", []) for entry in _resource(folder, name)]
    objects += [_config_map(folder, entry) for entry in given.get("configMapGenerator", [])]
    for patch in given.get("patches", []):
        _apply(folder, patch, objects)
    return objects


def resources_of(folder: Path) -> list[Path]:
    """Other kustomizations that this one is made of."""
    given = (read_all(folder / NAME) or [None])[0]
    names = given.get("resources", []) if isinstance(given, dict) else []
    return [path for name in names if (path := (folder / name).resolve()).is_dir()]


def read_all(file: Path) -> list[Any]:
    """The documents of a YAML file. Raises BuildError."""
    try:
        return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document is not None]
    except OSError as error:
        raise BuildError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BuildError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from None


def _unknown(given: Object) -> set[str]:
    unknown = {name for name in given if name not in _KNOWN}
    for section, known in _KNOWN_IN.items():
        entries = given.get(section, [])
        for entry in entries if isinstance(entries, list) else [entries]:
            unknown |= {f"{section}.{name}" for name in entry if name not in known}
    if given.get("configMapGenerator") and not given.get("generatorOptions", {}).get("disableNameSuffixHash"):
        unknown.add("configMapGenerator without generatorOptions.disableNameSuffixHash")
    return unknown


def _built_by_program(folder: Path, unknown: list[str]) -> list[Object]:
    for command in (["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError(f"{folder}: {' '.join(command)} says: {' '.join(done.stderr.split())}")
            return [document for document in yaml.safe_load_all(done.stdout) if document is not None]
    raise BuildError(
        f"{folder / NAME}: {unknown[0]} is not known here; install kustomize, or check what `kustomize build` wrote elsewhere"
    )


def _resource(folder: Path, name: str) -> list[Object]:
    path = folder / name
    if path.is_dir():
        return build(path)
    if not path.exists():
        raise BuildError(f"{folder / NAME}: resources: there is no {name}")
    return read_all(path)


def _config_map(folder: Path, entry: Object) -> Object:
    data = {}
    for given in entry.get("files", []):
        key, _, name = given.rpartition("=")
        try:
            data[key or Path(name).name] = (folder / name).read_text(encoding="utf-8")
        except OSError:
            raise BuildError(f"{folder / NAME}: configMapGenerator: there is no {name}") from None
    data |= dict(literal.split("=", 1) for literal in entry.get("literals", []))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry["name"]}, "data": data}


def _apply(folder: Path, entry: Object, objects: list[Object]) -> None:
    """One entry of `patches`, in place."""
    (change,) = read_all(folder / entry["path"]) if "path" in entry else yaml.safe_load_all(entry["patch"])
    target = entry.get("target") or {
        "kind": change["kind"],
        "name": change["metadata"]["name"],
    }
    found = [position for position, each in enumerate(objects) if _matches(each, target)]
    if not found:
        raise BuildError(f"{folder / NAME}: patches: there is no {'/'.join(target.values())} to be patched")
    for position in found:
        if isinstance(change, list):
            for operation in change:
                _operate(folder, objects[position], operation)
        elif "ray.io/" not in objects[position]["apiVersion"]:
            kind = objects[position]["kind"]  # kustomize merges its lists by the names of their entries
            raise BuildError(
                f"{folder / NAME}: patches: merging into a {kind} is not known here; write it as a JSON 6902 patch"
            )
        else:
            named = {"metadata": {**change.get("metadata", {}), "name": objects[position]["metadata"]["name"]}}
            objects[position] = _merged(objects[position], {**change, **named})


def _matches(each: Object, target: Object) -> bool:
    return (
        target.get("kind", each["kind"]) == each["kind"]
        and target.get("name", each["metadata"]["name"]) == (each["metadata"]["name"])
    )


def _merged(old: Any, change: Any) -> Any:
    """JSON merge patch (RFC 7386), which is what kustomize does with kinds that Kubernetes itself does not know."""
    if not isinstance(change, dict) or not isinstance(old, dict):
        return copy.deepcopy(change)
    result = {name: value for name, value in old.items() if change.get(name, "") is not None}
    for name, value in change.items():
        if value is not None:
            result[name] = _merged(result.get(name, {}) if isinstance(value, dict) else None, value)
    return result


def _operate(folder: Path, parent: Any, operation: Object) -> None:
    """One operation of a JSON patch (RFC 6902), in place."""
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]]
    action = operation["op"]
    try:
        for step in steps:
            parent = parent[int(step)] if isinstance(parent, list) else parent[step]
        key: Any = (len(parent) if last == "-" else int(last)) if isinstance(parent, list) else last
        if action == "add" and isinstance(parent, list):
            parent.insert(key, operation["value"])
        elif action == "add":
            parent[key] = operation["value"]
        elif action in ("replace", "remove"):
            parent[key]  # must be there
            if action == "replace":
                parent[key] = operation["value"]
            else:
                del parent[key]
        else:
            raise BuildError(f"{folder / NAME}: patches: '{action}' is not known here; use add, replace or remove")
    except (KeyError, IndexError, ValueError, TypeError):
        raise BuildError(f"{folder / NAME}: patches: there is no {operation['path']} to {action}") from None
