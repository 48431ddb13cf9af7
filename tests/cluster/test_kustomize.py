"""The kustomizations, as kustomize itself builds them and as cluster.check does."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.check.kustomize import BuildError, build

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "cluster/kubernetes"
COMMAND = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
FOLDERS = sorted(path.parent.name for path in KUBERNETES.glob("*/kustomization.yaml"))


def by_name(objects):
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


@pytest.mark.skipif(not shutil.which(COMMAND[0]), reason="no kustomize here")
@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_are_those_of_kustomize(folder):
    done = subprocess.run([*COMMAND, str(KUBERNETES / folder)], capture_output=True, text=True, check=True)
    assert by_name(build(KUBERNETES / folder)) == by_name(yaml.safe_load_all(done.stdout))


def test_interactive_cluster_is_that_of_the_jobs():
    (job,), (cluster,) = build(KUBERNETES / "base"), build(KUBERNETES / "interactive")
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    del pod["volumes"][0], pod["containers"][0]["volumeMounts"][0]  # the job's settings
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


def kustomization(folder: Path, **entries) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(json.dumps({"kind": "Kustomization", **entries}))
    (folder / "job.yaml").write_text("{apiVersion: ray.io/v1, kind: RayJob, metadata: {name: a}, spec: {}}")
    return folder


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"resources": ["jop.yaml"]}, "resources: there is no jop.yaml"),
        ({"resources": ["job.yaml"], "patches": [{"path": "patch.yaml"}]}, "patch.yaml: cannot be read: No such file"),
        (
            {"resources": ["job.yaml"], "patches": [{"target": {"kind": "RayCluster"}, "patch": "[]"}]},
            "patches: there is no RayCluster to be patched",
        ),
        (
            {"resources": ["job.yaml"], "patches": [{"target": {"kind": "RayJob"}, "patch": "[{op: remove, path: /spec/suspend}]"}]},
            "patches: there is no /spec/suspend to remove",
        ),
        (
            {"configMapGenerator": [{"name": "a", "files": ["settings.yaml"]}], "generatorOptions": {"disableNameSuffixHash": True}},
            "configMapGenerator: there is no settings.yaml",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said_in_one_line(entries, message, tmp_path):
    with pytest.raises(BuildError, match=message) as caught:
        build(kustomization(tmp_path / "a", **entries))
    assert "\n" not in str(caught.value)


def test_what_is_not_known_here_is_left_to_kustomize(tmp_path, monkeypatch):
    folder = kustomization(tmp_path / "a", resources=["job.yaml"], namePrefix="my-")
    if shutil.which(COMMAND[0]):
        assert [each["metadata"]["name"] for each in build(folder)] == ["my-a"]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match="namePrefix is not known here; install kustomize"):
        build(folder)
