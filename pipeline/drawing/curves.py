"""Which training curves belong on one chart, and how a long noisy curve is made readable."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

History = Mapping[str, Sequence[tuple[float, float]]]
"""{metric: [(step, value), ...]}, as the tracker gives it."""


@dataclass(frozen=True)
class CurveGroup:
    """The metrics that share a chart."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    """Metric name -> what the legend calls it. `train/loss` in a history is also found under `loss`."""
    note: str = ""
    """What the reader should look for."""
    smooth: bool = True
    """Whether a long curve is shown as its moving average, with the raw curve faint behind."""
    factor: float = 1.0
    """What values are multiplied with to be in the unit."""


@dataclass(frozen=True)
class CurveChart:
    """One chart with the curves that a history has for it."""

    title: str
    unit: str
    note: str
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    smooth: bool = True


CURVE_GROUPS = (
    CurveGroup("Loss", "", {"loss": "loss"}, "Mean over all workers."),
    CurveGroup(
        "Loss terms",
        "",
        {
            "loss_2d": "2D",
            "loss_depth": "depth",
            "loss_root": "root",
            "loss_contrast": "contrast",
            "loss_transform": "transform",
        },
    ),
    CurveGroup(
        "Validation",
        "PA-EPE, mm",
        {"val_pa_epe_mm": "model", "val_constant_pa_epe_mm": "constant pose"},
        "Frames of other clips. Above the constant pose, always answering one fixed hand is better.",
    ),
    CurveGroup(
        "Validation",
        "root-relative, mm",
        {"val_mpjpe_mm": "model", "val_constant_mpjpe_mm": "constant pose"},
        "The same without alignment: orientation and size count.",
    ),
    CurveGroup(
        "Validation",
        "2D EPE, hand sizes",
        {"val_epe_2d": "model", "val_constant_epe_2d": "constant pose"},
        "In the image, in sizes of the hand; the constant is one fixed hand in the crop.",
    ),
    CurveGroup(
        "Online probe",
        "PA-EPE, mm",
        {"probe_pa_epe_mm": "frozen features", "probe_constant_pa_epe_mm": "constant pose"},
        "Ridge regression from frozen features to joints: below the constant pose, the features know the pose.",
    ),
    CurveGroup(
        "Online probe",
        "root-relative, mm",
        {"probe_epe_mm": "frozen features", "probe_constant_epe_mm": "constant pose"},
        "The same without alignment: orientation counts.",
    ),
    CurveGroup(
        "Online probe",
        "PA-EPE, mm",
        {
            "probe_retrieval_pa_epe_mm": "pose of the nearest neighbour",
            "probe_retrieval_random_pa_epe_mm": "any training pose",
        },
        "The nearest training frame by frozen features: similar features should mean similar poses.",
    ),
    CurveGroup(
        "Equivariance",
        "",
        {
            "probe_equivariance_cosine": "turned with the image",
            "probe_equivariance_cosine_unturned": "left as it is",
        },
        "Cosine of a turned image's projection with the upright one's: turned with the image, or left as it is.",
    ),
    CurveGroup(
        "Cosine similarity",
        "",
        {"positive_similarity": "two views of a frame", "negative_similarity": "different frames"},
        "The gap between the two is what the loss widens.",
    ),
    CurveGroup(
        "Alignment and uniformity",
        "",
        {"alignment": "alignment", "uniformity": "uniformity"},
        "Wang & Isola (2020): lower is better for both.",
    ),
    CurveGroup("Throughput", "frames/s", {"frames_per_second": "frames/s"}, "All workers together."),
    CurveGroup(
        "Waiting for data",
        "% of time",
        {"data_wait_fraction": "waiting"},
        "Near zero: the stream keeps up.",
        factor=100,
    ),
    CurveGroup("Learning rate", "", {"learning_rate": "learning rate"}, "Warm-up, then decay.", smooth=False),
)
# Logged for machines, or said by another chart. (The mean pose of early runs was a plain mean over all viewpoints, a
# collapsed hand that flattered everything.)
_NOT_DRAWN = (
    "epoch",
    "score",
    "val_pa_skill",
    "val_mpjpe_skill",
    "probe_alpha",
    "probe_skill",
    "probe_pa_skill",
    "probe_mean_pose_epe_mm",
    "probe_mean_pose_pa_epe_mm",
    "probe_retrieval_epe_mm",
    "probe_retrieval_random_epe_mm",
)


def group_curves(history: History, groups: Iterable[CurveGroup] = CURVE_GROUPS) -> list[CurveChart]:
    """The charts for which the history has points, in the order of the groups; then one for each metric in no group.

    Values that are not finite are left out.
    """
    finite = {
        name: [(float(step), float(value)) for step, value in points if np.isfinite(value)]
        for name, points in history.items()
    }
    left = {name: points for name, points in finite.items() if points and name not in _NOT_DRAWN}
    charts = []
    for group in groups:
        series = {}
        for metric, label in group.metrics.items():
            name = next((n for n in left if n == metric or n.endswith(f"/{metric}")), None)
            if name is not None:
                series[label] = [(step, value * group.factor) for step, value in left.pop(name)]
        if series:
            charts.append(CurveChart(group.title, group.unit, group.note, series, group.smooth))
    return charts + [CurveChart(name, "", "", {name: points}) for name, points in left.items()]


def moving_average(points: Sequence[tuple[float, float]], min_points: int = 60) -> Sequence[tuple[float, float]]:
    """A centred running mean over 1/25 of the curve; a curve of fewer than `min_points` comes back as it is."""
    if len(points) < min_points:
        return points
    steps, values = np.array(points, dtype=float).T
    half = max(1, len(points) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # Towards the start the window shrinks on both sides: a loss that falls steeply keeps its first value.
    # Towards the end it is cut off, so that the last mean is still a mean.
    before = np.minimum(half, index)
    end = np.minimum(index + before + 1, len(values))
    means = (sums[end] - sums[index - before]) / (end - index + before)
    return list(zip(steps.tolist(), means.tolist(), strict=True))


def thin(points: Sequence[tuple[float, float]], max_points: int = 300) -> Sequence[tuple[float, float]]:
    """At most about `max_points` of the points: the lowest and the highest of each stretch, so that spikes stay."""
    if len(points) <= max_points:
        return points
    kept: list[tuple[float, float]] = [points[0]]
    edges = np.linspace(1, len(points) - 1, max_points // 2).astype(int)
    for start, end in itertools.pairwise(edges):
        stretch = range(start, end)
        if stretch:
            low = min(stretch, key=lambda i: points[i][1])
            high = max(stretch, key=lambda i: points[i][1])
            kept.extend(points[i] for i in sorted({low, high}))
    return [*kept, points[-1]]
