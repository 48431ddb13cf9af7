"""A run done again: what is refused, and that the numbers of one on a CPU are the same."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from jobs import finetune, reproduce
from pipeline.errors import DataError, SettingsError, TrainingError
from pipeline.storage import read_json
from tests.tiny_sets import write_tiny_set


def finetune_run(tmp_path: Path) -> str:
    """A folder with a short fine-tuning in it."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 48, "val": 16}, image_size=48)
    arguments = [
        *(f"--frame_set={tmp_path}/set", f"--run.storage={tmp_path}/runs", "--run.run_id=first", "--tracking.uri=none"),
        *(
            "--encoder.width=8",
            "--views.size=32",
            "--epochs=2",
            "--batch_size=16",
            "--precision=float32",
            "--workers.threads=1",
        ),
    ]
    definition = finetune.JOB
    finetune.run(definition.own(definition.load(arguments)), session=nullcontext)
    return str(tmp_path / "runs/first")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fine_tuning_gives_the_same_numbers_again(tmp_path, ray_cluster):
    folder = finetune_run(tmp_path)
    settings = reproduce.JOB.own(reproduce.JOB.load([folder, "--tolerance", "0"]))
    outcome = reproduce.run(settings, session=nullcontext)
    assert outcome["again"] == f"{folder}-again"
    assert outcome["relative_difference"] == 0
    assert {"score", "val_pa_epe_mm"} <= outcome["metrics"].keys()
    assert all(then == now for then, now in outcome["metrics"].values())
    # What it is compared with has changed: it is told, and refused where that was asked for.
    path = Path(folder, "result.json")
    result = read_json(str(path))
    result["metrics"]["score"] *= 1.5
    path.write_text(json.dumps(result))
    with pytest.raises(TrainingError, match=r"^'score' was .* they differ by 3.3e-01, more than 0.1$"):
        reproduce.run(settings.model_copy(update={"tolerance": 0.1}), session=nullcontext)
    # So have the frames.
    write_tiny_set(str(tmp_path / "set2"), splits={"train": 40, "val": 16}, image_size=48)
    (tmp_path / "set").rename(tmp_path / "old")
    (tmp_path / "set2").rename(tmp_path / "set")
    with pytest.raises(DataError, match=r"/set: its frames are others than those of the run"):
        reproduce.run(settings, session=nullcontext)


@pytest.mark.parametrize("text", [None, '{"kind": "evaluate"}', "{"])
def test_what_is_no_run_that_can_be_done_again_is_refused(text, tmp_path):
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run/result.json").write_text(text)
    with pytest.raises(SettingsError, match="no finished run of pretrain, finetune, search"):
        reproduce.run(reproduce.ReproduceSettings(run=str(tmp_path / "run")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frame_set: a\nepoch: 3\n", "does not take setting 'epoch'"),
        ("frame_set: [", "damaged"),
        ("frame_set: a\nepochs: 0\n", "'epochs'"),
    ],
)
def test_settings_of_another_version_are_named(text, words, tmp_path):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(SettingsError, match=words) as refused:
        reproduce.read_settings(str(tmp_path), finetune.JOB)
    assert "\n" not in str(refused.value)


def test_times_are_not_compared():
    then = {"score": 1.0, "frames_per_second": 5.0, "checkpoint_pause_s": 0.1, "name": "x", "gone": 1.0}
    assert reproduce.compared(
        then, {"score": 2.0, "frames_per_second": 6.0, "checkpoint_pause_s": 0.2, "name": "y"}
    ) == {"score": (1.0, 2.0)}
