"""What differs between runs, the metrics that they share, and their course."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.metric_names import METRICS, PROBE_METRICS, recorded_name
from pipeline.reports.compare_data import Curve
from pipeline.reports.compare_folders import RunFolder

_CURVES = {
    "loss": None,
    "val_pa_epe_mm": "val_constant_pa_epe_mm",
    "val_mpjpe_mm": "val_constant_mpjpe_mm",
    "val_epe_2d": "val_constant_epe_2d",
    "probe_pa_epe_mm": "probe_constant_pa_epe_mm",
    "probe_epe_mm": "probe_constant_epe_mm",
    "probe_retrieval_pa_epe_mm": "probe_retrieval_random_pa_epe_mm",
    "probe_equivariance_cosine": None,
    "positive_similarity": None,
    "negative_similarity": None,
    "alignment": None,
    "uniformity": None,
}
"""Metrics whose course is shown, and what answers without looking reach by them."""
_TRAINED = ("pretrain", "finetune")


def differing(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{name: {run: value}} of what is not the same for all runs; first what all of them have. values: by run."""
    names = dict.fromkeys(name for of_run in values.values() for name in of_run)
    found = {name: {run: of_run[name] for run, of_run in values.items() if name in of_run} for name in names}
    differ = {
        name: by_run
        for name, by_run in found.items()
        if len(by_run) < len(values) or any(value != next(iter(by_run.values())) for value in by_run.values())
    }
    return dict(sorted(differ.items(), key=lambda item: len(item[1]) < len(values)))


def num_same(values: Mapping[str, Mapping[str, Any]]) -> int:
    """How many names have the same value for all runs."""
    names = {name for of_run in values.values() for name in of_run}
    return len(names) - len(differing(values))


def shared_metrics(runs: Sequence[RunFolder]) -> dict[str, dict[str, float]]:
    """{metric: {run: value}} of what two runs at least have recorded, in the order of metric_names where that knows them."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    found = {name: {run.name: run.metrics[name] for run in runs if name in run.metrics} for name in names}
    order = [name.label for name in (*METRICS.values(), *PROBE_METRICS.values())]

    def place(name: str) -> int:
        label = recorded_name(name).label.removeprefix("validation ").removesuffix(" of one fixed hand")
        return order.index(label) if label in order else len(order)

    return {name: found[name] for name in sorted(found, key=place) if len(found[name]) > 1}


def curves(runs: Sequence[RunFolder]) -> list[Curve]:
    """The course of metrics of which a run has several points: of pretrainings and fine-tunings, over the frames seen where
    batches differ, else over steps."""
    found = []
    for kind in _TRAINED:
        of_kind = [run for run in runs if run.kind == kind and len(run.history) > 1]
        batches = {run.name: _frames_per_step(run) for run in of_kind}
        in_frames = kind == "pretrain" and all(batches.values()) and len(set(batches.values())) > 1
        for metric, constant in _CURVES.items():
            points = {
                run.name: [
                    (each["step"] * (batches[run.name] if in_frames else 1), each[metric])
                    for each in run.history
                    if metric in each
                ]
                for run in of_kind
            }
            points = {name: each for name, each in points.items() if each}
            levels = {
                round(each[constant], 6) for run in of_kind for each in run.history if constant and constant in each
            }
            if points:
                level = levels.pop() if len(levels) == 1 else None
                x_label = "frames seen" if in_frames else "step"
                found.append(Curve(metric=metric, kind=kind, x_label=x_label, points=points, constant=level))
    return found


def _frames_per_step(run: RunFolder) -> int:
    """Of all workers of a pretraining; 0 where its settings do not say it."""
    workers = run.settings.get("shares") or run.settings.get("workers.num_workers") or 0
    return int(run.settings.get("batch_size", 0)) * int(max(workers) if isinstance(workers, list) else workers)
