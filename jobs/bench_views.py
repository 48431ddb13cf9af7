"""Frames per core-second from stored JPEGs to two views, against other libraries, and what travels to the device.

    python -m jobs.bench views [--frame_set URI]

Everything runs in one process with one thread of each library, in rounds one after the other, so that a busy machine
slows all alike; processor time is counted. Views are ready when they are normalised float32 batches. What the peers need is
listed in jobs/bench_peers.txt; one that is missing is left out and named.
"""

import io
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from PIL import Image
from pydantic import Field
from torchvision.io import decode_jpeg
from torchvision.transforms.functional import to_pil_image

from jobs import bench_peers
from jobs.bench_table import Row, row
from jobs.runtime import Job
from pipeline.config import Settings
from pipeline.errors import DataError
from pipeline.frames.batches import Batch, to_batch
from pipeline.frames.crop import encode_jpeg
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.read_items import decode_frames
from pipeline.frames.shards import row_groups
from pipeline.frames.synthetic.clip import ClipSettings, sample_clip
from pipeline.frames.synthetic.render import render_clip
from pipeline.progress import SILENT, Progress
from pipeline.views import ViewSettings, apply_views, cat_views, generator_for, sample_views

_UNIT = "frames/core-s"
_CLIP_FRAMES = 4  # of one rendered hand


class BenchViewsJob(Settings):
    """Settings of the measurement."""

    frame_set: str | None = None
    """Frame set whose JPEGs are taken (URI); none renders hands."""
    num_frames: int = Field(default=128, ge=1)
    """JPEGs, all of which each contender takes in every round."""
    crop_size: int = Field(default=160, ge=16, multiple_of=2)
    """Side of the rendered crops, pixels."""
    jpeg_quality: int = Field(default=92, ge=50, le=100)
    """Of the rendered crops."""
    batch_size: int = Field(default=64, ge=1)
    """Frames of a batch."""
    views: ViewSettings = ViewSettings()
    rounds: int = Field(default=7, ge=1)
    """Rounds; the middle one counts."""
    seed: int = Field(default=0, ge=0)
    """Of frames and views."""


def run(settings: BenchViewsJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the measurement; returns {"rows", "rates": {contender: frames a core-second in each round}, "versions"}."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        jpegs, size = _rendered(settings) if settings.frame_set is None else _stored(settings, settings.frame_set)
        contenders, missing = _contenders(settings, jpegs, size)
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        progress.start("measure", (settings.rounds + 1) * len(contenders), "passes")
        for number in range(settings.rounds + 1):
            for name, make in contenders.items():
                started = process_time()
                made = make()
                seconds = process_time() - started
                progress.advance(1)
                if number:  # the first round loads and compiles
                    rates[name].append(made / seconds)
        progress.finish()
    finally:
        torch.set_num_threads(threads)
    versions = {package: bench_peers.release(package) for package in ("torch", "simplejpeg", "numba", "pillow")}
    versions |= {package: bench_peers.release(package) for _, package in bench_peers.PEERS.values()}
    print("versions: " + ", ".join(f"{name} {number or 'not installed'}" for name, number in versions.items()))
    return {"rows": _rows(settings, rates, missing, jpegs, size), "rates": rates, "versions": versions}


def _contenders(
    settings: BenchViewsJob, jpegs: Sequence[bytes], size: int
) -> tuple[dict[str, Callable[[], int]], list[str]]:
    """What is measured, by name, each a pass over all JPEGs; and the peers that are not installed."""
    column = pa.chunked_array([pa.array(jpegs, pa.binary())])
    steps = count()

    def batches() -> list[Batch]:
        return [_decoded(column.slice(start, settings.batch_size), size) for start in _starts(settings, jpegs)]

    def both_views(views: ViewSettings) -> int:
        made = 0
        for start in _starts(settings, jpegs):
            frames = _decoded(column.slice(start, settings.batch_size), size).frames
            generator = generator_for(settings.seed, step=next(steps))
            drawn = [sample_views(views, len(frames), generator) for _ in range(2)]
            made += len(apply_views(frames, cat_views(*drawn), views)) // 2
        return made

    contenders: dict[str, Callable[[], int]] = {}
    missing = []
    for name, (make, _) in bench_peers.PEERS.items():
        try:
            sample = make(settings.views, size)
            sample(jpegs[0])
        except ImportError:
            missing.append(name)
            continue
        contenders[name] = _peer(sample, jpegs, settings.batch_size, normalised=True)
        contenders[f"{name}, bytes"] = _peer(sample, jpegs, settings.batch_size, normalised=False)
    plain = settings.views.model_copy(update={"compiled": False})
    contenders |= {
        "on the device": lambda: sum(batch.num_frames for batch in batches()),
        "on the CPU": lambda: both_views(settings.views),
        "on the CPU, torch": lambda: both_views(plain),
        "decode stage": lambda: len(decode_frames(column, size)[0]),
    }
    for name, decode in _decoders(size).items():
        contenders[f"decode {name}"] = lambda decode=decode: len([decode(jpeg) for jpeg in jpegs])  # type: ignore[misc]
    return contenders, missing


def _peer(sample: bench_peers.Sample, jpegs: Sequence[bytes], batch_size: int, normalised: bool) -> Callable[[], int]:
    """A pass over the JPEGs that gives the frames it made."""
    return lambda: sum(len(views[0]) for views in bench_peers.loader(sample, jpegs, batch_size, normalised))


def _starts(settings: BenchViewsJob, jpegs: Sequence[bytes]) -> range:
    return range(0, len(jpegs), settings.batch_size)


def _decoded(column: pa.ChunkedArray, size: int) -> Batch:
    """What the stream does to JPEGs on their way to a batch; blocks lie read-only in the object store in between."""
    frames, problems = decode_frames(column, size)
    if any(problems):
        raise DataError(f"a JPEG of the measurement {next(text for text in problems if text)}")
    frames.flags.writeable = False
    return to_batch({"frames": frames, "problem": np.array(problems, dtype=object)}, 0, 0, ())


def _decoders(size: int) -> dict[str, Callable[[bytes], object]]:
    """Bare decoders to RGB bytes, those that are installed."""
    buffer = np.empty((size, size, 3), dtype=np.uint8)
    decoders: dict[str, Callable[[bytes], object]] = {
        "simplejpeg": lambda jpeg: simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=buffer),
        "torchvision": lambda jpeg: decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)),
        "Pillow": lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")),
    }
    try:
        import cv2
    except ImportError:
        return decoders
    cv2.setNumThreads(1)
    return {**decoders, "OpenCV": lambda jpeg: cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)}


def _rows(
    settings: BenchViewsJob, rates: dict[str, list[float]], missing: Sequence[str], jpegs: Sequence[bytes], size: int
) -> list[Row]:
    def spread(name: str) -> str:
        return f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"

    def rate(name: str) -> float:
        return median(rates[name])

    def ratio(name: str, to: str) -> float:
        return median(ours / theirs for ours, theirs in zip(rates[name], rates[to], strict=True))

    view = settings.views.size
    rows = [
        row(
            f"two {view} px views: {name}",
            rate(name),
            _UNIT,
            f"{spread(name)}; left as bytes {rate(name + ', bytes'):,.0f}",
        )
        for name in bench_peers.PEERS
        if name in rates
    ]
    rows += [
        row(f"two {view} px views: {name}", None, _UNIT, "not installed, see jobs/bench_peers.txt") for name in missing
    ]
    installed = [name for name in bench_peers.PEERS if name in rates]
    ours = {
        "decode + collate, views made on the device": ("on the device", ">= 6"),
        "two views ready on the CPU": ("on the CPU", ">= 2.5"),
        "the same by torch, views.compiled false": ("on the CPU, torch", ""),
    }
    for what, (name, target) in ours.items():
        if not installed:
            rows.append(row(what, rate(name), _UNIT, f"{spread(name)}; no peer is installed", None, target))
            continue
        best = max(installed, key=rate)
        of_bytes = max((f"{peer}, bytes" for peer in installed), key=rate)
        against = f"{best} ({spread(name)}; {ratio(name, of_bytes):.2f} times {of_bytes})"
        rows.append(row(what, rate(name), _UNIT, against, ratio(name, best), target))
    decoders = [name for name in rates if name.startswith("decode ") and name != "decode stage"]
    rows += [row(f"bare {name}", rate(name), _UNIT, spread(name)) for name in decoders]
    fastest = max(decoders, key=rate)
    rows.append(
        row(
            "decode stage of the stream",
            rate("decode stage"),
            _UNIT,
            f"bare {fastest} ({spread('decode stage')})",
            ratio("decode stage", fastest),
            ">= 0.85",
        )
    )
    stored, pixels = float(np.mean([len(jpeg) for jpeg in jpegs])), float(size * size * 3)
    rows += [
        row("stored and read", stored / 1000, "kB a frame", f"JPEG, {size} px"),
        row("host to device, views made there", pixels / 1000, "kB a frame", "bytes"),
        row("host to device, views made by a peer", 2 * 4 * 3 * view**2 / 1000, "kB a frame", "two float32 views"),
    ]
    return rows


def _rendered(settings: BenchViewsJob) -> tuple[list[bytes], int]:
    """JPEGs of rendered hands, and their side."""
    clips = ClipSettings(
        frames_per_clip=_CLIP_FRAMES, fps=2.0, image_size=settings.crop_size, seed=settings.seed, shadows=False
    )
    num_clips = -(-settings.num_frames // _CLIP_FRAMES)
    frames = torch.cat([render_clip(sample_clip(clips, index)) for index in range(num_clips)])
    jpegs = [encode_jpeg(to_pil_image(frame), settings.jpeg_quality) for frame in frames[: settings.num_frames]]
    return jpegs, settings.crop_size


def _stored(settings: BenchViewsJob, uri: str) -> tuple[list[bytes], int]:
    """The first JPEGs of a frame set, and their side."""
    frame_set = FrameSet.open(uri)
    jpegs: list[bytes] = []
    for shard in frame_set.manifest.shards:
        for table in row_groups(frame_set.shard_uri(shard), ["jpeg"]):
            jpegs += table["jpeg"].to_pylist()
        if len(jpegs) >= settings.num_frames:
            break
    if not jpegs:
        raise DataError(f"{uri}: the frame set is empty")
    return jpegs[: settings.num_frames], frame_set.manifest.image_size


JOB = Job("bench views", BenchViewsJob, run, __doc__, ray=None)
