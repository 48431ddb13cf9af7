"""Draw the pictures of docs/rendering.md: for each setting of `jobs.synthesize`, the same eight hands.

python -m jobs.rendering_sheets --out docs/images/rendering --photographs FOLDER
"""

import io
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from jobs.runtime import Job, run_job
from pipeline import storage
from pipeline.config import Settings
from pipeline.drawing.skeleton import skeleton_overlay
from pipeline.frames.synthetic.clip import ClipSettings, sample_clip
from pipeline.frames.synthetic.render import render_clip
from pipeline.progress import SILENT, Progress

SHEETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "varied": {"look": "varied"},
    "varied_desk": {"look": "varied", "viewpoint": "desk"},
    "desk": {"viewpoint": "desk"},
    "egocentric": {"viewpoint": "egocentric"},
    "fill": {"fill": [1, 1]},
    "off_centre": {"off_centre": 0.2},
    "poses": {"poses": "varied"},
    "skin": {"skin": "wide"},
    "side_light": {"light": {"side_light": 1}},
    "backlight": {"light": {"backlight": 1}},
    "colour": {"light": {"colour": 0.5}},
    "exposure": {"light": {"exposure_stops": 2}},
    "white_balance": {"light": {"white_balance": 0.25}},
    "collage": {"background": {"collage": 1}},
    "second_hand": {"occluders": {"second_hand": 1}},
    "held_object": {"occluders": {"held_object": 1}},
    "obstacle": {"occluders": {"obstacle": 1}},
    "motion_blur": {"imaging": {"motion_blur": 1, "shutter_s": 0.1}},
    "defocus": {"imaging": {"defocus": 1, "defocus_radius": 0.02}},
    "noise": {"imaging": {"noise": 0.15}},
    "tone": {"imaging": {"tone": 0.4}},
    "jpeg": {"imaging": {"jpeg": 1, "jpeg_quality": [10, 25]}},
}
"""Settings of each sheet, stronger than one would train with, so that they show."""

_NUM_CLIPS, _FRAME = 8, 5


class RenderingSheetsJob(Settings):
    """Settings of the job."""

    out: str
    """Folder that receives the pictures (URI)."""
    photographs: str | None = None
    """Folder of photographs for the sheet of backgrounds (URI); none leaves that sheet out."""
    image_size: int = Field(default=96, ge=32, le=512, multiple_of=2)
    """Side of each picture, pixels."""
    seed: int = Field(default=3, ge=0)
    """Which hands are drawn."""


def run(settings: RenderingSheetsJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Write NAME.png for each sheet and labels.png; returns {"out", "num_sheets"}. Raises StorageError, DataError."""
    storage.preflight(settings.out, write=True)
    sheets = dict(SHEETS)
    if settings.photographs is not None:
        sheets["photographs"] = {"background": {"photographs": settings.photographs}}
    progress.start("draw sheets", total=len(sheets) + 1, unit="sheets")
    for name, changes in sheets.items():
        _write(settings.out, name, [picture for picture, _ in _clips(settings, changes)])
        progress.advance(1)
    labelled = [
        skeleton_overlay(picture, joints, size=settings.image_size)
        for picture, joints in _clips(settings, {"look": "varied", "viewpoint": "desk", "left_fraction": 0.5})
    ]
    _write(settings.out, "labels", [overlay.transpose(2, 0, 1) for overlay in labelled])
    progress.finish(sheets=len(sheets) + 1)
    return {"out": settings.out, "num_sheets": len(sheets) + 1}


def _clips(settings: RenderingSheetsJob, changes: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """One frame (3, S, S) uint8 of each clip, and its joints (21, 2) in pixels."""
    clip_settings = ClipSettings.model_validate(
        {"image_size": settings.image_size, "seed": settings.seed, "frames_per_clip": _FRAME + 1, **changes}
    )
    clips = [sample_clip(clip_settings, index) for index in range(_NUM_CLIPS)]
    return [(render_clip(clip, [_FRAME])[0].numpy(), clip.joints_2d[_FRAME].numpy()) for clip in clips]


def _write(folder: str, name: str, pictures: list[np.ndarray]) -> None:
    """Pictures (3, S, S) side by side in one PNG of 256 colours."""
    row = np.concatenate(pictures, 2).transpose(1, 2, 0)
    sheet = Image.fromarray(np.ascontiguousarray(row))
    buffer = io.BytesIO()
    sheet.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    storage.write_bytes(storage.join(folder, name + ".png"), buffer.getvalue())


JOB = Job("rendering_sheets", RenderingSheetsJob, run, __doc__, ray=None)

if __name__ == "__main__":
    run_job(JOB)
