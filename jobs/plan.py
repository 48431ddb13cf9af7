"""What a pretraining takes: hours, GPU-hours, storage and network, from measured rates.

    python -m jobs.plan --frames 2000000 --epochs 100 --machine xeon-amx --number 2 --encoder.name resnet18 --encoder.width 32
    python -m jobs.plan --frames 2000000 --measure true --number 2      # measures a short training here first, and plans from that

Every figure says whether it was measured, or from what and how far it was extrapolated.
"""

import datetime
import math
from typing import Any

import torch
import yaml
from pydantic import Field

from jobs.plan_model import Figure, Wanted, plan
from jobs.plan_rates import Rate, of_machine, read_rates
from jobs.runtime import Job, Session, ray_session, run_job
from jobs.timed_pretrain import timed_pretrain
from pipeline.config import Settings
from pipeline.cores import usable_cores
from pipeline.errors import SettingsError
from pipeline.models.encoder import EncoderSettings
from pipeline.progress import SILENT, Progress
from pipeline.ray_cluster import is_fixed
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.views import ViewSettings

_MOST_ROWS = 8192
_LEFT_OUT = "Not in it: nodes that are waited for, the start of Ray itself, probes, and what is lost with a node."


class PlanSettings(Settings):
    """Settings of the job."""

    frames: int = Field(ge=1)
    """Frames of the split to train on."""
    epochs: int = Field(default=100, ge=1)
    """Passes over them."""
    encoder: EncoderSettings = EncoderSettings()
    view_size: int = Field(default=ViewSettings().size, ge=32)
    """Side of a view, pixels."""
    batch_size: int = Field(default=128, ge=2)
    """Frames of each worker's step."""
    machine: str | None = None
    """Kind of machine, as the table of measured rates calls it. none only with `measure`."""
    number: int = Field(default=1, ge=1)
    """Workers: one for each GPU, or, on machines without, one for each CPU core (`workers.threads 1`)."""
    cores_per_gpu: int = Field(default=8, ge=1)
    """CPU cores beside each GPU, that read and decode."""
    image_size: int = Field(default=160, ge=32)
    """Side of the stored frames, pixels."""
    keep: int = Field(default=3, ge=1)
    """Best checkpoints that are kept (`checkpoint.keep`)."""
    rates: str | None = None
    """YAML file with measured rows of your own, in the form of jobs/plan_rates.yaml."""
    measure: bool = False
    """Whether to measure a short training on this machine first, with as many workers, on frames made for it. Its row is
    printed, for `rates`."""
    measure_steps: int = Field(default=60, ge=20)
    """Steps of that training."""


def run(settings: PlanSettings, progress: Progress = SILENT, session: Session = ray_session) -> dict[str, Any]:
    """Run the job; {"figures": {name: {"value", "unit", "basis"}}, "measured": the row that was measured, or None}.

    Raises SettingsError where the frames make no step, EquihandError where nothing was measured on that machine.
    """
    wanted = Wanted(
        frames=settings.frames,
        epochs=settings.epochs,
        encoder=settings.encoder,
        view_size=settings.view_size,
        batch_size=settings.batch_size,
        number=settings.number,
        image_size=settings.image_size,
        cores=settings.cores_per_gpu,
        keep=settings.keep,
    )
    if wanted.num_steps == 0:
        raise SettingsError(
            f"setting 'frames' = {settings.frames}: {settings.number} workers with batch_size = {settings.batch_size} need "
            f"{settings.number * settings.batch_size} for one step; give more frames, or a smaller batch_size"
        )
    rates = read_rates(settings.rates)
    measured = None
    if settings.measure:
        progress.start("measure", None)
        with session():
            measured = measure(settings)
        progress.finish()
        print(f"measured:\n{_as_yaml(measured)}")
        trained = [measured]
    elif settings.machine is None:
        raise SettingsError("setting 'machine' is required: the kind of machine, or --measure true to measure this one")
    else:
        trained = of_machine(rates, settings.machine)
    figures = plan(wanted, trained, rates)
    print(table(figures), flush=True)
    return {
        "figures": {each.name: {"value": each.value, "unit": each.unit, "basis": each.basis} for each in figures},
        "measured": None if measured is None else measured.model_dump(mode="json", exclude_none=True),
    }


def measure(settings: PlanSettings) -> Rate:
    """The rate of a short real training here. Needs a running Ray of this machine; raises SettingsError on a cluster, whose nodes
    would not see the frames made for it."""
    if not is_fixed():
        raise SettingsError(
            "setting 'measure' = true: measures this machine, on a Ray of its own; leave out ray.address and RAY_ADDRESS"
        )
    a_step = settings.number * settings.batch_size
    rows = a_step * max(1, min(settings.frames, _MOST_ROWS, settings.measure_steps * a_step) // a_step)
    recipe = PretrainRecipe(
        frame_set="made",
        epochs=math.ceil(settings.measure_steps * a_step / rows),
        batch_size=settings.batch_size,
        encoder=settings.encoder,
        views=ViewSettings(size=settings.view_size),
    )
    timed = timed_pretrain(recipe, rows, settings.image_size, settings.number)
    device, unit = _this_machine()
    command = (
        f"python -m jobs.plan --measure true --number {settings.number} --encoder.name {settings.encoder.name} "
        f"--encoder.width {settings.encoder.width} --view_size {settings.view_size} --batch_size {settings.batch_size} "
        f"--image_size {settings.image_size} --frames {settings.frames}"
    )
    return Rate.model_validate(
        {
            "kind": "pretrain",
            "figure": round(timed.frames_per_s, 1),
            "machine": settings.machine or "this-machine",
            "device": device,
            "date": datetime.datetime.now(datetime.UTC).date(),
            "command": command,
            "num_workers": settings.number,
            "unit": unit,
            "encoder": settings.encoder,
            "view_size": settings.view_size,
            "batch_size": settings.batch_size,
            "image_size": settings.image_size,
            "around_s": round(timed.around_s, 1),
        }
    )


def table(figures: list[Figure]) -> str:
    """Markdown, and below it where the measured rates come from."""
    lines = ["| | planned | | basis |", "| --- | ---: | --- | --- |"]
    lines += [f"| {each.name} | {_shown(each.value)} | {each.unit} | {each.basis} |" for each in figures]
    sources = dict.fromkeys(f"* {rate.machine}: {rate.source}" for each in figures for rate in each.rates)
    return "\n".join([*lines, "", *sources, "", _LEFT_OUT])


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _this_machine() -> tuple[str, str]:
    """In words, and what a worker has of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), "gpu"
    return _processor(), "core"


def _processor() -> str:
    import platform
    from contextlib import suppress
    from pathlib import Path

    name = platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {usable_cores()} cores"


def _as_yaml(row: Rate) -> str:
    return yaml.safe_dump([row.model_dump(mode="json", exclude_none=True)], sort_keys=False, width=120)


JOB = Job("plan", PlanSettings, run, __doc__)

if __name__ == "__main__":
    run_job(JOB)
