"""Rules of any pod that Kubernetes' schemas do not know: it refuses the pod later, or runs it in another way than was meant."""

import re
from collections.abc import Iterator
from typing import Any

from cluster.check.problems import Finding, items
from cluster.check.quantities import amount
from pipeline.masking import holds_secret

_ONE_OF = {
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "operator": ("Exists", "Equal"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
}
_PLAIN_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_DEVICE = re.compile(
    r"nvidia\.com/(gpu(\.shared)?|mig-[0-9]+g\.[0-9]+gb(\.me)?)|amd\.com/gpu|gpu\.intel\.com/(i915|xe)|habana\.ai/gaudi|google\.com/tpu"
)
_SECRET_WORD = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|KEY|CREDENTIAL)S?$")
_NOT_THE_SECRET = ("PATH", "FILE", "MODE", "URL", "URI", "HOST")
_DEADLINE = re.compile(r"--deadline-remaining-seconds[ =]+(\d+)")
_DEFAULT_GRACE_S = 30
MARGIN_S = 5
"""Between the deadline of a node that is drained and the end of its pod."""


def pod_findings(pod: dict[str, Any], field: str) -> Iterator[Finding]:
    """pod: the `spec` of a pod or of a template; field: where it is."""
    yield from _unknown_words(pod, field, "restartPolicy")
    for name, toleration in items(pod.get("tolerations"), "tolerations"):
        for key in ("operator", "effect"):
            yield from _unknown_words(toleration, f"{field}.{name}", key)
    volumes = [volume["name"] for volume in pod.get("volumes") or []]
    for name in sorted({name for name in volumes if volumes.count(name) > 1}):
        yield f"{field}.volumes", f"two volumes are called {name}; give each its own name"
    for kind in ("initContainers", "containers"):
        for name, container in items(pod.get(kind), kind):
            yield from _container_findings(container, f"{field}.{name}", volumes)
    yield from _memory_findings(pod, field)
    yield from _grace_findings(pod, field)


def is_secret_name(name: str) -> bool:
    """Whether what a variable of this name holds should not be read by others."""
    words = name.upper().split("_")
    return words[-1] not in _NOT_THE_SECRET and any(_SECRET_WORD.search(word) for word in words)


def _unknown_words(value: dict[str, Any], field: str, key: str) -> Iterator[Finding]:
    if value.get(key, _ONE_OF[key][0]) not in _ONE_OF[key]:
        yield f"{field}.{key}", f"'{value[key]}' is not one of {', '.join(_ONE_OF[key])}"


def _container_findings(container: dict[str, Any], field: str, volumes: list[str]) -> Iterator[Finding]:
    yield from _unknown_words(container, field, "imagePullPolicy")
    image = container.get("image", "")
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    if "@" not in image and tag in ("", "latest"):
        yield f"{field}.image", f"'{image}' is another image tomorrow; name a version"
    for name, variable in items(container.get("env"), "env"):
        value = variable.get("value") or ""
        if (is_secret_name(variable["name"]) and value) or holds_secret(value):
            yield (
                f"{field}.{name}",
                "a secret stands here for all to read; put it into a Secret and name that in valueFrom.secretKeyRef",
            )
    mounted = []
    for name, mount in items(container.get("volumeMounts"), "volumeMounts"):
        if mount["name"] not in volumes:
            yield f"{field}.{name}", f"the pod has no volume {mount['name']}; add it to volumes"
        if mount["mountPath"] in mounted:
            yield f"{field}.{name}", f"{mount['mountPath']} is mounted twice; take one of them out"
        mounted.append(mount["mountPath"])
    yield from _resource_findings(container.get("resources") or {}, f"{field}.resources")


def _resource_findings(resources: dict[str, Any], field: str) -> Iterator[Finding]:
    amounts: dict[str, dict[str, float]] = {"requests": {}, "limits": {}}
    for kind, of_kind in amounts.items():
        for name, quantity in (resources.get(kind) or {}).items():
            where = f"{field}.{kind}.{name}"
            if re.search(r"gpu|nvidia", name, re.IGNORECASE) and not _DEVICE.fullmatch(name):
                yield where, f"no node offers a resource '{name}'; write nvidia.com/gpu"
                continue
            if name not in _PLAIN_RESOURCES and "/" not in name and not name.startswith("hugepages-"):
                yield (
                    where,
                    f"Kubernetes knows no resource '{name}'; write {', '.join(_PLAIN_RESOURCES)} or DOMAIN/NAME",
                )
                continue
            try:
                of_kind[name] = amount(quantity)
            except ValueError as error:
                yield where, str(error)
    requests, limits = amounts["requests"], amounts["limits"]
    for name in sorted(requests.keys() | limits.keys()):
        request, limit = requests.get(name), limits.get(name)
        if "/" in name and request is not None and request != limit:
            yield f"{field}.limits.{name}", f"limits and requests of {name} must be equal; write {request:g} in both"
        elif request is not None and limit is not None and limit < request:
            yield f"{field}.limits.{name}", "the limit is below the request; raise it, or request less"


def _memory_findings(pod: dict[str, Any], field: str) -> Iterator[Finding]:
    """A volume in memory counts as memory of the container that fills it, which is ended at its limit."""
    for name, volume in items(pod.get("volumes"), "volumes"):
        given = volume.get("emptyDir") or {}
        if given.get("medium", "") not in ("", "Memory"):
            yield f"{field}.{name}.emptyDir.medium", f"'{given['medium']}' is neither empty nor Memory"
        if given.get("medium") != "Memory" or "sizeLimit" not in given:
            continue
        where = f"{field}.{name}.emptyDir.sizeLimit"
        try:
            size = amount(given["sizeLimit"])
        except ValueError as error:
            yield where, str(error)
            continue
        for container in pod["containers"]:
            limit = (container.get("resources") or {}).get("limits", {}).get("memory")
            mounts = [mount["name"] for mount in container.get("volumeMounts") or []]
            if limit is not None and volume["name"] in mounts and _is_amount(limit) and size > amount(limit):
                yield (
                    where,
                    f"{given['sizeLimit']} in memory exceed the limit of {container['name']}, {limit}; make it smaller",
                )


def _is_amount(quantity: Any) -> bool:
    try:
        return amount(quantity) >= 0
    except ValueError:
        return False


def _grace_findings(pod: dict[str, Any], field: str) -> Iterator[Finding]:
    grace = pod.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)
    for container in pod["containers"]:
        command = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec", {}).get("command", [])
        deadline = _DEADLINE.search(" ".join(command))
        if deadline and grace < int(deadline[1]) + MARGIN_S:
            yield (
                f"{field}.terminationGracePeriodSeconds",
                f"the pod is ended after {grace} s, but preStop promises its node {deadline[1]} s for a checkpoint; give the pod at "
                f"least {int(deadline[1]) + MARGIN_S}",
            )
