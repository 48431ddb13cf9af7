"""Compare runs: what differs in their settings, what they reached, and their models on the very same frames.

    python -m jobs.compare runs/finetune-1 runs/finetune-2 --output comparison            # folders of runs, on any storage
    python -m jobs.compare finetune-1 search-3 --storage s3://bucket/runs --split val     # ids of runs, and where they are

Pretrainings, fine-tunings, searches and evaluations, also mixed and also unfinished. The others are compared with the first.
"""

from typing import Any

from jobs.runtime import RunsJob, run_job
from jobs.terminal import TerminalProgress
from pipeline.progress import SILENT, Progress
from pipeline.reports.compare_runs import CompareSettings, compare_runs, to_json
from pipeline.reports.compare_table import seed_text, terminal_table
from pipeline.storage import join


def run(settings: CompareSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; returns compare_data.ComparedRuns as plain JSON, without the pictures."""
    compared = compare_runs(settings, progress)
    if isinstance(progress, TerminalProgress):
        progress.table(compared.title, *terminal_table(compared))
        for group in compared.groups:
            value = seed_text(group, compared.measured.judged if compared.measured else None)
            progress.note(f"{', '.join(group.runs)} differ in their seed only: {value.text} ({value.detail})")
        for each in compared.runs:
            if each.note:
                progress.note(f"{each.name}: {each.note}")
        for note in compared.notes:
            progress.note(note)
        for part in compared.answer:
            progress.note(part.text)
        if settings.output:
            progress.note(f"page: {join(settings.output, 'compare.html')}")
    return to_json(compared)


JOB = RunsJob("compare", CompareSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
