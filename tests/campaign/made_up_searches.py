"""Folders of searches that never ran, with the truth known: one setting decides, one matters where it applies, the rest do nothing."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import to_yaml
from pipeline.models.checkpoints import seal
from pipeline.runs import RunSettings
from pipeline.search.records import COMPLETED, FAILED, RUNNING, STOPPED, TrialRecord, folder_of, write_record
from pipeline.search.settings import SearchSettings
from pipeline.search.space import Space
from pipeline.storage import write_json

CONSTANT_MM = 14.6
SPACE: dict[str, Any] = {
    "optimiser.learning_rate": {"log_uniform": [3e-4, 1e-2]},
    "head.kind": {"choice": ["spatial", "peclr"]},
    "loss.weight_3d": {"uniform": [0.5, 50.0], "when": {"head.kind": "spatial"}},
    "batch_size": {"choice": [16, 32, 64, 128]},
    "views.scale": {"choice": [[1.2, 1.2], [1.0, 1.45], [0.8, 1.7]]},
    "head_epochs": {"log_integer": [1, 12]},
    "augmentation": {"uniform": [0.25, 1.0]},
}
EPOCHS, RUNGS = 24, (8, 16, 24)


def search_settings(space: dict[str, Any] = SPACE, **changes: Any) -> SearchSettings:
    """The settings of a search on a frame set that is not there."""
    finetune = {
        "frame_set": "s3://bucket/labelled",
        "init": "s3://bucket/runs/pretrain-1",
        "encoder": {"name": "resnet18", "width": 32},
        "views": {"size": 64},
        "epochs": EPOCHS,
        "batch_size": 16,
    }
    return SearchSettings.model_validate({"finetune": finetune, "space": space, "num_trials": 16, **changes})


def drawn(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    """Random values, as the space says."""
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        if any(values.get(other) != value for other, value in dimension.when.items()):
            continue
        if dimension.limits is None:
            choices = dimension.choice or (dimension.fixed,)
            values[name] = choices[int(rng.integers(len(choices)))]
            continue
        low, high = dimension.limits
        is_log = dimension.log_uniform or dimension.log_integer
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if is_log else rng.uniform(low, high)
        values[name] = round(value) if dimension.integer or dimension.log_integer else value
    return values


def true_score(values: dict[str, Any], rng: np.random.Generator) -> float:
    """PA-EPE in mm: best at a learning rate of 2e-3; with the spatial head a large weight of the loss helps."""
    rate = values.get("optimiser.learning_rate", 2e-3)
    score = 12.4 + 3.0 * abs(math.log10(rate / 2e-3)) + rng.normal(0, 0.12)
    if "loss.weight_3d" in values:
        score -= 0.02 * (values["loss.weight_3d"] - 25)
    return float(score)


def history_of(score: float, epochs: int, began: float) -> list[dict[str, float]]:
    """Metrics at each second epoch of a training that ends near the score."""
    return [
        {
            "step": 40.0 * epoch,
            "epoch": float(epoch),
            "score": reached,
            "val_pa_epe_mm": reached,
            "val_mpjpe_mm": 2.1 * reached,
            "val_pa_auc": 0.75,
            "val_constant_pa_epe_mm": CONSTANT_MM,
            "val_constant_mpjpe_mm": 38.0,
            "val_pa_skill": 1 - reached / CONSTANT_MM,
            "val_mpjpe_skill": 1 - 2.1 * reached / 38.0,
            "loss": reached / 10,
            "wall_s": 3.1 * epoch,
            "reported_at": began + 3.1 * epoch,
        }
        for epoch in range(2, epochs + 1, 2)
        if (reached := score + 6 * math.exp(-epoch / 5))
    ]


def records_of(
    num_trials: int, space: dict[str, Any] = SPACE, seed: int = 0, shift_mm: float = 0.0
) -> list[TrialRecord]:
    """Trials as a search with early stopping leaves them: two thirds are stopped at each rung, some fail."""
    rng = np.random.default_rng(seed)
    parsed = search_settings(space).space
    records = []
    for number in range(num_trials):
        values = drawn(parsed, rng)
        score = true_score(values, rng) + shift_mm
        limits = [rung for rung, most in zip(RUNGS, (13.6, 13.0, 99.0), strict=True) if score - shift_mm > most]
        epochs, state, error = (limits[0], STOPPED, "") if limits else (EPOCHS, COMPLETED, "")
        if number % 17 == 5:
            epochs, state, error = 0, FAILED, "OutOfMemoryError: CUDA out of memory"
        elif number == num_trials - 1 and num_trials > 2:
            epochs, state = 6, RUNNING
        history = history_of(score, epochs, 1.8e9 + 40 * number)
        records.append(TrialRecord(number, values, state, error, history=history))
    return records


def write_search(
    folder: Path,
    records: list[TrialRecord],
    settings: SearchSettings | None = None,
    result: dict[str, Any] | None = None,
) -> str:
    """The folder of a search with these trials; its URI."""
    settings = settings or search_settings()
    run = RunSettings(storage=str(folder.parent), run_id=folder.name)
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(to_yaml(settings.model_copy(update={"run": run})))
    for record in records:
        write_record(str(folder), record)
        if record.history:
            checkpoint = Path(folder_of(str(folder), record.number), "checkpoint_000001")
            checkpoint.mkdir()
            write_json(str(checkpoint / "meta.json"), {"metrics": record.history[-1]})
            write_json(str(checkpoint / "history.json"), {"metrics": record.history, "wall_s": 1.0})
            seal(checkpoint)
    if result is not None:
        write_json(str(folder / "result.json"), {"kind": "search", "run_id": folder.name, **result})
    return str(folder)
