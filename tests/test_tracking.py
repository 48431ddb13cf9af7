"""What the records of a run become in MLflow's database."""

from contextlib import suppress

import pytest

from pipeline.config import Settings
from pipeline.errors import EquihandError
from pipeline.tracked import tracked
from pipeline.tracking import Sender, TrackingSettings, stored_run
from pipeline.tracking_queue import Refused


class Example(Settings):
    epochs: int = 3
    name: str = "x" * 2000


class Longer(Example):
    added: int = 1


def record(do, after=0, **fields):
    return {"do": do, "run": ["pretrain", "run-1"], "time": 1_700_000_000_000 + after, **fields}


def metrics(step, **values):
    return record("metrics", step, step=step, values=values)


OPEN = record("open", params={"epochs": "3", "name": "x" * 2000}, tags={"frame_set": "s3://a"}, parent=None)


def test_a_run_goes_on_under_its_id(tmp_path):
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/db/mlflow.db")
    folder = tmp_path / "runs/run-1"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures/a.png").write_bytes(b"png")
    with (
        suppress(LookupError),
        tracked(settings, str(folder), "run-1", "pretrain", Example(), {"frame_set": "s3://a"}) as first,
    ):
        first.opened()
        first.run.log_metrics({"loss": 3.0, "broken": float("nan")}, step=1)
        first.run.log_file("pictures/a.png")
        raise LookupError
    assert first.untracked() == {}
    assert not (folder / "tracking").exists()

    from mlflow import MlflowClient

    client = MlflowClient(settings.uri)
    assert first.mlflow_run_id is not None
    assert client.get_run(first.mlflow_run_id).info.status == "FAILED"
    with tracked(settings, str(folder), "run-1", "pretrain", Longer()) as again:
        again.opened()
        assert again.mlflow_run_id == first.mlflow_run_id
        assert client.get_run(first.mlflow_run_id).info.status == "RUNNING"
        again.run.log_metrics({"loss": 2.0}, step=1)
        again.run.log_metrics({"loss": 1.0}, step=2)
        child = again.run.child("run-1-a", "trial", Example())
        child.log_metrics({"score": 5.0}, step=0)
        child.finish("KILLED")
    result = {"kind": "pretrain", "run_id": "run-1", "mlflow_run_id": None}
    stored = stored_run(settings, result)
    assert stored.mlflow_run_id == first.mlflow_run_id
    assert stored.history() == {"loss": [(1, 2.0), (2, 1.0)]}
    with pytest.raises(EquihandError, match="it has no run 'run-2'"):
        stored_run(settings, {**result, "run_id": "run-2"})

    run = client.get_run(first.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["epochs"], run.data.params["added"], len(run.data.params["name"])) == ("3", "1", 500)
    assert run.data.tags["frame_set"] == "s3://a"
    assert {item.path for item in client.list_artifacts(first.mlflow_run_id)} == {"pictures", "settings.yaml"}
    child_run = client.get_run(stored_run(settings, {"kind": "trial", "run_id": "run-1-a"}).mlflow_run_id)
    assert child_run.data.tags["mlflow.parentRunId"] == first.mlflow_run_id
    assert child_run.info.status == "KILLED"


def test_records_that_come_twice_change_nothing(tmp_path):
    """As after a crash between a delivery and its note: once more, in other batches, by another process."""
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    batches = [
        [OPEN],
        [metrics(1, loss=3.0), metrics(2, loss=2.0, score=1.0)],
        [record("finish", 9, status="FINISHED")],
    ]
    for order in (batches, [[OPEN], [metrics(2, loss=2.0, score=1.0), metrics(3, loss=1.0)], batches[2]]):
        sender = Sender(settings, str(tmp_path))
        for batch in order:
            sender(batch)

    from mlflow import MlflowClient

    client = MlflowClient(settings.uri)
    experiment = client.get_experiment_by_name("equihand")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, "loss")]
    assert history == [(step, 4.0 - step, 1_700_000_000_000 + step) for step in (1, 2, 3)]
    assert len(client.get_metric_history(run.info.run_id, "score")) == 1
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        1_700_000_000_000,
        1_700_000_000_009,
    )


def test_what_mlflow_refuses_is_told_from_what_it_cannot_take_now(tmp_path, monkeypatch):
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    sender = Sender(settings, str(tmp_path))
    sender([OPEN])
    with pytest.raises(Refused, match="MLflow at sqlite:///"):
        sender([metrics(1, **{"x" * 300: 1.0})])
    with pytest.raises(Refused, match="no such file"):
        sender([record("file", name="pictures/none.png")])
    monkeypatch.setattr("mlflow.MlflowClient.log_batch", lambda *_, **__: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(EquihandError, match=r"MLflow at sqlite:///.*: gone") as caught:
        sender([metrics(1, loss=1.0)])
    assert not isinstance(caught.value, Refused)


def test_odd_names_of_a_database(tmp_path, monkeypatch):
    """The path may hold ~, and what SQLAlchemy decodes; its options stay."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = TrackingSettings(uri="sqlite:///~/Läufe%201 50%25 #/mlflow.db?timeout=30")
    sender = Sender(settings, str(tmp_path))
    sender([OPEN])
    sender([record("text", name="settings.yaml", text="epochs: 3")])
    sender([metrics(1, loss=1.0)])
    folder = tmp_path / "Läufe 1 50% #"
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert list(folder.rglob("settings.yaml"))
    stored = stored_run(settings, {"kind": "pretrain", "run_id": "run-1"})
    assert stored.tracking_uri == f"sqlite:///{tmp_path}/Läufe 1 50%25 #/mlflow.db?timeout=30"
    assert stored.history() == {"loss": [(1, 1.0)]}
