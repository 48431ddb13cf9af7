"""What a search varies: any setting of fine-tuning or of the pretraining before it, by its name, and from what its values come.

space:
  optimiser.learning_rate: {log_uniform: [3.0e-4, 1.0e-2]}
  head.kind: {choice: [kinematic, peclr]}
  loss.weight_3d: {log_uniform: [0.5, 50.0], when: {head.kind: kinematic}}  # only in trials with that head
  augmentation: {uniform: [0.25, 1.0]}                                  # strength of the random views
  pretrain.objective.temperature: {log_uniform: [0.1, 1.0]}             # where trials pretrain first
"""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
import pydantic
from pydantic import Field, model_validator

from pipeline.config import Settings, flatten
from pipeline.errors import SettingsError, one_line
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.pretrain_recipe import PretrainRecipe
from pipeline.views import CROP_MARGIN, VIEW_MARGIN, ViewSettings

Range = tuple[float, float]

AUGMENTATION = "augmentation"
"""The one name that is no setting: strength of the random views. 0 is always the plain view, 1 the ranges of the fine-tuning settings."""
_PLAIN_SCALE = CROP_MARGIN / VIEW_MARGIN  # of the views that models are evaluated on
PRETRAIN = "pretrain."
"""How names of settings of the pretraining begin."""
_SHARED = (
    "frame_set",
    "split",
    "validation_split",
    "max_validation_frames",
    "memory_limit_mb",
    "labels",
    "labels.seed",
)
_SAME_BUDGET = ("epochs", "frames", "validate_every")
_IN_MID_TRAINING = (
    *("optimiser.learning_rate", "optimiser.weight_decay", "optimiser.gradient_clip", "optimiser.momentum"),
    *("encoder_lr_factor", "layer_lr_decay", "tight_share", "loss.", "views.", AUGMENTATION),
)
_DRAWN = ("uniform", "log_uniform", "integer", "log_integer", "choice", "fixed")


class Dimension(Settings):
    """From what the values of one setting come: one of the first six."""

    uniform: Range | None = None
    """Smallest and largest value, drawn on a linear scale."""
    log_uniform: Range | None = None
    """Smallest and largest value, above 0, drawn on a logarithmic scale."""
    integer: tuple[int, int] | None = None
    """Smallest and largest whole number, drawn on a linear scale."""
    log_integer: tuple[int, int] | None = None
    """Smallest and largest whole number, above 0, drawn on a logarithmic scale."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Values to choose from."""
    fixed: Any = None
    """The value of every trial."""
    when: dict[str, Any] = {}
    """{setting: value}: only trials with these values of settings further up have a value of this one; the others keep that of the
    fine-tuning settings."""

    @model_validator(mode="after")
    def _check(self) -> "Dimension":
        given = [name for name in _DRAWN if getattr(self, name) is not None]
        # Fixed to none; where another is given, "fixed: null" only says that it is not, as in every file that was written out.
        if not given and "fixed" in self.model_fields_set:
            given = ["fixed"]
        if len(given) != 1:
            raise ValueError(f"must have one of {', '.join(_DRAWN)}; it has {' and '.join(given) or 'none'}")
        limits = self.limits
        if limits is not None and not limits[0] < limits[1]:
            raise ValueError(f"{list(limits)}: must be [smallest, largest]")
        if limits is not None and given[0].startswith("log") and limits[0] <= 0:
            raise ValueError(f"{list(limits)}: must be above 0 on a logarithmic scale")
        return self

    @property
    def limits(self) -> tuple[float, float] | None:
        """Smallest and largest value; None of choices and fixed values."""
        return self.uniform or self.log_uniform or self.integer or self.log_integer

    @property
    def is_log(self) -> bool:
        """Whether it is drawn on a logarithmic scale."""
        return self.log_uniform is not None or self.log_integer is not None

    @property
    def is_integer(self) -> bool:
        """Whether it gives whole numbers."""
        return self.integer is not None or self.log_integer is not None

    def place_of(self, value: Any) -> int:
        """Place of a value among the choices."""
        assert self.choice is not None
        return next((place for place, each in enumerate(self.choice) if _same(each, value)), 0)

    def holds(self, value: Any) -> bool:
        """Whether it may give this value."""
        if self.limits is not None:
            return isinstance(value, int | float) and self.limits[0] <= value <= self.limits[1]
        return _same(value, self.fixed) if self.choice is None else any(_same(value, each) for each in self.choice)

    def suggest(self, name: str, trial: optuna.Trial) -> Any:
        """A value for a trial of Optuna's."""
        if self.choice is not None:  # Optuna knows no lists and mappings as choices
            return json.loads(trial.suggest_categorical(name, [json.dumps(each) for each in self.choice]))
        if self.limits is None:
            return self.fixed
        low, high = self.limits
        if self.is_integer:
            return trial.suggest_int(name, int(low), int(high), log=self.is_log)
        return trial.suggest_float(name, low, high, log=self.is_log)

    def examples(self) -> tuple[Any, ...]:
        """Values with which a setting's own limits can be tried."""
        return self.choice or self.limits or (self.fixed,)


Space = dict[str, Dimension]
DEFAULT_SPACE: Space = {
    "optimiser.learning_rate": Dimension(log_uniform=(3e-4, 1e-2)),
    "encoder_lr_factor": Dimension(log_uniform=(0.1, 1.0)),
    "optimiser.weight_decay": Dimension(log_uniform=(1e-4, 1e-1)),
    "batch_size": Dimension(choice=(16, 32, 64, 128)),
    AUGMENTATION: Dimension(uniform=(0.25, 1.0)),
}


def check_space(
    space: Space, base: FinetuneSettings, pretrain: PretrainRecipe | None = None, is_population: bool = False
) -> None:
    """Raises SettingsError, one line for each name that is no setting, each value that its setting refuses, and each condition that
    means nothing. is_population: whether values change in the middle of a training."""
    problems = []
    if all(dimension.limits is None and dimension.choice is None for dimension in space.values()):
        problems.append("setting 'space': nothing to search")
    known: dict[str, Dimension] = {}
    for name, dimension in space.items():
        found = [*_problems(name, dimension, known, base, pretrain)]
        if is_population and not found and (not name.startswith(_IN_MID_TRAINING) or name == "views.size"):
            found = ["cannot change in the middle of a training, as scheduler pbt does; use another scheduler"]
        problems += [f"setting 'space.{name}': {text}" for text in found]
        known[name] = dimension
    if problems:
        raise SettingsError(*problems)


def _problems(
    name: str, dimension: Dimension, known: Space, base: FinetuneSettings, pretrain: PretrainRecipe | None
) -> Iterator[str]:
    for other, value in dimension.when.items():
        if other not in known:
            yield f"when: '{other}' does not stand above it in the space"
        elif not known[other].holds(value):
            yield f"when: '{other}' never has the value {value!r}"
    if name in _SHARED:
        yield "all trials share the frames, which are read once; set it as finetune." + name
        return
    if name in _SAME_BUDGET:
        yield "trials are compared by what they reach with as many frames seen; set it as finetune." + name
        return
    if name == "best_by":
        yield "all trials are judged alike; set it as finetune.best_by"
        return
    if name.startswith(PRETRAIN) and pretrain is None:
        yield "trials do not pretrain; give what they pretrain, such as pretrain.frame_set"
        return
    names = [AUGMENTATION, *flatten(base), *_groups(base)]
    if pretrain is not None:
        names += [PRETRAIN + each for each in (*flatten(pretrain), *_groups(pretrain))]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1) or [each for each in names if each.endswith(f".{name}")][:1]
        what = "pretraining" if name.startswith(PRETRAIN) else "fine-tuning"
        yield f"{what} has no such setting{f'; did you mean {near[0]}?' if near else ''}"
        return
    for value in dimension.examples():
        conditions = {other: each for other, each in dimension.when.items() if other in known}
        try:
            trial_settings(base, {**conditions, name: value})
            if pretrain is not None:
                trial_pretraining(pretrain, {**conditions, name: value})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            yield f"{value!r}: {one_line(first['msg'])}"
            return
        except (ValueError, TypeError) as error:
            yield f"{value!r}: {one_line(error)}"
            return


def _groups(settings: pydantic.BaseModel, prefix: str = "") -> Iterator[str]:
    """Names of groups of settings, which can be chosen as a whole."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, pydantic.BaseModel):
            yield f"{prefix}{name}"
            yield from _groups(value, f"{prefix}{name}.")


def suggested(space: Space, trial: optuna.Trial) -> dict[str, Any]:
    """Values of a trial of Optuna's, in the order of the space."""
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        if applies(dimension, values):
            values[name] = dimension.suggest(name, trial)
    return values


def as_parameters(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Optuna knows them, for a trial that shall have these."""
    return {
        name: json.dumps(value) if space[name].choice is not None else value
        for name, value in values.items()
        if name in space and (space[name].choice is not None or space[name].limits is not None)
    }


def grid(space: Space) -> list[dict[str, Any]]:
    """All combinations of choices. Raises SettingsError where something else is drawn."""
    drawn = [name for name, dimension in space.items() if dimension.limits is not None]
    if drawn:
        raise SettingsError(f"setting 'space.{drawn[0]}': a grid needs choices; give them, or another searcher")
    found: dict[str, dict[str, Any]] = {}
    for combination in itertools.product(*(dimension.choice or (dimension.fixed,) for dimension in space.values())):
        values: dict[str, Any] = {}
        for (name, dimension), value in zip(space.items(), combination, strict=True):
            if applies(dimension, values):
                values[name] = value
        found[json.dumps(values, sort_keys=True)] = (
            values  # a branch that is not taken gives the same ones several times
        )
    return [*found.values()]


def first_guess(space: Space, base: FinetuneSettings, pretrain: PretrainRecipe | None = None) -> dict[str, Any] | None:
    """The settings' own values as a first trial, where the space holds them."""
    own = {**base.model_dump(mode="json"), **flatten(base), AUGMENTATION: 1.0}
    if pretrain is not None:
        values = {**pretrain.model_dump(mode="json"), **flatten(pretrain)}
        own |= {PRETRAIN + name: value for name, value in values.items()}
    guess: dict[str, Any] = {}
    for name, dimension in space.items():
        if not applies(dimension, guess):
            continue
        value = own.get(name) if dimension.limits is not None or dimension.choice is not None else dimension.fixed
        if not dimension.holds(value):
            return None
        guess[name] = value
    return guess


def is_in(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether a trial of this space could have these values."""
    wanted: dict[str, Any] = {}
    for name, dimension in space.items():
        if applies(dimension, wanted):
            if name not in values or not dimension.holds(values[name]):
                return False
            wanted[name] = values[name]
    return wanted.keys() == values.keys()


def trial_settings(base: FinetuneSettings, values: Mapping[str, Any]) -> FinetuneSettings:
    """The fine-tuning settings of a trial."""
    settings = base.model_dump()
    if AUGMENTATION in values:
        settings["views"] = augmented(base.views, values[AUGMENTATION]).model_dump()
    for name, value in values.items():
        if name != AUGMENTATION and not name.startswith(PRETRAIN):
            _set(settings, name, value)
    return FinetuneSettings.model_validate(settings)


def trial_pretraining(base: PretrainRecipe, values: Mapping[str, Any]) -> PretrainRecipe:
    """The pretraining of a trial."""
    settings = base.model_dump()
    for name, value in values.items():
        if name.startswith(PRETRAIN):
            _set(settings, name.removeprefix(PRETRAIN), value)
    return PretrainRecipe.model_validate(settings)


def _set(settings: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for each in groups:
        settings = settings[each]
    settings[last] = value


def applies(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    """Whether a trial with these values of settings further up has a value of this one."""
    return all(name in values and _same(values[name], value) for name, value in dimension.when.items())


def _same(one: Any, other: Any) -> bool:
    """Also where one is a list and the other a tuple."""
    return json.dumps(one) == json.dumps(other)


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
