"""Optimisers and the learning-rate schedule."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from pipeline.config import Settings

_NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)


class OptimiserSettings(Settings):
    """Optimiser and schedule: warm-up, then cosine to zero, by optimiser step."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Which optimiser."""
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    """Peak learning rate, for a global batch of `reference_batch` frames."""
    scale_by_batch: Literal["none", "linear", "sqrt"] = "none"
    """How the learning rate grows with the global batch: none, linear, or with its square root (as PeCLR does)."""
    reference_batch: int = Field(default=256, ge=1)
    """Global batch in frames for which learning_rate is meant."""
    weight_decay: float = Field(default=0.05, ge=0, le=10)
    """Decoupled weight decay; never applied to biases and norm layers."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate climbs from 0 to its peak (PeCLR: 10 of 100 epochs)."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """Largest gradient norm; none leaves gradients as they are."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: with weight decay, and (biases, norm layers, found by module type) without."""
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _NORM_LAYERS) or name == "bias"
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in exempt], "weight_decay": 0.0},
    ]


def build_optimiser(
    model: nn.Module, settings: OptimiserSettings, groups: list[dict[str, object]] | None = None
) -> torch.optim.Optimizer:
    """The optimiser over a model's trainable parameters. groups: given parameter groups instead of the default two.

    A group's optional "lr_scale" multiplies the schedule for its parameters.
    """
    groups = groups if groups is not None else parameter_groups(model, settings.weight_decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def peak_learning_rate(settings: OptimiserSettings, global_batch: int) -> float:
    """The peak learning rate for a global batch, in frames."""
    ratio = global_batch / settings.reference_batch
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[settings.scale_by_batch]
    return settings.learning_rate * factor


def learning_rate_at(step: int, total_steps: int, settings: OptimiserSettings, peak: float) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up, then half a cosine down to zero."""
    warmup = round(settings.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimiser: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, times the group's `lr_scale` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
