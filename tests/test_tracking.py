from contextlib import nullcontext

import pytest

from pipeline.config import Settings
from pipeline.tracking import Delivery, TrackingSettings, ending, start_run


class Example(Settings):
    epochs: int = 3
    name: str = "x" * 2000


def test_a_run_goes_on_under_its_id(tmp_path):
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/db/mlflow.db")
    run = start_run(settings, "run-1", "pretrain", Example(), {"frame_set": "s3://a"})
    run.log_metrics({"loss": 3.0, "broken": float("nan")}, step=1)
    run.log_bytes("pictures/a.png", b"png")
    run.finish("FAILED")

    again = start_run(settings, "run-1", "pretrain", Example())
    assert again == run
    again.log_metrics({"loss": 2.0}, step=1)
    again.log_metrics({"loss": 1.0}, step=2)
    again.finish()
    assert again.history() == {"loss": [(1, 2.0), (2, 1.0)]}

    other = start_run(settings, "run-2", "pretrain", Example(), parent=run)
    assert other.mlflow_run_id != run.mlflow_run_id

    from mlflow import MlflowClient

    client = MlflowClient(run.tracking_uri)
    stored = client.get_run(run.mlflow_run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["epochs"] == "3"
    assert stored.data.tags["frame_set"] == "s3://a"
    assert client.get_run(other.mlflow_run_id).data.tags["mlflow.parentRunId"] == run.mlflow_run_id
    names = {item.path for item in client.list_artifacts(run.mlflow_run_id)}
    assert names == {"pictures", "settings.yaml"}


def test_odd_names_of_a_database(tmp_path, monkeypatch):
    """The path may hold ~, and what SQLAlchemy decodes; its options stay."""
    monkeypatch.setenv("HOME", str(tmp_path))
    uri = "sqlite:///~/Läufe%201 50%25 #/mlflow.db?timeout=30"
    run = start_run(TrackingSettings(uri=uri), "run-1", "pretrain", Example())
    folder = tmp_path / "Läufe 1 50% #"
    assert run.tracking_uri == f"sqlite:///{tmp_path}/Läufe 1 50%25 #/mlflow.db?timeout=30"
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert list(folder.rglob("settings.yaml"))
    run.log_metrics({"loss": 1.0}, step=1)
    assert run.history() == {"loss": [(1, 1.0)]}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_how_a_block_ended(error, status):
    seen: list[str] = []
    with nullcontext() if error is None else pytest.raises(type(error)), ending(seen.append, seen.append):
        if error is not None:
            raise error
    assert seen == [status, status]


def test_a_call_that_fails_is_made_once_more_and_holds_up_nothing(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.tracking.time.monotonic", lambda: now[0])
    made: list[str] = []
    broken = True

    def call(name: str, poisoned: bool = False):
        def make() -> None:
            made.append(name)
            if poisoned or broken:
                raise OSError("no answer")

        return make

    said: list[str] = []
    deliver = Delivery(said.append)
    deliver(call("a"))
    deliver(call("b"))
    assert (made, deliver.problem) == (["a"], "MLflow failed: no answer")
    broken, now[0] = False, 400.0
    deliver(call("c"))
    assert (made, deliver.problem) == (["a", "a", "b", "c"], "")
    # One that never works is given up, and stays a problem.
    made.clear()
    deliver(call("d", poisoned=True))
    now[0] = 800.0
    deliver(call("e"))
    assert made == ["d", "d", "e"]
    assert deliver.problem == "MLflow failed: no answer"
    assert len(said) == 3
    # The end is tried in any case.
    made.clear()
    broken = True
    deliver(call("f"))
    deliver.end(call("end"))
    assert made == ["f", "f", "end"]
