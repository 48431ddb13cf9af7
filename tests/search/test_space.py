"""From a search space to trials' settings, and what is refused before anything starts."""

import json
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from pipeline.errors import SettingsError
from pipeline.search.space import (
    DEFAULT_SPACE,
    Dimension,
    Space,
    as_parameters,
    augmented,
    check_space,
    first_guess,
    grid,
    is_in,
    suggested,
    trial_pretraining,
    trial_settings,
)
from pipeline.training.finetune_recipe import FINETUNE_VIEWS, FinetuneSettings, with_head
from pipeline.training.pretrain_recipe import PretrainRecipe

BASE = FinetuneSettings(frame_set="labelled")


def space_of(**values) -> Space:
    return {name.replace("__", "."): Dimension.model_validate(value) for name, value in values.items()}


CONDITIONAL = space_of(
    head__kind={"choice": ["spatial", "peclr"]},
    loss__weight_3d={"uniform": [0.5, 2.0], "when": {"head.kind": "spatial"}},
    log_every={"log_integer": [4, 64]},
    batch_size={"integer": [8, 32], "when": {"head.kind": "peclr"}},
    views__brightness={"choice": [[1.0, 1.0], [0.5, 1.5]]},
    seed={"fixed": 7},
)


def test_values_land_in_their_settings():
    values = {
        "optimiser.learning_rate": 0.002,
        "optimiser.weight_decay": 0.05,
        "encoder_lr_factor": 0.3,
        "batch_size": 32,
    }
    settings = trial_settings(BASE, values)
    assert (settings.optimiser.learning_rate, settings.optimiser.weight_decay) == (0.002, 0.05)
    assert (settings.encoder_lr_factor, settings.batch_size) == (0.3, 32)
    assert settings.views == BASE.views
    assert trial_settings(BASE, {}) == BASE


def test_augmentation_goes_from_the_plain_view_to_the_full_ranges():
    full, none = augmented(FINETUNE_VIEWS, 1.0), augmented(FINETUNE_VIEWS, 0.0)
    assert full.scale == pytest.approx(FINETUNE_VIEWS.scale)
    assert full.model_dump(exclude={"scale"}) == FINETUNE_VIEWS.model_dump(exclude={"scale"})
    assert (none.rotation_deg, none.translation, none.scale, none.brightness) == (0.0, 0.0, (1.2, 1.2), (1.0, 1.0))
    half = augmented(FINETUNE_VIEWS, 0.5)
    assert half.rotation_deg == 22.5
    assert half.scale == pytest.approx((1.1, 1.325))


def test_own_values_are_the_first_trial_where_the_space_holds_them():
    assert first_guess(DEFAULT_SPACE, BASE) == {
        "optimiser.learning_rate": 1e-3,
        "encoder_lr_factor": 1.0,
        "optimiser.weight_decay": 0.01,
        "batch_size": 128,
        "augmentation": 1.0,
    }
    assert first_guess(space_of(batch_size={"choice": [8, 16]}), BASE) is None
    branches = space_of(
        head__kind={"choice": ["kinematic", "peclr"]},
        loss__weight_3d={"uniform": [0.0, 50.0], "when": {"head.kind": "kinematic"}},
        batch_size={"integer": [8, 32], "when": {"head.kind": "peclr"}},
    )
    base = with_head(BASE)  # as a search does
    assert first_guess(branches, base) == {"head.kind": "kinematic", "loss.weight_3d": BASE.loss.weight_3d}


def test_values_are_in_their_ranges_and_branches():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(3))
    seen = set()
    for _ in range(60):
        values = suggested(CONDITIONAL, study.ask())
        seen.add(values["head.kind"])
        is_spatial = values["head.kind"] == "spatial"
        assert ("loss.weight_3d" in values, "batch_size" in values) == (is_spatial, not is_spatial)
        for name, value in values.items():
            assert CONDITIONAL[name].holds(value)
        assert isinstance(values["log_every"], int)
        assert values["seed"] == 7
        settings = trial_settings(BASE, values)
        assert list(settings.views.brightness) == values["views.brightness"]
        json.dumps(values)
        # Told to another study, they come out as they went in.
        again = optuna.create_study()
        again.enqueue_trial(as_parameters(CONDITIONAL, values))
        assert suggested(CONDITIONAL, again.ask()) == values
    assert seen == {"spatial", "peclr"}


def test_a_grid_has_every_combination_once():
    space = space_of(
        head__kind={"choice": ["spatial", "peclr"]},
        batch_size={"choice": [8, 16, 32], "when": {"head.kind": "peclr"}},
        seed={"fixed": 1},
    )
    assert grid(space) == [
        {"head.kind": "spatial", "seed": 1},
        *({"head.kind": "peclr", "batch_size": size, "seed": 1} for size in (8, 16, 32)),
    ]
    with pytest.raises(SettingsError, match=r"^setting 'space.loss.weight_3d': a grid needs choices"):
        grid(CONDITIONAL)


def test_good_spaces_pass():
    check_space(DEFAULT_SPACE, BASE)
    check_space(CONDITIONAL, BASE)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"optimiser.learning_rat": {"uniform": [0, 1]}},
            r"'space.optimiser.learning_rat': .*did you mean optimiser.learning_rate",
        ),
        ({"learning_rate": {"uniform": [0, 1]}}, r"did you mean (optimiser.learning_rate|.*learning_rate)\?"),
        ({"batch_size": {"choice": [16, 0]}}, r"'space.batch_size': 0: Input should be greater"),
        (
            {"optimiser.learning_rate": {"uniform": [0.1, 1e9]}},
            r"'space.optimiser.learning_rate': 1000000000.0: Input should be",
        ),
        ({"head.kind": {"choice": ["spatial", "round"]}}, r"'space.head.kind': 'round': Input should be"),
        ({"log_every": {"uniform": [1.5, 9.5]}}, r"'space.log_every': 1.5: Input should be a valid integer"),
        (
            {"epochs": {"integer": [3, 9]}},
            r"'space.epochs': trials are compared by what they reach with as many frames",
        ),
        ({"best_by": {"choice": ["pa_skill", "mpjpe_mm"]}}, r"'space.best_by': all trials are judged alike"),
        ({"pretrain.epochs": {"integer": [3, 9]}}, r"'space.pretrain.epochs': trials do not pretrain"),
        (
            {"views.rotation_deg": {"choice": ["far"]}},
            r"'space.views.rotation_deg': 'far': Input should be a valid number",
        ),
        ({"labels.fraction": {"choice": [0.1, 2.0]}}, r"'space.labels.fraction': 2.0: Input should be less"),
        ({"labels.seed": {"choice": [1, 2]}}, r"'space.labels.seed': all trials share the frames"),
        ({"split": {"choice": ["train", "val"]}}, r"'space.split': all trials share the frames"),
        ({"seed": {"fixed": 3}}, r"'space': nothing to search"),
        ({}, r"'space': nothing to search"),
        ({"patience": {"integer": [3, 9], "when": {"head.kind": "peclr"}}}, r"'head.kind' does not stand above it"),
        (
            {"head.kind": {"choice": ["spatial"]}, "patience": {"integer": [3, 9], "when": {"head.kind": "peclr"}}},
            r"'space.patience': when: 'head.kind' never has the value 'peclr'",
        ),
    ],
)
def test_what_fine_tuning_would_refuse_is_refused_before_it_starts(space, words):
    with pytest.raises(SettingsError, match=words) as refused:
        check_space({name: Dimension.model_validate(value) for name, value in space.items()}, BASE)
    assert refused.value.exit_code == 2
    assert all(line.startswith("setting 'space") for line in str(refused.value).splitlines())


PRETRAIN = PretrainRecipe(frame_set="frames", epochs=2)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"pretrain.epoch": {"integer": [1, 2]}},
            r"'space.pretrain.epoch': pretraining has no .*did you mean pretrain.epochs",
        ),
        ({"pretrain.objective.temperature": {"uniform": [-1, 1]}}, r"'space.pretrain.objective.temperature': -1.0: "),
        ({"pretrain.batch_size": {"choice": ["many"]}}, r"'space.pretrain.batch_size': 'many': "),
    ],
)
def test_what_pretraining_would_refuse_is_refused_too(space, words):
    with pytest.raises(SettingsError, match=words):
        check_space({name: Dimension.model_validate(value) for name, value in space.items()}, BASE, PRETRAIN)


def test_settings_of_the_pretraining_are_varied_apart():
    space = space_of(**{"pretrain.objective.temperature": {"uniform": [0.1, 1.0]}, "batch_size": {"choice": [8, 128]}})
    check_space(space, BASE, PRETRAIN)
    values = {"pretrain.objective.temperature": 0.25, "batch_size": 8}
    assert trial_settings(BASE, values) == trial_settings(BASE, {"batch_size": 8})
    changed = trial_pretraining(PRETRAIN, values)
    assert changed.objective.temperature == 0.25
    assert changed == PRETRAIN.model_copy(update={"objective": changed.objective})
    guess = first_guess(space, BASE, PRETRAIN)
    assert guess == {"pretrain.objective.temperature": PRETRAIN.objective.temperature, "batch_size": BASE.batch_size}
    assert is_in(space, values)
    assert not is_in(space, {"batch_size": 8})
    assert not is_in(space, {**values, "seed": 1})


@pytest.mark.parametrize("name", ["head.kind", "batch_size", "views.size", "labels.fraction", "train_mode"])
def test_what_cannot_change_in_the_middle_of_a_training_is_no_matter_for_a_population(name):
    values: dict[str, list[Any]] = {
        "head.kind": ["peclr", "spatial"],
        "labels.fraction": [0.5, 1.0],
        "train_mode": ["frozen", "end-to-end"],
    }
    space = {name: Dimension(choice=tuple(values.get(name, [32, 64])))}
    check_space(space, BASE)
    with pytest.raises(SettingsError, match=rf"'space.{name}': cannot change in the middle of a training"):
        check_space(space, BASE, is_population=True)
    check_space({"optimiser.learning_rate": Dimension(log_uniform=(1e-4, 1e-2))}, BASE, is_population=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "must have one of"),
        ({"uniform": [0, 1], "choice": [1]}, "uniform and choice"),
        ({"uniform": [1, 1]}, "must be .smallest, largest."),
        ({"log_uniform": [0, 1]}, "must be above 0"),
        ({"log_integer": [0, 8]}, "must be above 0"),
        ({"choice": []}, "at least 1 item"),
    ],
)
def test_impossible_dimensions_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        Dimension.model_validate(values)


def test_a_space_that_was_written_out_is_read_back():
    """As settings.yaml of every run is, from which the run can be done again or gone on with."""
    nothing = space_of(seed={"fixed": None})
    for space in (DEFAULT_SPACE, CONDITIONAL, nothing):
        written = {name: dimension.model_dump(mode="json") for name, dimension in space.items()}
        again = {name: Dimension.model_validate(values) for name, values in written.items()}
        assert {name: dimension.model_dump(mode="json") for name, dimension in again.items()} == written
    with pytest.raises(ValidationError, match="it has choice and fixed"):
        Dimension.model_validate({"choice": [1, 2], "fixed": 1})
