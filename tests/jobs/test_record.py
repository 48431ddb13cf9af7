"""All that MLflow is to have of runs that follow from each other: with a real server and artifacts on S3, with a database, delivered
later, and without any MLflow."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs import evaluate, finetune, pretrain, search, sync
from jobs.sync import SyncSettings
from pipeline.campaign.run import CampaignSettings
from pipeline.models.weights import load_pose_model
from pipeline.reports.evaluate import EvaluateSettings
from pipeline.storage import exists, join, list_files, read_bytes, read_json
from pipeline.training.finetune_run import FinetuneRunSettings
from pipeline.training.pretrain_run import PretrainSettings
from tests.test_tracked import Server
from tests.tiny_sets import write_tiny_set

UNITS = ("_mm", "_px", "_deg", "_s", "_per_second", "_fraction", "_megabytes", "_percentage", "_watts")
WITHOUT_UNIT = (
    *("loss", "epoch", "bad_", "learning_rate", "_similarity", "_cosine", "alignment", "uniformity", "_alpha"),
    *("_skill", "auc", "pck_2d_"),
)
WITH_OLDER_NAMES = ("score", "epe_2d")  # see docs/jobs.md


class Place(NamedTuple):
    """Where a test's MLflow is."""

    at_first: str | None
    """What the runs are told; None: nothing."""
    later: str | None
    """Where `sync` brings them; None: nowhere."""

    @property
    def mlflow(self) -> str | None:
        return self.at_first or self.later


@pytest.fixture
def place(request, s3, tmp_path, free_port) -> Iterator[Place]:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    without_server = {
        "database": Place(database, None),
        "delivered later": Place(None, database),
        "nowhere": Place(None, None),
    }
    if request.param in without_server:
        yield without_server[request.param]
        return
    options = {
        "server that stores artifacts": ("--artifacts-destination", join(s3, "artifacts")),
        "server that names their place": ("--no-serve-artifacts", "--default-artifact-root", join(s3, "artifacts")),
    }
    server = Server(tmp_path, free_port, *options[request.param])
    try:
        server.start()
        yield Place(f"http://127.0.0.1:{free_port}", None)
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "place",
    ["server that stores artifacts", "server that names their place", "database", "delivered later", "nowhere"],
    indirect=True,
)
def test_what_there_is_of_a_pretraining_a_fine_tuning_and_an_evaluation(place, ray_cluster, s3, tmp_path):
    frames, runs = join(s3, "frames"), join(s3, "runs")
    write_tiny_set(frames, splits={"train": 32, "val": 8, "test": 8})
    results = run_all(frames, runs, join(s3, "evaluation"), {"uri": place.at_first, "system_metrics_s": 0.2})
    assert not any("untracked" in result for result in results.values())
    assert load_pose_model(join(runs, "finetune-1")).view_size == 32
    assert results["evaluate"]["models"]["tuned"]["metrics"]["pa_epe_mm"] > 0
    for name, result in results.items():
        assert (result["mlflow_run_id"] is None) == (place.at_first is None), name
    folders = {
        "finetune-1": join(runs, "finetune-1"),
        "pretrain-1": join(runs, "pretrain-1"),
        "": join(s3, "evaluation"),
    }
    if place.at_first is None:
        assert all(exists(join(folder, "tracking/queue.jsonl")) for folder in folders.values())
    if place.mlflow is None:
        assert not list(tmp_path.rglob("*.db"))
        return
    if place.later is not None:  # what was made from the pretraining comes before it
        sync.run(SyncSettings(runs=tuple(folders.values()), tracking_uri=place.later))
    assert not any(exists(join(folder, "tracking")) for folder in folders.values())
    check_all(place.mlflow, frames, folders, results, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", ["server that stores artifacts"], indirect=True)
def test_what_there_is_of_a_search(place, ray_cluster, s3, tmp_path):
    """The campaign, its trials and its winner's trainings lie below each other; it is linked with the pretraining that it began with."""
    from mlflow import MlflowClient
    from mlflow.models import Model

    frames, runs = join(s3, "frames"), join(s3, "runs")
    write_tiny_set(frames, splits={"train": 32, "val": 8, "test": 8})
    tracking = {"uri": place.at_first, "log_model": True}
    small = {"frame_set": frames, "batch_size": 8, "views": {"size": 32}, "precision": "float32"}
    pretraining = PretrainSettings.model_validate(
        {
            **small,
            "epochs": 1,
            "num_readers": 1,
            "encoder": {"width": 8},
            "run": {"storage": runs, "run_id": "pretrain-1"},
            "tracking": {"uri": place.at_first},
        }
    )
    pretrain.run(pretraining, session=nullcontext)
    settings = CampaignSettings.model_validate(
        {
            "finetune": {
                **small,
                "init": join(runs, "pretrain-1"),
                "epochs": 4,
                "validate_every": 2,
                # Outside of the space: no trial has it, so it is trained beside the best one's.
                "optimiser": {"learning_rate": 1e-6},
            },
            "space": {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            "num_trials": 3,
            "winner": {"seeds": 1},
            "run": {"storage": runs, "run_id": "search-1"},
            "tracking": tracking,
        }
    )
    result = search.run(settings, session=nullcontext)
    assert "untracked" not in result
    folder = join(runs, "search-1")

    client = MlflowClient(str(place.at_first))
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    below: dict[str, list[Any]] = {}
    for run in found:
        below.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    tops = {run.info.run_name: run for run in below[""]}
    assert tops.keys() == {"pretrain-1", "search-1"}
    campaign = tops["search-1"]
    children = {run.info.run_name: run for run in below[campaign.info.run_id]}
    assert sorted(children) == ["search-1-0000", "search-1-0001", "search-1-0002", "search-1-winner"]
    assert {run.info.status for run in found} == {"FINISHED"}
    trainings = [run.info.run_name for run in below[children["search-1-winner"].info.run_id]]
    assert sorted(name.rsplit("-", 1)[0] for name in trainings) == [
        "search-1-default-seed-105",
        "search-1-winner-seed-105",
    ]
    for name in ("search-1-0000", "search-1-0001", "search-1-0002"):
        params = children[name].data.params
        assert 1e-4 <= float(params["optimiser.learning_rate"]) <= 1e-2
        assert children[name].data.metrics["score"] > 0
    assert campaign.inputs is not None
    assert json.loads(campaign.inputs.dataset_inputs[0].dataset.source)["uri"] == frames

    assert campaign.data.tags["equihand.pretrain_run_id"] == "pretrain-1"
    assert campaign.data.tags["equihand.pretrain_mlflow_run_id"] == tops["pretrain-1"].info.run_id
    assert tops["pretrain-1"].data.tags["equihand.used_by.search-1"] == "search"

    files = downloaded(client, campaign.info.run_id, tmp_path / "search")
    assert {"settings.yaml", "result.json", "report.html"} <= files.keys()
    assert files["report.html"] == read_bytes(join(folder, "report.html"))
    assert any(name.startswith("logs/") and name.endswith("-driver.jsonl") for name in files)
    model = Model.load(str(tmp_path / "search/model"))
    assert model.signature is not None
    assert model.signature.inputs.input_names() == ["images", "camera"]


def run_all(frames: str, runs: str, output: str, tracking: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The jobs as the command line runs them; their results."""
    small = {
        "frame_set": frames,
        "batch_size": 8,
        "views": {"size": 32},
        "precision": "float32",
        "encoder": {"width": 8},
    }
    of_run = {"storage": runs}
    pretraining = PretrainSettings.model_validate(
        {**small, "epochs": 2, "num_readers": 1, "run": {**of_run, "run_id": "pretrain-1"}, "tracking": tracking}
    )
    results = {"pretrain": pretrain.run(pretraining, session=nullcontext)}
    tuning = FinetuneRunSettings.model_validate(
        {
            **small,
            "init": join(runs, "pretrain-1"),
            "epochs": 12,
            "run": {**of_run, "run_id": "finetune-1"},
            "tracking": {**tracking, "log_model": True},
        }
    )
    results["finetune"] = finetune.run(tuning, session=nullcontext)
    evaluation = EvaluateSettings(
        models={"tuned": join(runs, "finetune-1")},
        frame_set=frames,
        output=output,
        num_cases=2,
        use_gpu=False,
        tracking=tuning.tracking,
    )
    results["evaluate"] = evaluate.run(evaluation)
    return results


def check_all(
    uri: str, frames: str, folders: dict[str, str], results: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """What is in MLflow. folders: of the runs, by id; of the evaluation, by ""."""
    from mlflow import MlflowClient
    from mlflow.models import Model

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    found = {run.data.tags["equihand.kind"]: run for run in client.search_runs([experiment.experiment_id])}
    assert found.keys() == results.keys()
    ids = {kind: run.info.run_id for kind, run in found.items()}
    names = {kind: run.info.run_name for kind, run in found.items()}
    files = {}
    for kind, run in found.items():
        assert results[kind]["mlflow_run_id"] in (None, ids[kind])
        assert run.info.status == "FINISHED"
        assert run.data.params["frame_set"] == frames
        assert run.data.tags["mlflow.source.git.commit"]
        assert {f"equihand.{name}" for name in ("command", "machine", "packages", "python")} <= run.data.tags.keys()
        assert run.inputs is not None
        [read] = run.inputs.dataset_inputs
        assert json.loads(read.dataset.source)["uri"] == frames
        lasts = {name.rsplit("/", 1)[-1] for name in run.data.metrics}
        assert {
            name
            for name in lasts
            if not name.endswith((*UNITS, *WITH_OLDER_NAMES)) and not any(word in name for word in WITHOUT_UNIT)
        } == set()
        files[kind] = downloaded(client, ids[kind], tmp_path / kind)
        assert b"frame_set:" in files[kind]["settings.yaml"]

    # Links, both ways.
    tags = {kind: run.data.tags for kind, run in found.items()}
    assert tags["finetune"]["equihand.pretrain_run_id"] == names["pretrain"] == "pretrain-1"
    assert tags["finetune"]["equihand.pretrain_mlflow_run_id"] == ids["pretrain"]
    assert tags["pretrain"]["equihand.used_by.finetune-1"] == "finetune"
    assert tags["evaluate"]["equihand.finetune_run_id"] == "finetune-1"
    assert tags["evaluate"]["equihand.finetune_mlflow_run_id"] == ids["finetune"]
    assert tags["finetune"][f"equihand.used_by.{names['evaluate']}"] == "evaluate"
    assert "equihand.init" not in tags["finetune"]

    for kind in ("pretrain", "finetune"):
        folder = folders[names[kind]]
        assert json.loads(files[kind]["result.json"]) == read_json(join(folder, "result.json"))
        logs = {name: data for name, data in files[kind].items() if name.startswith("logs/")}
        stored = list_files(join(folder, "logs"))
        assert logs == {f"logs/{name.rsplit('/', 1)[1]}": read_bytes(name) for name in stored}
        assert {name.split("-", 1)[1] for name in logs} == {"driver.jsonl", "worker-0.jsonl"}
        assert all(json.loads(data.splitlines()[-1])["message"] == "ended" for data in logs.values())
        assert 0 < found[kind].data.metrics["system/system_memory_usage_percentage"] < 100
        assert "system/node_0/cpu_utilization_percentage" not in found[kind].data.metrics  # it is the driver's machine
        points = client.get_metric_history(ids[kind], "loss")
        assert [point.step for point in points] == sorted({point.step for point in points})
    assert {"pictures/views.png"} <= files["pretrain"].keys()
    assert files["evaluate"]["report.html"] == read_bytes(join(folders[""], "report.html"))
    assert files["evaluate"]["metrics.json"] == read_bytes(join(folders[""], "metrics.json"))
    assert "pictures/overlays_worst.png" in files["evaluate"]
    assert found["evaluate"].data.metrics["tuned/pa_epe_mm"] == pytest.approx(
        results["evaluate"]["models"]["tuned"]["metrics"]["pa_epe_mm"]
    )
    assert "model/MLmodel" not in files["pretrain"]  # nobody has asked for it
    model = Model.load(str(tmp_path / "finetune/model"))
    assert model.signature is not None
    assert model.signature.inputs.input_names() == ["images", "camera"]
    assert model.saved_input_example_info is not None


def downloaded(client: Any, mlflow_run_id: str, folder: Path) -> dict[str, bytes]:
    """All artifacts of a run."""
    folder.mkdir()
    client.download_artifacts(mlflow_run_id, "", str(folder))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
