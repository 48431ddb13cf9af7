"""Models on the very same frames: the numbers are those of an evaluation, the intervals and p-values those of a plain loop."""

import numpy as np
import pytest
import torch

from pipeline.errors import DataError, SettingsError
from pipeline.evaluation.statistics import holm
from pipeline.frames.frame_set import FrameSet
from pipeline.progress import SILENT
from pipeline.reports.compare_folders import read_runs
from pipeline.reports.compare_models import Models, choose_frames, judged, load_models, measure
from pipeline.reports.evaluate import EvaluateSettings, evaluate
from pipeline.storage import copy_tree, delete, join
from tests.tiny_runs import finetune_run, written_run
from tests.tiny_sets import write_tiny_set

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    # Clips of 5 frames, the last one shorter.
    write_tiny_set(uri, splits={"train": 40, "val": 20, "test": 48}, image_size=48, wobble=0.01, group_size=5)
    return uri


@pytest.fixture(scope="module")
def folders(frame_set, tmp_path_factory) -> list[str]:
    storage = tmp_path_factory.mktemp("runs")
    return [finetune_run(storage, name, frame_set, seed=seed) for seed, name in enumerate(NAMES)]


def measured(folders: list[str], **given) -> Models:
    runs = read_runs(folders)
    models, notes = load_models(runs)
    frames, why = choose_frames(runs, models, **{"frame_set": None, "split": None, "max_frames": None, **given})
    assert (notes, why) == ([], "")
    assert frames is not None
    return measure(models, frames, torch.device("cpu"), SILENT)


def test_errors_constants_and_skills_are_those_of_an_evaluation(folders, frame_set):
    found = judged(measured(folders), dict.fromkeys(NAMES, "A"), 2)
    settings = EvaluateSettings(
        models=dict(zip(NAMES, folders, strict=True)),
        frame_set=frame_set,
        baseline="one",
        track=False,
        probe={"enabled": False},  # type: ignore[arg-type]
    )
    outcome = evaluate(settings)
    assert (found.num_frames, found.num_clips, found.split) == (48, 10, "test")
    assert found.judged == "pa_epe_mm"
    for name in NAMES:
        metrics = outcome["models"][name]["metrics"]
        for key, known in (("pa_epe_mm", "pa_epe_mm"), ("root_relative_epe_mm", "mpjpe_mm"), ("epe_mm", "epe_mm")):
            assert found.errors[key][name].value == pytest.approx(metrics[known], rel=1e-5)
        for key, known, skill in (
            ("pa_epe_mm", "constant_pa_epe_mm", "pa_skill"),
            ("root_relative_epe_mm", "constant_mpjpe_mm", "mpjpe_skill"),
            ("epe_2d", "constant_epe_2d", "epe_2d_skill"),
        ):
            assert found.errors[key][name].constant == pytest.approx(metrics[known], rel=1e-5)
            assert found.errors[key][name].skill == pytest.approx(metrics[skill], abs=1e-4)
        assert found.errors["epe_mm"][name].constant is None
        assert found.errors["epe_2d"][name].value == pytest.approx(metrics["epe_2d"])
        assert found.others["auc"][name] == pytest.approx(metrics["auc"])
        interval = found.errors["pa_epe_mm"][name].interval
        assert interval is not None
        assert interval[0] < metrics["pa_epe_mm"] < interval[1]
    verdict = found.verdict.model_dump(mode="json")
    for kind in ("against_constant", "between_models"):
        for ours, theirs in zip(verdict[kind], outcome["verdict"][kind], strict=True):
            assert (ours["model"], ours["baseline"]) == (theirs["model"], theirs["baseline"])
            assert ours["interval_percent"] == pytest.approx(theirs["interval_percent"], abs=0.01)


def test_paired_intervals_and_p_are_those_of_a_plain_loop_over_clips(folders):
    models = measured(folders)
    found = judged(models, dict.fromkeys(NAMES, "A"), 2)
    clips = np.array(models.clips("pa_epe_mm"))
    names = sorted(set(clips))
    rng = np.random.default_rng(7)
    drawn = [rng.choice(names, len(names)) for _ in range(4000)]
    first = models.errors["one"]["pa_epe_mm"].values
    p_values = {}
    for name in ("two", "three"):
        ours = models.errors[name]["pa_epe_mm"].values
        percent = []
        for some in drawn:
            rows = np.concatenate([np.flatnonzero(clips == clip) for clip in some])
            percent.append(100 * (ours[rows].mean() / first[rows].mean() - 1))
        comparison = found.errors["pa_epe_mm"][name].against_first
        assert comparison is not None
        assert comparison.baseline == "one"
        assert comparison.percent == pytest.approx(100 * (ours.mean() / first.mean() - 1), rel=1e-3)
        spread = np.ptp(np.percentile(percent, [2.5, 97.5]))
        assert comparison.interval_percent == pytest.approx(np.percentile(percent, [2.5, 97.5]), abs=0.08 * spread)
        beyond = min(np.mean(np.array(percent) <= 0), np.mean(np.array(percent) >= 0))
        assert comparison.p_value == pytest.approx(max(2 * beyond, 2 / 2**10), abs=0.03)
        p_values[name] = comparison.p_value or 0.0
    corrected = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    assert {name: found.errors["pa_epe_mm"][name].p_adjusted for name in corrected} == corrected
    assert found.errors["pa_epe_mm"]["one"].against_first is None
    # Of one comparison there is nothing to correct.
    two = judged(measured(folders[:2]), dict.fromkeys(NAMES, "A"), 2)
    assert two.errors["pa_epe_mm"]["two"].p_adjusted is None


def test_a_model_against_itself_is_no_difference(folders, tmp_path):
    copy_tree(folders[0], str(tmp_path / "copy"))
    found = judged(measured([folders[0], str(tmp_path / "copy")]), {"one": "A", "copy": "B"}, 2)
    comparison = found.errors["pa_epe_mm"]["copy"].against_first
    assert comparison is not None
    assert (comparison.percent, comparison.interval_percent, comparison.p_value) == (0, (0, 0), 1)
    assert comparison.outcome == "unclear"


def test_pictures_are_of_the_first_models_frames_and_of_those_that_differ_most(folders):
    models = measured(folders)
    found = judged(models, {"one": "A", "two": "B", "three": "C"}, 3)
    titles = [each.title for each in found.overlays]
    assert titles == [
        "Good frames of A",
        "Median frames of A",
        "Worst frames of A",
        "Frames on which the models differ most",
    ]
    shown = [each.picture.caption.split(", ") for each in found.overlays]
    assert len({name for names in shown for name in names}) == 12
    data = models.frames.data
    errors = np.stack([each["pa_epe_mm"].values for each in models.errors.values()])
    of_frame = dict(zip(data.frame_ids, errors.T, strict=True))
    worst = sorted(data.frame_ids, key=lambda name: of_frame[name][0])[-3:]
    assert set(shown[2]) == set(worst)
    others = [name for name in data.frame_ids if name not in {*shown[0], *shown[1], *shown[2]}]
    apart = sorted(others, key=lambda name: -np.ptp(of_frame[name]))[:3]
    assert set(shown[3]) == set(apart)


def test_without_a_test_split_validation_frames_are_taken_and_that_is_said(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 16, "val": 12}, image_size=48, wobble=0.01)
    runs = read_runs([finetune_run(tmp_path, name, uri, epochs=1) for name in ("a", "b")])
    models, _ = load_models(runs)
    frames, _ = choose_frames(runs, models, None, None, None)
    assert frames is not None
    assert (frames.split, len(frames.data)) == ("val", 12)
    assert frames.notes == [
        f"{uri} has no frames in split 'test': split 'val' is taken",
        "a, b: each chose its best checkpoint on these frames: its errors on others are larger",
    ]
    trained, _ = choose_frames(runs, models, None, "train", 8)
    assert trained is not None
    assert len(trained.data) == 8
    assert trained.notes == ["a, b: each was trained on these frames: its errors say nothing of others"]
    # Too few clips for intervals, and so for what is more than chance.
    found = judged(measure(models, frames, torch.device("cpu"), SILENT), {"a": "A", "b": "B"}, 1)
    against = found.errors["pa_epe_mm"]["b"].against_first
    assert against is not None
    assert found.errors["pa_epe_mm"]["b"].interval is None
    assert (against.interval_percent, against.p_value) == (None, None)


def test_models_of_different_sets_need_to_be_told_on_which_frames(folders, frame_set, tmp_path):
    other = str(tmp_path / "other")
    write_tiny_set(other, splits={"train": 16, "val": 8, "test": 8}, image_size=48, seed=9)
    runs = read_runs([folders[0], finetune_run(tmp_path, "else", other, epochs=1)])
    models, _ = load_models(runs)
    with pytest.raises(
        SettingsError, match=rf"^the frame set of one is {frame_set}, that of else {other}: .*--frame_set"
    ) as refused:
        choose_frames(runs, models, None, None, None)
    assert "\n" not in str(refused.value)
    frames, _ = choose_frames(runs, models, other, None, None)
    assert frames is not None
    assert frames.frame_set.uri == other
    # The same frames in another place are not different ones.
    copy_tree(frame_set, str(tmp_path / "copy"))
    runs = read_runs([folders[0], finetune_run(tmp_path, "same", str(tmp_path / "copy"), epochs=1)])
    assert choose_frames(runs, load_models(runs)[0], None, None, None)[0] is not None


def test_frames_that_cannot_be_read(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 16, "val": 8, "test": 8}, image_size=48)
    runs = read_runs([finetune_run(tmp_path, name, uri, epochs=1) for name in ("a", "b")])
    models, _ = load_models(runs)
    with pytest.raises(DataError, match="split 'nope' has no frames"):
        choose_frames(runs, models, None, "nope", None)
    delete(uri)
    frames, why = choose_frames(runs, models, None, None, None)
    assert frames is None
    assert why.startswith(f"the models are not measured on the same frames: {uri}")
    assert "--frame_set" in why
    with pytest.raises(DataError, match=uri):
        choose_frames(runs, models, uri, None, None)


def test_frames_that_have_changed_since_are_said(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 16, "val": 8}, image_size=48)
    runs = read_runs([finetune_run(tmp_path, name, uri, epochs=1) for name in ("a", "b")])
    models, _ = load_models(runs)
    write_tiny_set(uri, splits={"train": 16, "val": 12}, image_size=48, seed=3)
    frames, _ = choose_frames(runs, models, None, None, None)
    assert frames is not None
    assert frames.notes[1:] == [
        f"{uri}: its frames are others now than a, b read",
        "a, b: each chose its best checkpoint on these frames: its errors on others are larger",
    ]


def test_an_answer_that_is_not_finite_ends_it_with_the_name_of_the_run(folders):
    runs = read_runs(folders[:2])
    models, _ = load_models(runs)
    frames, _ = choose_frames(runs, models, None, None, None)
    assert frames is not None
    torch.nn.init.constant_(next(models["two"].model.head.parameters()), float("nan"))
    with pytest.raises(DataError, match=r"^two: .*not finite"):
        measure(models, frames, torch.device("cpu"), SILENT)


def test_a_model_that_is_damaged_is_said_and_left_out(folders, tmp_path):
    copy_tree(folders[1], str(tmp_path / "damaged"))
    for checkpoint in (tmp_path / "damaged").glob("checkpoint_*"):
        (checkpoint / "model.safetensors").write_bytes(b"cut")
    delete(join(str(tmp_path / "damaged"), "result.json"))
    runs = read_runs([folders[0], str(tmp_path / "damaged")])
    assert runs[1].model is None
    assert "no checkpoint of this run can be read" in runs[1].note
    gone = written_run(tmp_path / "gone", "head: {}\n", {"kind": "finetune", "best_checkpoint": "gone", "metrics": {}})
    models, notes = load_models(read_runs([folders[0], gone]))
    assert [*models] == ["one"]
    assert notes[0].startswith("gone: its model is not measured: ")


def test_labels_in_the_image_only_are_judged_there(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 24, "val": 12, "test": 24}, image_size=48, in_2d=lambda number: True)
    folders = [finetune_run(tmp_path, name, uri, epochs=1, seed=seed) for seed, name in enumerate(("a", "b"))]
    found = judged(measured(folders), {"a": "A", "b": "B"}, 2)
    assert found.judged == "epe_2d"
    assert [*found.errors] == ["epe_2d"]
    (against,) = found.verdict.between_models
    assert (against.metric, against.unit) == ("2D EPE", "% of the hand")
    assert against.value == pytest.approx(100 * found.errors["epe_2d"]["b"].value)
    assert found.errors["epe_2d"]["b"].constant is not None
    assert FrameSet.open(uri).manifest.digest == found.frame_set_digest
