"""FreiHAND's files, in its published layout, and its official figures."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from jobs.freihand import run
from jobs.terminal import TerminalProgress
from pipeline.errors import DataError, SettingsError
from pipeline.evaluation.metrics import pose_metrics
from pipeline.evaluation.yardsticks import Constant
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseOutput, PoseSettings
from pipeline.models.weights import LoadedPoseModel
from pipeline.reports.freihand import f_scores, mesh_scores, read_predictions, score, write_predictions
from pipeline.reports.freihand_run import FreiHandSettings, predict_evaluation
from tests.conftest import golden

SIZE = 224


def test_official_scores(tmp_path):
    """The official scorer's numbers on the reference vectors, through the files."""
    reference = golden("d_metrics")
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(reference["gt"].tolist()))
    for name in ("pred.json", "pred.zip"):
        write_predictions(str(tmp_path / name), torch.from_numpy(reference["pred"]))
        scores = score(str(tmp_path / name), str(tmp_path))
        # Files keep micrometres; a joint within 1e-6 of a threshold may change sides.
        assert scores["xyz_mean3d"] == pytest.approx(100 * float(reference["fh_mean"]), abs=1e-4)
        assert scores["xyz_auc3d"] == pytest.approx(float(reference["fh_auc"]), abs=1e-4)
        assert scores["xyz_al_mean3d"] == pytest.approx(100 * float(reference["fh_aligned_mean"]), abs=1e-4)
        assert scores["xyz_al_auc3d"] == pytest.approx(float(reference["fh_aligned_auc"]), abs=1e-4)
        assert scores["f_score_5"] is None
        assert scores["mesh_mean3d"] is None


def test_published_layout(tmp_path):
    joints = torch.rand(3, 21, 3)
    write_predictions(str(tmp_path / "pred.zip"), joints)
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, verts = json.loads(archive.read("pred.json"))
    assert np.shape(xyz) == (3, 21, 3)
    assert np.shape(verts) == (3, 778, 3)
    assert not np.any(verts)
    again, vertices = read_predictions(str(tmp_path / "pred.zip"))
    assert vertices is None
    torch.testing.assert_close(again, joints.double(), atol=1e-6, rtol=0)


def test_meshes_are_scored(tmp_path):
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(2, 778, 3, generator=generator).double() * 0.2
    joints = torch.rand(2, 21, 3, generator=generator).double()
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(joints.tolist()))
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(true.tolist()))
    write_predictions(str(tmp_path / "pred.json"), joints, true + torch.tensor([0.01, 0, 0]))
    scores = score(str(tmp_path / "pred.json"), str(tmp_path))
    assert scores["mesh_mean3d"] == pytest.approx(1.0, abs=1e-3)
    assert scores["mesh_auc3d"] == pytest.approx(0.8, abs=0.01)
    assert scores["mesh_al_mean3d"] == pytest.approx(0, abs=1e-3)
    assert scores["f_al_score_5"] == pytest.approx(1)
    assert scores["f_score_15"] == pytest.approx(1)


def test_f_score_by_hand():
    """3 of 4 true points are near a predicted one, 2 of 3 predicted points are near a true one."""
    target = torch.tensor([[[0.0, 0, 0], [0.001, 0, 0], [1, 0, 0], [2, 0, 0]]])
    pred = torch.tensor([[[0.0, 0, 0.001], [1, 0.004, 0], [3, 0, 0]]])
    at_5, at_15 = f_scores(pred, target)
    precision, recall = 3 / 4, 2 / 3
    assert at_5.item() == pytest.approx(2 * precision * recall / (precision + recall))
    assert at_15.item() == pytest.approx(at_5.item())
    far = mesh_scores(target.repeat(1, 200, 1)[:, :778] + 5, target.repeat(1, 200, 1)[:, :778])
    assert far["f_score_5"] == 0


class FreiHandOracle(PoseModel):
    """Knows the hands, in the order in which images come; both passes of a batch follow each other."""

    def __init__(self, joints_3d: torch.Tensor, batch_size: int) -> None:
        super().__init__(build_encoder(EncoderSettings(width=8)), PoseSettings(refine_root=False))
        self.answers, self.batch_size, self.calls = joints_3d, batch_size, 0
        self.eval()

    def forward(self, images: torch.Tensor, camera: torch.Tensor | None = None) -> PoseOutput:
        assert camera is not None
        start = self.calls // 2 * self.batch_size
        self.calls += 1
        joints = self.answers[start : start + len(images)]
        targets = self.targets(joints, camera)
        rooted = self.to_rooted(joints) / targets.bone_length[:, None, None]
        return PoseOutput(targets.joints_25d, targets.root_depth, rooted)


@pytest.fixture
def freihand(tmp_path) -> tuple[str, torch.Tensor]:
    """Three evaluation images in the published layout."""
    rng = np.random.default_rng(0)
    joints = rng.normal(scale=0.04, size=(3, 21, 3)) + np.array([0, 0, 0.7])
    folder = tmp_path / "evaluation" / "rgb"
    folder.mkdir(parents=True)
    for number in range(3):
        noise = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:08d}.jpg")
    camera = [[480.0, 0, 112], [0, 480.0, 112], [0, 0, 1]]
    scales = np.linalg.norm(joints[:, 10] - joints[:, 9], axis=1)
    (tmp_path / "evaluation_K.json").write_text(json.dumps([camera] * 3))
    (tmp_path / "evaluation_scale.json").write_text(json.dumps(scales.tolist()))
    return str(tmp_path), torch.from_numpy(joints).float()


def test_prediction_of_the_evaluation_images(freihand):
    data, joints = freihand
    settings = FreiHandSettings(data=data, predictions="unused", batch_size=2, use_gpu=False)
    found = predict_evaluation(LoadedPoseModel(FreiHandOracle(joints, 2), 64, {}), settings)
    torch.testing.assert_close(found.float(), joints, atol=1e-5, rtol=0)


def test_job_writes_and_scores(freihand, tmp_path):
    data, joints = freihand
    head = PoseSettings()
    model = PoseModel(build_encoder(EncoderSettings(width=8)), head)
    settings = {"head": head.model_dump(), "views": {"size": 32}}
    save_checkpoint(tmp_path / "model", model, {}, {"kind": "pose", "settings": settings})
    predictions = str(tmp_path / "pred.zip")
    job = FreiHandSettings(data=data, model=str(tmp_path / "model"), predictions=predictions, use_gpu=False)
    assert run(job) == {"predictions": predictions, "num_predicted": 3, "scores": None}  # no labels yet
    with pytest.raises(SettingsError, match="nothing to do"):
        run(FreiHandSettings(data=data, predictions=predictions))
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(joints.tolist()))
    result = run(FreiHandSettings(data=data, predictions=predictions, scores=str(tmp_path / "scores.json")))
    assert result["num_predicted"] == 0
    assert json.loads((tmp_path / "scores.json").read_text())["xyz_mean3d"] == result["scores"]["xyz_mean3d"] > 0
    assert result["scores"]["constant"] is result["scores"]["conclusion"] is None
    assert "pa_skill" not in result["scores"]["pose_metrics"]


def test_the_constant_stands_beside_the_official_scores(tmp_path):
    """Of the model's own labels, or of the set's; the table and the JSON call predictions that are worse than it so."""
    reference = golden("d_metrics")
    target = torch.from_numpy(reference["gt"])
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(target.tolist()))
    (tmp_path / "training_xyz.json").write_text(json.dumps((target + 1).tolist()))
    predictions = str(tmp_path / "pred.json")
    write_predictions(predictions, torch.randn(target.shape, generator=torch.Generator().manual_seed(0)))
    progress = TerminalProgress(Console(record=True, width=120))
    scores = run(FreiHandSettings(data=str(tmp_path), predictions=predictions), progress)["scores"]

    expected = pose_metrics(Constant.of(target).procrustes_mean.expand_as(target), target)
    assert scores["constant"] == {
        "xyz_al_mean3d": pytest.approx(100 * expected["aligned_mean"]),
        "xyz_al_auc3d": pytest.approx(expected["aligned_auc"]),
    }
    metrics = scores["pose_metrics"]
    assert metrics["pa_skill"] == pytest.approx(1 - metrics["pa_epe_mm"] / expected["pa_epe_mm"])
    assert f"{predictions} is worse than always answering one fixed hand: PA-EPE" in scores["conclusion"]
    text = progress.console.export_text()
    assert "constant pose" in text
    assert "is worse than always answering one fixed hand" in " ".join(text.split())
    write_predictions(predictions, target)
    better = score(predictions, str(tmp_path), Constant.of(target))
    assert "is better than always answering one fixed hand" in better["conclusion"]


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "pred.json"
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(np.zeros((2, 21, 3)).tolist()))

    def refused(content: object, message: str) -> None:
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            score(str(path), str(tmp_path))

    refused([1], "two equally long lists")
    refused([[[0.0]], [[0.0]]], r"expected \(N, 21, 3\)")
    refused([np.zeros((1, 21, 3)).tolist(), np.zeros((1, 778, 3)).tolist()], "holds 1 predictions.*has 2 labels")
    path.write_text("{")
    with pytest.raises(DataError, match="not readable"):
        read_predictions(str(path))
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    (tmp_path / "pred.zip").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"pred\.json is expected in it"):
        read_predictions(str(tmp_path / "pred.zip"))
    with pytest.raises(DataError, match="finite joints"):
        write_predictions(str(path), torch.full((1, 21, 3), torch.nan))
    write_predictions(str(path), torch.zeros(1, 21, 3))
    with pytest.raises(DataError, match=r"evaluation_xyz\.json: not there"):
        score(str(path), str(tmp_path / "absent"))
