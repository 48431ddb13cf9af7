"""Rules between fields of RayJob and RayCluster: those of KubeRay's operator (validation.go, v1.7), and what Ray needs in its pods."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cluster.check.problems import Finding, items
from pipeline import __version__

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUEUE = "kueue.x-k8s.io/queue-name"
_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_LEAST = {"backoffLimit": 0, "activeDeadlineSeconds": 1, "ttlSecondsAfterFinished": 0}
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - of the pod
_V2_VARIABLE = "RAY_enable_autoscaler_v2"


def ray_findings(value: dict[str, Any]) -> Iterator[Finding]:
    """Of a RayJob or RayCluster whose fields and types are right."""
    kind, metadata, spec = value["kind"], value["metadata"], value["spec"]
    longest = _LONGEST_NAME[kind]
    name = metadata.get("name", "")
    if not _NAME.fullmatch(name) or len(name) > longest:
        yield (
            "metadata.name",
            f"'{name}': a {kind}'s name has small letters, digits and -, begins with a letter, and has {longest} characters at most",
        )
    cluster, field = (spec, "spec") if kind == "RayCluster" else (spec.get("rayClusterSpec"), "spec.rayClusterSpec")
    if kind == "RayJob":
        yield from _job_findings(spec)
    if cluster is not None:
        yield from _cluster_findings(cluster, field, metadata.get("annotations") or {})
    if (
        kind == "RayCluster"
        and (spec.get("authOptions") or {}).get("mode") == "token"
        and not spec["authOptions"].get("secretName")
    ):
        yield from _token_findings(name, spec)
    if _QUEUE in (metadata.get("labels") or {}):
        yield from _queue_findings(kind, spec, cluster or {}, field)


def _token_findings(name: str, spec: dict[str, Any]) -> Iterator[Finding]:
    for field, group in groups(spec, "spec"):
        for container in group["template"]["spec"]["containers"]:
            if any((source.get("secretRef") or {}).get("name") == name for source in container.get("envFrom") or []):
                where = f"{field}.template.spec.{_called(container)}.envFrom"
                yield (
                    where,
                    f"KubeRay keeps the cluster's token in a secret called {name}, too; give one of them another name",
                )
                return


def groups(cluster: dict[str, Any], field: str) -> list[tuple[str, dict[str, Any]]]:
    """(field, group) of the head and of each group of workers."""
    workers = [(f"{field}.{name}", group) for name, group in items(cluster.get("workerGroupSpecs"), "workerGroupSpecs")]
    return [(f"{field}.headGroupSpec", cluster["headGroupSpec"]), *workers]


def is_autoscaled(cluster: dict[str, Any] | None) -> bool:
    """Whether nodes come and go."""
    return bool((cluster or {}).get("enableInTreeAutoscaling"))


@cache
def pinned_ray() -> str:
    """The version of Ray that constraints.txt names."""
    match = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]


def _job_findings(spec: dict[str, Any]) -> Iterator[Finding]:
    mode, selector = spec.get("submissionMode", _MODES[0]), spec.get("clusterSelector") or {}
    if mode not in _MODES:
        yield "spec.submissionMode", f"'{mode}' is not one of {', '.join(_MODES)}"
    for name, least in _LEAST.items():
        if spec.get(name, least) < least:
            yield f"spec.{name}", f"{spec[name]} is less than {least}; write more, or take it out"
    if not spec.get("entrypoint") and mode != "InteractiveMode":
        yield "spec.entrypoint", "the job has no entrypoint; write python -m jobs.NAME ..."
    if spec.get("rayClusterSpec") is None and not selector:
        yield "spec.rayClusterSpec", "the job has no cluster; describe one, or name a running one in clusterSelector"
    if selector:
        if not selector.get("ray.io/cluster"):
            yield "spec.clusterSelector", "names no cluster; write ray.io/cluster: NAME"
        if spec.get("rayClusterSpec") is not None:
            yield (
                "spec.clusterSelector",
                "the job runs on the cluster that is named here, so rayClusterSpec has no meaning; take one of them out",
            )
        if mode == "SidecarMode":
            yield "spec.clusterSelector", "SidecarMode runs in the head of a cluster of its own; use K8sJobMode"
        if spec.get("suspend"):
            yield "spec.suspend", "a job on a running cluster (clusterSelector) cannot be suspended; take suspend out"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.suspend", "only a job with shutdownAfterJobFinishes: true can be suspended"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield (
            "spec.ttlSecondsAfterFinished",
            "has no meaning without shutdownAfterJobFinishes: true; add that, or use deletionRules",
        )
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "spec.backoffLimit", "in InteractiveMode nothing is tried again; write 0"
    if mode in ("SidecarMode", "HTTPMode", "InteractiveMode"):
        for name in ("submitterPodTemplate", "submitterConfig"):
            if spec.get(name) is not None:
                yield f"spec.{name}", f"in {mode} no pod submits the job; take it out, or use K8sJobMode"
    head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
    if mode == "SidecarMode" and head.get("restartPolicy", "Never") != "Never":
        yield "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy", "SidecarMode needs restartPolicy: Never"
    if spec.get("runtimeEnvYAML"):
        try:
            valid = isinstance(yaml.safe_load(spec["runtimeEnvYAML"]), dict)
        except yaml.YAMLError:
            valid = False
        if not valid:
            yield "spec.runtimeEnvYAML", "is no YAML mapping; write working_dir: ... and the like"
    yield from _deletion_findings(spec, bool(selector))


def _deletion_findings(spec: dict[str, Any], selects: bool) -> Iterator[Finding]:
    strategy = spec.get("deletionStrategy")
    if strategy is None:
        return
    field = "spec.deletionStrategy"
    rules, old = strategy.get("deletionRules") or [], [name for name in ("onSuccess", "onFailure") if name in strategy]
    if old:
        yield f"{field}.{old[0]}", "is of earlier versions of KubeRay; write deletionRules"
    elif not rules:
        yield field, "holds no deletionRules; add some, or take it out"
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield f"{field}.deletionRules", "exclude shutdownAfterJobFinishes; take one of them out"
    stages: dict[str, dict[str, int]] = {}
    for index, rule in enumerate(rules):
        where, policy, condition = f"{field}.deletionRules[{index}]", rule["policy"], rule["condition"]
        when = [f"{name} {condition[name]}" for name in ("jobStatus", "jobDeploymentStatus") if condition.get(name)]
        if len(when) != 1:
            yield (
                f"{where}.condition",
                "names " + ("both" if when else "none") + " of jobStatus and jobDeploymentStatus; write one of them",
            )
            continue
        if policy == "DeleteWorkers" and is_autoscaled(spec.get("rayClusterSpec")):
            yield (
                f"{where}.policy",
                "DeleteWorkers excludes enableInTreeAutoscaling, which ends idle workers anyway; take the rule out",
            )
        if selects and policy in ("DeleteWorkers", "DeleteCluster"):
            yield (
                f"{where}.policy",
                f"{policy} would remove a cluster that is not the job's own (clusterSelector); use DeleteSelf or DeleteNone",
            )
        staged = stages.setdefault(when[0], {})
        if policy in staged:
            yield f"{where}.policy", f"{policy} for {when[0]} stands in an earlier rule already; take one of them out"
        staged[policy] = condition.get("ttlSeconds", 0)
    for condition_met, staged in stages.items():
        delays = [(staged[policy], policy) for policy in _DELETION_ORDER if policy in staged]
        for (early, first), (late, second) in itertools.pairwise(delays):
            if late < early:
                yield (
                    f"{field}.deletionRules",
                    f"for {condition_met}, {second} comes after {late} s, before {first} after {early} s; what deletes more comes later",
                )


def _cluster_findings(cluster: dict[str, Any], field: str, annotations: dict[str, str]) -> Iterator[Finding]:
    version = cluster.get("rayVersion")
    if version is None:
        yield f"{field}.rayVersion", f'is missing; write rayVersion: "{pinned_ray()}"'
    elif version != pinned_ray():
        yield f"{field}.rayVersion", f"'{version}' is not {pinned_ray()}, which constraints.txt installs; write that"
    options, autoscaled = cluster.get("autoscalerOptions") or {}, is_autoscaled(cluster)
    v2 = autoscaled and options.get("version") == "v2"
    names = Counter(group["groupName"] for group in cluster.get("workerGroupSpecs") or [])
    for name in sorted(name for name, count in names.items() if count > 1):
        yield f"{field}.workerGroupSpecs", f"two groups are called {name}; give each its own name"
    if "head" in {name.lower() for name in names}:
        yield f"{field}.workerGroupSpecs", "a group of workers is called head; give it another name"
    for where, group in groups(cluster, field):
        yield from _group_findings(group, where, autoscaled, v2)
    yield from _head_findings(cluster, field, annotations, autoscaled)


def _head_findings(
    cluster: dict[str, Any], field: str, annotations: dict[str, str], autoscaled: bool
) -> Iterator[Finding]:
    head, where = cluster["headGroupSpec"], f"{field}.headGroupSpec"
    parameters = head.get("rayStartParams") or {}
    (container, *_) = head["template"]["spec"]["containers"]
    names = {variable["name"] for variable in container.get("env") or []}
    fault_tolerance = cluster.get("gcsFaultToleranceOptions")
    if _V2_VARIABLE in names:
        instead = (
            "autoscalerOptions.version: v2"
            if autoscaled
            else "enableInTreeAutoscaling: true and autoscalerOptions.version: v2"
        )
        yield (
            f"{where}.template.spec.{_called(container)}.env[{_V2_VARIABLE}]",
            f"chooses the autoscaler a second time; write {instead}",
        )
    if fault_tolerance is None and "RAY_REDIS_ADDRESS" in names:
        yield (
            f"{where}.template.spec.{_called(container)}.env[RAY_REDIS_ADDRESS]",
            "needs gcsFaultToleranceOptions; write redisAddress there",
        )
    if fault_tolerance is not None:
        for name in sorted({"RAY_REDIS_ADDRESS", "REDIS_PASSWORD"} & names):
            yield (
                f"{where}.template.spec.{_called(container)}.env[{name}]",
                "excludes gcsFaultToleranceOptions; write it there",
            )
        if parameters.get("redis-password"):
            yield (
                f"{where}.rayStartParams.redis-password",
                "excludes gcsFaultToleranceOptions; write redisPassword there",
            )
        for name in sorted({"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & annotations.keys()):
            yield f"metadata.annotations.{name}", "excludes gcsFaultToleranceOptions; take it out"
        if (fault_tolerance.get("redisPassword") or {}).get("value"):
            yield (
                f"{field}.gcsFaultToleranceOptions.redisPassword",
                "a secret stands here for all to read; name a Secret in valueFrom.secretKeyRef",
            )
    if parameters.get("redis-username") or "REDIS_USERNAME" in names:
        yield where, "a Redis user belongs into gcsFaultToleranceOptions.redisUsername; write it there"


def _called(container: dict[str, Any]) -> str:
    return f"containers[{container['name']}]"


def _group_findings(group: dict[str, Any], field: str, autoscaled: bool, v2: bool) -> Iterator[Finding]:
    parameters, pod = group.get("rayStartParams") or {}, group["template"]["spec"]
    if "labels" in parameters:
        yield f"{field}.rayStartParams.labels", "labels are a field of the group; write them in labels"
    for name in ("num-cpus", "num-gpus"):
        if not re.fullmatch(r"\d+(\.\d+)?", parameters.get(name, "0")):
            yield f"{field}.rayStartParams.{name}", f"'{parameters[name]}' is no number; write \"0\" and the like"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & parameters.keys():
        yield f"{field}.resources", "resources stand in rayStartParams, too; take one of them out"
    for name, value in (group.get("labels") or {}).items():
        yield from _label_findings(name, value, f"{field}.labels")
    if v2 and pod.get("restartPolicy") in ("Always", "OnFailure"):
        yield (
            f"{field}.template.spec.restartPolicy",
            "autoscaler v2 replaces pods and does not restart them; write Never",
        )
    if "groupName" in group:
        resources = pod["containers"][0].get("resources") or {}
        named = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
        if "cpu" not in named and "num-cpus" not in parameters and "CPU" not in (group.get("resources") or {}):
            where = f"{field}.template.spec.{_called(pod['containers'][0])}.resources"
            yield where, "names no cpu, so nobody can know what fits into a pod; write requests and limits"
        least, most, now = group["minReplicas"], group["maxReplicas"], group.get("replicas", group["minReplicas"])
        if not least <= now <= most:
            yield f"{field}.replicas", f"{now} is not between minReplicas {least} and maxReplicas {most}"
        if "idleTimeoutSeconds" in group and autoscaled and not v2:
            yield (
                f"{field}.idleTimeoutSeconds",
                "only autoscaler v2 has it for each group; write autoscalerOptions.version: v2",
            )
        if group.get("suspend") and autoscaled:
            yield f"{field}.suspend", "a group cannot be suspended while the autoscaler runs; take it out"
    yield from _ray_pod_findings(pod, f"{field}.template.spec")


def _ray_pod_findings(pod: dict[str, Any], field: str) -> Iterator[Finding]:
    container = pod["containers"][0]  # the first one is Ray's
    where = f"{field}.{_called(container)}"
    if _SHARED_MEMORY not in [mount["mountPath"] for mount in container.get("volumeMounts") or []]:
        yield (
            f"{where}.volumeMounts",
            f"{_SHARED_MEMORY} has 64 MiB unless something is mounted there; mount an emptyDir with medium: Memory, for Ray's object store",
        )
    repository, _, tag = container.get("image", "").partition("@")[0].rpartition(":")
    expected = {"equihand": __version__, "ray": pinned_ray()}.get(repository.rpartition("/")[2])
    if expected and tag != "latest" and tag != expected and not tag.startswith(f"{expected}-"):
        yield f"{where}.image", f"tag '{tag}' is not of version {expected}; write {repository}:{expected}"


def _label_findings(name: str, value: str, field: str) -> Iterator[Finding]:
    prefix, slash, local = name.rpartition("/")
    if not _LABEL_NAME.fullmatch(local) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
        yield (
            f"{field}.{name}",
            "no valid name of a label; use letters, digits, '-', '_' and '.', after DOMAIN/ if need be",
        )
    if value and not _LABEL_NAME.fullmatch(value):
        yield (
            f"{field}.{name}",
            f"'{value}' is no valid value of a label; use up to 63 letters, digits, '-', '_' and '.'",
        )


def _queue_findings(kind: str, spec: dict[str, Any], cluster: dict[str, Any], field: str) -> Iterator[Finding]:
    """What Kueue refuses of a job that waits in a queue."""
    if is_autoscaled(cluster):
        yield (
            f"{field}.enableInTreeAutoscaling",
            "a queue reserves the whole cluster, which has to have a fixed size; write false",
        )
    if kind == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes", "a queue takes only jobs that remove their cluster; write true"
    if kind == "RayJob" and spec.get("clusterSelector"):
        yield (
            "spec.clusterSelector",
            "a queue takes only jobs with a cluster of their own; describe it in rayClusterSpec",
        )
