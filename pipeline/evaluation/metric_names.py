"""How metrics are called in tables: label, unit, direction, and what they mean."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class MetricName:
    """One metric for people. lower_is_better: None where no direction is known, so that no value is marked as best."""

    label: str
    unit: str = ""
    lower_is_better: bool | None = None
    decimals: int = 2
    meaning: str = ""
    is_ratio: bool = False
    """Whether it is a comparison already, so that a difference in percent says nothing."""


METRICS: dict[str, MetricName] = {
    "pa_epe_mm": MetricName(
        "PA-EPE",
        "mm",
        True,
        1,
        "mean distance of a predicted from a true joint after Procrustes alignment: the pose alone",
    ),
    "pa_skill": MetricName(
        "PA skill",
        "",
        False,
        2,
        "share of the constant pose's PA-EPE that the model removes: 1 is perfect, 0 no better than one fixed hand",
        is_ratio=True,
    ),
    "root_relative_epe_mm": MetricName(
        "root-relative EPE", "mm", True, 1, "mean distance with both wrists in one place: pose, orientation and scale"
    ),
    "root_relative_skill": MetricName(
        "root-relative skill", "", False, 2, "the same share of the root-relative error", is_ratio=True
    ),
    "epe_mm": MetricName(
        "EPE", "mm", True, 1, "mean distance in the camera's frame: pose, orientation, scale and place"
    ),
    "pa_auc": MetricName(
        "PA-AUC", "", False, 3, "area under the curve of correct joints after alignment; 1 is perfect"
    ),
    "auc": MetricName("AUC", "", False, 3, "the same area before alignment"),
    "epe_2d": MetricName(
        "2D EPE",
        "hand sizes",
        True,
        3,
        "mean distance in the image, in sizes of the hand: longer sides of the tight box around its true joints",
    ),
    "epe_2d_skill": MetricName(
        "2D skill",
        "",
        False,
        2,
        "share of the 2D EPE of always answering one fixed hand in the crop that the model removes",
        is_ratio=True,
    ),
    "epe_2d_px": MetricName("2D EPE, source", "px", True, 1, "the same in pixels of the source image"),
    "epe_2d_crop_px": MetricName("2D EPE, crop", "px", True, 1, "the same in pixels of the stored crop"),
    "pck_2d_05": MetricName("PCK 5 %", "", False, 3, "share of joints within 5 % of the hand's size in the image"),
    "pck_2d_10": MetricName("PCK 10 %", "", False, 3, "share of joints within 10 % of the hand's size in the image"),
    "pck_2d_20": MetricName("PCK 20 %", "", False, 3, "share of joints within 20 % of the hand's size in the image"),
    "auc_2d": MetricName("2D AUC", "", False, 3, "area under the curve of that share, from 0 to 20 %"),
}
"""Metrics by key, in the order of a table's columns."""

PROBE_METRICS: dict[str, MetricName] = {
    "pa_epe_mm": MetricName(
        "ridge PA-EPE", "mm", True, 1, "ridge regression from frozen features to the pose, after Procrustes alignment"
    ),
    "constant_pa_epe_mm": MetricName(
        "fixed hand PA-EPE",
        "mm",
        None,
        1,
        "of always answering one fixed hand, the Procrustes mean of the training poses",
    ),
    "pa_skill": MetricName("PA skill", "", False, 2, "share of the fixed hand's PA-EPE that the regression removes"),
    "epe_mm": MetricName("ridge EPE", "mm", True, 1, "the regression's root-relative error"),
    "constant_epe_mm": MetricName("fixed hand EPE", "mm", None, 1, "that of the best fixed hand"),
    "retrieval_pa_epe_mm": MetricName(
        "nearest PA-EPE", "mm", True, 1, "error of the pose of the training frame with the nearest features"
    ),
    "retrieval_random_pa_epe_mm": MetricName("any pose", "mm", None, 1, "PA-EPE of training poses taken blindly"),
    "equivariance_cosine": MetricName(
        "turned with the image",
        "",
        None,
        2,
        "cosine of the points of a turned image (2D joints, or the projection) with those of the upright one, turned",
    ),
    "equivariance_cosine_unturned": MetricName("left upright", "", None, 2, "the same cosine without turning them"),
    "equivariance_angle_error_deg": MetricName(
        "angle error", "°", True, 1, "between the image's turn and the points'; 90 is chance"
    ),
}
"""What probes of frozen features say, in the order of a table's columns."""


def metric_name(key: str) -> MetricName:
    """The name of a metric; an unknown one keeps its key and is not judged."""
    return METRICS.get(key) or MetricName(key.replace("_", " "))


OTHER_NAMES = {"mpjpe_mm": "root_relative_epe_mm", "mpjpe_skill": "root_relative_skill"}
"""Keys under which metrics.py and validation give what is called otherwise in METRICS."""
_OF_RUNS = {
    "score": MetricName("best score", "", None, 2, "what chose the best checkpoint; smaller is better"),
    "loss": MetricName("loss", "", None, 3, "comparable where objective, temperature and batch are the same"),
    "wall_s": MetricName("wall time", "s", None, 0),
    "frames_per_second": MetricName("speed", "frames/s", None, 0),
    "num_labels": MetricName("labelled frames", "", None, 0),
}
_UNITS = {"mm": "mm", "px": "px", "s": "s", "deg": "°"}


def recorded_name(key: str) -> MetricName:
    """The name of a metric as a run records it: `val_*` of validation frames, `probe_*` of frozen features, and among them
    `constant_*` of always answering one fixed hand."""
    if key in _OF_RUNS:
        return _OF_RUNS[key]
    for prefix, of, names in (("val_", "validation ", METRICS), ("probe_", "", PROBE_METRICS), ("", "", METRICS)):
        name = key.removeprefix(prefix)
        if not key.startswith(prefix):
            continue
        if (known := names.get(OTHER_NAMES.get(name, name))) is not None:
            return replace(known, label=f"{of}{known.label}")
        of_constant = names.get(OTHER_NAMES.get(bare := name.removeprefix("constant_"), bare))
        if of_constant is not None:
            return replace(
                of_constant, label=f"{of}{of_constant.label} of one fixed hand", lower_is_better=None, meaning=""
            )
    words, _, last = key.rpartition("_")
    unit = _UNITS.get(last, "") if words else ""
    return MetricName((words if unit else key).replace("_", " "), unit)
