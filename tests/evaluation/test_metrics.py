import json

import numpy as np
import pytest
import torch

from pipeline import hands
from pipeline.errors import DataError
from pipeline.evaluation.metrics import curve_area, joint_errors, pck_curve, pose_metrics
from pipeline.geometry import procrustes_align
from tests.conftest import golden


@pytest.fixture(scope="module")
def reference():
    return golden("d_metrics")


@pytest.fixture
def poses():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(30, 21, 3, generator=generator, dtype=torch.float64) * 0.05
    return target + torch.randn(30, 21, 3, generator=generator, dtype=torch.float64) * 0.02, target


def test_reference_freihand(reference):
    found = pose_metrics(torch.from_numpy(reference["pred"]), torch.from_numpy(reference["gt"]), "freihand")
    for name in ("mean", "median", "auc", "aligned_mean", "aligned_median", "aligned_auc"):
        assert found[name] == pytest.approx(float(reference[f"fh_{name}"]), rel=1e-9), name
    np.testing.assert_allclose(found["pck"], reference["fh_pck_curve"], atol=1e-9)
    np.testing.assert_allclose(found["pa_pck"], reference["fh_aligned_pck_curve"], atol=1e-9)
    np.testing.assert_allclose(found["thresholds"], reference["fh_thresholds"], atol=1e-12)
    np.testing.assert_allclose(found["thresholds"], reference["fh_aligned_thresholds"], atol=1e-12)
    assert found["epe_mm"] == pytest.approx(1000 * float(reference["fh_mean"]))
    assert found["pa_epe_mm"] == pytest.approx(1000 * float(reference["fh_aligned_mean"]))


def test_reference_peclr(reference):
    found = pose_metrics(torch.from_numpy(reference["pred"]), torch.from_numpy(reference["gt"]), "peclr")
    for name in (
        "epe_mean",
        "epe_median",
        "epe_min",
        "epe_max",
        "epe2d_mean",
        "epe2d_median",
        "pa_epe_mean",
        "pa_epe_median",
    ):
        assert found[name] == pytest.approx(float(reference[name]), rel=1e-9), name
    assert found["auc"] == pytest.approx(float(reference["auc_0_50cm_mean"]), abs=1e-6)
    assert found["pa_auc"] == pytest.approx(float(reference["pa_auc_0_50cm_mean"]), abs=1e-6)
    np.testing.assert_allclose(found["auc_per_joint"], reference["auc_0_50cm_per_joint"], atol=1e-6)
    np.testing.assert_allclose(found["pa_auc_per_joint"], reference["pa_auc_0_50cm_per_joint"], atol=1e-6)
    np.testing.assert_allclose(found["pck"], reference["pck_default_curve"], atol=1e-6)
    np.testing.assert_allclose(found["thresholds"], reference["pck_default_thresholds"], atol=1e-12)
    np.testing.assert_allclose(found["pa_pck_5cm"], reference["pa_pck_0_5cm_curve"], atol=1e-6)
    np.testing.assert_allclose(found["pa_pck_5cm_thresholds"], reference["pa_pck_0_5cm_thresholds"], atol=1e-12)
    per_joint = np.array(list(found["per_joint_mm"].values()))
    np.testing.assert_allclose(per_joint, reference["epe_per_joint"].mean(0) * 1000, rtol=1e-9)
    pred, target = torch.from_numpy(reference["pred"]), torch.from_numpy(reference["gt"])
    np.testing.assert_allclose(joint_errors(pred, target), reference["epe_per_joint"], rtol=1e-9, atol=1e-12)
    aligned = joint_errors(procrustes_align(pred, target), target)
    np.testing.assert_allclose(aligned, reference["pa_epe_per_joint"], atol=1e-9)


def test_the_mirrored_hand_tells_the_protocols_apart(reference):
    pred, target = torch.from_numpy(reference["pred"][7:8]), torch.from_numpy(reference["gt"][7:8])
    assert pose_metrics(pred, target, "freihand")["pa_epe_mm"] == pytest.approx(2.8, abs=0.05)
    assert pose_metrics(pred, target, "peclr")["pa_epe_mm"] == pytest.approx(36.8, abs=0.05)


@pytest.mark.parametrize("protocol", ["freihand", "peclr"])
def test_naive_loops_agree(poses, protocol):
    pred, target = poses
    found = pose_metrics(pred, target, protocol)
    aligned = procrustes_align(pred, target, allow_reflection=protocol == "freihand")
    for prefix, joints in (("", pred), ("pa_", aligned)):
        errors = [[(joints[n, j] - target[n, j]).norm().item() for j in range(21)] for n in range(30)]
        assert found[f"{prefix}epe_mm"] == pytest.approx(1000 * np.mean(errors))
        curve = [
            np.mean([(e <= t if protocol == "freihand" else e < t) for row in errors for e in row])
            for t in found["thresholds"]
        ]
        np.testing.assert_allclose(found[f"{prefix}pck"], curve, atol=1e-12)
        area = np.trapezoid(curve, found["thresholds"]) / found["thresholds"][-1]
        assert found[f"{prefix}auc"] == pytest.approx(area)
        index = hands.FINGER_JOINTS["index"]
        finger = 1000 * np.mean([row[j] for row in errors for j in index])
        assert found[f"{prefix}per_finger_mm"]["index"] == pytest.approx(finger)
    relative = (pred - pred[:, :1]) - (target - target[:, :1])
    assert found["mpjpe_mm"] == pytest.approx(1000 * relative.norm(dim=-1).mean().item())


def test_thresholds_include_or_exclude_equal_errors():
    errors = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    thresholds = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(pck_curve(errors, thresholds)[0] * 3, torch.tensor([1.0, 2, 3]).double())
    torch.testing.assert_close(pck_curve(errors, thresholds, strict=True)[0] * 3, torch.tensor([0.0, 1, 2]).double())
    assert curve_area(torch.ones(3).double(), thresholds) == 1


@pytest.mark.parametrize("protocol", ["freihand", "peclr"])
def test_perfect_predictions(poses, protocol):
    _, target = poses
    found = pose_metrics(target, target, protocol)
    assert found["epe_mm"] == found["mpjpe_mm"] == 0
    assert found["pa_epe_mm"] < 1e-4  # the official alignment adds 1e-8 to norms
    assert found["pa_auc"] > 0.99
    assert pose_metrics(target.float(), target.float(), protocol)["epe_mm"] == 0


def test_results_go_into_json(poses):
    pred, target = poses
    json.dumps([pose_metrics(pred, target, "freihand"), pose_metrics(pred, target, "peclr")])


def test_collapsed_predictions_are_scored(poses):
    _, target = poses
    found = pose_metrics(torch.zeros_like(target), target)
    assert np.isfinite([found["epe_mm"], found["pa_epe_mm"], found["mpjpe_mm"]]).all()


def test_bad_input_is_refused(poses):
    pred, target = poses
    with pytest.raises(DataError, match=r"2 of 30 samples are not finite, the first is row 4"):
        pose_metrics(pred.index_fill(0, torch.tensor([4, 9]), torch.nan), target)
    with pytest.raises(DataError, match="differ in shape"):
        pose_metrics(pred[:3], target)
    with pytest.raises(DataError, match="N > 0"):
        pose_metrics(pred[:0], target[:0])
    with pytest.raises(ValueError, match="unknown protocol"):
        pose_metrics(pred, target, "coco")  # type: ignore[arg-type]
