"""The model of a run, as an MLflow model of its run in MLflow.

It is made when the run has ended and lies in its folder, where a record of the queue names it. So a model that cannot be exported costs
no result, MLflow may be away (`jobs.sync` delivers it later), and the same command makes it of a run that has finished before.
"""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import one_line, warn
from pipeline.export.export import load_exportable, write_mlflow, write_program
from pipeline.progress import SILENT, Progress
from pipeline.runs import RunSettings
from pipeline.storage import absolute, copy_from_local, delete, join
from pipeline.tracked import tracked_again
from pipeline.tracking import TrackingSettings

FOLDER = "model"
"""Of the run's folder, and of its artifacts in MLflow."""


def track_model(
    result: dict[str, Any], run: RunSettings, tracking: TrackingSettings, progress: Progress = SILENT
) -> dict[str, Any]:
    """Where `tracking.log_model` asks for it, give MLflow the best model of a run that has finished. Returns the run's result, with
    "untracked" where MLflow does not have all."""
    if not tracking.log_model:
        return result
    folder = join(absolute(run.storage), result["run_id"])
    progress.start("model for MLflow", 1, "models")
    try:
        _write(folder)
    except Exception as error:  # torch.export raises what it likes, and the run is done
        warn(f"{one_line(error)}; MLflow does not get the model of {folder}, the same command tries again")
        progress.finish()
        return result
    with tracked_again(tracking, folder, result["run_id"], result["kind"]) as again:
        again.run.log_folder(FOLDER)
    progress.finish()
    return result | again.untracked()


def _write(folder: str) -> None:
    model = load_exportable(folder)
    with tempfile.TemporaryDirectory(prefix="equihand-model-") as directory:
        program = Path(directory, f"{model.kind}.pt2")
        write_program(model, program)
        write_mlflow(model, program, Path(directory, FOLDER))
        delete(join(folder, FOLDER))
        copy_from_local(Path(directory, FOLDER), join(folder, FOLDER))
