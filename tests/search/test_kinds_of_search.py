"""Searches with several seeds and objectives, populations, pretrainings, label fractions and streamed frames, on tiny sets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import SettingsError
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import select_labels
from pipeline.models.cost import latency_ms, model_mb
from pipeline.models.kept import checkpoints_in, read_best
from pipeline.models.weights import load_pose_model
from pipeline.search.campaign import run_search
from pipeline.search.records import COMPLETED, STOPPED, TrialRecord, folder_of, read_records
from pipeline.search.settings import SearchSettings
from pipeline.search.space import trial_settings
from pipeline.storage import read_json
from pipeline.training.finetune import finetune
from pipeline.training.finetune_data import SharedFrames
from pipeline.training.finetune_recipe import FinetuneSettings
from pipeline.training.worker import Worker
from tests.tiny_sets import write_tiny_set

RATE = {"optimiser.learning_rate": {"log_uniform": [3e-4, 1e-2]}}


@pytest.fixture
def frame_set(tmp_path) -> str:
    write_tiny_set(str(tmp_path / "set"), splits={"train": 48, "val": 16}, image_size=48, wobble=0.01)
    return str(tmp_path / "set")


def search_settings(tmp_path: Path, frame_set: str, finetune=None, **changes) -> SearchSettings:
    base = {
        "frame_set": frame_set,
        "encoder": {"width": 8},
        "views": {"size": 32},
        "epochs": 4,
        "batch_size": 16,
        "precision": "float32",
    }
    return SearchSettings.model_validate(
        {
            "finetune": {**base, **(finetune or {})},
            "num_trials": 4,
            "run": {"storage": str(tmp_path / "runs"), "run_id": "s"},
            "tracking": {"uri": None},
            **changes,
        }
    )


def naive_front(records: list[TrialRecord], names: tuple[str, ...]) -> set[str]:
    points = {r.name: (r.value or 0.0, *(r.objectives[name] for name in names)) for r in records}
    front = set()
    for name, point in points.items():
        better = [o for o in points.values() if o != point and all(a <= b for a, b in zip(o, point, strict=True))]
        if not better:
            front.add(name)
    return front


@pytest.mark.slow
def test_seeds_objectives_and_label_fractions(tmp_path, frame_set, ray_cluster):
    settings = search_settings(
        tmp_path,
        frame_set,
        space={
            "encoder.width": {"choice": [8, 24]},
            "labels.fraction": {"choice": [0.5, 1.0]},
        },
        searcher="grid",
        scheduler="none",
        objectives=["model_mb", "latency_ms"],
        seeds_per_trial=2,
    )
    result = run_search(settings)
    folder = str(tmp_path / "runs/s")
    records = read_records(folder)
    assert [record.state for record in records] == [COMPLETED] * 4
    for record in records:
        assert len(record.seed_scores) == 2
        assert record.seed_scores[0] == record.best
        assert record.seed_scores[0] != record.seed_scores[1]
        assert record.other_seconds.keys() == {"seed-1"}
        assert record.seconds > record.other_seconds["seed-1"] > 0
        assert record.value == pytest.approx(sum(record.seed_scores) / 2)
        assert not Path(folder_of(folder, record.number), "seed-1").exists()
        loaded = load_pose_model(read_best(folder_of(folder, record.number))[0])
        assert record.objectives["model_mb"] == model_mb(loaded.model)
        assert record.objectives["latency_ms"] > 0
        assert latency_ms(loaded.model, 32) > 0
        # As many frames with half of the labels: twice as many epochs, by which it is compared as the others are.
        labels = record.values["labels.fraction"]
        assert loaded.meta["settings"]["epochs"] == (8 if labels == 0.5 else 4)
        assert loaded.constant is not None
        assert loaded.constant.num_poses == 48 * labels
        assert record.history[-1]["epoch"] == 4
        assert record.history[-1]["step"] == 12 if labels == 1.0 else 8
    sizes = {record.values["encoder.width"]: record.objectives["model_mb"] for record in records}
    assert sizes[24] > 4 * sizes[8]
    assert {*result["pareto"]} == naive_front(records, ("model_mb", "latency_ms"))
    assert result["best_seed_scores"] == min(records, key=lambda r: r.value or 0).seed_scores


@pytest.mark.slow
def test_members_of_a_population_go_on_from_each_others_weights(tmp_path, frame_set, ray_cluster):
    settings = search_settings(tmp_path, frame_set, space=RATE, scheduler="pbt", perturb_epochs=2)
    result = run_search(settings)
    folder = str(tmp_path / "runs/s")
    records = {record.number: record for record in read_records(folder)}
    assert len(records) == len(result["trials"]) == 8
    first, second = [records[n] for n in range(4)], [records[n] for n in range(4, 8)]
    assert [record.history[-1]["epoch"] for record in [*first, *second]] == [2] * 4 + [4] * 4
    ranked = sorted(first, key=lambda record: record.history[-1]["score"])
    moved = second[ranked[-1].number]
    assert moved.parent == ranked[0].number
    assert moved.values != ranked[0].values
    assert [r.parent for r in second if r is not moved] == [r.number for r in first if r is not ranked[-1]]

    # What it learnt is what training from its parent's checkpoint with its own values gives, to the last bit.
    torch.set_num_threads(1)
    data = FrameSet.open(frame_set)
    base = settings.finetune
    selection = select_labels(data, "train", base.labels)
    saved: list[dict[str, torch.Tensor]] = []

    def report(metrics, save):
        if save is not None:
            saved.append({name: value.clone() for name, value in save.weights.items()})

    finetune(
        trial_settings(FinetuneSettings.model_validate(base.model_dump()), moved.values),
        SharedFrames.load(base, data, selection),
        worker=Worker(resume=Path(checkpoints_in(folder_of(folder, ranked[0].number))[-1]), report=report),
    )
    kept = load_file(Path(checkpoints_in(folder_of(folder, moved.number))[-1], "model.safetensors"))
    assert len(saved) == 2
    assert all(torch.equal(kept[name], value) for name, value in saved[-1].items())
    assert run_search(settings) == result


@pytest.mark.slow
def test_trials_pretrain_first_and_share_what_is_the_same(tmp_path, frame_set, ray_cluster):
    settings = search_settings(
        tmp_path,
        frame_set,
        pretrain={
            "frame_set": frame_set,
            "epochs": 1,
            "batch_size": 16,
            "encoder": {"width": 8},
            "views": {"size": 32},
            "probe": {"enabled": False},
        },
        space={
            "pretrain.objective.temperature": {"choice": [0.2, 0.5]},
            "optimiser.learning_rate": {"choice": [1e-3, 3e-3]},
        },
        searcher="grid",
        scheduler="none",
    )
    run_search(settings)
    folder = tmp_path / "runs/s"
    made = {str(path): read_json(str(path / "result.json")) for path in (folder / "pretrainings").iterdir()}
    assert sorted(result["settings"]["objective"]["temperature"] for result in made.values()) == [0.2, 0.5]
    for record in read_records(str(folder)):
        init = load_pose_model(read_best(folder_of(str(folder), record.number))[0]).meta["settings"]["init"]
        result = next(each for each in made.values() if each["encoder"] == init)
        temperature = record.values["pretrain.objective.temperature"]
        assert result["settings"]["objective"]["temperature"] == temperature


@pytest.mark.slow
def test_frames_that_do_not_fit_in_memory_are_streamed(tmp_path, ray_cluster):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 400, "val": 8}, image_size=48)
    settings = search_settings(
        tmp_path,
        str(tmp_path / "set"),
        finetune={"memory_limit_mb": 1, "epochs": 1},
        space=RATE,
        num_trials=2,
    )
    result = run_search(settings)
    assert [trial["state"] for trial in result["trials"]] == [COMPLETED] * 2
    # A later search learns from this one: its best values come first.
    later = settings.model_copy(
        update={
            "warm_start": (str(tmp_path / "runs/s"),),
            "run": settings.run.model_copy(update={"run_id": "later"}),
            "num_trials": 1,
        }
    )
    assert run_search(later)["best_values"] == result["best_values"]
    by_skill = settings.finetune.model_copy(update={"best_by": "pa_skill"})
    with pytest.raises(SettingsError, match=r"judged its trials by the default, this search by pa_skill"):
        run_search(
            later.model_copy(
                update={"finetune": by_skill, "run": settings.run.model_copy(update={"run_id": "by-skill"})}
            )
        )


@pytest.mark.slow
def test_trials_of_several_workers_are_runs_of_their_own_and_end_early_too(tmp_path, frame_set, ray_cluster):
    settings = search_settings(
        tmp_path,
        frame_set,
        # So long that they can be ended, and with a head that knows nothing of hands before it has learnt.
        finetune={"epochs": 60, "batch_size": 8, "validate_every": 2, "head": {"kind": "spatial"}},
        # The second and third are far worse: no rung lets them pass.
        space={"optimiser.learning_rate": {"choice": [3e-3, 1e-7, 2e-7]}},
        searcher="grid",
        grace_epochs=2,
        reduction_factor=2,
        trial_workers=2,
    )
    result = run_search(settings)
    folder = str(tmp_path / "runs/s")
    records = read_records(folder)
    assert [record.state for record in records] == [COMPLETED, STOPPED, STOPPED]
    assert len(records[0].history) == 30
    assert all(len(record.history) < 30 for record in records[1:])
    assert result["best_trial"] == "0000"
    own = read_json(folder_of(folder, 0) + "/result.json")
    assert own["world_size"] == 2
    assert not Path(folder_of(folder, 0), "tracking").exists()
    assert [metrics["step"] for metrics in records[0].history] == [*range(6, 181, 6)]  # 48 frames, 2 x 8 at a time
