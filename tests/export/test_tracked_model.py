"""The model of a run in MLflow: loaded back from there, it computes what the checkpoint does."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.export.export import load_exportable
from pipeline.export.tracked_model import track_model
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.runs import RunSettings
from pipeline.storage import copy_from_local, exists, join, write_json
from pipeline.tracked import deliver_left
from pipeline.tracking import TrackingSettings

SIZE = 32


def finished_run(storage: str, folder) -> dict:
    """A fine-tuning as it lies in storage; its result."""
    torch.manual_seed(0)
    model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings())
    model.mean_bone_length.fill_(0.034)
    settings = {"frame_set": "frames", "views": {"size": SIZE}, "head": model.settings.model_dump()}
    meta = {"kind": "pose", "step": 6, "epoch": 2, "settings": settings, "frame_set_digest": "", "metrics": {}}
    save_checkpoint(folder, model, {}, meta)
    uri = join(storage, "fine-1")
    copy_from_local(folder, join(uri, "checkpoint_000001"))
    result = {"run_id": "fine-1", "kind": "finetune", "best_checkpoint": join(uri, "checkpoint_000001"), "score": 1.0}
    write_json(join(uri, "result.json"), result)
    return result


@pytest.fixture
def mlflow_at(tmp_path) -> Iterator[str]:
    """The URI of a database, which MLflow's functions without a client use meanwhile."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_the_model_comes_back_from_mlflow_as_it_was(s3, tmp_path, mlflow_at):
    """Recorded without MLflow first, and delivered later."""
    import mlflow

    run, tracking = RunSettings(storage=join(s3, "runs")), TrackingSettings(uri=None)
    result = finished_run(run.storage, tmp_path / "checkpoint")
    folder = join(run.storage, "fine-1")
    assert track_model(result, run, tracking) == result  # nobody has asked for it
    assert not exists(join(folder, "model"))
    assert track_model(result, run, tracking.model_copy(update={"log_model": True})) == result
    assert deliver_left(folder, mlflow_at) == (1, "")
    (found,) = mlflow.MlflowClient(mlflow_at).search_runs(["1"])
    model_uri = f"runs:/{found.info.run_id}/model"
    info = mlflow.models.get_model_info(model_uri)
    assert info.signature is not None
    assert info.signature.inputs.input_names() == ["images", "camera"]
    model = load_exportable(folder)
    inputs, loaded = model.example(), mlflow.pyfunc.load_model(model_uri)
    given = loaded.input_example
    assert given is not None
    assert {name: np.shape(values) for name, values in given.items()} == {n: tuple(v.shape) for n, v in inputs.items()}
    answers = loaded.predict({name: value.numpy() for name, value in inputs.items()})
    for name, value in model.answer(inputs).items():
        np.testing.assert_allclose(answers[name], value.numpy(), rtol=1e-3, atol=1e-5)
    version = mlflow.register_model(model_uri, "hands")
    registered = mlflow.pyfunc.load_model(f"models:/hands/{version.version}")
    assert registered.metadata.model_uuid == loaded.metadata.model_uuid


@pytest.mark.parametrize("reason", ["the export fails", "MLflow is away"])
def test_a_run_is_not_lost_with_its_model(reason, tmp_path, monkeypatch, caplog):
    run, tracking = (
        RunSettings(storage=str(tmp_path / "runs")),
        TrackingSettings(uri="http://127.0.0.1:1", log_model=True),
    )
    result = finished_run(run.storage, tmp_path / "checkpoint")

    def fail(model, file):
        raise RuntimeError("torch.export: no such operator")

    if reason == "the export fails":
        monkeypatch.setattr("pipeline.export.tracked_model.write_program", fail)
        assert track_model(result, run, tracking) == result
        assert "no such operator; MLflow does not get the model of" in caplog.text
        return
    found = track_model(result, run, tracking)
    assert {**found, "untracked": ""} == {**result, "untracked": ""}
    assert "1 records wait (MLflow at http://127.0.0.1:1" in found["untracked"]
    assert exists(join(run.storage, "fine-1/model/MLmodel"))
