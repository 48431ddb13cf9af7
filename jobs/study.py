"""Find out what a method is worth: pretrainings and fine-tunings over a grid, their results, and what they show.

    python -m jobs.study --preset smoke                    # minutes: does everything run?
    python -m jobs.study --preset laptop --plan_only       # what it would do, and how long that takes
    python -m jobs.study --preset laptop --max_minutes 60  # a piece of it; the same command goes on
    python -m jobs.study --preset laptop --report_only     # the report anew, from results.parquet alone

On another labelled frame set: --finetune.frame_set s3://bucket/frames
"""

import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field

from jobs import ingest, synthesize
from jobs.runtime import Job, Session, ray_session, run_job
from jobs.terminal import TerminalProgress
from pipeline.config import Settings
from pipeline.errors import SettingsError
from pipeline.frames.manifest import has_manifest
from pipeline.frames.plan import SplitSettings
from pipeline.frames.synthetic.clip import ClipSettings
from pipeline.progress import SILENT, Progress
from pipeline.storage import absolute, join
from pipeline.study.plan import done_of, plan_table, works_of
from pipeline.study.report import write_report
from pipeline.study.results import KeptTables
from pipeline.study.run import Study, run_study
from pipeline.study.settings import StudySettings

_CONFIGS = Path(__file__).parent / "configs"
_PRESETS = ("smoke", "laptop", "gpu", "paper")


class RenderSettings(Settings):
    """A rendered frame set, for a study without one of its own."""

    clips: ClipSettings = ClipSettings()
    num_clips: int = Field(default=1000, ge=10)
    """Rendered clips, each of another hand before another background."""
    image_size: int = Field(default=96, ge=16, le=1024)
    """Side of the stored crops, pixels."""
    group_size: int = Field(default=3, ge=1, le=64)
    """Frames of one clip that stay neighbours in a batch."""
    group_stride_s: float = Field(default=0.4, ge=0)
    """Time between them, at least, seconds."""
    splits: SplitSettings = SplitSettings(train=0.8, val=0.05, test=0.15)


class StudyJob(StudySettings):
    """Settings of the job: those of the study, and the set that it renders."""

    presets: ClassVar[dict[str, Path]] = {name: _CONFIGS / f"study_{name}.yaml" for name in _PRESETS}

    preset: Literal["smoke", "laptop", "gpu", "paper"] | None = None
    """Settings file to begin with (jobs/configs/study_*.yaml); all other settings win over it. `smoke` tries everything
    out, `laptop` takes two cores up to 3 hours, `gpu` one H100 for 25 minutes, `paper` is PeCLR's published
    experiment."""
    render: RenderSettings | None = None
    """The frame set to render where `finetune.frame_set` names none."""
    plan_only: bool = False
    """Only say what the study would do and how long it would take."""
    report_only: bool = False
    """Only write report and table again, from results.parquet."""


def run(settings: StudyJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job, or what is left of it."""
    deadline = None if settings.max_minutes is None else time.time() + 60 * settings.max_minutes
    terminal = progress if isinstance(progress, TerminalProgress) else TerminalProgress()
    if settings.report_only:
        folder = _folder(settings)
        for finding in write_report(folder):
            terminal.note(f"{finding.title}. {finding.sentence}")
        terminal.note(f"report: {folder}/report.html")
        return {"folder": folder}
    if settings.plan_only:
        return _show_plan(settings, terminal)
    digest = known_as(settings)
    with session():
        settings = _with_frames(settings, progress)
        result = run_study(settings, progress, terminal.note, terminal.table, deadline, digest)
    for finding in result["findings"]:
        terminal.note(f"{finding['title']}. {finding['sentence']}")
    terminal.note(f"report: {result['report']}")
    return result


def _folder(settings: StudyJob) -> str:
    if settings.run.run_id is None:
        raise SettingsError("setting 'run.run_id' is required: which study?")
    return join(absolute(settings.run.storage), settings.run.run_id)


def known_as(settings: StudyJob) -> str | None:
    """The digest of the frame set in the keys of a table that was kept, if this study renders the same set.

    Another kind of processor, or another release of a library, rounds otherwise: frames then differ in their last bits, and so
    does the digest, but the results are those of the same settings.
    """
    if settings.finetune.frame_set or settings.render is None or settings.run.run_id is None:
        return None
    kept = KeptTables.read(_folder(settings)).all
    rendered = yaml.safe_load(kept.about.settings).get("render") if kept is not None else None
    if kept is None or not rendered or RenderSettings.model_validate(rendered) != settings.render:
        return None
    return kept.about.frame_set_digest


def _show_plan(settings: StudyJob, terminal: TerminalProgress) -> dict[str, Any]:
    """With what is done already, where there is a frame set to know it by."""
    with_frames = _named_frames(settings)
    if has_manifest(with_frames.finetune.frame_set):
        study = Study(with_frames, settings.run.run_id or "", known_as(settings))
        works, done = study.works, study.done()
    else:
        kept = KeptTables.read(_folder(settings)).all if settings.run.run_id is not None else None
        digest = known_as(settings) or ""
        works = works_of(settings, digest, digest)
        done = done_of(works, (), kept.keys) if kept is not None else set()
        if settings.render is not None:
            frames = settings.render.num_clips * settings.render.clips.frames_per_clip
            terminal.note(f"first {frames:,} frames are rendered and ingested")
    terminal.table(*plan_table(settings, works, done))
    return {"num_cells": len(works), "num_done": len(done)}


def _named_frames(settings: StudyJob) -> StudyJob:
    """The settings with the URI of the frame set that is rendered, or going to be."""
    if settings.finetune.frame_set or settings.render is None:
        return settings
    uri = join(_folder(settings), "frames")
    return settings.model_copy(update={"finetune": settings.finetune.model_copy(update={"frame_set": uri})})


def _with_frames(settings: StudyJob, progress: Progress) -> StudyJob:
    """Renders and ingests what is still missing of the frame set."""
    named = _named_frames(settings)
    render, uri = settings.render, named.finetune.frame_set
    if settings.finetune.frame_set or render is None or has_manifest(uri):
        return named
    clips = join(_folder(settings), "clips")
    values = {**render.clips.model_dump(), "out": clips, "num_clips": render.num_clips}
    synthesize.run(synthesize.SynthesizeJob.model_validate(values), progress)
    source = {"kind": "labelled_video", "uri": clips, "name": "synthetic"}
    values = {"source": source, "output": uri, **render.model_dump(exclude={"clips", "num_clips"})}
    ingest.run(ingest.IngestJob.model_validate({**values, "seed": render.clips.seed}), progress)
    return named


JOB = Job("study", StudyJob, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
