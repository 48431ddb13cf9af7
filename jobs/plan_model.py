"""What a pretraining takes, from rates that were measured: a rate grows with the workers, and falls with the work of a frame.

The work of a frame is the floating-point operations of its views through the network. Data come no faster than the cores decode. Every
figure says what it rests on.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.plan_rates import Rate
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel, ProjectionSettings

_STATES = 2  # of an optimiser such as AdamW, for each weight
_NEWEST = 2  # checkpoints that are kept besides the best
_FLOAT = 4


class Wanted(NamedTuple):
    """What is planned."""

    frames: int
    epochs: int
    encoder: EncoderSettings
    view_size: int
    batch_size: int
    """Frames of each worker's step."""
    number: int
    """Workers: GPUs, or CPU cores."""
    image_size: int
    cores: int
    """Cores beside each GPU, that read and decode for it."""
    keep: int
    """Best checkpoints that are kept."""

    @property
    def num_steps(self) -> int:
        """Of an epoch."""
        return self.frames // (self.number * self.batch_size)


class Figure(NamedTuple):
    """One line of a plan."""

    name: str
    value: float
    unit: str
    basis: str
    """"measured", "extrapolated" or "calculated", and from what."""
    rates: tuple[Rate, ...] = ()
    """Those that it rests on."""


def plan(wanted: Wanted, trained: Sequence[Rate], others: Sequence[Rate]) -> list[Figure]:
    """The figures. trained: trainings on that machine, at least one. others: rows of any kind and machine. wanted: at least one step."""
    row, work = _nearest(wanted, trained)
    training, supply = _compute(wanted, row, work), _supply(wanted, row, others)
    if supply is not None and supply.value < training.value:
        basis = f"bound by the data: {supply.basis}; the network would take {training.value:,.0f}"
        training = training._replace(value=supply.value, basis=basis, rates=training.rates + supply.rates)
    around, frame = _around(row, others), _frame(wanted, others)
    used = wanted.num_steps * wanted.number * wanted.batch_size
    hours = (wanted.epochs * used / training.value + around.value) / 3600
    what = "GPU" if row.unit == "gpu" else "core"
    weights = num_weights(wanted.encoder)
    checkpoint, kept = _FLOAT * weights * (1 + _STATES), wanted.keep + _NEWEST + 1
    figures = [
        training,
        *([supply] if supply is not None else []),
        around,
        Figure("time", hours, "h", f"{wanted.epochs} x {wanted.num_steps:,} steps at that rate, with start and end"),
        Figure(f"{what} time", hours * wanted.number, f"{what}-h", f"{wanted.number} x the time"),
        frame,
        Figure("frame set", wanted.frames * frame.value / 1e6, "GB", "frames x a stored frame"),
        Figure("read in an epoch", used * frame.value / 1e6, "GB", "every frame of its steps once"),
        Figure("read while it trains", training.value * frame.value / 1e3, "MB/s", "frames/s x a stored frame"),
        Figure(
            "checkpoints",
            kept * checkpoint / 1e9,
            "GB",
            f"calculated: at most {kept} ({wanted.keep} best, the newest two, one on its way) of {checkpoint / 1e6:,.0f} MB "
            f"(float32 weights, {_STATES} states of AdamW each)",
        ),
    ]
    if wanted.number > 1:
        sent = 2 * (wanted.number - 1) / wanted.number * _FLOAT * weights / 1e6
        text = "calculated: gradients in float32, a ring of all workers"
        figures.append(Figure("sent by a worker in a step", sent, "MB", text))
    return figures


@cache
def flops_of_frame(encoder: EncoderSettings, view_size: int) -> int:
    """Floating-point operations of both views of a frame, forwards; a training step takes about three times as many."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        PretrainModel(encoder, ProjectionSettings()).eval()(torch.empty(2, 3, view_size, view_size))
    return int(counter.get_total_flops())


@cache
def num_weights(encoder: EncoderSettings) -> int:
    """Of encoder and projection head, running statistics too."""
    with torch.device("meta"):
        model = PretrainModel(encoder, ProjectionSettings())
    return sum(each.numel() for each in model.state_dict().values())


def _nearest(wanted: Wanted, trained: Sequence[Rate]) -> tuple[Rate, float]:
    """The measured training that is most like it, and the work of a frame in it, as a multiple of what is wanted."""

    def distance(each: tuple[Rate, float]) -> tuple[float, float, float]:
        row, work = each
        batches, workers = (row.batch_size or 1) / wanted.batch_size, row.num_workers / wanted.number
        return abs(math.log(work)), abs(math.log(batches)), abs(math.log(workers))

    flops = flops_of_frame(wanted.encoder, wanted.view_size)
    works = []
    for row in trained:
        assert row.encoder is not None, "rows of trainings have both"
        assert row.view_size is not None, "rows of trainings have both"
        works.append((row, flops_of_frame(row.encoder, row.view_size) / flops))
    return min(works, key=distance)


def _compute(wanted: Wanted, row: Rate, work: float) -> Figure:
    """Frames a second of all workers, where data come fast enough. work: of a frame of that row, as a multiple of what is wanted."""
    workers = wanted.number / row.num_workers
    parts = [f"{1 / work:.3g} x the work of a frame"] if abs(math.log(work)) > 1e-3 else []
    parts += [f"{workers:.3g} x the {row.unit}s, as if none waited for another"] if workers != 1 else []
    if row.batch_size != wanted.batch_size:
        parts.append(f"batches of {wanted.batch_size} in place of {row.batch_size} (their effect is not known)")
    is_of = f"{row.figure:,.0f} frames/s on {row.num_workers} {row.unit}s ({row.machine})"
    basis = f"extrapolated from {is_of}: {', '.join(parts)}" if parts else f"measured: {is_of}"
    return Figure("training", row.figure * work * workers, "frames/s", basis, (row,))


def _supply(wanted: Wanted, row: Rate, others: Sequence[Rate]) -> Figure | None:
    """Frames a second that the cores decode; None where nobody has measured it."""
    found = [rate for rate in others if rate.kind == "decode"]
    decode = next((rate for rate in found if rate.machine == row.machine), found[0] if found else None)
    if decode is None or decode.image_size is None:
        return None
    cores = wanted.number * (wanted.cores if row.unit == "gpu" else 1)
    pixels = (wanted.image_size / decode.image_size) ** 2
    parts = [f"{cores} cores"]
    parts += [f"{pixels:.3g} x the pixels"] if pixels != 1 else []
    parts += ["cores of another machine"] if decode.machine != row.machine else []
    basis = f"extrapolated from {decode.figure:,.0f} of one core ({decode.machine}): {', '.join(parts)}"
    return Figure("data that the cores can decode", decode.figure / pixels * cores, "frames/s", basis, (decode,))


def _around(row: Rate, others: Sequence[Rate]) -> Figure:
    name = "start and end of the run"
    if row.around_s is not None:
        return Figure(name, row.around_s, "s", f"measured with that rate ({row.machine})", (row,))
    found = [rate for rate in others if rate.kind == "start"]
    start = next((rate for rate in found if rate.machine == row.machine), found[0] if found else None)
    if start is None:
        return Figure(name, 0.0, "s", "not measured, taken as none")
    where = "measured" if start.machine == row.machine else "extrapolated from another machine"
    return Figure(name, start.figure, "s", f"{where}: the start alone ({start.machine})", (start,))


def _frame(wanted: Wanted, others: Sequence[Rate]) -> Figure:
    row = next(rate for rate in others if rate.kind == "frame")
    assert row.image_size is not None, "rows of frames have it"
    pixels = (wanted.image_size / row.image_size) ** 2
    is_of = f"{row.figure / 1000:.3g} kB at {row.image_size} px ({row.machine})"
    basis = f"measured: {is_of}" if pixels == 1 else f"extrapolated from {is_of}: {pixels:.3g} x the pixels"
    return Figure("a stored frame", row.figure * pixels / 1000, "kB", basis, (row,))
