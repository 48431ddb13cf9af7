import contextlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError, SettingsError, TrainingError
from pipeline.frames.batches import Batch
from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.encoder import EncoderSettings
from pipeline.models.kept import Kept, OutOfTime, checkpoints_in
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.runs import RunSettings, open_run
from pipeline.tracking import StoredRun
from pipeline.training.leaving import Left
from pipeline.training.optim import OptimiserSettings, build_optimiser
from pipeline.training.pretrain import Steps, run_epochs
from pipeline.training.pretrain_recipe import check_recipe
from pipeline.training.pretrain_run import PretrainSettings, run_pretrain
from pipeline.training.saving import saving
from pipeline.training.worker import Worker
from pipeline.training.workers import WorkerSettings
from pipeline.views import ViewSettings
from tests.tiny_sets import write_tiny_set
from tests.training.damage import damage
from tests.training.killing import wait_for_worker

ROOT = Path(__file__).resolve().parents[2]


def small(frame_set: str | list[dict], **changes) -> PretrainSettings:
    values = {
        "frame_set": frame_set,
        "epochs": 3,
        "batch_size": 16,
        "log_every": 4,
        "num_readers": 1,
        "precision": "float32",
        "views": ViewSettings(size=32),
        "encoder": EncoderSettings(width=8),
        "projection": ProjectionSettings(hidden=32, outputs=16),
        "optimiser": OptimiserSettings(learning_rate=3e-3),
        **changes,
    }
    return PretrainSettings.model_validate(values)


def steps_for(settings: PretrainSettings) -> tuple[PretrainModel, Steps]:
    torch.manual_seed(0)
    model = PretrainModel(settings.encoder, settings.projection)
    optimiser = build_optimiser(model, settings.optimiser)
    return model, Steps(model, optimiser, settings, Worker(), steps_per_epoch=40)


def test_the_loss_falls_and_figures_are_plain_numbers():
    settings = small("unused", epochs=5, log_every=40, objective={"temperature": 0.1})
    _, steps = steps_for(settings)
    coarse = torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    frames = (255 * torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")).byte()
    losses = []
    for step in range(200):
        steps.run(Batch(step // 40, step % 40, frames, {}), waited=1e-4)
        if steps.number % 40 == 0:
            metrics = steps.interval_metrics()
            json.dumps(metrics)
            losses.append(metrics["loss"])
    assert losses[-1] < math.log(31) < losses[0]  # chance: one of 31 other views
    assert 0 < metrics["data_wait_fraction"] < 1
    assert metrics["positive_similarity"] > metrics["negative_similarity"]


def test_a_loss_that_is_not_a_number_is_named():
    model, steps = steps_for(small("unused", epochs=1, optimiser={"max_bad_steps": 0}))
    frames = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    steps.run(Batch(0, 0, frames, {}), 0.0)
    with torch.no_grad():
        model.encoder.conv1.weight.fill_(float("nan"))
    steps.run(Batch(0, 1, frames, {"frame_id": [f"clip/{number}" for number in range(16)]}), 0.0)
    with pytest.raises(
        TrainingError,
        match=r"^the loss is nan at step 2 on worker 0 \(frames clip/0, clip/1, clip/2 and 13 more\); with 1 such steps, "
        r"optimiser\.max_bad_steps = 0 is exceeded, and the last good checkpoint is kept",
    ):
        steps.interval_metrics()


def test_views_do_not_depend_on_what_ran_before():
    """A resumed run draws the views that an uninterrupted one would have drawn."""
    frames = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    seen = []
    for first in (0, 3):
        _, steps = steps_for(small("unused", log_every=4))
        for step in range(first, 4):
            steps.run(Batch(0, step, frames, {}), 0.0)
        seen.append(steps.examples())
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][0], seen[0][1])


def test_a_checkpoint_between_logs_has_figures_of_its_own():
    """Similarities are of the step that is saved, not of the last one that was logged."""
    frames = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    for log_every in (1, 40):
        _, steps = steps_for(small("unused", log_every=log_every, checkpoint={"every_steps": 3}))
        for step in range(3):
            steps.run(Batch(0, step, frames, {}), 0.0)
        seen.append(steps.interval_metrics())
    names = ("positive_similarity", "negative_similarity")
    assert [seen[0][name] for name in names] == [seen[1][name] for name in names]


class Training:
    """A pretraining in this process, and what it reported with its checkpoints."""

    def __init__(
        self,
        settings: PretrainSettings,
        folder: Path,
        deadline: float | None = None,
        leave_before: int | None = None,
        asynchronous: bool = False,
    ) -> None:
        """leave_before: the step that is the last one. asynchronous: checkpoints are written in a thread, as those of a run are."""
        self.leave_before = leave_before
        self.kept = Kept(str(folder), deadline=deadline)
        self.said: list[str] = []
        self.steps: list[int] = []
        self.checkpoints: list[dict] = []
        mixture = check_recipe(settings, 1)
        resume = self.kept.resume(folder / "copies", self.said.append)
        with contextlib.suppress(OutOfTime, Left), saving(self.kept.keep) as self.writer:
            self.asynchronous = asynchronous
            worker = Worker(
                folder=str(folder),
                resume=resume,
                report=self.report,
                notice=lambda frames, _: self.steps.append(frames // settings.batch_size),
                leaving=self.leaving,
            )
            self.result = run_epochs(settings, mixture, worker)

    def leaving(self) -> bool:
        self.leave_before = None if self.leave_before is None else self.leave_before - 1
        return self.leave_before == 0

    def report(self, metrics, snapshot) -> None:
        if snapshot is not None:
            self.checkpoints.append(metrics)
            if self.asynchronous:
                self.writer.save(snapshot, metrics)
            else:
                self.kept.keep(snapshot, metrics, last=metrics["step"] == 8)
            if self.leave_before == 0:
                raise Left


@pytest.fixture
def in_process(monkeypatch):
    """Frames are read here instead of in Ray Data's tasks."""
    monkeypatch.setattr(
        "pipeline.frames.windows.read_items",
        lambda items, reader: ((item, reader.read(item)) for item in items),
    )


@pytest.mark.usefixtures("in_process")
def test_going_on_before_a_damaged_checkpoint_ends_with_the_same_weights(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    settings = small(str(tmp_path / "set"), epochs=2, checkpoint={"every_steps": 3})
    whole = Training(settings, tmp_path / "whole")
    assert [metrics["step"] for metrics in whole.checkpoints] == [3, 4, 6, 8]
    for _ in range(3):
        Training(settings, tmp_path / "broken", deadline=1.0)
    newest = tmp_path / "broken/checkpoint_000003"
    assert json.loads((newest / "meta.json").read_text())["step"] == 6
    damage(str(newest / "trainer.pt"), "one byte changed")
    rest = Training(settings, tmp_path / "broken")
    assert rest.said[0].startswith(f"{newest}/trainer.pt: damaged")
    assert rest.steps == [5, 6, 7, 8]
    first, second = (read_checkpoint(str(run.kept.newest))[0] for run in (whole, rest))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    # Once more, as if it had ended before it wrote its result: nothing is trained, and the figures are those of the end.
    newest = str(rest.kept.newest)
    files = {path.name: path.read_bytes() for path in Path(newest).iterdir()}
    again = Training(settings, tmp_path / "broken")
    assert (again.steps, again.checkpoints) == ([], [])
    assert checkpoints_in(str(tmp_path / "broken"))[-1] == newest == str(again.kept.newest)
    assert {path.name: path.read_bytes() for path in Path(newest).iterdir()} == files
    same = {
        name: value for name, value in rest.result["metrics"].items() if not name.endswith(("_second", "_fraction"))
    }
    assert same.items() <= again.result["metrics"].items()


@pytest.mark.usefixtures("in_process")
def test_leaving_costs_no_step_and_changes_no_weight(tmp_path):
    """In mid-epoch, between two logs; checkpoints are written while the training goes on."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    settings = small(str(tmp_path / "set"), epochs=2, checkpoint={"every_steps": 1})
    whole = Training(settings, tmp_path / "whole")
    settings = small(str(tmp_path / "set"), epochs=2)
    first = Training(settings, tmp_path / "left", leave_before=3, asynchronous=True)
    assert first.steps == [1, 2, 3]
    assert [metrics["step"] for metrics in first.checkpoints] == [3]
    similar = [each["positive_similarity"] for each in (first.checkpoints[-1], whole.checkpoints[2])]
    assert similar[0] == similar[1]  # of its own step
    rest = Training(settings, tmp_path / "left", asynchronous=True)
    assert rest.steps == [4, 5, 6, 7, 8]
    mine, theirs = (read_checkpoint(str(run.kept.newest))[0] for run in (whole, rest))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("minutes", "steps"), [(1e-9, [3, 4, 6, 8]), (60, [8]), (None, [8])])
def test_a_checkpoint_is_due_after_some_minutes(tmp_path, minutes, steps):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    due = {"every_epochs": 9, "every_minutes": minutes}
    run = Training(small(str(tmp_path / "set"), epochs=2, log_every=3, checkpoint=due), tmp_path / "run")
    assert [metrics["step"] for metrics in run.checkpoints] == steps


@pytest.mark.usefixtures("in_process")
def test_weights_that_overflow_are_not_saved(tmp_path, monkeypatch):
    """The loss of every step is finite; it is the update of the third that is not."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64}, labelled=False)
    settings = small(str(tmp_path / "set"), epochs=2, checkpoint={"every_steps": 1})
    run = Steps.run

    def overflow(steps, *arguments):
        run(steps, *arguments)
        if steps.number == 3:
            next(steps.network.parameters()).data[0] = float("inf")

    monkeypatch.setattr(Steps, "run", overflow)
    with pytest.raises(
        TrainingError, match=r"'encoder\.conv1\.weight' is no longer finite after step 3, though the losses"
    ):
        Training(settings, tmp_path / "run")
    kept = sorted(tmp_path.glob("run/checkpoint_*/meta.json"))
    assert [json.loads(path.read_text())["step"] for path in kept] == [1, 2]


@pytest.mark.usefixtures("in_process")
def test_a_checkpoint_is_not_scored_by_an_earlier_probe(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64, "val": 16})
    write_tiny_set(str(tmp_path / "other"), splits={"train": 64, "val": 16}, source="other")
    probe = {"enabled": True, "every_epochs": 1, "num_train": 50, "num_test": 16}
    sets = [{"uri": str(tmp_path / name), "weight": 1} for name in ("set", "other")]
    settings = small(sets, epochs=1, checkpoint={"every_steps": 3, "keep": 1}, probe=probe)
    run = Training(settings, tmp_path / "run")
    scores = [metrics.get("score") for metrics in run.checkpoints]
    assert scores == [None, None, run.checkpoints[-1]["probe_pa_epe_mm"]]
    assert [metrics["step"] for metrics in run.checkpoints] == [3, 6, 8]
    # Of several sets, the one that was probed is named.
    assert run.result["probe_frame_set"] == str(tmp_path / "set")
    assert read_checkpoint(str(run.kept.newest))[1]["probe_frame_set"] == str(tmp_path / "set")


def test_bad_runs_are_refused_before_they_start(tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 24}, labelled=False)
    run = RunSettings(storage=str(tmp_path / "runs"), run_id="a")
    with pytest.raises(SettingsError, match=r"'batch_size' = 32: 1 workers need 32 frames.*has 24"):
        run_pretrain(small(uri, batch_size=32, run=run))
    with pytest.raises(DataError, match="split 'val' has no frames; the set has 24 train"):
        run_pretrain(small(uri, split="val", run=run))
    with pytest.raises(DataError, match="the probe needs split 'val'"):
        run_pretrain(small(uri, probe={"enabled": True}, run=run))


def test_a_run_id_stands_for_its_settings(tmp_path, caplog):
    run = RunSettings(storage=str(tmp_path), run_id="a")
    first = small("set", run=run)
    folder, result = open_run(first, run, "a")
    assert result is None
    Path(folder, "result.json").write_text('{"run_id": ')
    assert open_run(first, run, "a")[1] is None
    assert "result.json: not valid JSON" in caplog.text
    settings_file = Path(folder, "settings.yaml")
    before = settings_file.read_text()
    for damaged in ("", "epochs: [3", "words"):
        settings_file.write_text(damaged)
        open_run(first, run, "a")
        assert settings_file.read_text() == before
    assert "settings.yaml: damaged (it is empty); the settings given now" in caplog.text
    open_run(first.model_copy(update={"workers": WorkerSettings(num_workers=7)}), run, "a")
    with pytest.raises(SettingsError, match=r"run 'a' .* epochs = 3, now it is 4; use the same settings"):
        open_run(first.model_copy(update={"epochs": 4}), run, "a")
    Path(folder, "result.json").write_text('{"run_id": "a"}')
    assert open_run(first, run, "a")[1] == {"run_id": "a"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_lose_one_and_finish(tmp_path):
    """The whole job, with a probe; one worker is killed by force in mid-run, and the run goes on by itself."""
    frame_set, runs = str(tmp_path / "set"), tmp_path / "runs"
    write_tiny_set(frame_set, splits={"train": 256, "val": 64})
    settings = [
        f"--frame_set={frame_set}",
        "--epochs=30",
        "--batch_size=16",
        "--log_every=4",
        "--num_readers=1",
        "--views.size=32",
        "--encoder.width=8",
        "--probe.enabled=true",
        "--probe.every_epochs=15",
        "--probe.num_train=200",
        "--probe.num_test=64",
        "--checkpoint.every_epochs=2",
        "--workers.num_workers=2",
        f"--run.storage={runs}",
        "--run.run_id=killed",
        f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "--ray.num_cpus=4",
        "--ray.object_store_mb=200",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with open(tmp_path / "log", "wb") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.pretrain", *settings], stdout=log, stderr=log, env=environment, cwd=ROOT
        )
        try:
            victim = wait_for_worker(job, runs / "killed")
            victim.kill()
            assert job.wait(240) == 0, (tmp_path / "log").read_text()[-2000:]
        finally:
            job.terminate()
            job.wait(30)
    result = json.loads((runs / "killed/result.json").read_text())
    assert result["metrics"]["step"] == 30 * 8
    assert result["metrics"]["probe_pa_epe_mm"] > 0
    weights, meta = read_checkpoint(result["last_checkpoint"])
    assert (meta["kind"], meta["step"]) == ("pretrain", 240)
    assert "encoder.conv1.weight" in weights
    # The newest two, and the best ones: those of epochs 15 and 30, which were probed.
    kept = sorted(path.parent.name for path in (runs / "killed").glob("checkpoint_*/meta.json"))
    assert kept == [f"checkpoint_{number:06d}" for number in (8, 15, 16)]
    assert {path.name for path in (runs / "killed/pictures").iterdir()} == {"views.png", "neighbours.png"}

    history = StoredRun(f"sqlite:///{tmp_path}/mlflow.db", result["mlflow_run_id"]).history()
    steps = [step for step, _ in history["loss"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == 240
    assert [step for step, _ in history["probe_pa_epe_mm"]] == [120, 240]
