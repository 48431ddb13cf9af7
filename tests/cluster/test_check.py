"""cluster.check: planted mistakes are named, each by its one line; what is valid is not refused."""

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.check.__main__ import main
from cluster.check.compose import compose_findings
from cluster.check.container import container_findings
from cluster.check.files import check, check_objects
from cluster.check.kustomize import build, read_all
from cluster.check.launcher import launcher_findings
from cluster.check.quantities import amount

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(os.environ.get("EQUIHAND_KUBERAY_SCHEMAS", ROOT.parent / "shared/kuberay"))
OPERATOR = pytest.param(
    SCHEMAS, id="operator", marks=pytest.mark.skipif(not SCHEMAS.is_dir(), reason="no schemas of the operator")
)
SPEC = "spec/rayClusterSpec"
HEAD = f"{SPEC}/headGroupSpec"
HEAD_POD = f"{HEAD}/template/spec"
HEAD_CONTAINER = f"{HEAD_POD}/containers/0"
DATA = f"{SPEC}/workerGroupSpecs/0"
DATA_CONTAINER = f"{DATA}/template/spec/containers/0"
TRAINING = f"{SPEC}/workerGroupSpecs/1"
POD = f"{TRAINING}/template/spec"
CONTAINER = f"{POD}/containers/0"
RULES = "spec/deletionStrategy/deletionRules"
ENTRYPOINT = "python -m jobs.pretrain --config /etc/equihand/settings.yaml"
OUT = object()
"""In place of a value: takes the field out."""

# How messages call the places above.
_CLUSTER = "spec.rayClusterSpec"
_TRAINING = f"{_CLUSTER}.workerGroupSpecs[training]"
_POD = f"{_TRAINING}.template.spec"
_CONTAINER = f"{_POD}.containers[ray-worker]"
_HEAD_CONTAINER = f"{_CLUSTER}.headGroupSpec.template.spec.containers[ray-head]"


def changed(value: Any, changes: dict[str, Any]) -> None:
    """Set fields of nested values, in place; ~1 in a path stands for a slash."""
    for path, new in changes.items():
        *steps, last = [int(step) if step.isdigit() else step.replace("~1", "/") for step in path.split("/")]
        parent = value
        for step in steps:
            parent = parent[step]
        if new is OUT:
            del parent[last]
        elif isinstance(parent, list) and last == len(parent):
            parent.append(new)
        else:
            parent[last] = new


@cache
def shipped(overlay: str) -> list[Any]:
    return build(CLUSTER / "kubernetes" / overlay)


def lines(changes: dict[str, Any], schemas: Path | None = None, overlay: str = "pretrain") -> list[str]:
    """What is said of a shipped overlay whose RayJob is changed so."""
    objects = copy.deepcopy(shipped(overlay))
    changed(next(each for each in objects if each["kind"] == "RayJob"), changes)
    return [str(problem) for problem in check_objects(objects, overlay, schemas)]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    # fields and types
    ({f"{TRAINING}/maxReplica": 4}, f"{_TRAINING}: unknown field 'maxReplica'; did you mean maxReplicas?"),
    ({f"{TRAINING}/maxReplicas": "4"}, f"{_TRAINING}.maxReplicas: '4' is not of type 'integer'"),
    (
        {f"{HEAD}/rayStartParams/num-cpus": 0},
        f"{_CLUSTER}.headGroupSpec.rayStartParams.num-cpus: 0 is not of type 'string'",
    ),
    ({f"{RULES}/1/condition/ttlSeconds": -1}, f"{RULES.replace('/', '.')}[1].condition.ttlSeconds: -1 is less than the minimum of 0"),
    ({"apiVersion": "ray.io/v1alpha1"}, "apiVersion: 'ray.io/v1alpha1' is not ray.io/v1, which these files are for"),
    ({f"{HEAD}/rayStartParams/num-cpus": "none"}, f"{_CLUSTER}.headGroupSpec.rayStartParams.num-cpus: 'none' is no number; write \"0\" and the like"),
    ({f"{POD}/containers": []}, f"{_POD}.containers: the pod has no container; describe one"),
    # names
    ({"metadata/name": "3-runs"}, "metadata.name: '3-runs': a RayJob's name has small letters, digits and -, begins with a letter, and has 47 characters at most"),
    ({f"{DATA}/groupName": "training"}, f"{_CLUSTER}.workerGroupSpecs: two groups are called training; give each its own name"),
    (
        {f"{TRAINING}/labels/-pool": "a"},
        f"{_TRAINING}.labels.-pool: no valid name of a label; use letters, digits, '-', '_' and '.', after DOMAIN/ if need be",
    ),
    (
        {f"{TRAINING}/labels/pool": "a b"},
        f"{_TRAINING}.labels.pool: 'a b' is no valid value of a label; use up to 63 letters, digits, '-', '_' and '.'",
    ),
    ({f"{HEAD}/rayStartParams/labels": "a=b"}, f"{_CLUSTER}.headGroupSpec.rayStartParams.labels: labels are a field of the group; write them in labels"),
    # versions
    ({f"{SPEC}/rayVersion": "2.59.0"}, f"{_CLUSTER}.rayVersion: '2.59.0' is not 2.60.0, which constraints.txt installs; write that"),
    ({f"{SPEC}/rayVersion": OUT}, f'{_CLUSTER}.rayVersion: is missing; write rayVersion: "2.60.0"'),
    ({f"{CONTAINER}/image": "me/equihand:0.0.9"}, f"{_CONTAINER}.image: tag '0.0.9' is not of version 0.1.0; write me/equihand:0.1.0"),
    ({f"{CONTAINER}/image": "me/equihand:latest"}, f"{_CONTAINER}.image: 'me/equihand:latest' is another image tomorrow; name a version"),
    # resources
    ({f"{CONTAINER}/resources/limits/memory": "16Gi"}, f"{_CONTAINER}.resources.limits.memory: the limit is below the request; raise it, or request less"),
    *(
        (
            {f"{CONTAINER}/resources": {"limits": {"cpu": "8", "memory": "32Gi", name: "1"}}},
            f"{_CONTAINER}.resources.limits.{name}: no node offers a resource '{name}'; write nvidia.com/gpu",
        )
        for name in ("nvidia.com/gpus", "nvidia/gpu", "gpu", "nvidia.com/GPU")
    ),
    (
        {f"{CONTAINER}/resources/limits/nvidia.com~1gpu": "2"},
        f"{_CONTAINER}.resources.limits.nvidia.com/gpu: limits and requests of nvidia.com/gpu must be equal; write 1 in both",
    ),
    ({f"{CONTAINER}/resources/limits/memory": "32GB"}, f"{_CONTAINER}.resources.limits.memory: '32GB' is no quantity; write 4, 500m, 16Gi and the like"),
    (
        {f"{DATA_CONTAINER}/resources": {}},
        f"{_CLUSTER}.workerGroupSpecs[data].template.spec.containers[ray-worker].resources: names no cpu, so nobody can know what fits into a "
        "pod; write requests and limits",
    ),
    ({f"{HEAD}/resources": {"CPU": "0"}}, f"{_CLUSTER}.headGroupSpec.resources: resources stand in rayStartParams, too; take one of them out"),
    ({f"{TRAINING}/replicas": 5}, f"{_TRAINING}.replicas: 5 is not between minReplicas 0 and maxReplicas 4"),
    # pods
    (
        {f"{HEAD_CONTAINER}/volumeMounts/1": OUT},
        f"{_HEAD_CONTAINER}.volumeMounts: /dev/shm has 64 MiB unless something is mounted there; mount an emptyDir with medium: Memory, for "
        "Ray's object store",
    ),
    (
        {f"{POD}/volumes/0/emptyDir/sizeLimit": "48Gi"},
        f"{_POD}.volumes[shared-memory].emptyDir.sizeLimit: 48Gi in memory exceed the limit of ray-worker, 32Gi; make it smaller",
    ),
    (
        {f"{CONTAINER}/volumeMounts/1": {"name": "scratch", "mountPath": "/scratch"}},
        f"{_CONTAINER}.volumeMounts[scratch]: the pod has no volume scratch; add it to volumes",
    ),
    (
        {f"{POD}/terminationGracePeriodSeconds": 60},
        f"{_POD}.terminationGracePeriodSeconds: the pod is ended after 60 s, but preStop promises its node 110 s for a checkpoint; give the pod "
        "at least 115",
    ),
    ({f"{POD}/restartPolicy": "never"}, f"{_POD}.restartPolicy: 'never' is not one of Always, OnFailure, Never"),
    ({f"{POD}/restartPolicy": "Always"}, f"{_POD}.restartPolicy: autoscaler v2 replaces pods and does not restart them; write Never"),
    (
        {f"{CONTAINER}/env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}]},
        f"{_CONTAINER}.env[AWS_SECRET_ACCESS_KEY]: a secret stands here for all to read; put it into a Secret and name that in "
        "valueFrom.secretKeyRef",
    ),
    (
        {f"{HEAD_CONTAINER}/env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]},
        f"{_HEAD_CONTAINER}.env[RAY_REDIS_ADDRESS]: needs gcsFaultToleranceOptions; write redisAddress there",
    ),
    # modes that exclude each other
    (
        {"spec/submissionMode": "k8sJobMode"},
        "spec.submissionMode: 'k8sJobMode' is not one of K8sJobMode, HTTPMode, InteractiveMode, SidecarMode",
    ),
    ({"spec/backoffLimit": -1}, "spec.backoffLimit: -1 is less than 0; write more, or take it out"),
    ({"spec/suspend": True}, "spec.suspend: only a job with shutdownAfterJobFinishes: true can be suspended"),
    ({"spec/shutdownAfterJobFinishes": True}, "spec.deletionStrategy.deletionRules: exclude shutdownAfterJobFinishes; take one of them out"),
    (
        {"spec/deletionStrategy": OUT, "spec/ttlSecondsAfterFinished": 60},
        "spec.ttlSecondsAfterFinished: has no meaning without shutdownAfterJobFinishes: true; add that, or use deletionRules",
    ),
    (
        {f"{RULES}/1/condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}},
        "spec.deletionStrategy.deletionRules[1].policy: DeleteCluster for jobStatus SUCCEEDED stands in an earlier rule already; take one of "
        "them out",
    ),
    (
        {f"{RULES}/1": {"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}},
        "spec.deletionStrategy.deletionRules: for jobStatus SUCCEEDED, DeleteSelf comes after 0 s, before DeleteCluster after 60 s; what "
        "deletes more comes later",
    ),
    (
        {f"{RULES}/1/policy": "DeleteWorkers"},
        "spec.deletionStrategy.deletionRules[1].policy: DeleteWorkers excludes enableInTreeAutoscaling, which ends idle workers anyway; take "
        "the rule out",
    ),
    (
        {"spec/clusterSelector": {"ray.io/cluster": "equihand"}, "spec/deletionStrategy": OUT},
        "spec.clusterSelector: the job runs on the cluster that is named here, so rayClusterSpec has no meaning; take one of them out",
    ),
    ({"spec/submissionMode": "InteractiveMode"}, "spec.backoffLimit: in InteractiveMode nothing is tried again; write 0"),
    (
        {"spec/submissionMode": "HTTPMode", "spec/submitterPodTemplate": {"spec": {"containers": [{"name": "submitter", "image": "me/equihand:0.1.0"}]}}},
        "spec.submitterPodTemplate: in HTTPMode no pod submits the job; take it out, or use K8sJobMode",
    ),
    (
        {"spec/submissionMode": "SidecarMode", "spec/submitterConfig": {"backoffLimit": 1}},
        "spec.submitterConfig: in SidecarMode no pod submits the job; take it out, or use K8sJobMode",
    ),
    (
        {f"{SPEC}/autoscalerOptions/version": "v1", f"{TRAINING}/idleTimeoutSeconds": 60},
        f"{_TRAINING}.idleTimeoutSeconds: only autoscaler v2 has it for each group; write autoscalerOptions.version: v2",
    ),
    # the job, and whether it fits
    ({"spec/entrypoint": ""}, "spec.entrypoint: the job has no entrypoint; write python -m jobs.NAME ..."),
    (
        {"spec/entrypoint": "bash train.sh"},
        "spec.entrypoint: is none of the project's jobs, so its settings are not checked; write python -m jobs.NAME ...",
    ),
    ({"spec/entrypoint": f"{ENTRYPOINT} --epoch 3"}, "spec.entrypoint: jobs.pretrain: unknown setting 'epoch'; did you mean --epochs?"),
    (
        {"spec/entrypoint": f"{ENTRYPOINT} --frame_set data/frames"},
        "spec.entrypoint: jobs.pretrain: setting 'frame_set' = 'data/frames' is a path below this folder, which the cluster's nodes do not see; "
        "use s3://, or an absolute path on storage that all nodes share",
    ),
    (
        {"spec/entrypoint": "python -m jobs.pretrain --config jobs/configs/pretrain.yaml"},
        "spec.entrypoint: jobs.pretrain: setting 'config': no ConfigMap that is applied with the job is mounted as jobs/configs/pretrain.yaml in "
        "the head; mounted are /etc/equihand/settings.yaml",
    ),
    (
        {"spec/entrypoint": f"{ENTRYPOINT} --run.run_id none"},
        "spec.entrypoint: jobs.pretrain: setting 'run.run_id' is missing, so each retry (backoffLimit) would begin a new run; name the run",
    ),
    (
        {"spec/entrypoint": f"{ENTRYPOINT} --tracking.uri sqlite:////tmp/mlflow.db"},
        "spec.entrypoint: jobs.pretrain: setting 'tracking.uri' = 'sqlite:////tmp/mlflow.db' is a file, which is gone with its pod; write "
        "http://HOST:PORT, or none",
    ),
    (
        {"spec/entrypoint": f"{ENTRYPOINT} --workers.use_gpu none"},
        "spec.entrypoint: jobs.pretrain: setting 'workers.use_gpu' is missing, and nodes that have not come yet cannot decide; choose GPUs or "
        "none",
    ),
    (
        {f"{TRAINING}/maxReplicas": 3},
        "spec.entrypoint: jobs.pretrain: setting 'workers.num_workers': 4 x (3 CPUs, 1 GPUs) do not fit into 3 x training (8 CPUs, 1 GPUs); "
        "raise maxReplicas or the pods' resources, or ask for less",
    ),
    (
        {"spec/entrypoint": f"{ENTRYPOINT} --workers.cpus_per_worker 8 --workers.reader_labels {{ray-subcluster: training}}".replace("{", "'{").replace("}", "}'")},
        "spec.entrypoint: jobs.pretrain: setting 'workers.reader_labels': all CPUs of 4 x training (8 CPUs, 1 GPUs) are taken, and none is left "
        "to read data; ask for fewer CPUs for each worker, or add a group",
    ),
    (
        {DATA: OUT},
        "spec.entrypoint: jobs.pretrain: setting 'workers.reader_labels': no group of the cluster has the labels {ray-subcluster: data}; add "
        "them to one",
    ),
]  # fmt: skip


@pytest.mark.parametrize("schemas", [pytest.param(None, id="own"), OPERATOR])
@pytest.mark.parametrize(("changes", "line"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_named_by_its_one_line(changes, line, schemas):
    name = changes.get("metadata/name", "equihand-pretrain")
    assert lines(changes, schemas) == [f"pretrain: RayJob/{name}: {line}"]


QUEUED = {"metadata/labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
SELECTING = {
    "spec/clusterSelector": {"ray.io/cluster": "equihand"},
    SPEC: OUT,
    "spec/deletionStrategy": OUT,
    "spec/entrypoint": "python -m jobs.pretrain --frame_set s3://b/f --run.storage s3://b/r --run.run_id a --tracking.uri http://mlflow:5000 --workers.use_gpu true",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "volumes": {
        f"{POD}/volumes/1": {"name": "frames", "persistentVolumeClaim": {"claimName": "frames", "readOnly": True}},
        f"{POD}/volumes/2": {"name": "disk", "hostPath": {"path": "/mnt/nvme", "type": "Directory"}},
        f"{POD}/volumes/3": {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]}},
        f"{CONTAINER}/volumeMounts/1": {"name": "frames", "mountPath": "/frames", "subPath": "freihand"},
    },
    "security": {
        f"{POD}/securityContext": {"runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        f"{CONTAINER}/securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["SYS_PTRACE"]}},
    },
    "affinity": {
        f"{POD}/affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["a100", "h100"]}]}]
                }
            }
        }
    },
    "ports and probes": {
        f"{HEAD_CONTAINER}/ports": [{"containerPort": 6379, "name": "gcs"}, {"containerPort": 8265, "name": "dashboard"}],
        f"{HEAD_CONTAINER}/livenessProbe": {"tcpSocket": {"port": "gcs"}, "periodSeconds": 10},
    },
    "spread": {
        f"{POD}/topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"ray.io/group": "training"}},
            }
        ]
    },
    "fault tolerance": {
        f"{SPEC}/gcsFaultToleranceOptions": {
            "redisAddress": "redis:6379",
            "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
        }
    },
    "more containers": {
        f"{POD}/initContainers": [{"name": "warm", "image": "busybox:1.36", "command": ["true"]}],
        f"{POD}/containers/1": {"name": "metrics", "image": "quay.io/me/exporter@sha256:" + "0" * 64},
    },
    "secrets by reference": {
        f"{CONTAINER}/env": [
            {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": {"secretKeyRef": {"name": "equihand", "key": "secret"}}},
            {"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": "/var/run/token"},
            {"name": "TOKENIZERS_PARALLELISM", "value": "false"},
        ]
    },
    "resources of the group": {
        f"{HEAD}/rayStartParams": {},
        f"{HEAD}/resources": {"CPU": "0"},
        f"{TRAINING}/resources": {"CPU": "8", "GPU": "1"},
        f"{DATA}/labels/topology.kubernetes.io~1zone": "eu-west-1a",
    },
    "requests below limits": {f"{DATA_CONTAINER}/resources": {"requests": {"cpu": "7500m", "memory": "24G"}, "limits": {"cpu": 8, "memory": "32Gi"}}},
    "another GPU": {f"{CONTAINER}/resources": {"limits": {"cpu": "8", "memory": "32Gi", "amd.com/gpu": "1"}}},
    "image of one kind of machine": {f"{DATA_CONTAINER}/image": "me:5000/equihand:0.1.0-cpu", f"{DATA_CONTAINER}/imagePullPolicy": "Always"},
    "a running cluster": SELECTING,
    "interactive": {"spec/submissionMode": "InteractiveMode", "spec/backoffLimit": 0, "spec/entrypoint": OUT},
    "shutdown": {"spec/deletionStrategy": OUT, "spec/shutdownAfterJobFinishes": True, "spec/ttlSecondsAfterFinished": 60, "spec/suspend": True},
    "a submitter of its own": {"spec/submitterPodTemplate": {"spec": {"restartPolicy": "Never", "containers": [{"name": "submitter", "image": "rayproject/ray:2.60.0-py311"}]}}},
    "autoscaler v1": {f"{SPEC}/autoscalerOptions/version": "v1", f"{POD}/restartPolicy": "Always"},
    "fewer workers": {"spec/entrypoint": f"{ENTRYPOINT} --workers.num_workers 2", f"{TRAINING}/maxReplicas": 2},
    "many workers a pod": {
        "spec/entrypoint": f"{ENTRYPOINT} --workers.cpus_per_worker 1.5",
        f"{TRAINING}/maxReplicas": 1,
        f"{CONTAINER}/resources": {"limits": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "4"}},
    },
}  # fmt: skip


@pytest.mark.parametrize("schemas", [pytest.param(None, id="own"), OPERATOR])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_valid_is_not_refused(variant, schemas):
    assert lines(VARIANTS[variant], schemas) == []


def test_a_queue_refuses_what_grows_or_stays():
    prefix = "pretrain: RayJob/equihand-pretrain: "
    assert lines(QUEUED) == [
        f"{prefix}{_CLUSTER}.enableInTreeAutoscaling: a queue reserves the whole cluster, which has to have a fixed size; write false",
        f"{prefix}spec.shutdownAfterJobFinishes: a queue takes only jobs that remove their cluster; write true",
    ]


@pytest.mark.parametrize(
    ("overlay", "changes", "line"),
    [
        (
            "search",
            {f"{DATA_CONTAINER}/resources/requests/cpu": "4", f"{DATA_CONTAINER}/resources/limits/cpu": "4"},
            "jobs.search: setting 'gpus_per_trial': 1 x (6 CPUs, 1 GPUs) do not fit into 4 x training (4 CPUs, 1 GPUs); raise maxReplicas or the "
            "pods' resources, or ask for less",
        ),
        (
            "predict",
            {f"{TRAINING}/maxReplicas": 1},
            "jobs.predict: setting 'num_actors': 2 x (1 CPUs, 1 GPUs) do not fit into 1 x training (8 CPUs, 1 GPUs); raise maxReplicas or the "
            "pods' resources, or ask for less",
        ),
        (
            "ingest",
            {f"{DATA}/labels": {}},
            "jobs.ingest: setting 'ray.data_labels': no group of the cluster has the labels {ray-subcluster: data}; add them to one",
        ),
    ],
)
def test_each_job_must_fit_its_cluster(overlay, changes, line):
    assert lines(changes, overlay=overlay) == [f"{overlay}: RayJob/equihand-{overlay}: spec.entrypoint: {line}"]


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("Deployment", {"spec/replica": 1}, "spec: unknown field 'replica'; did you mean replicas?"),
        ("Deployment", {"apiVersion": "apps/v1beta1"}, "kind: Kubernetes 1.37.0 has no Deployment of apps/v1beta1; look at kind and apiVersion"),
        (
            "Deployment",
            {"spec/template/spec/containers/0/image": "me/equihand"},
            "spec.template.spec.containers[mlflow].image: 'me/equihand' is another image tomorrow; name a version",
        ),
        (
            "Deployment",
            {"spec/template/spec/volumes": []},
            "spec.template.spec.containers[mlflow].volumeMounts[runs]: the pod has no volume runs; add it to volumes",
        ),
        ("Service", {"spec/ports/0/port": "http"}, "spec.ports[http].port: 'http' is not of type 'integer'"),
        (
            "ConfigMap",
            {"data/AWS_SECRET_ACCESS_KEY": "abc"},
            "data.AWS_SECRET_ACCESS_KEY: a ConfigMap is open to all who may look at the namespace; put it into a Secret",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_other_objects_are_named(kind, changes, line):
    objects = copy.deepcopy(shipped("site"))
    value = next(each for each in objects if each["kind"] == kind)
    changed(value, changes)
    name = value["metadata"]["name"]
    assert [str(problem) for problem in check_objects(objects, "site")] == [f"site: {kind}/{name}: {line}"]


def test_a_cluster_is_not_called_as_a_secret_of_its_pods():
    (cluster,) = copy.deepcopy(shipped("interactive"))
    cluster["metadata"]["name"] = "equihand"
    assert [str(problem) for problem in check_objects([cluster], "cluster")] == [
        "cluster: RayCluster/equihand: spec.headGroupSpec.template.spec.containers[ray-head].envFrom: KubeRay keeps the cluster's token in a "
        "secret called equihand, too; give one of them another name"
    ]


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, [{}]])
@pytest.mark.parametrize("kind", ["RayJob", "Deployment", "ConfigMap", "NetworkPolicy"])
def test_objects_of_any_shape_end_with_lines(kind, value):
    overlay = "pretrain" if kind == "RayJob" else "site"
    for place in (
        "metadata",
        "spec",
        "data",
        "spec/template",
        "metadata/name",
        "spec/rayClusterSpec/headGroupSpec/template/spec",
    ):
        objects = copy.deepcopy(shipped(overlay))
        try:
            changed(next(each for each in objects if each["kind"] == kind), {place: value})
        except (KeyError, TypeError):
            continue  # an object of this kind has no such place
        for problem in check_objects(objects, "file"):
            assert "\n" not in str(problem)


def test_a_secret_in_a_file_is_refused():
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "equihand"}, "stringData": {"a": "b"}}
    (problem,) = check_objects([secret], "secret.yaml")
    assert problem.text.startswith("a secret in a file is known to all who read it")


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"max_worker": 4}, "", "Ray's launcher refuses it: Additional properties are not allowed ('max_worker' was unexpected)"),
        ({"available_node_types/spot_gpu/max_workers": 40}, "available_node_types.spot_gpu.max_workers", "exceeds max_workers of the whole cluster, 12; raise that"),
        ({"docker/image": "me/equihand:0.0.9"}, "docker.image", "tag '0.0.9' is not of version 0.1.0; write me/equihand:0.1.0"),
        ({"available_node_types/spot_gpu/resources": {"CPU": 8, "gpu": 1}}, "available_node_types.spot_gpu.resources", "Ray calls GPUs 'GPU'; write GPU: 1"),
        (
            {"worker_start_ray_commands": ["ray stop", "ray start --address=$RAY_HEAD_IP:6379"]},
            "worker_start_ray_commands",
            "whoever reaches the cluster's ports could run anything; write RAY_AUTH_MODE=token before ray start",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["aws.yaml", "gcp.yaml"])
def test_mistakes_in_launcher_files_are_named(file, changes, field, text):
    (config,) = read_all(CLUSTER / file)
    changed(config, changes)
    assert list(launcher_findings(config)) == [(field, text)]


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"services/mlflow/ports/0": "5000:5000"}, "services.mlflow.ports[0]", "'5000:5000' is open to the network; write 127.0.0.1:5000:5000"),
        ({"services/store/image": "minio/minio"}, "services.store.image", "'minio/minio' is another image tomorrow; name a version"),
        (
            {"services/store/environment/MINIO_ROOT_PASSWORD": "geheim"},
            "services.store.environment.MINIO_ROOT_PASSWORD",
            "a secret stands here for all to read; write ${MINIO_ROOT_PASSWORD:?}, and keep it in .env",
        ),
        ({"services/mlflow/volumes/0": "runs:/runs"}, "services.mlflow.volumes[0]", "there is no volume runs; add it to volumes"),
        ({"secrets": {}}, "services.head.secrets[0]", "there is no secret ray_token; add it to secrets"),
    ],
)  # fmt: skip
def test_mistakes_in_a_compose_file_are_named(changes, field, text):
    config = copy.deepcopy(read_all(CLUSTER / "compose.yaml")[0])  # its parts are shared between services
    changed(config, changes)
    assert (field, text) in list(compose_findings(config))


@pytest.mark.parametrize(
    ("old", "new", "field", "text"),
    [
        ("python:3.11-slim-bookworm", "python", "FROM", "'python' is another image tomorrow; name a version"),
        ("COPY jobs ./jobs", "COPY job ./jobs", "COPY", f"there is no job in {ROOT.name}; name files of the repository"),
        ("-c constraints.txt torch torchvision ;;", "torch torchvision ;;", "RUN pip install", "installs whatever is newest; write pip install -c constraints.txt"),
        ('".[detect,export]"', '".[detekt]"', "RUN pip install", "'.[detekt]': 'detekt' cannot be installed; pyproject.toml has the names"),
        ('tune]" mlflow', 'tune]" mlflow tensorflow', "RUN pip install", "'tensorflow' brings tensorflow, for which constraints.txt names no version that fits; pin it there"),
        ('"ray[data', '"ray<2 [data', "RUN pip install", None),
        ("ENV PYTHONUNBUFFERED=1", "ENV RAY_AUTH_TOKEN=abc PYTHONUNBUFFERED=1", "ENV", "a secret stands here for all to read; give it where the image runs"),
    ],
)  # fmt: skip
def test_mistakes_in_the_containerfile_are_named(old, new, field, text):
    content = (CLUSTER / "Containerfile").read_text()
    assert old in content
    found = list(container_findings(content.replace(old, new, 1), ROOT))
    assert found
    assert text is None or found == [(field, text)]


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("4", 4), (8, 8), ("500m", 0.5), ("1.5Gi", 1.5 * 2**30), ("1e3", 1000), ("12E", 12e18), ("2Ki", 2048), ("0.5", 0.5), ("3G", 3e9)],
)  # fmt: skip
def test_quantities(quantity, number):
    assert amount(quantity) == number


@pytest.mark.parametrize("quantity", ["", "16GB", "4 Gi", "-1", "1.5.2", "Gi", "1ki", True])
def test_what_is_no_quantity(quantity):
    with pytest.raises(ValueError, match="is no quantity"):
        amount(quantity)


def test_command_line(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "settings.yaml").write_text("not: a manifest\n")
    (folder / "cluster.yaml").write_text((CLUSTER / "kubernetes/interactive/raycluster.yaml").read_text())
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == ""
    text = (folder / "cluster.yaml").read_text().replace("maxReplicas: 4", "maxReplicas: -4")
    (folder / "cluster.yaml").write_text(text)
    assert main([str(folder)]) == 1
    where = f"{folder}/cluster.yaml: RayCluster/equihand-interactive: spec.workerGroupSpecs[training].maxReplicas"
    assert capsys.readouterr().out == f"{where}: -4 is less than the minimum of 0\n"
    assert main([str(folder / "settings.yaml")]) == 1
    assert "is no manifest" in capsys.readouterr().out
    (folder / "cluster.yaml").write_text("a: [")
    assert main([str(folder)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["--schemas", str(tmp_path), str(folder)]) == 2
    assert "holds no rayjobs_v1.schema.json" in capsys.readouterr().err


@pytest.mark.parametrize("schemas", [pytest.param(None, id="own"), OPERATOR])
def test_the_files_here_have_no_problems(schemas):
    assert check([CLUSTER], schemas) == []
