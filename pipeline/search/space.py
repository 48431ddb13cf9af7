"""What a search varies, and how a trial's values become fine-tuning settings."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from pydantic import model_validator

from pipeline.config import Settings
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.views import CROP_MARGIN, VIEW_MARGIN, ViewSettings

Range = tuple[float, float]

_PLAIN_SCALE = CROP_MARGIN / VIEW_MARGIN  # of the views that models are evaluated on


class SearchSpace(Settings):
    """Ranges [smallest, largest] and choices; none keeps the value of the fine-tuning settings."""

    learning_rate: Range | None = (3e-4, 1e-2)
    """Smallest and largest learning rate of the head, drawn on a logarithmic scale."""
    encoder_lr_factor: Range | None = (0.1, 1.0)
    """Smallest and largest learning rate of the encoder as a multiple of the head's, drawn on a logarithmic scale."""
    weight_decay: Range | None = (1e-4, 1e-1)
    """Smallest and largest weight decay, drawn on a logarithmic scale."""
    batch_size: tuple[int, ...] | None = (16, 32, 64, 128)
    """Batch sizes to choose from."""
    augmentation: Range | None = (0.25, 1.0)
    """Smallest and largest strength of the random views, drawn on a linear scale. 0 is always the plain view, 1 the
    ranges of the fine-tuning settings."""

    @model_validator(mode="after")
    def _check(self) -> "SearchSpace":
        for name in ("learning_rate", "encoder_lr_factor", "weight_decay", "augmentation"):
            limits = getattr(self, name)
            if limits is not None and not 0 < limits[0] < limits[1]:
                raise ValueError(f"setting 'space.{name}' = {list(limits)}: must be [smallest, largest], above 0")
        if self.augmentation is not None and self.augmentation[1] > 1:
            raise ValueError(f"setting 'space.augmentation' = {list(self.augmentation)}: must not exceed 1")
        if self.batch_size is not None and (not self.batch_size or min(self.batch_size) < 2):
            raise ValueError(f"setting 'space.batch_size' = {list(self.batch_size)}: batches of 2 frames or more")
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("setting 'space': nothing to search, every range is none")
        return self


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    found: dict[str, BaseDistribution] = {}
    for name in ("learning_rate", "encoder_lr_factor", "weight_decay"):
        if (limits := getattr(space, name)) is not None:
            found[name] = FloatDistribution(limits[0], limits[1], log=True)
    if space.batch_size is not None:
        found["batch_size"] = CategoricalDistribution(space.batch_size)
    if space.augmentation is not None:
        found["augmentation"] = FloatDistribution(space.augmentation[0], space.augmentation[1])
    return found


def first_guess(space: SearchSpace, base: FinetuneSettings) -> dict[str, Any] | None:
    """The fine-tuning settings' own values as a first trial, where the space holds them."""
    own: dict[str, Any] = {
        "learning_rate": base.optimiser.learning_rate,
        "encoder_lr_factor": base.encoder_lr_factor,
        "weight_decay": base.optimiser.weight_decay,
        "batch_size": base.batch_size,
        "augmentation": 1.0,
    }
    guess = {name: value for name, value in own.items() if getattr(space, name) is not None}
    for name, value in guess.items():
        limits = getattr(space, name)
        inside = value in limits if name == "batch_size" else limits[0] <= value <= limits[1]
        if not inside:
            return None
    return guess


def trial_settings(base: FinetuneSettings, values: Mapping[str, Any]) -> FinetuneSettings:
    """The fine-tuning settings of a trial."""
    settings = base.model_dump()
    for name, value in values.items():
        if name in ("learning_rate", "weight_decay"):
            settings["optimiser"][name] = value
        elif name == "augmentation":
            settings["views"] = augmented(base.views, value).model_dump()
        else:
            settings[name] = value
    return FinetuneSettings.model_validate(settings)


def augmented(views: ViewSettings, strength: float) -> ViewSettings:
    """Views between the plain one (strength 0) and the given ranges (strength 1)."""

    def towards(plain: float, limits: Range) -> Range:
        low, high = (plain + strength * (limit - plain) for limit in limits)
        return low, high

    changes: dict[str, Any] = {
        "rotation_deg": strength * views.rotation_deg,
        "translation": strength * views.translation,
        "scale": towards(_PLAIN_SCALE, views.scale),
        "hue": strength * views.hue,
        "offset": towards(0.0, views.offset),
        **{name: towards(1.0, getattr(views, name)) for name in ("brightness", "contrast", "saturation")},
    }
    return ViewSettings.model_validate({**views.model_dump(), **changes})
