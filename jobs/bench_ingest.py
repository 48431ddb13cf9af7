"""Ingest: memory at one size and at eight times that size under a small object store, and the speed of the hand detector.

    python -m jobs.bench ingest [--images 1600 --hands 16] [--detector.video hands.mp4 --detector.model hand_landmarker.task]

The input is made on the spot: small images with many boxes each. Memory is the sum of proportional set sizes (PSS), shared
memory counted apart, so that nothing is counted twice; what the operating system's file cache holds is not in it.
"""

import io
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from pydantic import Field

from jobs.bench_table import Row, row
from jobs.runtime import Job, RaySettings, Session, ray_session
from pipeline.config import Settings
from pipeline.frames.ingest import ingest
from pipeline.frames.plan import IngestSettings
from pipeline.progress import SILENT, Progress

_IMAGE_SIDE = 192
_FOLDER_IMAGES = 32
_DIFFERENT_IMAGES = 32


class DetectorBench(Settings):
    """The detector's part of the measurement; it needs real input, which does not come with the project."""

    video: str | None = None
    """URI of a video with hands; none leaves this part out."""
    model: str | None = None
    """URI of MediaPipe's hand_landmarker.task."""
    fps: float = Field(default=10, gt=0)
    """Frames a second to look at."""
    copies: int = Field(default=2, ge=1)
    """How often the video is taken, so that each worker has work."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers to measure with."""


class BenchIngestJob(Settings):
    """Sizes of the input, and the cluster."""

    images: int = Field(default=1600, ge=1)
    """Images of the small input."""
    hands: int = Field(default=16, ge=1, le=64)
    """Boxes an image; images x hands are the rows of the small input."""
    factor: int = Field(default=8, ge=2)
    """How much larger the large input is."""
    image_size: int = Field(default=64, ge=16)
    """Side of the crops, pixels."""
    rows_per_shard: int = Field(default=4096, ge=16)
    """As for an ingest; small enough for the small input to fill a shard for each worker, as the large one does."""
    detector: DetectorBench = DetectorBench()


def run(settings: BenchIngestJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Both sizes, and the detector where it has input; returns {"rows"} (see bench_table.py)."""
    measured = []
    with tempfile.TemporaryDirectory(prefix="equihand-bench-") as folder:
        for factor in (1, settings.factor):
            source = make_input(Path(folder) / f"input{factor}", settings.images * factor, settings.hands)
            with session():
                measured.append(_measure(settings, source, f"{folder}/frames{factor}", progress))
    rows = memory_rows(measured, settings.factor)
    if settings.detector.video is not None:
        rows += _detector_rows(settings, progress, session)
    return {"rows": rows}


def make_input(folder: Path, num_images: int, hands: int) -> dict[str, Any]:
    """Settings of a source of kind boxed_images that is written below a folder."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(_DIFFERENT_IMAGES):
        small = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())
    places = rng.uniform(4, _IMAGE_SIDE - 44, (hands, 2))
    entries = []
    for number in range(num_images):
        name = f"{number // _FOLDER_IMAGES:05d}/{number % _FOLDER_IMAGES:05d}.jpg"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[number % _DIFFERENT_IMAGES])
        corners = places + 4 * np.sin(number / 10)
        entries.append({"file": name, "boxes_xyxy": np.hstack([corners, corners + 40]).round(2).tolist()})
    (folder / "boxes.json").write_text(json.dumps(entries))
    return {
        "kind": "boxed_images",
        "uri": str(folder / "images"),
        "boxes": str(folder / "boxes.json"),
        "image_rate": 30,
    }


def _measure(settings: BenchIngestJob, source: dict[str, Any], output: str, progress: Progress) -> dict[str, Any]:
    """One ingest: {"rows", "seconds", "stages": {name: {"seconds", "driver", "workers", ...: MB at the most}}, "spilled"}."""
    chosen = IngestSettings.model_validate(
        {"source": source, "image_size": settings.image_size, "rows_per_shard": settings.rows_per_shard}
    )
    started = time.perf_counter()
    with MemoryWatch(progress) as watch:
        watch.begin("list and plan")
        manifest = ingest(chosen, output, watch)
    seconds = time.perf_counter() - started
    spilled = _spilled_mb()
    return {"rows": manifest.num_rows, "seconds": seconds, "stages": watch.stages, "spilled": spilled}


def memory_rows(measured: list[dict[str, Any]], factor: int) -> list[Row]:
    """The table: each stage's peaks at both sizes."""
    small, large = measured
    rows = [
        row(f"rows, {name}", each["rows"], "rows")
        for name, each in (("small input", small), (f"{factor} times as large", large))
    ]
    rows.append(row("rows a second, small input", small["rows"] / small["seconds"], "rows/s"))
    against = small["rows"] / small["seconds"]
    speed = large["rows"] / large["seconds"]
    rows.append(row(f"rows a second, {factor} times as large", speed, "rows/s", "small input", speed / against, ""))
    for stage, peaks in large["stages"].items():
        rows.append(row(f"{stage}: time", peaks["seconds"], "s"))
        for kind in ("driver", "workers", "rest of Ray", "object store", "all"):
            before = small["stages"][stage][kind]
            target = "<= 1.3" if kind == "all" else ""
            rows.append(
                row(
                    f"{stage}: peak of {kind}",
                    peaks[kind],
                    "MB",
                    f"{before:.0f} MB at one size",
                    peaks[kind] / before if before >= 1 else None,
                    target,
                )
            )
    rows.append(row("spilled from the object store", large["spilled"], "MB", f"{small['spilled']:.0f} MB at one size"))
    return rows


class MemoryWatch(Progress):
    """Samples the memory of this process and of all its Ray processes while an ingest reports its stages to it."""

    def __init__(self, progress: Progress, interval_s: float = 0.25) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        """By the stage's name: seconds, and peaks in MB by kind of process."""
        self.figures: dict[str, dict[str, float | str]] = {}
        """By the stage's name: the last that it reported."""
        self._progress = progress
        self._interval_s = interval_s
        self._stage, self._since = "", 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sample()
        self._end()
        self._stopped.set()
        self._thread.join()

    def begin(self, stage: str) -> None:
        """A stage begins; the one before is over."""
        if self._stage:
            self._sample()
            self._end()
        self._since = time.perf_counter()
        self.stages[stage] = dict.fromkeys(("driver", "workers", "rest of Ray", "object store", "all"), 0.0)
        self._stage = stage
        self._sample()

    def start(self, label: str, total: int | None = None, unit: str = "") -> None:
        """See Progress. The label without the source's name names the stage."""
        self.begin(label.partition(" (")[0])
        self._progress.start(label, total, unit)

    def update(self, done: int, **figures: float | str) -> None:
        """See Progress."""
        self.figures[self._stage] = figures
        self._progress.update(done, **figures)

    def finish(self, **figures: float | str) -> None:
        """See Progress."""
        self._progress.finish(**figures)

    def _end(self) -> None:
        self.stages[self._stage]["seconds"] = time.perf_counter() - self._since

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        peaks = self.stages.get(self._stage)
        if peaks is None:
            return
        used = memory_mb()
        used["all"] = sum(used.values())
        for kind, value in used.items():
            peaks[kind] = max(peaks[kind], value)


def memory_mb() -> dict[str, float]:
    """MB by kind: this process, Ray's workers, its other processes, and the shared memory that they all map."""
    own = psutil.Process()
    used = {"driver": 0.0, "workers": 0.0, "rest of Ray": 0.0, "object store": 0.0}
    for process in (own, *own.children(recursive=True)):
        try:
            fields = dict(
                line.split(":", 1) for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
            )
            name = process.cmdline()[:1] if process.pid != own.pid else ["driver"]
        except (OSError, psutil.Error):
            continue  # it has ended
        pss, shared = (int(fields[key].split()[0]) / 1000 for key in ("Pss", "Pss_Shmem"))
        kind = "driver" if name == ["driver"] else "workers" if name and name[0].startswith("ray::") else "rest of Ray"
        used[kind] += pss - shared
        used["object store"] += shared
    return used


def _spilled_mb() -> float:
    """What this Ray session has written from its object store to disk so far."""
    import ray
    from ray._private import internal_api

    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return float(internal_api.get_memory_info_reply(state).store_stats.spilled_bytes_total) / 1e6


def _detector_rows(settings: BenchIngestJob, progress: Progress, session: Session) -> list[Row]:
    """Frames a second of the detector's stage with different numbers of workers."""
    chosen = settings.detector
    rows: list[Row] = []
    first: float | None = None
    for workers in chosen.workers:
        with tempfile.TemporaryDirectory(prefix="equihand-bench-") as folder, session():
            (Path(folder) / "videos").mkdir()
            for copy in range(chosen.copies):
                os.symlink(os.path.abspath(str(chosen.video)), f"{folder}/videos/{copy}.mp4")
            source = {
                "kind": "detected_video",
                "uri": f"{folder}/videos",
                "fps": chosen.fps,
                "detector": {"model": chosen.model},
            }
            ingest_settings = IngestSettings.model_validate({"source": source, "num_detectors": workers})
            with MemoryWatch(progress) as watch:
                ingest(ingest_settings, f"{folder}/frames", watch)
            speed = float(watch.figures["find hands"]["frames_per_s"])
        ratio = None if first is None else speed / first
        against = f"{chosen.workers[0]} workers" if first is not None else ""
        first = first or speed
        rows.append(row(f"detector, {workers} workers", speed, "frames/s", against, ratio))
    return rows


JOB = Job("bench ingest", BenchIngestJob, run, __doc__, ray=RaySettings(object_store_mb=400))
