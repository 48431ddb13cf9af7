"""Pretraining with other positives and objectives than the default, through Ray."""

import pytest
import torch

from pipeline.errors import DataError, SettingsError, TrainingError
from pipeline.frames.batches import Batch
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.mine import MineSettings, mine
from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.runs import RunSettings
from pipeline.tracking import StoredRun, TrackingSettings
from pipeline.training.optim import OptimiserSettings, build_optimiser
from pipeline.training.pretrain import Steps
from pipeline.training.pretrain_run import PretrainSettings, run_pretrain
from pipeline.training.worker import Worker
from pipeline.training.workers import WorkerSettings
from pipeline.views import ViewSettings
from tests.tiny_sets import write_tiny_set


def small(frame_set: str, **changes) -> PretrainSettings:
    values = {
        "frame_set": frame_set,
        "epochs": 2,
        "batch_size": 16,
        "log_every": 2,
        "num_readers": 1,
        "precision": "float32",
        "views": ViewSettings(size=32),
        "encoder": EncoderSettings(width=8),
        "projection": ProjectionSettings(hidden=32, outputs=16, pairwise_hidden=16),
        "optimiser": OptimiserSettings(learning_rate=3e-3),
        **changes,
    }
    return PretrainSettings.model_validate(values)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_similar_positives_on_two_workers(tmp_path):
    """Mined pairs with adaptive weights, hard negatives by time, micro-batches, BatchNorm over workers, given weights."""
    frame_set = str(tmp_path / "set")
    write_tiny_set(frame_set, splits={"train": 128}, wobble=0.01)
    torch.manual_seed(1)
    initial = build_encoder(EncoderSettings(width=16))
    torch.save(initial.state_dict(), tmp_path / "initial.pth")
    settings = small(
        frame_set,
        objective={
            "positives": {"kind": "similar", "adaptive_weights": True},
            "negatives": {"same_clip": "beyond", "beyond_seconds": 0.15},
            "max_logits_rows": 10,
        },
        micro_batch=8,
        sync_batch_norm=True,
        init=str(tmp_path / "initial.pth"),
        optimiser=OptimiserSettings(name="adam-in-lars", learning_rate=1e-9),
        workers=WorkerSettings(num_workers=2, threads=1),
        run=RunSettings(storage=str(tmp_path / "runs"), run_id="similar"),
        tracking=TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db"),
    )
    with pytest.raises(DataError, match=r"has no pairs 'similar'; run python -m jobs\.mine"):
        run_pretrain(settings)
    mine(MineSettings(frame_set=frame_set))
    result = run_pretrain(settings)
    assert result["metrics"]["step"] == 8
    history = StoredRun(str(settings.tracking.uri), result["mlflow_run_id"]).history()
    assert [value for _, value in history["without_partner"]] == [0.0] * 4
    weights, meta = read_checkpoint(result["last_checkpoint"])
    assert meta["settings"]["encoder"]["width"] == 16
    torch.testing.assert_close(weights["encoder.conv1.weight"], initial.conv1.weight.detach(), rtol=0, atol=1e-6)
    # Each worker's batch statistics are those of both.
    assert weights["encoder.bn1.num_batches_tracked"] == 2 * 8


@pytest.mark.parametrize("objective", [{"positives": {"kind": "temporal", "max_seconds": 0.2}}, {"name": "pairwise"}])
def test_steps_with_other_objectives(objective, tmp_path):
    frame_set = str(tmp_path / "set")
    write_tiny_set(frame_set, splits={"train": 64})
    settings = small(frame_set, objective=objective, log_every=1)
    columns = ("frame_id", "clip_id", "timestamp_s")
    frames = FrameSet.open(frame_set).load("train", columns=columns, limit=16)
    model = PretrainModel(settings.encoder, settings.projection, settings.objective)
    optimiser = build_optimiser(model, settings.optimiser)
    steps = Steps(model, optimiser, settings, Worker(), steps_per_epoch=4)
    for step in range(2):
        steps.run(Batch(0, step, frames.frames, frames.columns), 0.0)
    metrics = steps.interval_metrics()
    assert metrics.get("without_partner", 0.0) == 0.0
    assert ("without_partner" in metrics) == ("positives" in objective)
    assert ("positive_similarity" in metrics) == (objective.get("name") != "pairwise")


def test_positives_that_no_frame_has_end_the_run(tmp_path):
    frame_set = str(tmp_path / "set")
    write_tiny_set(frame_set, splits={"train": 16})
    frames = FrameSet.open(frame_set).load("train", columns=("frame_id", "clip_id", "timestamp_s"))
    # The set's frames are 0.1 s apart.
    settings = small(frame_set, objective={"positives": {"kind": "temporal", "max_seconds": 0.05}})
    model = PretrainModel(settings.encoder, settings.projection, settings.objective)
    optimiser = build_optimiser(model, settings.optimiser)
    steps = Steps(model, optimiser, settings, Worker(), steps_per_epoch=1)
    steps.run(Batch(0, 0, frames.frames, frames.columns), 0.0)
    with pytest.raises(
        TrainingError, match=r"^no frame of the last 1 steps has a partner under objective.positives.kind = 'temporal'"
    ):
        steps.interval_metrics()


def test_settings_that_do_not_fit(tmp_path):
    frame_set = str(tmp_path / "set")
    write_tiny_set(frame_set, splits={"train": 64}, group_size=1)
    run = RunSettings(storage=str(tmp_path / "runs"), run_id="a")
    with pytest.raises(SettingsError, match=r"'temporal': .* has no frame groups"):
        run_pretrain(small(frame_set, objective={"positives": {"kind": "temporal"}}, run=run))
    with pytest.raises(DataError, match=r"missing\.pth"):
        run_pretrain(small(frame_set, init=str(tmp_path / "missing.pth"), run=run))
    with pytest.raises(ValueError, match="'micro_batch' = 32: is larger than batch_size = 16"):
        small(frame_set, micro_batch=32)
