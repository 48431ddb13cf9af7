"""The stage of an ingest that finds hands: a detector in lasting workers, which load it once, looks at every piece of video.

What is found in a piece is a file, which marks it as done. Tracks are made later, of all the files of a video.
"""

import time
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from pipeline.frames.plan import IngestSettings, Plan
from pipeline.frames.ray_tasks import run_in_ray
from pipeline.frames.sources import SourceSettings, Unit, open_source
from pipeline.progress import Progress
from pipeline.storage import join, list_files, write_json


@runtime_checkable
class FindsHands(Protocol):
    """A source that does not know where the hands are."""

    def detect(self, unit: Unit) -> dict[str, Any]:
        """What there is in a unit, plain JSON values. Its `open` reads them where Unit.found says that they are there."""


def find_hands(settings: IngestSettings, plan: Plan, work_uri: str, progress: Progress) -> Plan:
    """The plan, its units knowing where to read what was found in them. Sources that know the hands are left as they are.

    Needs a running Ray. What an earlier run has found is not looked for again.
    """
    if not isinstance(open_source(settings.source), FindsHands):
        return plan
    units = [unit for task in plan.tasks for unit, _ in task.units]
    uris = [join(work_uri, "found", f"{number:06d}.json") for number in range(len(units))]
    done = {uri.rpartition("/")[2] for uri in list_files(join(work_uri, "found"), ".json")}
    todo: list[dict[str, Any]] = [
        {"unit": vars(unit), "uri": uri}
        for unit, uri in zip(units, uris, strict=True)
        if uri.rpartition("/")[2] not in done
    ]
    progress.start(f"find hands ({settings.source.resolved_name()})", plan.num_frames, "frames")
    frames = plan.num_frames - sum(item["unit"]["num_frames"] for item in todo)
    hands, looked_at, started = 0, 0, time.monotonic()
    size = settings.num_detectors or settings.num_workers
    for found in run_in_ray(_find, {"settings": settings.source}, todo, size, lasting=True):
        frames += found["expected"]
        looked_at += found["frames"]
        hands += found["hands"]
        progress.update(frames, hands=hands, frames_per_s=round(looked_at / (time.monotonic() - started), 1))
    progress.finish(hands=hands)
    by_video: dict[str, list[str]] = {}
    for unit, uri in zip(units, uris, strict=True):
        by_video.setdefault(unit.name, []).append(uri)
    tasks = [
        replace(task, units=[(replace(unit, found=by_video[unit.name]), split) for unit, split in task.units])
        for task in plan.tasks
    ]
    return replace(plan, tasks=tasks)


def _find(item: dict[str, Any], settings: SourceSettings) -> dict[str, Any]:
    unit = Unit(**item["unit"])
    source = open_source(settings)
    assert isinstance(source, FindsHands)
    found = source.detect(unit)
    write_json(item["uri"], found)
    frames = found.get("seen", [])
    return {"expected": unit.num_frames, "frames": len(frames), "hands": sum(len(hands) for _, hands in frames)}
