"""Peak memory and time of one contrastive step against batch size, with and without gradient caching.

    python -m jobs.bench contrast

Each measurement runs in a process of its own. On a CPU the memory is what the process holds at most above what it held
before the step (sampled resident set), and the time is the processor's, which other programs do not lengthen; on a GPU
the memory is what torch allocated at most, and the time the clock's. Prints a Markdown table.
"""

import multiprocessing
import threading
import time
from functools import partial
from typing import Any

import psutil
import torch
from pydantic import Field

from jobs.runtime import Job
from pipeline.config import Settings
from pipeline.frames.stream import Batch
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.objectives import ObjectiveSettings
from pipeline.progress import SILENT, Progress
from pipeline.training.contrast import make_pairs, step_loss
from pipeline.training.distributed import bf16_pays
from pipeline.training.grad_cache import backward, cut
from pipeline.views import ViewSettings, generator_for

_SAMPLE_S = 0.005


class BenchContrastJob(Settings):
    """Settings of the measurement."""

    batch_sizes: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    """Frames a step."""
    micro_batch: int = Field(default=64, ge=2)
    """Frames that pass through the network at a time where gradients are cached."""
    max_logits_rows: int = Field(default=256, ge=1)
    """Anchors whose similarities are held at a time where they are computed in chunks."""
    whole_up_to: int = Field(default=2048, ge=2)
    """Largest batch that is also tried in one pass; more may not fit."""
    crop_size: int = Field(default=80, ge=16)
    """Side of the stored crops, pixels."""
    views: ViewSettings = ViewSettings(size=64)
    encoder: EncoderSettings = EncoderSettings(width=16)
    projection: ProjectionSettings = ProjectionSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    threads: int = Field(default=1, ge=1)
    """torch CPU threads."""
    seed: int = 0
    """Of weights, pictures and views."""


def run(settings: BenchContrastJob, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the measurements; returns {"device", "steps": [{batch_size, micro_batch, max_logits_rows, peak_mib, seconds}]}."""
    cases = [
        (size, micro, logits)
        for size in settings.batch_sizes
        for micro, logits in _ways(settings)
        if micro is not None or size <= settings.whole_up_to
    ]
    rows: list[dict[str, Any]] = []
    progress.start("measure", len(cases), "steps")
    for size, micro, logits in cases:
        # A process that is not reused: an allocator keeps what it once had.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (settings, size, micro, logits)))
        progress.advance(1)
    progress.finish()
    print(table(rows, settings))
    return {"device": "cuda" if torch.cuda.is_available() else "cpu", "steps": rows}


def measure(
    settings: BenchContrastJob, batch_size: int, micro_batch: int | None, max_logits_rows: int | None
) -> dict[str, Any]:
    """One step in this process, after a small one that loads the libraries."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = settings.objective.model_copy(update={"max_logits_rows": max_logits_rows})
    model = PretrainModel(settings.encoder, settings.projection, objective)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=bf16_pays(device))

    def step(count: int) -> None:
        shape = (count, 3, settings.crop_size, settings.crop_size)
        batch = Batch(0, 0, torch.randint(0, 256, shape, dtype=torch.uint8), {})
        pairs = make_pairs(batch, objective, settings.views, generator_for(settings.seed), device)
        backward(
            model,
            pairs.render,
            lambda outputs: step_loss(outputs, pairs, objective),
            cut(count, micro_batch),
            autocast,
        )
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step(4)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    peak = _peak_memory(partial(step, batch_size), device)
    seconds = clock() - started
    return {
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "max_logits_rows": max_logits_rows,
        "peak_mib": round(peak / 2**20),
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]], settings: BenchContrastJob) -> str:
    """Markdown: a line for each batch size."""
    cached = f"micro-batches of {settings.micro_batch}"
    lines = [
        f"| frames | views | one pass, MiB | s | {cached}, MiB | s | and {settings.max_logits_rows} rows of logits, MiB | s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    found = {(row["batch_size"], row["micro_batch"], row["max_logits_rows"]): row for row in rows}
    for size in settings.batch_sizes:
        measured = [found.get((size, *way)) for way in _ways(settings)]
        cells = [f"{row['peak_mib']:,} | {row['seconds']:.1f}" if row else "- | -" for row in measured]
        lines.append(f"| {size:,} | {2 * size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ways(settings: BenchContrastJob) -> list[tuple[int | None, int | None]]:
    """(micro_batch, max_logits_rows) that are compared."""
    return [(None, None), (settings.micro_batch, None), (settings.micro_batch, settings.max_logits_rows)]


def _peak_memory(action: Any, device: torch.device) -> int:
    """Bytes held at most while `action` runs, above what was held before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        return torch.cuda.max_memory_allocated() - before
    process, stop = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not stop.wait(_SAMPLE_S):
            peak = max(peak, process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        action()
    finally:
        stop.set()
        sampler.join()
    return peak - before


JOB = Job("bench contrast", BenchContrastJob, run, __doc__, ray=None)
