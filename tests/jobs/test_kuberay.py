"""A job as objects of Kubernetes, checked as the files of cluster/ are."""

import stat
from pathlib import Path

import pytest
import yaml

from cluster.check.__main__ import main as check
from jobs import kuberay, submit
from jobs.pretrain import JOB
from pipeline.errors import SettingsError

WORKERS = ["--workers.num_workers=2", "--workers.use_gpu=true", "--workers.cpus_per_worker=3"]
LABELS = ["--workers.labels={ray-subcluster: training}", "--workers.reader_labels={ray-subcluster: data}"]
PRETRAIN = [
    "pretrain",
    "--frame_set=s3://b/frames",
    "--run.storage=s3://b/runs",
    "--tracking.uri=http://mlflow:5000",
    *WORKERS,
    *LABELS,
]
IMAGE = "--image=registry.example/equihand:0.1.0"


def test_what_is_printed_passes_the_checks_and_holds_the_settings(capsys, tmp_path):
    assert submit.main(["--kuberay", IMAGE, "--run-id=My.Run_1", *PRETRAIN]) == 0
    printed = capsys.readouterr().out
    config, rayjob = yaml.safe_load_all(printed)
    assert config["metadata"]["name"] == rayjob["metadata"]["name"] == "my-run-1"
    (tmp_path / "settings.yaml").write_text(config["data"]["settings.yaml"])
    settings = JOB.load([f"--config={tmp_path}/settings.yaml"])
    assert settings.run.run_id == "My.Run_1"
    assert settings == JOB.load([*PRETRAIN[1:], "--run.run_id=My.Run_1"])
    assert rayjob["spec"]["entrypoint"] == "python -m jobs.pretrain --config /etc/equihand/settings.yaml"
    (tmp_path / "job.yaml").write_text(printed)
    assert check([str(tmp_path / "job.yaml")]) == 0, capsys.readouterr().out


def test_a_job_that_does_not_fit_is_found_by_the_checks(capsys, tmp_path):
    assert submit.main(["--kuberay", IMAGE, "--run-id=r", *PRETRAIN, "--workers.num_workers=64"]) == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert check([str(tmp_path / "job.yaml")]) == 1
    assert "num_workers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run-id=r", *PRETRAIN], "--image is needed"),
        ([IMAGE, f"--run-id={'r' * 60}", *PRETRAIN], "Kubernetes takes names"),
        ([IMAGE, "--run-id=1r", *PRETRAIN], "begin with a letter"),
        ([IMAGE, "--base=none.yaml", *PRETRAIN], "none.yaml: cannot be read"),
        ([IMAGE, "--run-id=r", *PRETRAIN, "--epochs=0"], "epochs"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, words, capsys):
    assert submit.main(["--kuberay", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_without_a_rayjob_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\n")
    with pytest.raises(SettingsError, match="holds 0 RayJobs"):
        kuberay.objects("pretrain", "r", "", tmp_path / "a.yaml", "image:1")


def test_apply_hands_it_to_kubectl(tmp_path, monkeypatch, capsys):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/said; cat > {tmp_path}/got; exit 3\n")
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert submit.main(["--kuberay", "--apply", IMAGE, "--run-id=r", *PRETRAIN]) == 3
    assert Path(tmp_path, "said").read_text() == "apply -f -\n"
    assert [each["kind"] for each in yaml.safe_load_all(Path(tmp_path, "got").read_text())] == ["ConfigMap", "RayJob"]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert submit.main(["--kuberay", "--apply", IMAGE, "--run-id=r", *PRETRAIN]) == 1
    assert "there is no kubectl" in capsys.readouterr().err
