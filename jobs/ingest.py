"""Turn hand videos or images into a frame set.

    python -m jobs.ingest --config jobs/configs/ingest_video.yaml --source.uri s3://bucket/videos --output s3://bucket/frames

Run it again with another source to add to the same frame set. A killed ingest goes on where it was.
"""

from typing import Any

from jobs.runtime import Job, Session, ray_session, run_job
from jobs.terminal import TerminalProgress
from pipeline.config import Uri
from pipeline.frames.ingest import execute, prepare
from pipeline.frames.manifest import Manifest
from pipeline.frames.plan import IngestSettings
from pipeline.frames.rejects import choices
from pipeline.frames.schema import SPLITS
from pipeline.progress import SILENT, Progress


class IngestJob(IngestSettings):
    """Settings of the job: those of the ingest, and where to."""

    output: Uri
    """URI of the frame set; made where there is none yet, else added to."""


def run(settings: IngestJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; returns the frame set's URI, counts, rejects and digest."""
    ingest_settings = IngestSettings.model_validate(settings.model_dump(include=set(IngestSettings.model_fields)))
    manifest = prepare(ingest_settings, settings.output)  # before Ray starts, so that a mistake shows at once
    if not isinstance(manifest, Manifest):
        if isinstance(progress, TerminalProgress):
            for note in manifest.plan.rejects.notes:
                progress.note(f"note: {note}")
        with session():
            manifest = execute(manifest, progress)
    if isinstance(progress, TerminalProgress):
        _show(settings.output, manifest, progress)
    return {
        "frame_set": settings.output,
        "num_rows": manifest.num_rows,
        "num_clips": manifest.num_clips,
        "counts": manifest.counts,
        "rejects": manifest.rejects,
        "digest": manifest.digest,
    }


def _show(uri: str, manifest: Manifest, terminal: TerminalProgress) -> None:
    """What the frame set holds, and what was left out and why."""
    counts = [
        [source, *(by_split.get(split, 0) for split in SPLITS), sum(manifest.rejects.get(source, {}).values())]
        for source, by_split in manifest.counts.items()
    ]
    terminal.table(f"Frame set {uri}", ["source", *SPLITS, "rejects"], counts)
    rejects = [
        [
            source,
            reason,
            "choice" if reason in choices(manifest.kind_of(source)) else "not usable",
            count,
            ", ".join(manifest.reject_examples.get(reason, [])[:2]),
        ]
        for source, by_reason in manifest.rejects.items()
        for reason, count in by_reason.items()
    ]
    if rejects:
        terminal.table("Left out", ["source", "reason", "why", "count", "for example"], rejects)


JOB = Job("ingest", IngestJob, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
