"""Links between runs, in MLflow's database: both ways, whichever run comes first, and however often they are delivered."""

import shutil
from pathlib import Path

import pytest

from pipeline.config import Settings
from pipeline.storage import write_bytes
from pipeline.tracked import Origin, deliver_left, tracked
from pipeline.tracking import Sender, TrackingSettings
from pipeline.tracking_links import Source, link
from pipeline.tracking_queue import Refused
from tests.conftest import ROOT


class Example(Settings):
    epochs: int = 3


class Optimiser(Settings):
    learning_rate: float = 0.1


class Optimised(Settings):
    optimiser: Optimiser = Optimiser()


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    """MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("empty")
    with tracked(TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db"), None, "a", "inspect", Example()) as tracking:
        tracking.opened()
    return folder / "mlflow.db"


@pytest.fixture
def settings(tmp_path, empty_database) -> TrackingSettings:
    shutil.copy(empty_database, tmp_path)
    return TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")


def record_run(settings: TrackingSettings, folder: Path, kind: str, run_id: str, *sources: Source) -> str | None:
    """A run without work; MLflow's id of it."""
    made_from = Origin(sources, {"equihand.init": "a.pth"} if not sources else {})
    with tracked(settings, str(folder / run_id), run_id, kind, Example(), {}, made_from) as tracking:
        tracking.opened()
    assert tracking.untracked() == {}
    return tracking.mlflow_run_id


def tags(settings: TrackingSettings, mlflow_run_id: str | None) -> dict[str, str]:
    """Those of links."""
    from mlflow import MlflowClient

    assert mlflow_run_id is not None
    found = MlflowClient(settings.uri).get_run(mlflow_run_id).data.tags
    of_links = ("_run_id", "init")
    return {
        name.removeprefix("equihand."): value
        for name, value in found.items()
        if name.startswith("equihand.used_by.") or (name.endswith(of_links) and name != "equihand.run_id")
    }


def test_a_run_and_what_was_made_from_it_know_each_other(settings, tmp_path):
    pretrained = record_run(settings, tmp_path, "pretrain", "pretrain-1")
    source = Source("pretrain", "pretrain-1", pretrained)
    first = record_run(settings, tmp_path, "finetune", "finetune-1", source)
    elsewhere = settings.model_copy(update={"experiment": "another"})
    second = record_run(elsewhere, tmp_path, "search", "search-1", source._replace(mlflow_run_id=None))
    expected = {"pretrain_run_id": "pretrain-1", "pretrain_mlflow_run_id": pretrained}
    assert tags(settings, first) == tags(settings, second) == expected
    assert tags(settings, pretrained) == {
        "init": "a.pth",
        "used_by.finetune-1": "finetune",
        "used_by.search-1": "search",
    }


def test_an_evaluation_is_linked_with_all_its_models(settings, tmp_path):
    ids = {
        name: record_run(settings, tmp_path, kind, name)
        for kind, name in (("finetune", "a-1"), ("finetune", "a-10"), ("pretrain", "b"))
    }
    sources = [Source("finetune", "a-1"), Source("finetune", "a-10"), Source("pretrain", "b"), Source("pretrain", "c")]
    evaluation = record_run(settings, tmp_path, "evaluate", "evaluate-1", *sources)
    assert tags(settings, evaluation) == {
        "finetune_run_id": "a-1, a-10",
        "finetune_mlflow_run_id": f"{ids['a-1']}, {ids['a-10']}",
        "pretrain_run_id": "b, c",  # MLflow does not have the second one
        "pretrain_mlflow_run_id": ids["b"],
    }
    assert all("used_by.evaluate-1" in tags(settings, each) for each in ids.values())
    late = record_run(settings, tmp_path, "pretrain", "c")
    assert tags(settings, evaluation)["pretrain_mlflow_run_id"] == f"{ids['b']}, {late}"
    assert tags(settings, late)["used_by.evaluate-1"] == "evaluate"


def test_a_run_that_comes_after_what_was_made_from_it_is_linked_too(settings, tmp_path):
    """Both were recorded without MLflow, and are delivered in the wrong order, and twice."""
    offline = settings.model_copy(update={"uri": None})
    record_run(offline, tmp_path, "pretrain", "pretrain_1")
    record_run(offline, tmp_path, "finetune", "finetune-1", Source("pretrain", "pretrain_1"))
    other = record_run(settings, tmp_path, "finetune", "finetune-2", Source("pretrain", "pretrain-1"))
    queues = {name: (tmp_path / name / "tracking/queue.jsonl").read_bytes() for name in ("finetune-1", "pretrain_1")}
    for _ in range(2):
        for name, records in queues.items():
            (tmp_path / name / "tracking/queue.jsonl").write_bytes(records)
            assert deliver_left(str(tmp_path / name), settings.uri).untracked == ""

    from mlflow import MlflowClient

    client = MlflowClient(settings.uri)
    found = client.search_runs(["1"], "tags.`equihand.kind` != 'inspect'")
    runs = {run.data.tags["equihand.run_id"]: run.info.run_id for run in found}
    assert len(runs) == len(found) == 3
    assert tags(settings, runs["finetune-1"]) == {
        "pretrain_run_id": "pretrain_1",
        "pretrain_mlflow_run_id": runs["pretrain_1"],
    }
    assert tags(settings, runs["pretrain_1"]) == {"init": "a.pth", "used_by.finetune-1": "finetune"}
    assert tags(settings, other) == {"pretrain_run_id": "pretrain-1"}  # whose name is only like it


def test_of_runs_with_one_name_the_right_one_is_linked(settings, tmp_path):
    elsewhere = settings.model_copy(update={"experiment": "another"})
    old = record_run(settings, tmp_path / "old", "pretrain", "pretrain-1")
    record_run(elsewhere, tmp_path / "new", "pretrain", "pretrain-1")
    tuned = record_run(elsewhere, tmp_path, "finetune", "finetune-1", Source("pretrain", "pretrain-1", old))
    assert tags(settings, tuned)["pretrain_mlflow_run_id"] == old
    assert "used_by.finetune-1" in tags(settings, old)
    # Another MLflow's id says nothing here.
    tuned = record_run(settings, tmp_path, "finetune", "finetune-2", Source("pretrain", "pretrain-1", "0" * 32))
    assert tags(settings, tuned)["pretrain_mlflow_run_id"]


def test_a_link_that_mlflow_forbids_holds_up_nothing(settings, tmp_path, monkeypatch):
    """As where the pretraining is somebody else's."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

    pretrained = record_run(settings, tmp_path, "pretrain", "pretrain-1")

    def set_tag(client, mlflow_run_id, name, value):
        if mlflow_run_id == pretrained:
            raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)
        set_by_mlflow(client, mlflow_run_id, name, value)

    set_by_mlflow = MlflowClient.set_tag
    monkeypatch.setattr(MlflowClient, "set_tag", set_tag)
    source = Source("pretrain", "pretrain-1")
    with tracked(settings, str(tmp_path / "a"), "a", "finetune", Example(), {}, Origin([source])) as tracking:
        tracking.opened()
        tracking.run.log_metrics({"loss": 1.0}, 1)
    assert "1 were refused (MLflow at sqlite:///" in tracking.untracked()["untracked"]
    assert "Permission denied" in tracking.untracked()["untracked"]
    assert tags(settings, tracking.mlflow_run_id)["pretrain_mlflow_run_id"] == pretrained
    assert "used_by.a" not in tags(settings, pretrained)
    record = {"do": "link", "run": ["finetune", "a"], "time": 0, "sources": [[*source]]}
    with pytest.raises(Refused):
        Sender(settings, str(tmp_path))([record])
    monkeypatch.undo()
    assert deliver_left(str(tmp_path / "a")).untracked == ""
    assert tags(settings, pretrained)["used_by.a"] == "finetune"


def test_a_source_that_is_named_twice_is_one(settings, tmp_path):
    from mlflow import MlflowClient

    pretrained = record_run(settings, tmp_path, "pretrain", "pretrain-1")
    tuned = record_run(settings, tmp_path, "finetune", "finetune-1")
    assert tuned is not None
    link(MlflowClient(settings.uri), tuned, "finetune", "finetune-1", 2 * [Source("pretrain", "pretrain-1")])
    assert tags(settings, tuned)["pretrain_mlflow_run_id"] == pretrained


def test_the_example_of_the_page_finds_what_it_says(settings, tmp_path, monkeypatch, capsys):
    import mlflow

    page = (ROOT / "docs/jobs.md").read_text(encoding="utf-8")
    example = page.partition("## What MLflow has of a run")[2].partition("```python\n")[2].partition("```")[0]
    record_run(settings, tmp_path, "pretrain", "pretrain-1")
    for name, error_mm in (("worse", 20.0), ("better", 10.0)):
        made_from = Origin([Source("pretrain", "pretrain-1")])
        with tracked(settings, str(tmp_path / name), name, "finetune", Optimised(), {}, made_from) as tracking:
            tracking.opened()
            tracking.run.log_metrics({"val_pa_epe_mm": error_mm}, 1)
            write_bytes(str(tmp_path / name / "logs/driver.jsonl"), name.encode())
    record_run(settings, tmp_path, "finetune", "another", Source("pretrain", "pretrain-10"))
    monkeypatch.chdir(tmp_path)
    try:
        exec(example.replace("http://mlflow:5000", str(settings.uri)))
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[1:]] == [["better", "10.0", "0.1"], ["worse", "20.0", "0.1"]]
    assert (tmp_path / "logs/driver.jsonl").read_text() == "better"
