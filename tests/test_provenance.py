import json
import subprocess

import pytest

from pipeline import provenance
from pipeline.config import Settings
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings


class Example(Settings):
    """Of a job."""

    rate: float = 0.1
    """A number."""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout with one commit; what is known of the real one is forgotten."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "a.py").write_text("one = 1\n")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    monkeypatch.setattr(provenance, "_ROOT", root)
    monkeypatch.delenv(provenance.GIT_VARIABLE)
    provenance.git.cache_clear()
    yield root
    provenance.git.cache_clear()


def test_commit_and_what_differs_from_it(repository, tmp_path):
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert provenance.git() == (head.stdout.strip(), False, "")
    (repository / "a.py").write_text("one = 'https://me:geheim@host'\n")
    provenance.git.cache_clear()
    code = provenance.git()
    assert (code.commit, code.is_dirty) == (head.stdout.strip(), True)
    assert "-one = 1\n+one = 'https://me:" in code.diff
    assert "geheim" not in code.diff


def test_code_without_a_repository_is_named_by_who_sent_it(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    provenance.git.cache_clear()
    try:
        monkeypatch.setenv(provenance.GIT_VARIABLE, "abc-dirty")
        assert provenance.git() == ("abc", True, "")
        provenance.git.cache_clear()
        monkeypatch.delenv(provenance.GIT_VARIABLE)
        assert provenance.git() == ("", False, "")
        assert "mlflow.source.git.commit" not in provenance.provenance()
    finally:
        provenance.git.cache_clear()


def test_the_command_is_one_that_can_be_given_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/jobs/pretrain.py", "--epochs", "3", "--frame_set=s3://me:geheim@b/a b"])
    assert provenance.command() == "python -m jobs.pretrain --epochs 3 '--frame_set=s3://me:***@b/a b'"


def test_a_run_says_what_ran_on_what_and_which_frames_it_read(repository, tmp_path):
    from mlflow import MlflowClient

    (repository / "a.py").write_text("one = 2\n")
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    digest = "sha256:" + 64 * "a"
    for _ in range(2):  # a run that goes on
        provenance.git.cache_clear()
        tags = {"frame_set": "s3://b/frames", "frame_set_digest": digest}
        with tracked(settings, str(tmp_path / "run"), "run", "pretrain", Example(), tags) as tracking:
            tracking.opened()
        assert tracking.untracked() == {}
    assert tracking.mlflow_run_id is not None
    client = MlflowClient(settings.uri)
    run = client.get_run(tracking.mlflow_run_id)
    assert run.data.tags["mlflow.source.git.commit"] == provenance.git().commit
    assert run.data.tags["equihand.git_dirty"] == "true"
    assert "torch==" in run.data.tags["equihand.packages"]
    assert "cores" in run.data.tags["equihand.machine"]
    assert run.data.tags["equihand.command"]
    assert run.inputs is not None
    [read] = run.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("frames", digest[:36])
    assert json.loads(read.dataset.source) == {"uri": "s3://b/frames", "digest": digest}
    with open(client.download_artifacts(tracking.mlflow_run_id, "git.diff", str(tmp_path))) as file:
        assert "+one = 2" in file.read()
