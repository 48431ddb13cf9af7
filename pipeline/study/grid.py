"""The cells of a study: what is pretrained, what is fine-tuned from it, in which order, and under which names."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.errors import SettingsError
from pipeline.frames.mixing import Mixture
from pipeline.study.settings import SCRATCH, StudySettings, recipe_of
from pipeline.training.finetune_recipe import FinetuneSettings, with_epochs
from pipeline.training.pretrain_recipe import PretrainRecipe, steps_of_epoch

VERSION = 1
"""Raised when equal settings no longer give equal results, so that no study mixes two versions."""

_BUDGET_TOLERANCE = 0.05
# Of a recipe, what does not decide its result; data, length and seed enter a key by themselves.
_NOT_DECIDING: dict[str, Any] = {"frame_set": True, "epochs": True, "log_every": True, "optimiser": {"max_bad_steps"}}
_NOT_DECIDING_PRETRAIN = _NOT_DECIDING | dict.fromkeys(
    ("num_readers", "window_mb", "checkpoint", "probe", "shares"), True
)
_NOT_DECIDING_FINETUNE = _NOT_DECIDING | {"memory_limit_mb": True}
_LATER = (("best_by", None), ("projection.kind", "mlp"))
"""Settings that came later, with the values that change nothing: keys of earlier results stay what they were."""


@dataclass(frozen=True)
class Arm:
    """What a fine-tuning starts from: one pretraining, or, from scratch, none."""

    method: str
    unlabelled: float
    """Share of the unlabelled clips; 0 without pretraining."""
    frames: int
    """Frames seen in pretraining; 0 without."""
    encoder: str
    seed: int

    @property
    def pretrained(self) -> bool:
        """Whether there is one."""
        return self.method != SCRATCH


@dataclass(frozen=True)
class Cell:
    """One fine-tuning, tested."""

    arm: Arm
    labels: float
    """Share of the labelled clips."""
    grids: tuple[str, ...]
    """Names of the grids that ask for it."""


def cells_of(settings: StudySettings) -> list[Cell]:
    """Every cell once, in the order in which they are worth having: grid by grid, in each seed by seed."""
    grids: dict[tuple[Arm, float], list[str]] = {}
    for grid in settings.grids:
        encoders = grid.encoders or (next(iter(settings.encoders)),)
        for seed, encoder, labels, unlabelled, frames, method in product(
            grid.seeds, encoders, grid.labels, grid.unlabelled, grid.frames, grid.methods
        ):
            scratch = method == SCRATCH
            arm = Arm(method, 0.0 if scratch else unlabelled, 0 if scratch else frames, encoder, seed)
            names = grids.setdefault((arm, labels), [])
            if grid.name not in names:
                names.append(grid.name)
    return [Cell(arm, labels, tuple(names)) for (arm, labels), names in grids.items()]


def arm_key(settings: StudySettings, arm: Arm, unlabelled: str) -> str:
    """The name of a pretraining: the same as long as everything that decides its result is.

    unlabelled: what identifies the unlabelled frames (see `identity`).
    """
    recipe = arm_recipe(settings, arm)
    deciding: dict[str, Any] = {
        "version": VERSION,
        "recipe": _as_first(recipe.model_dump(mode="json", exclude=_NOT_DECIDING_PRETRAIN)),
        "frames": arm.frames,
        "unlabelled": [unlabelled, arm.unlabelled],
    }
    if recipe.objective.positives.kind == "similar":
        deciding["mined"] = [settings.similar_keypoints, settings.detector.model_dump(mode="json")]
    return f"pretrain-{arm.method}-u{arm.unlabelled:g}-n{arm.frames}-{arm.encoder}-s{arm.seed}-{_hash(deciding)}"


def cell_key(settings: StudySettings, cell: Cell, arm_name: str | None, labelled: str) -> str:
    """The name of a fine-tuning. arm_name: `arm_key` of what it starts from, or None; labelled: see `identity`."""
    arm = cell.arm
    recipe = cell_recipe(settings, cell, None).model_dump(mode="json", exclude=_NOT_DECIDING_FINETUNE)
    deciding = {
        "version": VERSION,
        "recipe": _as_first(recipe),
        "validations": settings.validations,
        "test": [settings.test_split, settings.probe_frames],
        "labelled": [labelled, cell.labels],
        "arm": arm_name,
    }
    name = f"{arm.method}-u{arm.unlabelled:g}-n{arm.frames}" if arm_name else arm.method
    return f"finetune-{name}-l{cell.labels:g}-{arm.encoder}-s{arm.seed}-{_hash(deciding)}"


def _as_first(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the settings that came later, where they change nothing."""
    for name, value in _LATER:
        *groups, last = name.split(".")
        holder = recipe
        for group in groups:
            holder = holder.get(group, {})
        if last in holder and holder[last] == value:
            del holder[last]
    return recipe


def identity(mixture: Mixture) -> str:
    """What stands for frame sets in keys: their rows and weights, wherever they lie."""
    weights = [f"{weight:g}" for weight in mixture.weights if weight is not None]
    return ":".join([mixture.digest, *weights])


def arm_recipe(settings: StudySettings, arm: Arm) -> PretrainRecipe:
    """How an arm is pretrained, but for its frame set and epochs."""
    encoder = settings.encoders[arm.encoder]
    recipe = recipe_of(settings.pretrain, settings.methods, arm.method)
    return recipe.model_copy(update={"seed": arm.seed, "encoder": encoder.plain(), "init": encoder.init})


def cell_recipe(settings: StudySettings, cell: Cell, pretrained: str | None) -> FinetuneSettings:
    """How a cell is fine-tuned, but for its epochs. pretrained: URI of the arm's encoder; None starts from scratch."""
    encoder = settings.encoders[cell.arm.encoder]
    values = settings.finetune.model_dump(include=set(FinetuneSettings.model_fields))
    values["labels"] = {"fraction": cell.labels, "seed": cell.arm.seed}
    values |= {"seed": cell.arm.seed, "encoder": encoder.plain(), "init": pretrained or encoder.init}
    return FinetuneSettings.model_validate(values)


def for_frames(recipe: PretrainRecipe, frames: int, mixture: Mixture) -> PretrainRecipe:
    """The recipe with as many epochs as see about so many frames. Raises SettingsError where no number comes near."""
    in_epoch = steps_of_epoch(recipe, mixture, workers=1) * recipe.batch_size
    epochs = max(1, round(frames / in_epoch))
    if abs(epochs * in_epoch / frames - 1) > _BUDGET_TOLERANCE:
        raise SettingsError(
            f"setting 'grids.frames' = {frames}: {epochs} epochs of {mixture.uris[0]} are {epochs * in_epoch:,} frames, "
            f"more than {_BUDGET_TOLERANCE:.0%} off, and arms would not be equal; choose about a multiple of "
            f"{in_epoch:,}"
        )
    return recipe.model_copy(update={"epochs": epochs})


def is_same_budget(frames: int, others: int) -> bool:
    """Whether two arms have seen equally many frames, as far as whole epochs allow."""
    return max(frames, others) <= (1 + 2 * _BUDGET_TOLERANCE) * min(frames, others)


def for_labels(settings: FinetuneSettings, validations: int, num_labels: int) -> FinetuneSettings:
    """The settings with as many epochs of so many labels as their budget in frames is, and about so many validations."""
    settings = with_epochs(settings, num_labels, 1)
    return settings.model_copy(update={"validate_every": max(1, round(settings.epochs / validations))})


def transforms(recipe: PretrainRecipe) -> tuple[str, str]:
    """(which transforms the two views of a frame differ by, which of them the objective undoes), for tables."""
    views, objective = recipe.views, recipe.objective
    colour = views.hue > 0 or views.grayscale_probability > 0
    colour |= any(low < high for low, high in (views.brightness, views.contrast, views.saturation, views.offset))
    used = {
        "colour": colour,
        "scale": views.scale[0] < views.scale[1],
        "rotation": views.rotation_deg > 0,
        "translation": views.translation > 0,
    }
    undone: set[str] = set(objective.undone) if objective.name == "peclr" else set()
    if objective.name == "peclr" and objective.inverse == "similarity":
        undone.add("scale")
    regressed = ", ".join(objective.regresses)
    undone_text = ", ".join(name for name in used if used[name] and name in undone)
    return ", ".join(name for name in used if used[name]), f"regressed: {regressed}" if regressed else undone_text


def describe(recipe: PretrainRecipe) -> str:
    """The objective in a few words, for tables."""
    objective = recipe.objective
    words: list[str] = [objective.name]
    if objective.name == "peclr":
        words.append(objective.inverse)
    if objective.positives.kind != "same-frame":
        words.append(f"{objective.positives.kind} positives")
    if objective.contrasts:
        words.append(f"temperature {objective.temperature:g}")
    return ", ".join(words)


def relative_cost(settings: StudySettings, arm: Arm, pretraining: bool) -> float:
    """Time for a frame, relative to the one that `speed` is of."""
    views = 1.0
    if pretraining and recipe_of(settings.pretrain, settings.methods, arm.method).objective.name == "hybrid":
        views = 1.5  # three views a frame
    return settings.encoders[arm.encoder].relative_cost * views


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()
