"""Render labelled synthetic hand video: mp4 clips with 21 exact 3D joints a frame, in parallel, resumable.

    python -m jobs.synthesize --out data/clips --num_clips 200

Each clip is a video and a label file beside it. Run it again to go on where it stopped, or with a larger num_clips to
add clips; clips that exist are kept.
"""

import math
import time
from functools import partial
from typing import Any

from pydantic import Field

from jobs.runtime import Job, Session, ray_session, run_job
from pipeline import storage
from pipeline.config import Uri, flatten
from pipeline.errors import SettingsError
from pipeline.frames.synthetic.clip import ClipSettings
from pipeline.frames.synthetic.photographs import photograph_uris
from pipeline.frames.synthetic.video import VIDEO_SUFFIX, clip_name, complete_clips, synthesize_clips
from pipeline.progress import SILENT, Progress
from pipeline.ray_map import MAX_ITEMS, ray_map

SETTINGS_FILE = "synthesize.json"
GENERATOR_VERSION = 2
"""Raised when equal settings no longer give equal clips, so that a folder never mixes two generators."""

_FRAMES_PER_TASK = 96


class SynthesizeJob(ClipSettings):
    """Settings of the job."""

    out: Uri
    """Folder that receives the clips (URI)."""
    num_clips: int = Field(default=100, ge=1, le=1_000_000)
    """Clips that the folder holds in the end."""


def run(settings: SynthesizeJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Render the clips that are still missing.

    Returns {"out", "num_clips", "num_frames", "rendered", "kept", "wall_s"}. Raises SettingsError where the folder
    already holds clips of other settings, StorageError where it cannot be written, DataError where a folder of
    photographs has none.
    """
    started = time.monotonic()
    storage.preflight(settings.out, write=True)
    clip_settings = ClipSettings(**settings.model_dump(include=set(ClipSettings.model_fields)))
    if clip_settings.background.photographs is not None:
        photograph_uris(clip_settings.background.photographs, clip_settings.image_size)
    _claim_folder(settings, clip_settings)
    complete = complete_clips(settings.out)
    missing = [index for index in range(settings.num_clips) if clip_name(index) not in complete]
    kept = settings.num_clips - len(missing)
    progress.start("synthesize", total=settings.num_clips, unit="clips")
    progress.update(kept)
    if missing:
        with session():
            _render(clip_settings, missing, settings.out, progress)
    wall_s = time.monotonic() - started
    progress.finish(rendered=len(missing), kept=kept)
    return {
        "out": settings.out,
        "num_clips": settings.num_clips,
        "num_frames": settings.num_clips * settings.frames_per_clip,
        "rendered": len(missing),
        "kept": kept,
        "wall_s": round(wall_s, 2),
    }


def _claim_folder(settings: SynthesizeJob, clip_settings: ClipSettings) -> None:
    """Record what the folder's clips are made with, or check that it is the same as before."""
    uri = storage.join(settings.out, SETTINGS_FILE)
    wanted = {"generator_version": GENERATOR_VERSION, **flatten(clip_settings)}
    if storage.exists(uri):
        recorded = storage.read_json(uri)
        before = recorded.get("clips", {})
        differing = [
            f"{name} was {before.get(name)} and is now {value}"
            for name, value in wanted.items()
            if before.get(name) != value
        ]
        if recorded.get("num_clips", 0) > settings.num_clips:
            differing.append(f"num_clips was {recorded['num_clips']} and is now {settings.num_clips}")
        if differing:
            raise SettingsError(
                f"{settings.out} holds clips of other settings: {'; '.join(differing)}; "
                "choose another 'out', or delete the folder"
            )
    elif storage.list_files(settings.out, VIDEO_SUFFIX):
        raise SettingsError(f"{settings.out} holds videos that this job did not write; choose another 'out'")
    storage.write_json(uri, {"num_clips": settings.num_clips, "clips": wanted})


def _render(clip_settings: ClipSettings, missing: list[int], out: str, progress: Progress) -> None:
    """Render clips in tasks of about a second, of longer ones where clips are many."""
    chunk = max(1, _FRAMES_PER_TASK // clip_settings.frames_per_clip, math.ceil(len(missing) / MAX_ITEMS))
    chunks = [missing[start : start + chunk] for start in range(0, len(missing), chunk)]
    started, rendered = time.monotonic(), 0
    for count in ray_map(partial(synthesize_clips, clip_settings, folder=out), chunks):
        rendered += count
        rate = rendered * clip_settings.frames_per_clip / (time.monotonic() - started)
        progress.advance(count, frames_per_s=round(rate, 1))


JOB = Job("synthesize", SynthesizeJob, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
