"""Compose files: what is open to the network, what changes by itself, and secrets."""

from collections.abc import Iterator
from typing import Any

from cluster.check.pods import is_secret_name
from cluster.check.problems import Finding, items
from pipeline.masking import holds_secret


def compose_findings(config: dict[str, Any]) -> Iterator[Finding]:
    """config: as it stands in the file."""
    named = {kind: set(config.get(kind) or {}) for kind in ("volumes", "secrets", "networks")}
    for name, service in (config.get("services") or {}).items():
        field = f"services.{name}"
        if "image" not in service and "build" not in service:
            yield field, "has no image; name one, or what to build"
        tag = service.get("image", "x:x").rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            yield f"{field}.image", f"'{service['image']}' is another image tomorrow; name a version"
        for where, port in items(service.get("ports"), "ports"):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{field}.{where}", f"'{port}' is open to the network; write 127.0.0.1:{port}"
        for key, value in (service.get("environment") or {}).items():
            if (is_secret_name(key) and value and not str(value).startswith("${")) or holds_secret(str(value)):
                yield (
                    f"{field}.environment.{key}",
                    f"a secret stands here for all to read; write ${{{key}:?}}, and keep it in .env",
                )
        for where, volume in items(service.get("volumes"), "volumes"):
            source = str(volume).partition(":")[0]
            if not source.startswith(("/", ".", "~", "$")) and source not in named["volumes"]:
                yield f"{field}.{where}", f"there is no volume {source}; add it to volumes"
        for where, secret in items(service.get("secrets"), "secrets"):
            if secret not in named["secrets"]:
                yield f"{field}.{where}", f"there is no secret {secret}; add it to secrets"
        for other in service.get("depends_on") or []:
            if other not in config["services"]:
                yield f"{field}.depends_on", f"there is no service {other}; name one of {', '.join(config['services'])}"
