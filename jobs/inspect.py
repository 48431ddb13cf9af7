"""Look at a frame set: its data card (one HTML page, and JSON), and whether every shard is what the manifest says.

    python -m jobs.inspect --frame_set FRAMES --output CARD
    python -m jobs.inspect --frame_set FRAMES --verify

With --verify every damaged shard is named, and the exit code is 1 where there is any.
"""

from contextlib import nullcontext
from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from jobs.terminal import TerminalProgress
from pipeline.frames.inspect import Inspection, InspectSettings, inspect, wants_ray
from pipeline.frames.manifest import read_manifest
from pipeline.frames.schema import SPLITS
from pipeline.progress import SILENT, Progress
from pipeline.storage import absolute, join, preflight
from pipeline.tracked import tracked
from pipeline.tracking import TrackingSettings


class InspectJob(InspectSettings):
    """Settings of the job."""

    track: bool = False
    """Also keep the card in MLflow, as a run that is named by the frame set's digest."""
    tracking: TrackingSettings = TrackingSettings()
    """Where, if so."""


def run(settings: InspectJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns the frame set's counts and digest, what verify found, and what card.json holds."""
    preflight(settings.frame_set)
    with session() if wants_ray(settings, read_manifest(settings.frame_set)) else nullcontext():
        found = inspect(settings, progress)
    untracked = _track(settings, found) if settings.track else {}
    if isinstance(progress, TerminalProgress):
        _show(settings, found, progress)
    return {
        "frame_set": settings.frame_set,
        "num_rows": found.manifest.num_rows,
        "counts": found.manifest.counts,
        "digest": found.manifest.digest,
        "verification": found.verification.to_json() if found.verification else None,
        "card": found.card,
        **untracked,
    }


def _show(settings: InspectJob, found: Inspection, terminal: TerminalProgress) -> None:
    manifest = found.manifest
    rows = [[source, *(by_split.get(split, 0) for split in SPLITS)] for source, by_split in manifest.counts.items()]
    terminal.table(f"Frame set {settings.frame_set}", ["source", *SPLITS], rows)
    if found.verification:
        for warning in found.verification.warnings:
            terminal.note(f"warning: {warning}")
        terminal.note(found.verification.summary())
    if settings.output:
        terminal.note(f"card: {join(settings.output, 'card.html')}")


def _track(settings: InspectJob, found: Inspection) -> dict[str, Any]:
    run_id = f"frames-{found.manifest.digest[:12]}"
    output = absolute(settings.output) if settings.output else None
    with tracked(settings.tracking, output, run_id, "inspect", settings) as tracking:
        tracking.opened()
        counts = {"num_rows": found.manifest.num_rows, "num_clips": found.manifest.num_clips}
        tracking.run.log_metrics(counts, step=0)
        if found.card is not None:
            tracking.run.log_text("card.html", found.page)
    return tracking.untracked()


JOB = Job("inspect", InspectJob, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
