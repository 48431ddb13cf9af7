"""Pretraining as a whole against its network alone: the bare network's forward and backward pass, training steps with
views, loss and optimiser, the job `jobs.pretrain` with its stream, Ray and the exchange of gradients, and, for
comparison, plain scripts with other libraries' views in torch's DataLoader.

    python -m jobs.bench train [--num_workers 2] [--batch_size 64]

Every process has one torch thread and the same share of the frames, and all of them work at the same time, each on a GPU of its
own where there are GPUs. The bare network is measured before and after the job, and the ratio is to the mean of both.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from jobs.bench_frames import different_jpegs
from jobs.bench_peers import PEERS, loader, release
from jobs.bench_table import Row, row
from jobs.runtime import Job, RaySettings, Session, ray_session
from jobs.timed_pretrain import timed_pretrain
from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.errors import SettingsError
from pipeline.frames.batches import Batch
from pipeline.models.cost import wait_for
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel
from pipeline.progress import SILENT, Progress
from pipeline.training.allocator import keep_freed_memory
from pipeline.training.distributed import bf16_pays
from pipeline.training.optim import build_optimiser
from pipeline.training.pretrain import Steps
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.training.worker import Worker, place
from pipeline.views import ViewSettings

_WARM_STEPS = 3


class BenchTrainJob(Settings):
    """What is measured, and for how long."""

    encoder: EncoderSettings = EncoderSettings(width=32)
    """The network."""
    view_size: int = Field(default=64, ge=32)
    """Side of a view, pixels."""
    image_size: int = Field(default=96, ge=32)
    """Side of the stored crops, pixels."""
    batch_size: int = Field(default=64, ge=2)
    """Frames of a worker's step; twice as many views."""
    num_workers: int = Field(default=2, ge=1)
    """Training processes, and processes of the bare network at the same time."""
    seconds: float = Field(default=15.0, gt=0)
    """Of each measurement without a job."""
    job_frames: int = Field(default=40_000, ge=1)
    """Frames that the job trains on."""


def run(settings: BenchTrainJob, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Measure; returns {"rows"} (see bench_table.py)."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < settings.num_workers:
        raise SettingsError(
            f"setting 'num_workers' = {settings.num_workers}: each takes a GPU, and this machine has {gpus}"
        )
    jpegs = different_jpegs(settings.image_size)
    progress.start("train", 4 + len(PEERS), "parts")
    before = _everywhere(_bare, settings)
    progress.advance(now="steps")
    steps = _everywhere(_steps, settings)
    progress.advance(now="job")
    job = _job(settings, session)
    progress.advance(now="network")
    after = _everywhere(_bare, settings)
    bare = (before + after) / 2
    progress.advance(now="peers")
    against = f"bare: {bare:.0f}"
    what = f"{settings.num_workers} x {settings.encoder.name}, width {settings.encoder.width}, {settings.view_size} px"
    rows = [
        row(
            f"{what}: network alone, forward and backward",
            bare,
            "frames/s",
            f"{_precision()}; before the job {before:.0f}, after it {after:.0f}",
        ),
        row("views, loss and optimiser too, a batch in memory", steps, "frames/s", against, steps / bare),
        row("the job jobs.pretrain", job, "frames/s", against, job / bare, ">= 0.95"),
    ]
    for name, (make, package) in PEERS.items():
        rows.append(_peer(settings, name, make, package, jpegs, bare))
        progress.advance()
    progress.finish()
    return {"rows": rows}


def _everywhere(measured: Callable[..., float], settings: BenchTrainJob) -> float:
    """The sum over processes that measure at the same time; new ones, as `_steps` changes what its process does with memory."""
    with ProcessPoolExecutor(settings.num_workers, mp_context=get_context("spawn")) as pool:
        for seconds in (0.1, settings.seconds):  # first the processes start
            rates = list(pool.map(partial(measured, settings, seconds), range(settings.num_workers)))
    return sum(rates)


def _device(worker: int = 0) -> torch.device:
    return torch.device("cuda", worker) if torch.cuda.is_available() else torch.device("cpu")


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device))


def _precision() -> str:
    device = _device()
    where = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return ("bf16" if bf16_pays(device) else "float32") + where


def _recipe(settings: BenchTrainJob) -> PretrainRecipe:
    return PretrainRecipe(
        frame_set="memory",
        epochs=1_000_000,
        batch_size=settings.batch_size,
        encoder=settings.encoder,
        views=ViewSettings(size=settings.view_size),
        log_every=1_000_000,
    )


def _bare(settings: BenchTrainJob, seconds: float, worker: int) -> float:
    """Frames a second of the encoder's forward and backward pass, in this process."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # as the job has it
    device = _device(worker)
    encoder = PretrainModel(settings.encoder, _recipe(settings).projection).encoder.train()
    encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(2 * settings.batch_size, 3, settings.view_size, settings.view_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with _autocast(device):
            features = encoder(images)
        encoder.zero_grad(set_to_none=True)
        features.float().square().mean().backward()

    return _rate(step, settings.batch_size, seconds, device)


def _steps(settings: BenchTrainJob, seconds: float, worker: int) -> float:
    """Frames a second of whole optimiser steps on one batch that stays in memory, in this process."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    device, recipe = _device(worker), _recipe(settings)
    keep_freed_memory(device)  # as the job's workers do
    model = PretrainModel(recipe.encoder, recipe.projection, recipe.objective).train()
    place(model, device)
    optimiser = build_optimiser(model, recipe.optimiser)
    steps = Steps(model, optimiser, recipe, Worker(device=device), steps_per_epoch=1_000_000)
    side = settings.image_size
    frames = torch.randint(0, 256, (settings.batch_size, 3, side, side), dtype=torch.uint8)
    batch = Batch(0, 0, frames.contiguous(memory_format=torch.channels_last), {})
    return _rate(lambda: steps.run(batch, 0.0), settings.batch_size, seconds, device)


def _rate(step: Callable[[], None], frames: int, seconds: float, device: torch.device) -> float:
    """A GPU is waited for every ten steps, as the job does where it logs."""
    for _ in range(_WARM_STEPS):
        step()
    wait_for(device)
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        for _ in range(10 if device.type == "cuda" else 1):
            step()
            done += frames
        wait_for(device)
    return done / spent


def _job(settings: BenchTrainJob, session: Session) -> float:
    """Frames a second of jobs.pretrain in the middle of its work."""
    rows = max(8 * settings.batch_size * settings.num_workers, min(settings.job_frames, 8192))
    recipe = _recipe(settings).model_copy(update={"epochs": max(1, round(settings.job_frames / rows))})
    with session():
        return timed_pretrain(recipe, rows, settings.image_size, settings.num_workers).frames_per_s


def _peer(
    settings: BenchTrainJob, name: str, make: Callable[..., Any], package: str, jpegs: list[bytes], bare: float
) -> Row:
    """A plain script: the library's views in a DataLoader with as many processes as we have workers (beside one GPU, as the
    machine has cores), the same network, projection and loss, AdamW."""
    what = f"a plain script with {name}"
    version = release(package)
    if not version:
        return row(what, None, "frames/s", f"{package} is not installed")
    torch.set_num_threads(settings.num_workers)
    device, recipe = _device(), _recipe(settings)
    processes = settings.num_workers if device.type == "cpu" else usable_cores()
    model = PretrainModel(recipe.encoder, recipe.projection).train()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    sample = make(recipe.views, settings.image_size)
    batches = _endless(lambda: loader(sample, jpegs, settings.batch_size, normalised=True, processes=processes))

    def step() -> None:
        first, second = next(batches)
        images = torch.cat([first, second]).to(device).contiguous(memory_format=torch.channels_last)
        with _autocast(device):
            projections = model(images)["projections"]
        loss = nt_xent(F.normalize(projections.float().transpose(0, 1).flatten(0, 1), dim=1))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    rate = _rate(step, settings.batch_size, settings.seconds, device)
    return row(what, rate, "frames/s", f"{package} {version}", rate / bare)


def _endless(passes: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    while True:
        yield from passes()


def nt_xent(latents: Tensor, temperature: float = 0.5) -> Tensor:
    """The loss as tutorials write it: latents (2N, D), unit vectors, row i and i + N being a pair."""
    logits = (latents @ latents.T / temperature).fill_diagonal_(-torch.inf)
    count = len(latents) // 2
    return F.cross_entropy(logits, torch.arange(2 * count, device=logits.device).roll(count))


JOB = Job("bench train", BenchTrainJob, run, __doc__, ray=RaySettings(num_cpus=4, object_store_mb=512))
