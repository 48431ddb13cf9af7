"""Files of Ray's cluster launcher (`ray up`): Ray's own validator, and what it does not look at."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

from cluster.check.pods import is_secret_name
from cluster.check.problems import Finding
from cluster.check.ray import pinned_ray
from pipeline import __version__
from pipeline.masking import holds_secret


def launcher_findings(config: dict[str, Any]) -> Iterator[Finding]:
    """config: as it stands in the file."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray").setLevel(logging.ERROR)
    prepared = copy.deepcopy(config)
    prepared.pop(
        "file_mounts", None
    )  # Ray looks whether the files are there; they are on the machine that starts the cluster
    try:
        validate_config(prepare_config(prepared))
    except Exception as error:  # jsonschema's, ValueError, click's, KeyError: whatever part of Ray it comes from
        path = ".".join(str(step) for step in getattr(error, "absolute_path", ()))
        text = str(getattr(error, "message", error) or type(error).__name__).strip().splitlines()[0]
        yield path, f"Ray's launcher refuses it: {text}"
        return
    image = (config.get("docker") or {}).get("image", "")
    repository, _, tag = image.rpartition(":")
    expected = {"equihand": __version__, "ray": pinned_ray()}.get(repository.rpartition("/")[2])
    if image and (tag == "latest" or "/" in tag or not repository):
        yield "docker.image", f"'{image}' is another image tomorrow; name a version"
    elif expected and tag != expected and not tag.startswith(f"{expected}-"):
        yield "docker.image", f"tag '{tag}' is not of version {expected}; write {repository}:{expected}"
    types, most = config["available_node_types"], config.get("max_workers", 2)
    for name, kind in types.items():
        if name != config["head_node_type"] and kind.get("max_workers", 0) > most:
            yield (
                f"available_node_types.{name}.max_workers",
                f"exceeds max_workers of the whole cluster, {most}; raise that",
            )
        if "GPU" in kind.get("node_config", {}) or any(
            "gpu" in key.lower() and key != "GPU" for key in kind["resources"]
        ):
            yield f"available_node_types.{name}.resources", "Ray calls GPUs 'GPU'; write GPU: 1"
    yield from _start_findings(config)


def _start_findings(config: dict[str, Any]) -> Iterator[Finding]:
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = " ".join(config.get(name) or [])
        if "ray start" in commands and "RAY_AUTH_MODE=token" not in commands:
            yield (
                name,
                "whoever reaches the cluster's ports could run anything; write RAY_AUTH_MODE=token before ray start",
            )
        for word in commands.split():
            variable, equals, value = word.partition("=")
            if (equals and value and is_secret_name(variable) and not variable.startswith("-")) or holds_secret(word):
                yield (
                    name,
                    f"a secret stands here for all to read ({variable}); give it to the machines through their instance profile",
                )
