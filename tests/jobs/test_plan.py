"""Plans come from measured rates, and say how."""

import importlib.resources
import json

import pytest
import yaml
from pydantic import ValidationError

from jobs import plan as job
from jobs.plan import JOB, PlanSettings, run
from jobs.plan_model import flops_of_frame, num_weights
from jobs.plan_rates import Rate, read_rates
from jobs.timed_pretrain import Clock, Timed
from pipeline.errors import EquihandError, SettingsError, TrainingError
from pipeline.models.encoder import EncoderSettings
from pipeline.models.pretrain import PretrainModel, ProjectionSettings

XEON = {
    "frames": 1_032_000,
    "epochs": 10,
    "machine": "xeon-amx",
    "number": 2,
    "encoder": {"name": "resnet18", "width": 32},
    "view_size": 64,
    "batch_size": 128,
}
MINE = {
    "kind": "pretrain",
    "figure": 6000,
    "machine": "my-gpu",
    "device": "one GPU",
    "date": "2026-01-02",
    "command": "python -m jobs.bench train",
    "unit": "gpu",
    "encoder": {"name": "resnet18"},
    "view_size": 128,
    "batch_size": 256,
    "around_s": 40,
}


def planned(**settings) -> dict[str, dict]:
    return run(PlanSettings.model_validate(settings))["figures"]


def planned_with(rates: list[dict], path, **settings) -> dict[str, dict]:
    path.write_text(yaml.safe_dump(rates))
    return planned(rates=str(path), **settings)


def test_what_was_measured_is_said_to_be():
    figures = planned(**XEON)
    assert figures["training"]["value"] == 516
    assert figures["training"]["basis"].startswith("measured: 516 frames/s on 2 cores (xeon-amx)")
    steps = 1_032_000 // 256 * 256
    assert figures["time"]["value"] == pytest.approx((10 * steps / 516 + 13.8) / 3600)
    assert figures["core time"]["value"] == pytest.approx(2 * figures["time"]["value"])
    assert figures["start and end of the run"]["basis"].startswith("extrapolated from another machine")


def test_what_is_extrapolated_says_by_how_much():
    """Twice the width: about four times the work; twice the cores: twice the rate."""
    figures = planned(**XEON | {"encoder": {"name": "resnet18", "width": 64}, "number": 4, "batch_size": 64})
    wide, narrow = (flops_of_frame(EncoderSettings(width=width), 64) for width in (64, 32))
    assert 3.3 < wide / narrow < 4
    assert figures["training"]["value"] == pytest.approx(516 * 2 * narrow / wide)
    basis = figures["training"]["basis"]
    assert basis.startswith("extrapolated from 516 frames/s on 2 cores")
    assert f"{wide / narrow:.3g} x the work of a frame, 2 x the cores" in basis
    assert "batches of 64 in place of 128 (their effect is not known)" in basis


def test_work_is_that_of_the_network():
    # torchvision: 1.814 G multiply-adds for ResNet-18 at 224 px; two views, two operations each, and a small head.
    assert flops_of_frame(EncoderSettings(), 224) == pytest.approx(4 * 1.814e9, rel=0.01)
    model = PretrainModel(EncoderSettings(width=8), ProjectionSettings())
    assert num_weights(EncoderSettings(width=8)) == sum(each.numel() for each in model.state_dict().values())


def test_storage_and_network():
    figures = planned(**XEON | {"image_size": 80})
    assert figures["frame set"]["value"] == pytest.approx(1_032_000 * 6200 / 4 / 1e9)
    assert "0.25 x the pixels" in figures["a stored frame"]["basis"]
    assert figures["read in an epoch"]["value"] == pytest.approx(1_032_000 // 256 * 256 * 6200 / 4 / 1e9)
    assert figures["read while it trains"]["value"] == pytest.approx(516 * 6200 / 4 / 1e6)
    weights = 4 * num_weights(EncoderSettings(width=32))
    assert figures["checkpoints"]["value"] == pytest.approx(6 * 3 * weights / 1e9)
    assert figures["sent by a worker in a step"]["value"] == pytest.approx(weights / 1e6)


def test_own_rates_and_the_bound_of_the_data(tmp_path):
    wanted = {"frames": 10**6, "machine": "my-gpu", "view_size": 128, "batch_size": 256}
    figures = planned_with([MINE], tmp_path / "rates.yaml", **wanted)
    assert figures["training"]["value"] == 6000
    assert figures["GPU time"]["value"] == figures["time"]["value"]
    assert figures["start and end of the run"]["value"] == 40
    assert "sent by a worker in a step" not in figures
    # 8,842 frames of one core (measured elsewhere) are less than this network would take.
    fast = MINE | {"figure": 20_000}
    figures = planned_with([fast], tmp_path / "rates.yaml", **wanted, cores_per_gpu=2)
    assert figures["training"]["value"] == 2 * 8842
    assert figures["training"]["basis"].startswith("bound by the data: extrapolated from 8,842 of one core")


def test_the_most_similar_training_is_taken(tmp_path):
    rows = [MINE | {"figure": figure, "view_size": size} for figure, size in ((20_000, 64), (5_000, 128), (1_500, 224))]
    figures = planned_with(rows, tmp_path / "rates.yaml", frames=10**6, machine="my-gpu", view_size=192, batch_size=256)
    assert "1,500 frames/s" in figures["training"]["basis"]


def test_a_machine_without_rates_says_how_to_get_them(capsys):
    with pytest.raises(EquihandError) as caught:
        planned(frames=10**6, machine="h100")
    assert caught.value.exit_code == 1
    assert str(caught.value).startswith("no training has been measured on 'h100' (--machine; there are: xeon-amx")
    assert "jobs.bench train" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"frames": 10**6}, "setting 'machine' is required"),
        ({"frames": 100, "machine": "xeon-amx"}, "setting 'frames' = 100: 1 workers with batch_size = 128 need 128"),
        ({"frames": 10**6, "machine": "xeon-amx", "rates": "no/such.yaml"}, "setting 'rates': cannot read"),
    ],
)
def test_wrong_settings(settings, text):
    with pytest.raises(SettingsError) as caught:
        planned(**settings)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({"a": 1}, "must hold a list of rows"),
        ([MINE, {**MINE, "figure": -1}], "row 2, figure: Input should be greater than 0"),
        ([{key: MINE[key] for key in MINE if key != "encoder"}], "must also have encoder"),
        ([{key: MINE[key] for key in MINE if key != "date"}], "row 1, date: Field required"),
    ],
)
def test_wrong_rates(tmp_path, rows, text):
    with pytest.raises(SettingsError, match="setting 'rates': ") as caught:
        planned_with(rows, tmp_path / "rates.yaml", frames=10**6, machine="my-gpu")
    assert text in str(caught.value)


def test_rows_of_the_package_stand_in_its_pages():
    """No figure is made up: each is in the docs, with the command."""
    root = importlib.resources.files("jobs").joinpath("..")
    page = root.joinpath("docs", "speed.md").read_text()
    for row in read_rates(None):
        shown = f"{row.figure / 1000:.3g} kB" if row.kind == "frame" else f"{row.figure:,.4g}"
        assert shown in page, row
        assert row.command.partition(" --")[0].removeprefix("python -m ") in page or row.command.split()[-1] in page
    with pytest.raises(ValidationError):
        Rate.model_validate({"kind": "pretrain", "figure": 1})


def test_measuring_here_plans_from_what_was_measured(monkeypatch, capsys):
    asked = []

    def timed(recipe, rows, image_size, workers):
        asked.append((recipe.epochs, rows, image_size, workers, recipe.batch_size, recipe.views.size))
        return Timed(200.0, 25.0)

    monkeypatch.setattr(job, "timed_pretrain", timed)
    monkeypatch.setattr(job, "is_fixed", lambda: True)
    settings = {"frames": 2000, "epochs": 3, "number": 2, "batch_size": 16, "view_size": 32, "image_size": 40}
    result = run(PlanSettings.model_validate({**settings, "measure": True, "encoder": {"width": 8}}), session=nothing)
    figures = result["figures"]
    assert asked == [(2, 1920, 40, 2, 16, 32)] or asked == [(1, 1920, 40, 2, 16, 32)]
    assert figures["training"]["basis"].startswith("measured: 200 frames/s on 2 cores")
    assert figures["time"]["value"] == pytest.approx((3 * 2000 // 32 * 32 / 200 + 25) / 3600, rel=0.02)
    json.dumps(result)
    shown = capsys.readouterr().out
    row = yaml.safe_load(shown.partition("measured:\n")[2].partition("\n|")[0])
    assert Rate.model_validate(row[0]).figure == 200.0


def test_a_cluster_is_not_measured(monkeypatch):
    monkeypatch.setattr(job, "is_fixed", lambda: False)
    with pytest.raises(SettingsError, match=r"^setting 'measure' = true: measures this machine"):
        run(PlanSettings(frames=2000, measure=True), session=nothing)


class nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *error) -> None: ...


def test_a_run_is_timed_once_it_has_settled():
    clock = Clock()
    clock.seen = [(0.0, 10), (9.0, 40), (10.0, 80), (11.0, 120)]
    assert clock.rate() == 40


def test_a_run_that_is_over_at_once_tells_no_rate():
    clock = Clock()
    with pytest.raises(TrainingError, match="measure more steps"):
        clock.rate()
    clock.update(100)
    with pytest.raises(TrainingError, match="measure more steps"):
        clock.rate()


@pytest.mark.slow
def test_a_short_training_is_measured(ray_cluster):
    rate = job.measure(
        PlanSettings.model_validate(
            {
                "frames": 400,
                "measure_steps": 400,
                "batch_size": 8,
                "view_size": 32,
                "image_size": 40,
                "encoder": {"width": 8},
            }
        )
    )
    assert rate.figure > 0
    assert rate.around_s is not None
    assert JOB.name == "plan"
