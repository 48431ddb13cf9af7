"""Folders of runs as jobs leave them, made in this process in a second: tiny fine-tunings, trained for real but without Ray."""

from pathlib import Path
from typing import Any

from pipeline.config import to_yaml
from pipeline.frames.frame_set import FrameSet
from pipeline.models.kept import Kept, checkpoints_in, read_best
from pipeline.run_log import log, run_log
from pipeline.runs import open_run
from pipeline.storage import join, write_bytes, write_json
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import check_settings, with_epochs
from pipeline.training.finetune_run import FinetuneRunSettings
from pipeline.training.worker import Worker


def finetune_run(
    storage: Path | str, run_id: str, frame_set: str, *, finished: bool = True, commit: str = "", **changes: Any
) -> str:
    """URI of a fine-tuning run of a few steps. finished: whether it has its result. commit: of the code, in its log."""
    settings = FinetuneRunSettings.model_validate(
        {
            "frame_set": frame_set,
            "encoder": {"width": 8},
            "views": {"size": 32},
            "epochs": 2,
            "batch_size": 16,
            "precision": "float32",
            "run": {"storage": str(storage), "run_id": run_id},
            **changes,
        }
    )
    folder, _ = open_run(settings, settings.run, run_id)
    frames, selection = check_settings(settings)
    planned = with_epochs(settings, selection.num_frames, 1)
    kept = Kept(folder)

    def report(metrics: dict[str, float], save: Any) -> None:
        if save is not None:
            kept.keep(save, metrics)

    with run_log(folder, "driver"):
        log("settings", **frames.describe())
        if commit:
            log("provenance", **{"mlflow.source.git.commit": commit, "equihand.command": f"jobs.finetune {run_id}"})
        outcome = finetune(
            planned,
            SharedFrames.load(settings, frames, selection),
            worker=Worker(report=report),
        )
    result = {
        "run_id": run_id,
        "kind": "finetune",
        "best_checkpoint": read_best(folder)[0],
        "last_checkpoint": checkpoints_in(folder)[-1],
        "wall_s": 1.5,
        **outcome,
        "num_labels": selection.num_frames,
        **FrameSet.open(frame_set).describe(),
    }
    if finished:
        write_json(join(folder, "result.json"), result)
    return folder


def written_run(folder: Path | str, settings: Any, result: dict[str, Any] | None) -> str:
    """URI of a run of which there are only settings (a pydantic model, or YAML) and a result."""
    text = settings if isinstance(settings, str) else to_yaml(settings)
    write_bytes(join(str(folder), "settings.yaml"), text.encode())
    if result is not None:
        write_json(join(str(folder), "result.json"), result)
    return str(folder)
