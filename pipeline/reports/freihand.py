"""FreiHAND's own files: predictions as its evaluation server took them, and its scores, offline.

Zimmermann et al., ICCV 2019; the figures are those of eval.py in lmb-freiburg/freihand. The set's evaluation labels are
public since its server has retired: evaluation_xyz.json (21 joints) and evaluation_verts.json (778 vertices), metres.
"""

import io
import json
import zipfile
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.evaluation.metrics import curve_area, freihand_thresholds, joint_errors, pck_curve, pose_metrics
from pipeline.evaluation.yardsticks import CONSTANT, Constant
from pipeline.geometry import procrustes_align
from pipeline.hands import NUM_JOINTS
from pipeline.reports.answers import beside_constant, frame_errors_mm
from pipeline.reports.verdict import compare
from pipeline.storage import MAX_JSON_BYTES, exists, join, read_bytes, read_json, write_bytes
from pipeline.text_files import parse_json

NUM_VERTICES = 778
F_THRESHOLDS_M = (0.005, 0.015)
PREDICTION_NAME = "pred.json"

_CM = 100.0
_AT_ONCE = 64


def write_predictions(uri: str, joints_3d: Tensor, vertices: Tensor | None = None) -> None:
    """Write predictions in the order of the evaluation images: JSON, or where the URI ends in .zip, that in a zip file.

    joints_3d: (N, 21, 3) metres, camera frame, FreiHAND order. vertices: (N, 778, 3) metres; None writes zeros, which the
    server accepted from methods without a mesh.
    """
    if joints_3d.ndim != 3 or joints_3d.shape[1:] != (NUM_JOINTS, 3) or not joints_3d.isfinite().all():
        raise DataError(f"predictions must be finite joints (N, 21, 3), not {tuple(joints_3d.shape)}")
    if vertices is None:
        vertices = torch.zeros(len(joints_3d), NUM_VERTICES, 3)
    if vertices.shape != (len(joints_3d), NUM_VERTICES, 3):
        raise DataError(f"vertices must be ({len(joints_3d)}, {NUM_VERTICES}, 3), not {tuple(vertices.shape)}")
    # Six decimals are micrometres; zeros need none.
    content = [_rounded(joints_3d), _rounded(vertices) if vertices.any() else torch.zeros_like(vertices).int().tolist()]
    data = json.dumps(content, separators=(",", ":")).encode()
    if uri.lower().endswith(".zip"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(PREDICTION_NAME, data)
        data = buffer.getvalue()
    write_bytes(uri, data)


def read_predictions(uri: str) -> tuple[Tensor, Tensor | None]:
    """(joints (N, 21, 3), vertices (N, 778, 3) or None where they are all zero) of a pred.json, or a zip file with one."""
    data = read_bytes(uri, MAX_JSON_BYTES)
    try:
        if uri.lower().endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                names = [name for name in archive.namelist() if name.endswith(".json")]
                if len(names) != 1:
                    raise DataError(
                        f"{uri}: {PREDICTION_NAME} is expected in it, found {', '.join(names) or 'no JSON'}"
                    )
                if archive.getinfo(names[0]).file_size > MAX_JSON_BYTES:
                    raise DataError(
                        f"{uri}: {names[0]} in it would have more than {MAX_JSON_BYTES:,} bytes; it is not read"
                    )
                data = archive.read(names[0])
        content = parse_json(data)
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{uri}: not readable ({error})") from None
    if not isinstance(content, list) or len(content) != 2 or len(content[0]) != len(content[1]):
        raise DataError(f"{uri}: expected a list of two equally long lists, joints and vertices")
    joints = _points(content[0], NUM_JOINTS, f"{uri}: joints")
    vertices = _points(content[1], NUM_VERTICES, f"{uri}: vertices")
    return joints, vertices if vertices.any() else None


def score(predictions_uri: str, data_uri: str, constant: Constant | None = None) -> dict[str, Any]:
    """Official scores of a prediction file.

    data_uri: folder with evaluation_xyz.json and, for meshes and F-scores, evaluation_verts.json. constant: of the
    predictor's training labels.
    Returns, under the names of the official scores.txt (means in centimetres): "xyz_mean3d", "xyz_auc3d", "xyz_al_mean3d",
    "xyz_al_auc3d", and "mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d", "f_score_5", "f_al_score_5",
    "f_score_15", "f_al_score_15", null where no vertices were predicted or none are there to compare with; "num_samples";
    and under "pose_metrics" all of metrics.pose_metrics, with a constant also its errors and the skill over it. "constant":
    those of the official scores that a hand without a place has, "conclusion": whether the predictions are better, in
    words; both null without a constant. Raises DataError where the files do not fit.
    """
    true = read_labels(data_uri, "xyz", NUM_JOINTS)
    joints, vertices = read_predictions(predictions_uri)
    if len(joints) != len(true):
        raise DataError(f"{predictions_uri}: holds {len(joints)} predictions, {data_uri} has {len(true)} labels")
    metrics = beside_constant(pose_metrics(joints, true, "freihand"), constant, true, "freihand")
    scores: dict[str, Any] = {
        "num_samples": len(true),
        "xyz_mean3d": metrics["mean"] * _CM,
        "xyz_auc3d": metrics["auc"],
        "xyz_al_mean3d": metrics["aligned_mean"] * _CM,
        "xyz_al_auc3d": metrics["aligned_auc"],
    }
    mesh_names = ("mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d")
    f_names = [f"f_{part}{round(1000 * t)}" for t in F_THRESHOLDS_M for part in ("score_", "al_score_")]
    scores.update(dict.fromkeys((*mesh_names, *f_names)))
    if vertices is not None and exists(join(data_uri, "evaluation_verts.json")):
        scores.update(mesh_scores(vertices, read_labels(data_uri, "verts", NUM_VERTICES)))
    scores.update(dict.fromkeys(("constant", "conclusion")))
    if constant is not None:
        fixed = constant.metrics(true)
        scores["constant"] = {
            "xyz_al_mean3d": fixed["aligned_mean"] * _CM,
            "xyz_al_auc3d": fixed["aligned_auc"],
        }
        errors = frame_errors_mm(joints, true, "freihand")
        images = [str(number) for number in range(len(true))]
        comparison = compare(predictions_uri, errors, CONSTANT, constant.frame_errors_mm(true), images)
        scores["conclusion"] = comparison.against_constant()
    return {**scores, "pose_metrics": metrics}


def training_constant(data_uri: str) -> Constant | None:
    """The constant pose of the set's own training labels; None where training_xyz.json is not in the folder."""
    uri = join(data_uri, "training_xyz.json")
    return Constant.of(_points(read_json(uri), NUM_JOINTS, uri)) if exists(uri) else None


def mesh_scores(pred: Tensor, target: Tensor) -> dict[str, float]:
    """Mesh errors (cm, AUC to 5 cm) and F-scores at 5 and 15 mm, before and after alignment; meshes (N, 778, 3), metres."""
    scores: dict[str, float] = {}
    thresholds = freihand_thresholds()
    meshes = {"": pred, "al_": procrustes_align(pred, target, allow_reflection=True)}
    for prefix, mesh in meshes.items():
        errors = joint_errors(mesh, target)
        scores[f"mesh_{prefix}mean3d"] = float(errors.mean()) * _CM
        scores[f"mesh_{prefix}auc3d"] = float(curve_area(pck_curve(errors, thresholds), thresholds).mean())
        for threshold, values in zip(F_THRESHOLDS_M, f_scores(mesh, target), strict=True):
            scores[f"f_{prefix}score_{round(1000 * threshold)}"] = float(values.mean())
    return scores


def f_scores(pred: Tensor, target: Tensor) -> list[Tensor]:
    """F-scores (N,) of point clouds (N, P, 3) at each of F_THRESHOLDS_M: the harmonic mean of the shares of points whose
    nearest point of the other cloud is closer than the threshold (Knapitsch et al. 2017)."""
    parts: list[list[Tensor]] = [[] for _ in F_THRESHOLDS_M]
    for rows in torch.arange(len(pred)).split(_AT_ONCE):
        distances = torch.cdist(target[rows], pred[rows], compute_mode="donot_use_mm_for_euclid_dist")
        of_target, of_pred = distances.amin(2), distances.amin(1)
        for part, threshold in zip(parts, F_THRESHOLDS_M, strict=True):
            precision = (of_target < threshold).double().mean(1)
            recall = (of_pred < threshold).double().mean(1)
            part.append(2 * precision * recall / (precision + recall).clamp_min(1e-12))
    return [torch.cat(part) for part in parts]


def read_labels(data_uri: str, kind: str, num_points: int) -> Tensor:
    """evaluation_<kind>.json as (N, num_points, 3) float64."""
    uri = join(data_uri, f"evaluation_{kind}.json")
    if not exists(uri):
        raise DataError(
            f"{uri}: not there; FreiHAND's evaluation labels are a download of their own (FreiHAND_pub_v2_eval.zip)"
        )
    return _points(read_json(uri), num_points, uri)


def _points(content: Any, num_points: int, where: str) -> Tensor:
    try:
        values = np.asarray(content, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.ndim != 3 or values.shape[1:] != (num_points, 3) or not len(values):
        raise DataError(f"{where}: expected (N, {num_points}, 3) numbers")
    return torch.from_numpy(values)


def _rounded(values: Tensor) -> Any:
    return np.round(values.detach().double().cpu().numpy(), 6).tolist()
