"""Entrypoints: parsed with the job's real settings, and what they ask of the cluster compared with what its groups can be."""

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from cluster.check.problems import Finding
from cluster.check.quantities import amount
from cluster.check.ray import groups, is_autoscaled
from jobs.submit import job_called, prepare
from pipeline.config import flatten
from pipeline.errors import SettingsError
from pipeline.training.workers import reader_cpus

_ENTRYPOINT = "spec.entrypoint"
_HEAD = "head"
_GPUS = {"pretrain": "workers.use_gpu", "finetune": "workers.use_gpu", "search": "gpus_per_trial", "predict": "use_gpu"}
"""The setting of a job that chooses between CPUs and GPUs."""


class Need(NamedTuple):
    """Things that a job runs at the same time, each on one node."""

    setting: str
    """That decides their number or size."""
    num: int
    cpus: float
    gpus: float
    labels: dict[str, str]
    """Of the nodes that they may run on."""


class Room(NamedTuple):
    """What a group of workers can grow to."""

    name: str
    pods: int
    cpus: float
    gpus: float
    labels: dict[str, str]

    def holds(self, need: Need) -> int:
        """How many of them fit into all pods."""
        of_cpus = self.cpus // need.cpus if need.cpus else float("inf")
        of_gpus = self.gpus // need.gpus if need.gpus >= 1 else self.gpus / need.gpus if need.gpus else float("inf")
        return self.pods * int(min(of_cpus, of_gpus, 1e6))


def job_findings(
    rayjob: dict[str, Any], config_maps: dict[str, dict[str, str]], sizes_are_known: bool
) -> Iterator[Finding]:
    """Of a RayJob whose fields are right. config_maps: {name: data} of those that are applied together with it.

    sizes_are_known: whether what its pods offer is worth comparing.
    """
    spec = rayjob["spec"]
    entrypoint, cluster = spec.get("entrypoint"), spec.get("rayClusterSpec")
    if not entrypoint:
        return
    try:
        python, dash_m, module, *arguments = shlex.split(entrypoint)
        if python not in ("python", "python3") or dash_m != "-m" or not module.startswith("jobs."):
            raise ValueError
    except ValueError:
        yield (
            _ENTRYPOINT,
            "is none of the project's jobs, so its settings are not checked; write python -m jobs.NAME ...",
        )
        return
    name = module.removeprefix("jobs.")
    with tempfile.TemporaryDirectory() as folder:
        try:
            arguments = _with_settings_files(arguments, _mounted(cluster, config_maps), folder)
            prepare(name, arguments)
            settings = job_called(name).load(arguments)
        except SettingsError as error:
            for line in str(error).splitlines():
                yield _ENTRYPOINT, f"jobs.{name}: {line.replace(folder, '')}"
            return
    yield from _run_findings(name, settings, spec)
    if cluster is not None and sizes_are_known:
        yield from _room_findings(name, settings, cluster)


def _mounted(cluster: dict[str, Any] | None, config_maps: dict[str, dict[str, str]]) -> dict[str, str]:
    """{path: text} of the files that ConfigMaps bring into the head, where a job's process runs."""
    files: dict[str, str] = {}
    if cluster is None:
        return files
    pod = cluster["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: (volume.get("configMap") or {}).get("name") for volume in pod.get("volumes") or []}
    for mount in pod["containers"][0].get("volumeMounts") or []:
        data = config_maps.get(volumes.get(mount["name"]) or "", {})
        files |= {f"{mount['mountPath'].rstrip('/')}/{key}": str(text) for key, text in data.items()}
    return files


def _with_settings_files(arguments: list[str], mounted: dict[str, str], folder: str) -> list[str]:
    """Let --config name a copy, below a folder, of the file that is mounted there. Raises SettingsError."""
    result = list(arguments)
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != "--config":
            continue
        path = value if equals else (arguments[position + 1 : position + 2] or [""])[0]
        if path not in mounted:
            there = f"; mounted are {', '.join(mounted)}" if mounted else ""
            raise SettingsError(
                f"setting 'config': no ConfigMap that is applied with the job is mounted as {path} in the head{there}"
            )
        copy = Path(f"{folder}{path}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(mounted[path], encoding="utf-8")
        result[position if equals else position + 1] = f"--config={copy}" if equals else str(copy)
    return result


def _run_findings(name: str, settings: pydantic.BaseModel, spec: dict[str, Any]) -> Iterator[Finding]:
    flat = flatten(settings)
    uri = flat.get("tracking.uri")
    if uri is not None and not uri.startswith(("http://", "https://")):
        yield (
            _ENTRYPOINT,
            f"jobs.{name}: setting 'tracking.uri' = '{uri}' is a file, which is gone with its pod; write http://HOST:PORT, or none",
        )
    if "run.run_id" in flat and flat["run.run_id"] is None and spec.get("backoffLimit"):
        yield (
            _ENTRYPOINT,
            f"jobs.{name}: setting 'run.run_id' is missing, so each retry (backoffLimit) would begin a new run; name the run",
        )
    chosen = _GPUS.get(name)
    if chosen and flat.get(chosen) is None and is_autoscaled(spec.get("rayClusterSpec")):
        yield (
            _ENTRYPOINT,
            f"jobs.{name}: setting '{chosen}' is missing, and nodes that have not come yet cannot decide; choose GPUs or none",
        )


def needs(name: str, settings: Any) -> list[Need]:
    """What a job runs at the same time: trainers or trials or models first, then what reads for them."""
    if name in ("pretrain", "finetune"):
        workers, gpu = settings.workers, bool(settings.workers.use_gpu)
        return [
            Need("workers.num_workers", workers.most, workers.cpus_per_worker, float(gpu), workers.labels),
            Need("workers.reader_labels", 1, reader_cpus(workers, gpu), 0, workers.reader_labels),
        ]
    if name == "search":
        gpus = settings.gpus_per_trial or 0
        return [Need("gpus_per_trial", 1, settings.cpus_per_trial, gpus, settings.trial_labels)]
    data = settings.ray.data_labels if hasattr(settings, "ray") else {}
    reader = Need("ray.data_labels", 1, 1, 0, data)
    if name == "predict":
        labels = data | settings.model_labels
        return [Need("num_actors", settings.num_actors, 1, float(bool(settings.use_gpu)), labels), reader]
    return [reader]


def _room_findings(name: str, settings: pydantic.BaseModel, cluster: dict[str, Any]) -> Iterator[Finding]:
    rooms = [_room(group, is_autoscaled(cluster)) for _, group in groups(cluster, "")]
    rooms = [room for room in rooms if room.name != _HEAD or room.cpus]  # a head usually takes no tasks
    taken: dict[str, float] = {}
    for need in needs(name, settings):
        fitting = [room for room in rooms if need.labels.items() <= room.labels.items()]
        if not fitting:
            labels = ", ".join(f"{key}: {value}" for key, value in need.labels.items())
            yield (
                _ENTRYPOINT,
                f"jobs.{name}: setting '{need.setting}': no group of the cluster has the labels {{{labels}}}; add them to one",
            )
            return
        size = f"({need.cpus:g} CPUs{f', {need.gpus:g} GPUs' if need.gpus else ''})"
        there = ", ".join(f"{room.pods} x {room.name} ({room.cpus:g} CPUs, {room.gpus:g} GPUs)" for room in fitting)
        held = sum(room.holds(need) for room in fitting)
        if held < need.num:
            yield (
                _ENTRYPOINT,
                f"jobs.{name}: setting '{need.setting}': {need.num} x {size} do not fit into {there}; raise maxReplicas or "
                "the pods' resources, or ask for less",
            )
            return
        left = sum(room.pods * room.cpus - taken.get(room.name, 0) for room in fitting)
        if left < need.num * need.cpus:
            yield (
                _ENTRYPOINT,
                f"jobs.{name}: setting '{need.setting}': all CPUs of {there} are taken, and none is left to read data; ask for fewer CPUs "
                "for each worker, or add a group",
            )
            return
        remaining = need.num
        for room in fitting:
            here = min(remaining, room.holds(need))
            taken[room.name] = taken.get(room.name, 0) + here * need.cpus
            remaining -= here


def _room(group: dict[str, Any], autoscaled: bool) -> Room:
    """What Ray takes a group's pods for: the group's resources, else rayStartParams, else the limits of the first container."""
    parameters, named = group.get("rayStartParams") or {}, group.get("resources") or {}
    resources = group["template"]["spec"]["containers"][0].get("resources") or {}
    amounts = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    cpus = named.get("CPU", parameters.get("num-cpus", amounts.get("cpu", 0)))
    gpus = named.get(
        "GPU", parameters.get("num-gpus", sum(amount(value) for key, value in amounts.items() if "gpu" in key))
    )
    pods = 1
    if "groupName" in group:
        pods = (group["maxReplicas"] if autoscaled else group.get("replicas", 0)) * group.get("numOfHosts", 1)
    return Room(group.get("groupName", _HEAD), pods, amount(cpus), amount(gpus), group.get("labels") or {})
