"""The stage of an ingest that finds hands: a detector in lasting workers, which load it once, looks at every piece of video.

What is found in a piece (or in a few short videos or single images) is a file, which marks it as done. Tracks are made later,
of all the files of a video.
"""

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from pipeline.frames.pieces import pack
from pipeline.frames.plan import IngestSettings, Plan
from pipeline.frames.sources import SourceSettings, Unit
from pipeline.progress import Progress
from pipeline.ray_map import MAX_ITEMS, ray_map
from pipeline.storage import join, list_files, write_json

MIN_FRAMES_PER_FILE = 64
"""A few seconds of a worker's time; so a small set too is shared by several."""


@runtime_checkable
class FindsHands(Protocol):
    """A reader of a source that does not say where the hands are."""

    def detect(self, unit: Unit) -> dict[str, Any]:
        """What there is in a unit, plain JSON values. Its `open` reads them where Unit.found says that they are there."""


def find_hands(settings: IngestSettings, plan: Plan, work_uri: str, progress: Progress) -> Plan:
    """The plan, its units knowing where to read what was found in them. Sources that know the hands are left as they are.

    Needs a running Ray. What an earlier run has found is not looked for again.
    """
    if not isinstance(settings.source.reader(), FindsHands):
        return plan
    least = max(MIN_FRAMES_PER_FILE, math.ceil(plan.num_frames / MAX_ITEMS))
    parts = pack((unit for task in plan.tasks for unit, _ in task.units), least)
    uris = [join(work_uri, "found", f"{number:06d}.json") for number in range(len(parts))]
    done = {uri.rpartition("/")[2] for uri in list_files(join(work_uri, "found"), ".json")}
    todo = [part for part in zip(parts, uris, strict=True) if part[1].rpartition("/")[2] not in done]
    progress.start(f"find hands ({settings.source.resolved_name()})", plan.num_frames, "frames")
    frames = plan.num_frames - sum(unit.num_frames for units, _ in todo for unit in units)
    hands, looked_at, started = 0, 0, time.monotonic()
    size = settings.num_detectors or settings.num_workers
    for found in ray_map(partial(_find, settings.source), todo, lasting=True, num_workers=size):
        frames += found["expected"]
        looked_at += found["frames"]
        hands += found["hands"]
        progress.update(frames, hands=hands, frames_per_s=round(looked_at / (time.monotonic() - started), 1))
    progress.finish(hands=hands)
    by_video: dict[str, list[tuple[str, int]]] = {}
    for units, uri in zip(parts, uris, strict=True):
        for place, unit in enumerate(units):
            by_video.setdefault(unit.name, []).append((uri, place))
    tasks = [
        replace(task, units=[(replace(unit, found=by_video[unit.name]), split) for unit, split in task.units])
        for task in plan.tasks
    ]
    return replace(plan, tasks=tasks)


def _find(settings: SourceSettings, part: tuple[list[Unit], str]) -> dict[str, int]:
    units, uri = part
    reader = settings.reader()
    assert isinstance(reader, FindsHands)
    found = [reader.detect(unit) for unit in units]
    write_json(uri, found)
    frames = [frame for part in found for frame in part.get("seen", [])]
    expected = sum(unit.num_frames for unit in units)
    return {"expected": expected, "frames": len(frames), "hands": sum(len(hands) for _, hands in frames)}
