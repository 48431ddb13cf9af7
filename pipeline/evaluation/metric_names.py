"""How metrics are called in tables: label, unit, direction, and what they mean."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricName:
    """One metric for people. lower_is_better: None where no direction is known, so that no value is marked as best."""

    label: str
    unit: str = ""
    lower_is_better: bool | None = None
    decimals: int = 2
    meaning: str = ""


METRICS: dict[str, MetricName] = {
    "epe_mm": MetricName(
        "EPE",
        "mm",
        True,
        1,
        "mean distance of a predicted from a true joint, in the camera's frame: place, scale and pose",
    ),
    "root_relative_epe_mm": MetricName(
        "root-relative EPE", "mm", True, 1, "the same with both wrists in one place: scale, orientation and pose"
    ),
    "pa_epe_mm": MetricName(
        "PA-EPE", "mm", True, 1, "the same after Procrustes alignment (rotation, scale, translation): the pose alone"
    ),
    "auc": MetricName(
        "AUC", "", False, 3, "area under the curve of correct joints, thresholds 0 to 50 mm; 1 is perfect"
    ),
    "pa_auc": MetricName("PA-AUC", "", False, 3, "the same area after Procrustes alignment"),
}


def metric_name(key: str) -> MetricName:
    """The name of a metric; an unknown one keeps its key and is not judged."""
    return METRICS.get(key) or MetricName(key.replace("_", " "))
