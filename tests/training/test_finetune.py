"""The fine-tuning loop in one process: it learns, resumes exactly, freezes what it should, and stops when it must."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DataError, SettingsError, TrainingError
from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import load_labelled, read_joints_2d
from pipeline.frames.manifest import read_manifest
from pipeline.models.checkpoints import read_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pose import PoseModel, PoseSettings
from pipeline.models.weights import load_encoder, load_pose_model
from pipeline.training.finetune import build_model, cut_tight, finetune, learning_rate_groups, trains_encoder
from pipeline.training.finetune_data import SharedFrames, in_memory, load_validation, worker_data
from pipeline.training.finetune_recipe import FinetuneSettings, batch_and_steps, check_settings, with_epochs, with_head
from pipeline.training.pose_loss import PoseLossSettings, pose_losses
from pipeline.training.validation import score_figures, validate
from pipeline.training.worker import Worker
from tests.tiny_sets import write_tiny_set
from tests.training.gloo import process_group


@pytest.fixture(scope="module")
def frame_set(tmp_path_factory) -> str:
    uri = str(tmp_path_factory.mktemp("set"))
    write_tiny_set(uri, splits={"train": 64, "val": 12}, image_size=48)
    return uri


def tiny_settings(frame_set: str, **changes) -> FinetuneSettings:
    values = {"encoder": {"width": 8}, "views": {"size": 32}, "epochs": 3, "batch_size": 16, "seed": 1, **changes}
    return FinetuneSettings.model_validate({"frame_set": frame_set, **values})


class Recorder:
    """Keeps what the loop reports, and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: list[dict[str, float]] = []
        self.checkpoints: list[Path] = []

    def __call__(self, metrics, save) -> None:
        self.metrics.append(metrics)
        if save is not None:
            self.checkpoints.append(self.folder / f"checkpoint_{metrics['step']}")
            save(self.checkpoints[-1])


def train(settings: FinetuneSettings, folder: Path, resume: Path | None = None, **worker: Any):
    frames, selection = check_settings(settings)
    recorder = Recorder(folder)
    outcome = finetune(
        settings,
        SharedFrames.load(settings, frames, selection),
        worker=Worker(report=recorder, resume=resume, **worker),
    )
    return outcome, recorder


def test_learns_and_its_best_checkpoint_loads(frame_set, tmp_path):
    settings = tiny_settings(frame_set, epochs=12, optimiser={"learning_rate": 3e-3})
    outcome, recorder = train(settings, tmp_path)
    losses = [metrics["loss"] for metrics in recorder.metrics]
    assert losses[-1] < losses[0] / 2
    assert outcome["score"] == min(metrics["score"] for metrics in recorder.metrics)
    assert [metrics["step"] for metrics in recorder.metrics] == [4 * (epoch + 1) for epoch in range(12)]
    assert recorder.metrics[-1]["val_pa_epe_mm"] < recorder.metrics[0]["val_pa_epe_mm"]

    loaded = load_pose_model(str(recorder.checkpoints[-1]))
    assert loaded.view_size == 32
    assert loaded.meta["epoch"] == 12
    assert loaded.meta["frame_set_digest"] == read_manifest(frame_set).digest
    assert 0.02 < loaded.model.mean_bone_length < 0.05


def test_the_constant_of_the_chosen_labels_stands_beside_every_validation(tmp_path):
    """In the metrics, and in the checkpoint, so that it is there wherever the model is evaluated."""
    write_tiny_set(str(tmp_path / "set"), splits={"train": 64, "val": 12}, image_size=48, wobble=0.01)
    settings = tiny_settings(str(tmp_path / "set"), labels={"num": 20})
    frames, selection = check_settings(settings)
    _, recorder = train(settings, tmp_path)
    chosen = load_labelled(frames, "train", clips=selection.clips)
    assert len(chosen) == 20
    expected = Constant.of(torch.from_numpy(chosen.joints_3d))
    assert load_pose_model(str(recorder.checkpoints[-1])).constant == selection.constant == expected
    errors = expected.errors_mm(torch.from_numpy(load_validation(settings, frames).joints_3d))
    for metrics in recorder.metrics:
        assert metrics["val_constant_pa_epe_mm"] == pytest.approx(errors["constant_pa_epe_mm"], rel=1e-5)
        assert metrics["val_constant_mpjpe_mm"] == pytest.approx(errors["constant_mpjpe_mm"], rel=1e-5)
        assert metrics["val_pa_skill"] == pytest.approx(
            1 - metrics["val_pa_epe_mm"] / metrics["val_constant_pa_epe_mm"]
        )
        assert metrics["val_mpjpe_skill"] < 0  # three epochs: still worse than one fixed hand


def test_resumed_training_equals_uninterrupted_training(frame_set, tmp_path):
    settings = tiny_settings(frame_set)
    _, whole = train(settings, tmp_path / "whole")
    _, rest = train(settings, tmp_path / "rest", resume=whole.checkpoints[0])
    assert len(rest.checkpoints) == 2
    first = load_pose_model(str(whole.checkpoints[-1])).model.state_dict()
    second = load_pose_model(str(rest.checkpoints[-1])).model.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("last", [6, 8])
def test_leaving_costs_no_step_and_changes_no_weight(frame_set, tmp_path, last):
    """In mid-epoch, and after an epoch that is not validated."""
    settings = tiny_settings(frame_set, validate_every=3)
    _, whole = train(settings, tmp_path / "whole")
    steps = itertools.count(1)
    train(settings, tmp_path / "left", leaving=lambda: next(steps) == last)
    resumed: list[int] = []
    _, rest = train(
        settings,
        tmp_path / "rest",
        resume=tmp_path / f"left/checkpoint_{last}",
        notice=lambda frames, _: resumed.append(frames // 16),
    )
    assert resumed == [*range(last + 1, 13)]
    first = load_pose_model(str(whole.checkpoints[-1])).model.state_dict()
    second = load_pose_model(str(rest.checkpoints[-1])).model.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_run_that_ended_after_its_last_checkpoint_is_not_trained_further(frame_set, tmp_path):
    settings = tiny_settings(frame_set)
    outcome, recorder = train(settings, tmp_path / "whole")
    again, nothing = train(settings, tmp_path / "again", resume=recorder.checkpoints[-1])
    assert nothing.metrics == []
    assert again == outcome


def test_frozen_encoder_does_not_move(frame_set, tmp_path):
    settings = tiny_settings(frame_set, train_mode="frozen")
    _, recorder = train(settings, tmp_path)
    encoders = [load_encoder(str(path))[0].state_dict() for path in (recorder.checkpoints[0], recorder.checkpoints[-1])]
    for name, tensor in encoders[0].items():
        assert torch.equal(tensor, encoders[1][name]), name  # batch statistics too
    heads = [load_pose_model(str(path)).model.head.state_dict() for path in recorder.checkpoints]
    assert not torch.equal(heads[0]["maps.weight"], heads[-1]["maps.weight"])


def test_staged_training_starts_with_the_head(frame_set, tmp_path):
    settings = tiny_settings(frame_set, train_mode="staged", head_epochs=2)
    assert [trains_encoder(settings, epoch) for epoch in range(3)] == [False, False, True]
    _, recorder = train(settings, tmp_path)
    weights = [load_encoder(str(path))[0].conv1.weight for path in recorder.checkpoints]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    with pytest.raises(ValueError, match="'head_epochs' = 5"):
        tiny_settings(frame_set, train_mode="staged")


def test_initial_weights_come_from_a_checkpoint_whatever_the_encoder_settings(frame_set, tmp_path):
    encoder = build_encoder(EncoderSettings(name="resnet34", width=8))
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    settings = tiny_settings(frame_set, init=str(tmp_path / "encoder.pth"), train_mode="frozen", epochs=1)
    _, recorder = train(settings, tmp_path)
    loaded = load_pose_model(str(recorder.checkpoints[0]))
    assert torch.equal(loaded.model.encoder.conv1.weight, encoder.conv1.weight)
    assert loaded.meta["settings"]["encoder"]["name"] == "resnet34"


def test_a_pose_model_brings_its_head(frame_set, tmp_path):
    _, recorder = train(tiny_settings(frame_set, epochs=1), tmp_path)
    first = str(recorder.checkpoints[-1])
    settings = tiny_settings(frame_set, init=first)
    lengths = {"middle": 0.05, "wrist-index": 0.1}
    trained = load_pose_model(first).model.state_dict()
    again = build_model(settings, lengths).state_dict()
    assert again.pop("mean_bone_length") == pytest.approx(0.05)  # of the new labels
    assert all(torch.equal(value, trained[name]) for name, value in again.items())
    for other in ({"new_head": True}, {"head": {"kind": "peclr"}}, {"head": {"root": "wrist"}}):
        fresh = build_model(tiny_settings(frame_set, init=first, **other), lengths).state_dict()
        assert torch.equal(fresh["encoder.conv1.weight"], trained["encoder.conv1.weight"])
        assert not torch.equal(fresh["refinement.0.weight"], trained["refinement.0.weight"])


def test_a_head_that_is_not_taken_over_is_said(frame_set, tmp_path, caplog):
    _, recorder = train(tiny_settings(frame_set, epochs=1), tmp_path)
    first = str(recorder.checkpoints[-1])
    for same in ({}, {"head": {"kind": "peclr"}, "new_head": True}):
        check_settings(tiny_settings(frame_set, init=first, **same))
    assert not caplog.messages
    check_settings(tiny_settings(frame_set, init=first, head={"kind": "spatial"}))
    assert "its head has head.kind = kinematic; the settings ask for another one" in caplog.text


def test_the_head_of_the_initial_pose_model_is_the_default(frame_set, tmp_path, caplog):
    assert with_head(tiny_settings(frame_set)).head.kind == "kinematic"
    _, recorder = train(tiny_settings(frame_set, head={"kind": "spatial"}, epochs=1), tmp_path / "first")
    first = str(recorder.checkpoints[-1])
    settings = tiny_settings(frame_set, init=first, epochs=1)
    assert with_head(settings).head.kind == "spatial"
    assert with_head(settings.model_copy(update={"new_head": True})).head.kind == "kinematic"
    check_settings(settings)
    assert not caplog.messages
    _, recorder = train(settings, tmp_path / "second")
    meta = load_pose_model(str(recorder.checkpoints[-1])).meta
    assert meta["settings"]["head"]["kind"] == "spatial"  # what it is, not what was asked for


def test_a_kinematic_head_starts_at_the_hand_of_the_labels(frame_set, tmp_path):
    settings = tiny_settings(frame_set, head={"kind": "kinematic"}, epochs=1)
    shape, posed = (torch.randn(21, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    lengths, constant = {"middle": 0.05, "wrist-index": 0.1}, Constant(shape, posed, 3)
    torch.manual_seed(0)
    usual = build_model(settings, lengths)
    torch.manual_seed(0)
    started = build_model(settings, lengths, constant)
    changed = {name for name, value in started.state_dict().items() if not torch.equal(value, usual.state_dict()[name])}
    assert changed == {"head.bone_lengths", "head.together.3.bias"}
    _, recorder = train(settings, tmp_path)
    first = str(recorder.checkpoints[-1])
    trained = load_pose_model(first).model.state_dict()
    again = build_model(settings.model_copy(update={"init": first}), lengths, constant).state_dict()
    for name in changed:  # a head that is there stays as it is
        assert torch.equal(again[name], trained[name])


def test_tight_photographs_end_around_the_joints():
    frames = torch.full((400, 3, 40, 40), 200, dtype=torch.uint8)
    joints = torch.rand(400, 21, 2, generator=torch.Generator().manual_seed(0)) * 10 + 15
    shown = cut_tight(frames, joints, 0.5, torch.Generator().manual_seed(1))
    for picture, points in zip(shown, joints, strict=True):
        inside = points.long()
        assert (picture[:, inside[:, 1], inside[:, 0]] == 200).all()
        visible = picture[0].nonzero()
        spread = visible.amax(0) - visible.amin(0) + 1
        assert spread.tolist() == [40, 40] or spread.max() <= 10 * 1.6 + 2
        assert (picture[0] > 0).sum() == spread.prod()  # one rectangle
    assert 0.42 < (shown == 0).flatten(1).any(1).float().mean() < 0.58
    assert torch.equal(cut_tight(frames, joints, 0.0, torch.Generator()), frames)


def test_early_stopping(frame_set, tmp_path):
    settings = tiny_settings(frame_set, epochs=30, validate_every=1, patience=2, optimiser={"learning_rate": 1e-12})
    outcome, recorder = train(settings, tmp_path)
    assert outcome["stopped_early"]
    assert outcome["epoch"] == len(recorder.checkpoints) < 30


def test_frames_in_all_decide_on_the_epochs(frame_set):
    few = with_epochs(tiny_settings(frame_set, frames=1000), 64, 1)
    assert (few.epochs, few.validate_every) == (16, 1)  # 15.6 epochs of 64
    many = with_epochs(tiny_settings(frame_set, frames=100_000, batch_size=8), 100, 2)
    assert (many.epochs, many.validate_every) == (1042, 52)  # 96 frames an epoch: 2 workers, 6 batches of 8
    assert with_epochs(few, 64, 1) == few
    assert with_epochs(tiny_settings(frame_set, validate_every=3), 64, 1).validate_every == 3
    staged = tiny_settings(frame_set, train_mode="staged", frames=100)
    with pytest.raises(SettingsError, match="'head_epochs' = 5: must be less than the 2 epochs"):
        with_epochs(staged, 64, 1)


def test_validation_every_few_epochs_and_at_the_end(frame_set, tmp_path):
    _, recorder = train(tiny_settings(frame_set, epochs=5, validate_every=2, log_every=3), tmp_path)
    validated = [metrics["epoch"] for metrics in recorder.metrics if "score" in metrics]
    assert validated == [2.0, 4.0, 5.0]
    assert len(recorder.checkpoints) == 3
    assert [metrics["step"] for metrics in recorder.metrics][:3] == [3, 4, 6]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(frame_set, tmp_path):
    settings = tiny_settings(frame_set, optimiser={"max_bad_steps": 2})
    frames, selection = check_settings(settings)
    data = load_labelled(frames, "train")
    data.joints_3d[:] = math.nan
    recorder = Recorder(tmp_path)
    with pytest.raises(
        TrainingError,
        match=r"loss is nan at step 3 on worker 0 \(frames tiny/train-\S+, .* and 13 more\); with 3 such steps",
    ):
        finetune(
            settings,
            SharedFrames(frames, selection, data, load_validation(settings, frames)),
            worker=Worker(report=recorder),
        )
    assert recorder.checkpoints == []


def test_a_bad_step_is_left_out_and_counted(frame_set, tmp_path, caplog):
    """One frame of the 64 has a label that is no number: of each epoch's four steps one changes nothing."""
    settings = tiny_settings(frame_set, log_every=1, epochs=2)
    frames, selection = check_settings(settings)
    data = load_labelled(frames, "train")
    data.joints_3d[5] = math.nan
    recorder = Recorder(tmp_path)
    result = finetune(
        settings,
        SharedFrames(frames, selection, data, load_validation(settings, frames)),
        worker=Worker(report=recorder),
    )
    assert result["metrics"]["bad_steps"] == 2
    assert sum("loss" not in metrics for metrics in recorder.metrics) == 2
    assert caplog.text.count("this step changes nothing") == 1
    for folder in recorder.checkpoints:
        weights, _ = read_checkpoint(str(folder))
        assert all(values.isfinite().all() for values in weights.values())


def test_few_labels_make_one_small_batch(frame_set, tmp_path):
    settings = tiny_settings(frame_set, labels={"num": 8})
    assert batch_and_steps(settings, 8, 1) == (8, 1)
    assert batch_and_steps(settings, 64, 2) == (16, 2)
    with pytest.raises(SettingsError, match="2 workers need 2 labelled frames each, but 3"):
        batch_and_steps(settings, 3, 2)
    _, recorder = train(settings, tmp_path)
    assert [metrics["step"] for metrics in recorder.metrics] == [1, 2, 3]


def test_workers_share_the_frames(frame_set):
    settings = tiny_settings(frame_set)
    frames, selection = check_settings(settings)
    assert in_memory(settings, frames, selection)
    parts = [worker_data(settings, frames, selection, rank, 2) for rank in range(2)]
    assert [part.steps_per_epoch for part in parts] == [2, 2]
    assert [len(part.validation) for part in parts] == [6, 6]
    joints = torch.cat([batch.joints_3d for part in parts for batch in part.batches(0)])
    assert len(torch.unique(joints[:, 0, 0])) == 64


def test_missing_validation_split_is_named(frame_set):
    with pytest.raises(DataError, match="validation_split 'test' is empty"):
        check_settings(tiny_settings(frame_set, validation_split="test"))


def test_wrong_initial_weights_are_named_before_any_worker_starts(frame_set, tmp_path):
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"wrong\.pth: not a weights file"):
        check_settings(tiny_settings(frame_set, init=str(wrong)))


def test_learning_rates_by_depth():
    model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings(kind="peclr"))
    settings = tiny_settings("unused", encoder_lr_factor=0.1, layer_lr_decay=0.5)
    groups = learning_rate_groups(model, settings)
    scale = {id(p): g.get("lr_scale", 1.0) for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    assert len(scale) == len(list(model.parameters()))
    assert scale[id(model.head.weight)] == 1.0
    parameters = dict(model.encoder.named_parameters())
    assert scale[id(parameters["layer4.0.conv1.weight"])] == pytest.approx(0.1)
    assert scale[id(parameters["conv1.weight"])] == pytest.approx(0.1 * 0.5**4)
    without_decay = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}  # type: ignore[attr-defined]
    assert id(model.encoder.bn1.weight) in without_decay
    assert id(model.head.weight) not in without_decay


def test_losses_are_zero_for_the_truth_and_weighted_as_published():
    published = PoseLossSettings(weight_3d=0, weight_aligned=0)
    model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings(refine_root=False))
    generator = torch.Generator().manual_seed(0)
    joints = 0.05 * torch.randn(4, 21, 3, generator=generator) + torch.tensor([0.0, 0.0, 0.5])
    camera = torch.tensor([[70.0, 0, 32], [0, 70, 32], [0, 0, 1]]).expand(4, 3, 3)
    targets = model.targets(joints, camera)
    output = model.lift(targets.joints_25d, camera)._replace(root_depth=targets.root_depth)
    assert pose_losses(output, targets, camera, 64, PoseLossSettings()).total < 1e-4
    assert pose_losses(output, targets, camera, 64, published).total == 0
    moved = output._replace(
        joints_25d=targets.joints_25d + torch.tensor([1.0, -3.0, 0.5]), root_depth=targets.root_depth + 2
    )
    losses = pose_losses(moved, targets, camera, 64, published)
    assert losses.loss_2d.item() == pytest.approx(4.0, rel=1e-4)  # 2 px of 64 are 4 px of 128
    assert losses.total.item() == pytest.approx(4.0 + 5 * 0.5 + 2.0, rel=1e-4)


def test_learns_from_joints_in_the_image_alone(tmp_path):
    """There is no error in 3D to judge by: the error in the image does it."""
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 64, "val": 12}, image_size=48, in_2d=lambda number: True)
    outcome, recorder = train(tiny_settings(uri, epochs=12, optimiser={"learning_rate": 3e-3}), tmp_path)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert last["val_epe_2d"] < first["val_epe_2d"] / 2
    assert last["val_epe_2d"] < last["val_constant_epe_2d"]
    assert outcome["score"] == min(metrics["val_epe_2d"] for metrics in recorder.metrics)
    assert not any(name in last for name in ("val_pa_epe_mm", "val_pa_skill", "val_constant_pa_epe_mm"))
    assert [last[f"loss_{name}"] for name in ("depth", "root", "3d", "aligned")] == [0] * 4
    assert score_figures(last, outcome["score"], which="best ").keys() == {
        "best 2D EPE % of the hand",
        "constant pose % of the hand",
    }
    loaded = load_pose_model(str(recorder.checkpoints[-1]))
    assert loaded.constant is None
    assert float(loaded.model.mean_bone_length) == pytest.approx(0.032)


def test_labels_in_the_image_leave_the_size_of_the_initial_model(frame_set, tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 16, "val": 8}, image_size=48, in_2d=lambda number: True)
    _, first = train(tiny_settings(frame_set, epochs=1), tmp_path / "first")
    _, second = train(tiny_settings(uri, epochs=1, init=str(first.checkpoints[-1])), tmp_path / "second")
    lengths = [load_pose_model(str(each.checkpoints[-1])).model.mean_bone_length for each in (first, second)]
    assert lengths[0] == lengths[1] != pytest.approx(0.032)


def test_learns_from_a_mixture(tmp_path):
    """Half of the clips without depth; judged in 3D, by the frames that have it."""
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 64, "val": 12}, image_size=48, in_2d=lambda number: number % 8 < 4)
    outcome, recorder = train(tiny_settings(uri, epochs=12, optimiser={"learning_rate": 3e-3}), tmp_path)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert last["val_epe_2d"] < first["val_epe_2d"] / 2
    assert last["loss_depth"] < first["loss_depth"]
    assert outcome["score"] == min(metrics["val_pa_epe_mm"] for metrics in recorder.metrics)
    assert load_pose_model(str(recorder.checkpoints[-1])).constant is not None


def test_labels_in_3d_and_in_the_image_give_the_same_error_there(tmp_path):
    names = {"a": lambda number: False, "b": lambda number: True, "c": lambda number: number % 2 == 0}
    # The image of a palm in 3D is not quite the middle between the images of its ends.
    model = PoseModel(build_encoder(EncoderSettings(width=8)), PoseSettings(root="wrist"))
    found = {}
    for name, in_2d in names.items():
        uri = str(tmp_path / name)
        write_tiny_set(uri, splits={"val": 12}, image_size=48, in_2d=in_2d)
        data = load_labelled(FrameSet.open(uri), "val")
        found[name] = validate(model, data, 32, None, read_joints_2d(FrameSet.open(uri), "val").mean(0))
    for name in ("val_epe_2d", "val_epe_2d_crop_px", "val_pck_2d_10", "val_constant_epe_2d"):
        assert [found[each][name] for each in "bc"] == pytest.approx([found["a"][name]] * 2, rel=1e-4)
    assert "val_epe_mm" in found["a"]
    assert "val_epe_mm" in found["c"]
    assert "val_epe_mm" not in found["b"]


def _validate_share(rank: int, uri: str, port: int, folder: str) -> None:
    torch.manual_seed(0)
    model = PoseModel(build_encoder(EncoderSettings(width=8)))
    data = load_labelled(FrameSet.open(uri), "val")
    constant = Constant.of(torch.from_numpy(data.joints_3d[data.has_3d]))
    mean = read_joints_2d(FrameSet.open(uri), "val").mean(0)
    if rank < 0:
        Path(folder, "whole.json").write_text(json.dumps(validate(model, data, 32, constant, mean)))
        return
    with process_group(rank, 2, port):
        found = validate(model, data.share(rank, 2), 32, constant, mean)
        Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_workers_weigh_their_frames_alike(tmp_path, free_port):
    """One of them has all three frames with joints in 3D, the other none: the figures are those of one worker with all."""
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"val": 12}, image_size=48, wobble=0.01, in_2d=lambda number: number not in (2, 4, 8))
    torch.multiprocessing.spawn(_validate_share, (uri, free_port, str(tmp_path)), nprocs=2)
    _validate_share(-1, uri, free_port, str(tmp_path))
    whole, *shares = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "0", "1"))
    assert whole["val_pa_epe_mm"] > 0
    for share in shares:
        assert share == pytest.approx(whole, rel=1e-5)
