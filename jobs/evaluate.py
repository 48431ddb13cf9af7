"""Evaluate pose models on a labelled frame set and compare them; probe their encoders, and pretrained ones.

    python -m jobs.evaluate --models.peclr s3://bucket/runs/search-1 --models.scratch s3://bucket/runs/finetune-2 \\
        --encoders.pretrained s3://bucket/runs/pretrain-1 --frame_set s3://bucket/labelled --output s3://bucket/evaluation
"""

from typing import Any

from jobs.runtime import Job, run_job
from jobs.terminal import TerminalProgress
from pipeline.progress import SILENT, Progress
from pipeline.reports.evaluate import EvaluateSettings, comparison_table, evaluate, probe_table


def run(settings: EvaluateSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns the metrics, and what a report needs of them."""
    outcome = evaluate(settings, progress)
    if isinstance(progress, TerminalProgress):
        title = f"{outcome['num_frames']} frames of {settings.frame_set}, split '{settings.split}'"
        if outcome["models"]:
            progress.table(title, *comparison_table(outcome))
            for sentence in outcome["conclusions"]:
                progress.note(sentence)
        if outcome["probes"]:
            progress.table("Probes of frozen features", *probe_table(outcome))
        notes: dict[str, list[str]] = {}
        for name, model in outcome["models"].items():
            for note in model["notes"]:
                notes.setdefault(note, []).append(name)
        for note, names in notes.items():
            progress.note(note if len(names) == len(outcome["models"]) else f"{', '.join(names)}: {note}")
        if settings.output:
            progress.note(f"report: {settings.output}/report.html")
    return outcome


JOB = Job("evaluate", EvaluateSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
