"""Optimisers and the learning-rate schedule."""

import math
from typing import Any, Literal

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

    name: Literal["adamw", "sgd", "lars", "lamb", "adam-in-lars"] = "adamw"
    """The optimiser. `lars` (SGD) and `lamb` (Adam) scale the step of each tensor by its norm, for very large batches.
    `adam-in-lars` is what PeCLR's published code uses."""
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    """Peak learning rate, for a global batch of `reference_batch` frames."""
    scale_by_batch: Literal["none", "linear", "sqrt"] = "none"
    """How the learning rate grows with the global batch: not at all, linearly, or with its square root (as in
    PeCLR)."""
    reference_batch: int = Field(default=256, ge=1)
    """Global batch, in frames, at which `learning_rate` is used as given."""
    weight_decay: float = Field(default=0.05, ge=0, le=10)
    """Weight decay: decoupled in `adamw` and `lamb`, added to the gradient in the others. It is never applied to biases
    and norm layers."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of `sgd` and `lars`."""
    trust_coefficient: float = Field(default=1e-3, gt=0)
    """For `lars` and `adam-in-lars`: how large a step may be, relative to the norm of the tensor (PeCLR: 0.02)."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from 0 to its peak (PeCLR: 10 of 100 epochs)."""
    gradient_clip: float | None = Field(default=None, gt=0)
    """Largest gradient norm; none leaves gradients as they are."""
    max_bad_steps: int = Field(default=10, ge=0)
    """Steps of a run whose loss or gradients may be infinite or no numbers. Such a step changes nothing; with one more than
    this the run ends."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
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
    model: nn.Module, settings: OptimiserSettings, groups: list[dict[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """The optimiser over a model's trainable parameters. groups: given parameter groups instead of the default two.

    A group's optional "lr_scale" multiplies the schedule for its parameters.
    """
    groups = groups if groups is not None else parameter_groups(model, settings.weight_decay)
    rate = settings.learning_rate
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings.momentum)
    if settings.name == "adam-in-lars":
        return AdamInLars(groups, lr=rate, trust_coefficient=settings.trust_coefficient)
    if settings.name in ("lars", "lamb"):
        import pytorch_optimizer  # takes a second to import

        if settings.name == "lamb":
            return pytorch_optimizer.Lamb(groups, lr=rate)
        return pytorch_optimizer.LARS(
            groups, lr=rate, momentum=settings.momentum, trust_coefficient=settings.trust_coefficient
        )
    return torch.optim.AdamW(groups, lr=rate, fused=True)


class AdamInLars(torch.optim.Adam):
    """Adam fed with gradients that LARS has scaled, as PeCLR's published code nests them (LARSWrapper of
    pytorch-lightning-bolts 0.2.2 round torch's Adam).

    Each tensor p with gradient g, both with a norm above 0: g <- r (g + decay p), where
    r = min(trust_coefficient |p| / (|g| + decay |p| + 1e-8) / lr, 1). Biases and norm layers are scaled too, without decay.
    Adam hardly cares how large gradients are, so this stays close to Adam with a little L2.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, trust_coefficient: float = 0.02) -> None:
        super().__init__(groups, lr=lr)
        self.trust_coefficient = trust_coefficient

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; the gradients are changed."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0  # it is in the gradient already when Adam sees it
            params = [p for p in group["params"] if p.grad is not None]
            if not params or group["lr"] == 0:
                continue
            gradients = [p.grad for p in params]
            size, slope = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, gradients))
            ratio = (self.trust_coefficient * size / (slope + decay * size + 1e-8) / group["lr"]).clamp_max(1)
            both = (size > 0) & (slope > 0)
            torch._foreach_mul_(gradients, torch.where(both, ratio, 1.0).unbind())
            torch._foreach_add_(gradients, torch._foreach_mul(params, (decay * ratio * both).unbind()))
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


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
