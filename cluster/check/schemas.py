"""Fields and types: Kubernetes' own schemas, the operator's where there are, else ours (ray_v1.schema.json)."""

import difflib
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cluster.check.problems import Finding, field_at
from cluster.check.quantities import NO_QUANTITY

OPERATOR = {"RayJob": "rayjobs_v1.schema.json", "RayCluster": "rayclusters_v1.schema.json"}
"""Files of the operator's schemas, made of its custom resource definitions (docs/cluster.md)."""


def folder_given(given: str | None) -> Path | None:
    """Where the operator's schemas are: what was given, else EQUIHAND_KUBERAY_SCHEMAS. Raises ValueError where none are there."""
    name = given or os.environ.get("EQUIHAND_KUBERAY_SCHEMAS")
    if not name:
        return None
    missing = [file for file in OPERATOR.values() if not Path(name, file).is_file()]
    if missing:
        raise ValueError(f"'{name}' holds no {missing[0]}; give the folder of the operator's schemas, or none")
    return Path(name)


def findings(value: dict[str, Any], operator: Path | None) -> Iterator[Finding]:
    """What the schema of its kind refuses in an object; at most one line a field."""
    import jsonschema
    from referencing import Registry, Resource

    kind, version = str(value.get("kind")), str(value.get("apiVersion"))
    if kind in OPERATOR:
        if version != "ray.io/v1":
            yield "apiVersion", f"'{version}' is not ray.io/v1, which these files are for"
            return
        if not isinstance(value.get("spec"), dict):
            yield "spec", "is missing; describe what is wanted"
            return
        if operator is not None:
            schema = _strict(_read(operator / OPERATOR[kind]))
        else:
            schema = _own() | {"$ref": f"#/$defs/{kind}"}
    else:
        found = _of_kubernetes(kind, version)
        if found is None:
            yield "kind", f"Kubernetes {_version()} has no {kind} of {version}; look at kind and apiVersion"
            return
        schema = found
    registry = Registry().with_resource(
        "https://kubernetes.io/api/_definitions.json", Resource.from_contents(_read(_schemas() / "_definitions.json"))
    )
    classes = jsonschema.validators.validator_for(schema, default=jsonschema.Draft7Validator)
    seen = set()
    for error in sorted(
        classes(schema, registry=registry).iter_errors(value), key=lambda error: str(error.absolute_path)
    ):
        inner = jsonschema.exceptions.best_match([error])
        field = field_at(value, list(inner.absolute_path))
        if field not in seen:
            seen.add(field)
            yield field, _words(inner)


def _words(error: Any) -> str:
    """A schema's message, with a hint where a field is probably misspelt."""
    text = " ".join(error.message.split())
    if error.validator == "pattern" and "KMGTPE" in error.validator_value:
        return f"'{error.instance}' is {NO_QUANTITY}"
    if error.validator != "additionalProperties":
        return text if len(text) < 200 else f"{text[:200]} ..."
    known = list(error.schema.get("properties", {}))
    unknown = [name for name in error.instance if name not in known]
    close = difflib.get_close_matches(unknown[0], known, n=1)
    return f"unknown field '{unknown[0]}'; " + (f"did you mean {close[0]}?" if close else "take it out")


@cache
def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _strict(schema: Any) -> Any:
    """The schema of a custom resource, refusing what it does not list, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: _strict(each) for name, each in schema.items()}
    if (
        "properties" in schema
        and schema.get("type") == "object"
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        result.setdefault("additionalProperties", False)
    return result


def _own() -> dict[str, Any]:
    return _read(Path(__file__).with_name("ray_v1.schema.json"))


def _version() -> str:
    import kubernetes_validate

    return str(kubernetes_validate.latest_version())


def _of_kubernetes(kind: str, version: str) -> dict[str, Any] | None:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", version)
    file = _schemas() / f"{kind.lower()}-{group}.json"
    return _read(file) if file.is_file() else None


@cache
def _schemas() -> Path:
    import kubernetes_validate

    assert kubernetes_validate.__file__ is not None
    return Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{_version()}-local-strict"
