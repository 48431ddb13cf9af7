"""Deliver to MLflow what it did not get of runs, because it was away.

    python -m jobs.sync runs/pretrain-1                 # a run's folder, on any storage; several are possible
    python -m jobs.sync pretrain-1 --storage runs       # a run's id, and where the runs are

It names the number of records delivered. A run that MLflow has whole is left as it is.
"""

from typing import Any

from pydantic import Field

from jobs.runtime import RunsJob, run_job
from jobs.terminal import TerminalProgress
from pipeline.config import Settings, Uri
from pipeline.errors import UntrackedError
from pipeline.progress import SILENT, Progress
from pipeline.runs import run_folder
from pipeline.tracked import deliver_left


class SyncSettings(Settings):
    """Settings of the job."""

    runs: tuple[str, ...] = Field(min_length=1)
    """The runs: URIs of their folders, or ids of runs in `storage`. They may also stand first, without `--runs`."""
    storage: Uri = "runs"
    """URI of the folder that holds the runs which are given by their ids."""
    tracking_uri: Uri | None = None
    """Where MLflow records the runs. none: where they were to be recorded."""


def run(settings: SyncSettings, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the job; {"delivered": {run: number of records}}. Raises UntrackedError where MLflow still lacks something."""
    folders = {name: run_folder(name, settings.storage) for name in settings.runs}
    delivered, untracked = {}, []
    for name, folder in folders.items():
        found = deliver_left(folder, settings.tracking_uri)
        delivered[name] = found.num_delivered
        untracked += [f"{name}: {found.untracked}"] if found.untracked else []
        if isinstance(progress, TerminalProgress):
            nothing = "" if found.untracked else "nothing to deliver: MLflow has all of it"
            text = f"{found.num_delivered} records delivered" if found.num_delivered else nothing
            progress.note(f"{name}: {text}") if text else None
    if untracked:
        raise UntrackedError("\n".join(untracked))
    return {"delivered": delivered}


JOB = RunsJob("sync", SyncSettings, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
