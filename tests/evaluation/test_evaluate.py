"""Evaluating models on a labelled set: perfect and imperfect models, tables, pictures, files."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.evaluate import EvaluateJob, run
from pipeline.config import load
from pipeline.errors import DataError, SettingsError
from pipeline.evaluation.evaluate import (
    EvaluateSettings,
    comparison_table,
    evaluate,
    evaluate_model,
)
from pipeline.evaluation.predict import predict
from pipeline.frames.manifest import read_manifest
from pipeline.geometry import project, transform_camera, transform_points
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseOutput, PoseSettings
from pipeline.models.weights import LoadedPoseModel
from pipeline.storage import exists, join, read_bytes, read_json
from pipeline.training.checkpoints import save_checkpoint
from pipeline.training.labelled import load_labelled
from pipeline.views import identity_views, view_matrix
from tests.tiny_sets import write_tiny_set


class Oracle(PoseModel):
    """Answers with the labels, which it is told in order."""

    def __init__(self, joints_3d: torch.Tensor, error_m: float = 0.0) -> None:
        super().__init__(build_encoder(EncoderSettings(width=8)), PoseSettings(refine_root=False))
        self.answers = joints_3d.clone()
        self.answers[:, 8, 0] += error_m  # index tip
        self.next = 0

    def forward(self, images: torch.Tensor, camera: torch.Tensor | None = None) -> PoseOutput:
        assert camera is not None
        rows = slice(self.next, self.next + len(images))
        self.next += len(images)
        targets = self.targets(self.answers[rows], camera)
        joints = self.to_rooted(self.answers[rows]) / targets.bone_length[:, None, None]
        return PoseOutput(targets.joints_25d, targets.root_depth, joints)


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    write_tiny_set(uri, splits={"test": 24}, image_size=48)
    return uri


@pytest.fixture
def data(frame_set):
    return load_labelled(frame_set, "test", read_manifest(frame_set))


def random_checkpoint(folder, seed: int) -> str:
    torch.manual_seed(seed)
    head = PoseSettings()
    model = PoseModel(build_encoder(EncoderSettings(width=8)), head)
    torch.nn.init.normal_(model.head.bias, 0, 0.1)
    meta = {"kind": "pose", "settings": {"head": head.model_dump(), "views": {"size": 32}}}
    save_checkpoint(folder, model, {}, meta)
    return str(folder)


def test_an_oracle_is_perfect_whatever_the_batch_size(data):
    joints = torch.from_numpy(data.joints_3d)
    evaluation = evaluate_model("oracle", LoadedPoseModel(Oracle(joints), 32, {}), data)
    assert evaluation.metrics["epe_mm"] == pytest.approx(0, abs=1e-3)
    assert evaluation.result().metrics["auc"] == pytest.approx(1, abs=1e-3)
    batch = data.batch(slice(None))
    model = Oracle(joints)
    predictions = predict(model, batch.frames, batch.camera, 32, model.bone_length(joints), batch_size=7)
    torch.testing.assert_close(predictions.joints_3d, joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(predictions.joints_2d, project(joints, batch.camera), atol=1e-3, rtol=0)


def test_the_view_and_its_camera_belong_together(data):
    """Joints projected with the view's camera are the crop's joints moved by the view's matrix."""
    batch = data.batch(slice(None))
    matrix = view_matrix(identity_views(len(data)), 48, 32)
    in_view = project(batch.joints_3d, transform_camera(matrix, batch.camera))
    moved = transform_points(matrix, project(batch.joints_3d, batch.camera))
    torch.testing.assert_close(in_view, moved, atol=1e-3, rtol=0)


def test_known_error_shows_in_the_right_place(data):
    joints = torch.from_numpy(data.joints_3d)
    evaluation = evaluate_model("off", LoadedPoseModel(Oracle(joints, error_m=0.021), 32, {}), data)
    assert evaluation.metrics["epe_mm"] == pytest.approx(1.0, abs=1e-2)
    assert evaluation.metrics["per_joint_mm"]["index_tip"] == pytest.approx(21.0, abs=1e-2)
    assert evaluation.result().metrics["root_relative_epe_mm"] == pytest.approx(1.0, abs=1e-2)


def test_unknown_scale_is_flagged_and_costs_accuracy(data):
    joints = torch.from_numpy(data.joints_3d)
    model = Oracle(joints)
    model.mean_bone_length.fill_(2 * float(model.bone_length(joints).mean()))
    evaluation = evaluate_model("mean", LoadedPoseModel(model, 32, {}), data, scale="mean")
    assert evaluation.metrics["epe_mm"] > 400  # twice as large is twice as far
    assert evaluation.metrics["pa_epe_mm"] == pytest.approx(0, abs=1e-2)


def test_job_compares_models_and_writes_everything(frame_set, tmp_path):
    models = {name: random_checkpoint(tmp_path / name, seed) for seed, name in enumerate(("ours", "scratch"))}
    arguments = [f"--models.{name}={uri}" for name, uri in models.items()]
    output = str(tmp_path / "out")
    more = ["--output", output, "--baseline", "scratch", "--num_cases", "2", "--save_predictions", "true"]
    settings = load(EvaluateJob, [*arguments, "--frame_set", frame_set, *more])
    outcome = run(settings)

    assert list(outcome["models"]) == ["ours", "scratch"]
    assert outcome["num_frames"] == 24
    assert outcome["verdicts"]["ours"]["baseline"] == "scratch"
    assert [section["title"] for section in outcome["results"]["overlays"]] == ["Good", "Median", "Worst"]
    columns, rows = comparison_table(outcome)
    assert columns[:2] == ["model", "EPE (mm)"]
    assert rows[0][0] == "ours"
    assert rows[0][3] == pytest.approx(outcome["models"]["ours"]["metrics"]["pa_epe_mm"], abs=0.06)
    assert "given" in outcome["models"]["ours"]["notes"][0]

    written = read_json(join(output, "metrics.json"))
    assert written == {name: value for name, value in outcome.items() if name != "results"}
    assert exists(join(output, "pictures", "overlays_worst.png"))
    assert b"scratch" in read_bytes(join(output, "report.html"))
    table = pq.read_table(io.BytesIO(read_bytes(join(output, "predictions", "ours.parquet"))))
    assert table.num_rows == 24
    assert np.isfinite(np.array(table["joints_3d"].to_pylist())).all()


def test_models_also_come_as_a_list():
    settings = EvaluateSettings.model_validate({"models": [{"name": "a", "uri": "x"}], "frame_set": "y"})
    assert settings.models == {"a": "x"}


def test_bad_input_is_named(frame_set, tmp_path):
    uri = random_checkpoint(tmp_path / "model", 0)
    with pytest.raises(SettingsError, match="'baseline' = 'b' is none of the models"):
        evaluate(EvaluateSettings(models={"a": uri}, frame_set=frame_set, baseline="b"))
    with pytest.raises(DataError, match="split 'val' has no frames"):
        evaluate(EvaluateSettings(models={"a": uri}, frame_set=frame_set, split="val"))
    unlabelled = str(tmp_path / "unlabelled")
    write_tiny_set(unlabelled, splits={"test": 8}, image_size=48, labelled=False)
    with pytest.raises(DataError, match="no joints_3d"):
        evaluate(EvaluateSettings(models={"a": uri}, frame_set=unlabelled))
