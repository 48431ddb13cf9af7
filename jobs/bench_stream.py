"""The stream: training with it against training on one batch kept in memory, object storage against disk, the start of a
job, an epoch's end, and how many bytes a frame is on its way.

    python -m jobs.bench stream [--parts "[training, start]"]

What is compared is measured in turns, round by round, and the ratios are medians over the rounds.
"""

import contextlib
import itertools
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from pydantic import Field

from jobs.bench_frames import write_frames
from jobs.bench_table import Row, row
from jobs.object_store import ObjectStore
from jobs.runtime import Job, RaySettings, Session, ray_session
from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.frames.batches import Batch
from pipeline.frames.epoch_plan import StreamPlan, plan_epoch
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.read_items import ItemReader
from pipeline.models.pretrain import PretrainModel
from pipeline.progress import SILENT, Progress
from pipeline.storage import copy_tree, join
from pipeline.training.optim import build_optimiser
from pipeline.training.pretrain import Steps
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.training.supply import one_ahead
from pipeline.training.worker import Worker

Part = Literal["training", "training_storage", "storage", "epochs", "bytes", "start"]
_IMAGE_BYTES = 3 * 160**2
_STARTS = 4


class BenchStreamJob(Settings):
    """What is measured, and for how long."""

    parts: list[Part] = ["training", "training_storage", "storage", "epochs", "bytes", "start"]
    """Which measurements to make."""
    num_rows: int = Field(default=16_384, ge=1024)
    """Frames of the set that is streamed, 160 px."""
    batch_size: int = Field(default=32, ge=2)
    """Frames of a training step."""
    steps: int = Field(default=16, ge=2)
    """Training steps of one turn; with the batch size, a multiple of 512 frames."""
    rounds: int = Field(default=4, ge=1)
    """Turns of each kind."""
    threads: int | None = Field(default=None, ge=1)
    """torch CPU threads of the training; none takes all cores."""


def run(settings: BenchStreamJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Measure; returns {"rows"} (see bench_table.py)."""
    measures: dict[Part, Callable[[BenchStreamJob, str, str], list[Row]]] = {
        "training": _training,
        "training_storage": _training_storage,
        "storage": _storage,
        "epochs": _epochs,
        "bytes": _bytes,
        "start": _start,
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ObjectStore(join(folder, "store")) as store:
        local, remote = join(folder, "frames"), join(store.uri, "frames")
        write_frames(local, settings.num_rows)
        copy_tree(local, remote)
        with session():
            progress.start("stream", len(settings.parts), "parts")
            for done, part in enumerate(settings.parts):
                progress.update(done, now=part)
                rows += measures[part](settings, local, remote)
            progress.update(len(settings.parts))
            progress.finish()
    return {"rows": rows}


def _training(settings: BenchStreamJob, local: str, remote: str) -> list[Row]:
    """Turns of training steps on one batch in memory, and on the stream from disk."""
    with _endless(settings, local) as stream:
        kept, rate, ratio, work = _turns(settings, itertools.repeat(next(stream)), stream)
    what = f"training on the stream, ResNet-18, 128 px, batches of {settings.batch_size}"
    return [
        row(what, rate, "frames/s", f"one batch in memory: {kept:.1f}", ratio, ">= 0.95"),
        row("the same by CPU time of all processes, Ray's too", work, "", "one batch in memory: 1", work, ">= 0.95"),
    ]


def _training_storage(settings: BenchStreamJob, local: str, remote: str) -> list[Row]:
    """Turns of training steps on the stream from disk and from object storage."""
    with _endless(settings, local) as from_disk, _endless(settings, remote) as from_storage:
        disk, rate, ratio, _ = _turns(settings, from_disk, from_storage)
    return [row("the same from s3:// (loopback server)", rate, "frames/s", f"disk: {disk:.1f}", ratio, ">= 0.90")]


def _turns(settings: BenchStreamJob, one: Iterator[Batch], other: Iterator[Batch]) -> tuple[float, float, float, float]:
    """Frames per second of training on each of two sources of batches, the second rate over the first, and the same of
    frames per CPU second, which other work of the machine does not change."""
    torch.set_num_threads(settings.threads or usable_cores())
    torch.manual_seed(0)
    job = PretrainRecipe(frame_set="", batch_size=settings.batch_size, epochs=10_000)
    model = PretrainModel(job.encoder, job.projection, job.objective).train().to(memory_format=torch.channels_last)
    epoch_steps = settings.num_rows // settings.batch_size
    steps = Steps(model, build_optimiser(model, job.optimiser), job, Worker(), steps_per_epoch=epoch_steps)
    for source in (one, other):
        for _ in range(2):
            steps.run(next(source), 0.0)
    seconds: list[list[float]] = [[], []]
    work: list[list[float]] = [[], []]
    for number in range(settings.rounds):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            source = (one, other)[index]
            started, worked = time.perf_counter(), _cpu_seconds()
            for _ in range(settings.steps):
                steps.run(next(source), 0.0)
            seconds[index].append(time.perf_counter() - started)
            work[index].append(_cpu_seconds() - worked)
            time.sleep(0.5)
    frames = settings.steps * settings.batch_size
    rates = [frames / statistics.median(each) for each in seconds]
    ratio, worked_ratio = (statistics.median(a / b for a, b in zip(*each, strict=True)) for each in (seconds, work))
    return rates[0], rates[1], ratio, worked_ratio


def _cpu_seconds() -> float:
    """CPU time so far of this process and all that it started; a local Ray is among them."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _endless(settings: BenchStreamJob, uri: str) -> AbstractContextManager[Iterator[Batch]]:
    # A turn consumes whole windows and reads as many, so that no turn is charged for another one's reading.
    window_mb = max(16, settings.steps * settings.batch_size * _IMAGE_BYTES // 2**20)
    plan = StreamPlan(split="train", batch_size=settings.batch_size, epochs=10_000, window_mb=window_mb, num_readers=1)
    return one_ahead(iter(FrameSet.open(uri).stream(plan)), torch.device("cpu"))


def _storage(settings: BenchStreamJob, local: str, remote: str) -> list[Row]:
    """An epoch of the stream alone, from disk and from object storage, in turns."""
    seconds: dict[str, list[float]] = {local: [], remote: []}
    first: dict[str, list[float]] = {local: [], remote: []}
    for number in range(settings.rounds + 1):
        for uri in (local, remote):
            started = time.perf_counter()
            stream = iter(FrameSet.open(uri).stream(StreamPlan(split="train", batch_size=128)))
            next(stream)
            arrived = time.perf_counter()
            for _ in stream:
                pass
            if number:  # the first turns start the reading processes
                first[uri].append(arrived - started)
                seconds[uri].append(time.perf_counter() - started)
    rate = {uri: settings.num_rows / statistics.median(values) for uri, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds[local], seconds[remote], strict=True))
    early = {uri: 1000 * statistics.median(values) for uri, values in first.items()}
    return [
        row(
            "stream alone from s3:// (loopback server)",
            rate[remote],
            "frames/s",
            f"disk: {rate[local]:,.0f}",
            ratio,
            ">= 0.90",
        ),
        row("first batch of a stream, Ray running", early[local], "ms", f"from s3://: {early[remote]:.0f} ms"),
    ]


def _epochs(settings: BenchStreamJob, local: str, remote: str) -> list[Row]:
    """Waiting for batches at a steady pace: the first ones of an epoch against the others."""
    waits: dict[bool, list[float]] = {True: [], False: []}
    manifest = FrameSet.open(local).manifest
    small = manifest.model_copy(
        update={
            "shards": [manifest.shards[0].model_copy(update={"row_groups": manifest.shards[0].row_groups[:8]})],
            "counts": {"bench": {"train": 2048}},
        }
    )
    plan = StreamPlan(split="train", batch_size=32, epochs=8, num_readers=1)
    with one_ahead(iter(FrameSet(local, small).stream(plan)), torch.device("cpu")) as batches:
        for number in itertools.count():
            started = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            if number > 64:
                waits[batch.step == 0].append(1000 * (time.perf_counter() - started))
            time.sleep(0.05)
    others = statistics.median(waits[False])
    worst = max(waits[False])
    return [
        row(
            "wait for an epoch's first batch, 640 frames/s",
            statistics.median(waits[True]),
            "ms",
            f"other batches: {others:.2g} ms, at most {worst:.2g} ms",
        )
    ]


def _bytes(settings: BenchStreamJob, local: str, remote: str) -> list[Row]:
    """Bytes a frame: through the network device, in the object store, to the device; and in storage."""
    frame_set, plan = FrameSet.open(remote), StreamPlan(split="train", batch_size=32)
    manifest = frame_set.manifest
    reader = ItemReader(manifest.image_size, plan)
    items = plan_epoch([frame_set], [frame_set.rows_in("train")], plan, 0)
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_recv
    blocks = [reader({"item": [pickle.dumps(item)]}) for item in items[:16]]  # type: ignore[dict-item]
    received = psutil.net_io_counters(pernic=True)["lo"].bytes_recv - before
    num = sum(len(block) for block in blocks)
    stored = sum(shard.num_bytes for shard in manifest.shards) / manifest.num_rows
    batch = next(iter(FrameSet.open(local).stream(plan)))
    return [
        row("bytes a frame from object storage", received / num, "B", f"stored with its labels: {stored:,.0f} B"),
        row(
            "bytes a frame in Ray's object store",
            sum(block.nbytes for block in blocks) / num,
            "B",
            f"decoded, uint8: {_IMAGE_BYTES:,} B",
        ),
        row(
            "bytes a frame from host to device",
            batch.frames.numel() * batch.frames.element_size() / len(batch.frames),
            "B",
            f"{str(batch.frames.dtype).removeprefix('torch.')}; two float32 views of 128 px: {2 * 3 * 128**2 * 4:,} B",
        ),
    ]


def _start(settings: BenchStreamJob, local: str, remote: str) -> list[Row]:
    """Start jobs.pretrain on the running Ray, and look when what was done."""
    import ray

    address = ray.get_runtime_context().gcs_address
    parts: list[dict[str, float]] = []
    for number in range(_STARTS):
        with tempfile.TemporaryDirectory() as folder:
            parts.append(_start_once(local, folder, address, str(number)))
    warm = sorted(parts[1:], key=lambda each: each["total"])  # the first one starts Ray's processes
    middle = warm[len(warm) // 2]
    text = ", ".join(f"{name} {seconds:.1f}" for name, seconds in middle.items() if name != "total")
    text += f"; three starts: {', '.join(format(each['total'], '.1f') for each in warm)}"
    return [
        row("from starting jobs.pretrain to its first optimiser step", middle["total"], "s", text, None, "< 15 s"),
        row("the same for the first job of that Ray", parts[0]["total"], "s"),
    ]


def _start_once(frames: str, folder: str, address: str, name: str) -> dict[str, float]:
    command = [
        *(sys.executable, "-m", "jobs.pretrain"),
        *("--frame_set", frames, "--epochs", "1", "--batch_size", "32", "--num_readers", "1"),
        *("--run.storage", folder, "--run.run_id", name, "--tracking.uri", f"sqlite:///{folder}/mlflow.db"),
        *("--ray.address", address, "--log_every", "1", "--workers.threads", str(usable_cores())),
    ]
    marks = Path(folder, name, "startup.json")
    started = time.time()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert job.stdout is not None
    printed = job.stdout.readline()
    read = time.time()
    try:
        while not marks.exists():
            if job.poll() is not None:
                raise RuntimeError(f"jobs.pretrain ended early: {printed}{job.stdout.read()[-2000:]}")
            time.sleep(0.1)
        found = json.loads(marks.read_text())
    finally:
        job.terminate()
        job.communicate()
    begun, seconds = found["started_at"], found["seconds"]
    return {
        "imports": read - started,
        "Ray and checks": begun - read,
        "workers": seconds["workers"],
        "model": seconds["model"] - seconds["workers"],
        "first batch": seconds["first_batch"] - seconds["model"],
        "first step": seconds["first_step"] - seconds["first_batch"],
        "total": begun + seconds["first_step"] - started,
    }


JOB = Job("bench stream", BenchStreamJob, run, __doc__, ray=RaySettings(object_store_mb=1024))
