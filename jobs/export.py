"""Export a trained model: weights, torch.export and ONNX programs, an MLflow model, a model card.

    python -m jobs.export --model s3://bucket/runs/finetune-1 --output s3://bucket/models/hand-pose

The model may be a run, a checkpoint of pretraining or fine-tuning, or a weights file.
"""

from typing import Any

from jobs.runtime import Job, run_job
from jobs.terminal import TerminalProgress
from pipeline.export.export import ExportSettings, export
from pipeline.progress import SILENT, Progress


def run(settings: ExportSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns what was written and how far the programs are from the model."""
    result = export(settings, progress)
    if isinstance(progress, TerminalProgress):
        rows = [[name, size] for name, size in result["files"].items() if not name.startswith("mlflow/")]
        progress.table(f"{result['kind']} model in {settings.output}", ["file", "bytes"], rows)
        for file, differences in result["max_abs_difference"].items():
            values = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
            opset = f" (opset {result['opset']})" if file.endswith(".onnx") else ""
            progress.note(f"{file}{opset}: largest absolute difference from the model: {values}")
    return result


JOB = Job("export", ExportSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
