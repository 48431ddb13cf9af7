"""Cells, their order, their keys and their budgets."""

from itertools import pairwise
from pathlib import Path

import pytest

from jobs import study
from pipeline.config import load
from pipeline.errors import SettingsError
from pipeline.frames.mixing import Mixture
from pipeline.study.grid import (
    Arm,
    arm_recipe,
    cells_of,
    describe,
    for_frames,
    for_labels,
    identity,
    is_same_budget,
    transforms,
)
from pipeline.study.plan import done_of, minutes, plan_table, works_of
from pipeline.study.results import Results
from pipeline.study.settings import StudySettings
from pipeline.training.finetune_recipe import FinetuneSettings
from tests.tiny_sets import write_tiny_set

METHODS = {"simclr": {"objective": {"name": "simclr"}, "views": {"rotation_deg": 0}}, "peclr": {}}
GRIDS = [
    {
        "name": "first",
        "axis": "methods",
        "methods": ["scratch", "simclr", "peclr"],
        "frames": [1000],
        "labels": [0.1],
        "seeds": [0, 1],
    },
    {
        "name": "second",
        "axis": "unlabelled",
        "methods": ["scratch", "peclr"],
        "frames": [1000],
        "unlabelled": [0.5, 1.0],
        "labels": [0.1, 1.0],
        "seeds": [0],
    },
]


def settings(**changes) -> StudySettings:
    return StudySettings.model_validate({"methods": METHODS, "grids": GRIDS, **changes})


def keys(changed: StudySettings, unlabelled: str = "u", labelled: str = "l") -> list[str]:
    return [work.key for work in works_of(changed, unlabelled, labelled)]


def test_the_cells_of_the_results_that_come_with_the_project_keep_their_keys():
    """A setting that comes later must not make them other cells."""
    table = Results.read(str(Path(__file__).parents[2] / "docs/studies/laptop/results.parquet"))
    digest = table.about.frame_set_digest
    works = works_of(study.JOB.load(["--preset", "laptop"]), digest, digest)
    done = done_of(works, (), table.keys)
    trained = {row.key for row in table.rows if row.encoder}
    assert len(trained) > 20
    assert trained <= {work.key for work in works}
    assert trained <= done
    left = [work for work in works if work.key not in done]
    assert {work.after for work in left if work.cell is not None} - {None} == {
        work.key for work in left if work.cell is None
    }


def test_a_fine_tuning_without_the_file_of_its_pretraining_is_done_again():
    works = works_of(settings(), "u", "l")
    files = {work.key for work in works if work.cell is not None}
    scratch = {work.key for work in works if work.cell is not None and work.after is None}
    assert done_of(works, files) == scratch
    assert done_of(works, (), files) == {work.key for work in works}
    assert done_of(works, {work.key for work in works}) == {work.key for work in works}
    assert done_of(works, ()) == set()


def test_every_cell_is_there_once_and_the_first_grid_comes_first():
    cells = cells_of(settings())
    assert len({(cell.arm, cell.labels) for cell in cells}) == len(cells)
    # 3 methods x 2 seeds; of the second grid scratch has no unlabelled frames, and two of peclr's are there already.
    assert [len([cell for cell in cells if name in cell.grids]) for name in ("first", "second")] == [6, 2 + 4]
    assert len(cells) == 6 + 1 + 3
    assert [cell.arm.method for cell in cells[:6]] == ["scratch", "simclr", "peclr"] * 2
    assert [cell.arm.seed for cell in cells[:6]] == [0, 0, 0, 1, 1, 1]
    shared = next(cell for cell in cells if cell.arm == Arm("peclr", 1.0, 1000, "resnet18", 0) and cell.labels == 0.1)
    assert shared.grids == ("first", "second")


def test_pretraining_is_shared_and_comes_before_what_needs_it():
    works = works_of(settings(), "u", "l")
    names = [work.key for work in works]
    assert len(set(names)) == len(names)
    assert sum(work.cell is None for work in works) == 5  # simclr and peclr by two seeds, and peclr on half the clips
    for work in works:
        if work.after is not None:
            assert names.index(work.after) < names.index(work.key)
    assert {work.after for work in works if work.arm.method == "scratch"} == {None}


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {"storage": "elsewhere"}, "tracking": {"experiment": "other"}, "title": "other"},
        {"max_concurrent": 3, "max_minutes": 5, "pretrain_cell": {"cpus": 2}, "speed": {"pretrain": 9}},
        {
            "pretrain": {"log_every": 3, "num_readers": 2, "checkpoint": {"every_steps": 7}},
            "finetune": {"log_every": 3},
        },
        {"pretrain": {"frame_set": "a"}, "finetune": {"frame_set": "b", "memory_limit_mb": 7}},
        {"detector": {"model": "m"}},  # no method mines pairs
    ],
)
def test_keys_do_not_change_with_what_does_not_decide_a_result(changes):
    assert keys(settings(**changes)) == keys(settings())


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"pretrain": {"objective": {"temperature": 0.1}}}, {"pretrain", "finetune"}),
        ({"methods": {**METHODS, "peclr": {"views": {"rotation_deg": 90}}}}, {"pretrain", "finetune"}),
        ({"finetune": {"batch_size": 32}}, {"finetune"}),
        ({"finetune": {"frames": 999}}, {"finetune"}),
        ({"encoders": {"resnet18": {"width": 32}}}, {"pretrain", "finetune"}),
        ({"test_split": "val"}, {"finetune"}),
    ],
)
def test_keys_change_with_what_does(changes, kinds):
    before, after = keys(settings()), keys(settings(**changes))
    assert {new.split("-")[0] for old, new in zip(before, after, strict=True) if old != new} == kinds


def test_a_change_of_one_method_leaves_the_others_alone():
    changed = settings(methods={**METHODS, "peclr": {"views": {"rotation_deg": 90}}})
    differing = {new for old, new in zip(keys(settings()), keys(changed), strict=True) if old != new}
    assert differing
    assert all("-peclr-" in key for key in differing)


def test_keys_depend_on_the_frames_and_not_on_their_place(tmp_path):
    write_tiny_set(str(tmp_path / "a"), splits={"train": 8})
    write_tiny_set(str(tmp_path / "b"), splits={"train": 8})
    write_tiny_set(str(tmp_path / "c"), splits={"train": 8}, seed=1)
    a, b, c = (identity(Mixture.open(str(tmp_path / name), "train")) for name in "abc")
    assert a == b != c
    assert not set(keys(settings(), unlabelled=c)) & {key for key in keys(settings()) if "peclr" in key}


def test_budgets_in_frames_become_epochs(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 200})
    mixture = Mixture.open(uri, "train")
    recipe = arm_recipe(settings(pretrain={"batch_size": 32}), Arm("peclr", 1.0, 1000, "resnet18", 3))
    assert recipe.seed == 3
    assert for_frames(recipe, 960, mixture).epochs == 5  # 6 full batches of 32 an epoch
    with pytest.raises(SettingsError, match=r"'grids.frames' = 300: 2 epochs of .* are 384 frames, .* multiple of 192"):
        for_frames(recipe, 300, mixture)

    base = FinetuneSettings(frame_set="set", frames=36_000, batch_size=64)
    for num_labels in (10, 100, 1000, 9000):
        tuned = for_labels(base, 10, num_labels)
        batch = min(64, num_labels)
        seen = tuned.epochs * (num_labels // batch) * batch
        assert is_same_budget(seen, 36_000)
        assert tuned.validate_every is not None
        assert 8 <= tuned.epochs / tuned.validate_every <= 20 or tuned.epochs < 10
    assert not is_same_budget(40_000, 36_000)


def test_tables_say_what_is_used_and_what_is_undone():
    changed = settings(
        methods={
            **METHODS,
            "rotation": {"objective": {"undone": ["rotation"]}},
            "similarity": {"objective": {"inverse": "similarity"}},
            "hybrid": {"objective": {"name": "hybrid"}},
            "temporal": {"objective": {"positives": {"kind": "temporal"}, "temperature": 0.1}},
        }
    )

    def words(name: str) -> tuple[str, str, str]:
        recipe = arm_recipe(changed, Arm(name, 1.0, 1, "resnet18", 0))
        return (*transforms(recipe), describe(recipe))

    every = "colour, scale, rotation, translation"
    assert words("simclr") == ("colour, scale, translation", "", "simclr, temperature 0.5")
    assert words("peclr") == (every, "rotation, translation", "peclr, exact-units, temperature 0.5")
    assert words("rotation")[1] == "rotation"
    assert words("similarity")[1] == "scale, rotation, translation"
    assert words("hybrid")[1].startswith("regressed: ")
    assert words("temporal")[2] == "peclr, exact-units, temporal positives, temperature 0.1"


def test_the_plan_adds_up():
    plain = settings(speed={"pretrain": 10, "finetune": 100, "cell_s": 0, "at_a_time": 2}, finetune={"frames": 6000})
    works = works_of(plain, "u", "l")
    assert minutes(plain, works) == pytest.approx((5 * 100 + 10 * 60) / 2 / 60)
    done = [works[0].key, works[1].key]
    title, columns, rows = plan_table(plain, works, done)
    assert title.startswith("15 cells, 13 left")
    assert len(columns) == len(rows[0])
    assert [row[2:5] for row in rows] == [[4, 6, 2], [1, 4, 0]]
    one_at_a_time = settings(speed={"pretrain": 10, "finetune": 100, "cell_s": 0, "at_a_time": 2}, max_concurrent=1)
    assert minutes(one_at_a_time, works) == pytest.approx(2 * minutes(plain, works))
    assert all(first.seconds > 0 for first, _ in pairwise(works))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"peclr": {"views": {"rotation": 3}}}}, "'methods.peclr.views.rotation': extra inputs"),
        (
            {"methods": {"peclr": {"epochs": 3}}},
            "'methods.peclr.epochs': is the same for all methods; see grids.frames",
        ),
        ({"methods": {"scratch": {}, **METHODS}}, "'methods.scratch': is the arm without pretraining"),
        ({"methods": {"a/b": {}, **METHODS}}, "'methods': 'a/b': use letters"),
        ({"pretrain": {"epochs": 7}}, "'pretrain.epochs': the study decides it; see grids.frames"),
        ({"finetune": {"labels": {"fraction": 0.5}}}, "'finetune.labels': the study decides it; see grids.labels"),
        ({"grids": [{**GRIDS[0], "methods": ["pecrl"]}]}, "'first' names 'pecrl', which is none of methods"),
        ({"grids": [GRIDS[0], GRIDS[0]]}, "two of them have the same name"),
        ({"grids": [{**GRIDS[0], "labels": [10]}]}, "'grids.labels' = 10.0: must be above 0 and at most 1"),
        ({"findings": {"ours": "theirs"}}, "'findings': 'theirs' is none of the methods"),
        ({"grids": []}, "grids"),
    ],
)
def test_bad_settings_give_one_line(changes, words, tmp_path):
    import yaml

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"methods": METHODS, "grids": GRIDS, **changes}))
    with pytest.raises(SettingsError) as caught:
        load(StudySettings, ["--config", str(path)])
    lower = str(caught.value)[0] + str(caught.value)[1:]
    assert words.lower() in lower.lower()
    assert "\n" not in lower
