from pipeline.config import Settings
from pipeline.tracking import TrackingSettings, start_run


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
