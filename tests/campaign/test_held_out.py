"""Errors of a model on a test split, against the metrics that evaluation computes from the same answers."""

import numpy as np
import pytest
import torch

from pipeline.campaign.held_out import ClipErrors, HeldOut, HeldOutSplit, ModelErrors, measure
from pipeline.errors import SettingsError
from pipeline.evaluation.image_metrics import image_metrics
from pipeline.evaluation.metrics import pose_metrics
from pipeline.evaluation.yardsticks import Constant
from pipeline.frames.frame_set import FrameSet
from pipeline.frames.labelled import LabelSettings, read_poses, select_labels
from pipeline.geometry import project
from pipeline.models.predict import predict
from pipeline.models.weights import load_pose_model
from pipeline.storage import read_json, write_json
from tests.campaign.made_up import SIZE, save_pose_model
from tests.tiny_sets import write_tiny_set

CPU = torch.device("cpu")


def held_out(uri: str, protocol="freihand") -> HeldOut:
    frames = FrameSet.open(uri)
    constant_2d = select_labels(frames, "train", LabelSettings()).constant_2d
    return HeldOut.load(frames, HeldOutSplit.of(frames, "test", protocol), constant_2d)


@pytest.mark.parametrize("protocol", ["freihand", "peclr"])
def test_errors_by_clip_are_those_of_evaluation(protocol, tmp_path):
    uri = str(tmp_path / "set")
    write_tiny_set(uri, splits={"train": 16, "test": 22}, wobble=0.01)
    run = save_pose_model(tmp_path / "run", uri)
    data = held_out(uri, protocol)
    found = measure(run, data, CPU)

    batch, loaded = data.frames.batch(slice(None)), load_pose_model(run)
    predicted = predict(
        loaded.model, batch.frames, batch.camera, SIZE, loaded.model.bone_length(batch.joints_3d)
    ).joints_3d
    expected = pose_metrics(predicted, batch.joints_3d, protocol)
    for name, key in (("pa_epe_mm", "pa_epe_mm"), ("root_relative_epe_mm", "mpjpe_mm"), ("epe_mm", "epe_mm")):
        assert found.metrics[name] == pytest.approx(expected[key], rel=1e-5)
        assert found.errors[name].mean == pytest.approx(expected[key], rel=1e-5)
    true_2d = project(batch.joints_3d, batch.camera)
    fixed = torch.from_numpy(data.constant_2d * 32).expand(true_2d.shape)
    in_image = image_metrics(fixed, true_2d, torch.ones(22))
    assert found.metrics["constant_epe_2d"] == pytest.approx(in_image["epe_2d"])
    constant = Constant.of(torch.from_numpy(read_poses(FrameSet.open(uri), "train"))).errors_mm(
        batch.joints_3d, protocol
    )
    assert found.metrics["constant_pa_epe_mm"] == pytest.approx(constant["constant_pa_epe_mm"], rel=1e-4)
    assert found.metrics["constant_root_relative_epe_mm"] == pytest.approx(constant["constant_mpjpe_mm"], rel=1e-4)
    assert found.metrics["pa_skill"] == pytest.approx(
        1 - found.metrics["pa_epe_mm"] / found.metrics["constant_pa_epe_mm"]
    )

    # Clip by clip: 5 of 4 frames, one of 2.
    errors = found.errors["pa_epe_mm"]
    assert errors.clips == [f"tiny/test-{clip:05d}" for clip in range(6)]
    assert errors.frames == [4, 4, 4, 4, 4, 2]
    rows = [row for row, name in enumerate(data.frames.frame_ids) if "test-00005" in name]
    last = pose_metrics(predicted[rows], batch.joints_3d[rows], protocol)
    assert errors.means[5] == pytest.approx(last["pa_epe_mm"], rel=1e-5)
    write_json(str(tmp_path / "test.json"), found.to_json())
    assert ModelErrors.from_json(read_json(str(tmp_path / "test.json"))) == found


def test_where_only_the_image_is_labelled_only_its_errors_are_told(tmp_path):
    write_tiny_set(str(tmp_path / "flat"), splits={"train": 16, "test": 20}, in_2d=lambda number: True)
    found = measure(save_pose_model(tmp_path / "run", str(tmp_path / "flat")), held_out(str(tmp_path / "flat")), CPU)
    assert set(found.errors) == {"epe_2d"}
    assert found.metrics["epe_2d"] == pytest.approx(found.errors["epe_2d"].mean)
    assert {"epe_2d_skill", "constant_epe_2d"} <= found.metrics.keys()


def test_mixed_labels_give_errors_in_3d_of_those_that_tell_them(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 16, "test": 20}, in_2d=lambda number: number % 2 == 0)
    found = measure(save_pose_model(tmp_path / "run", str(tmp_path / "set")), held_out(str(tmp_path / "set")), CPU)
    assert sum(found.errors["pa_epe_mm"].frames) == 10
    assert sum(found.errors["epe_2d"].frames) == 20


def test_the_digest_is_that_of_the_splits_rows(tmp_path):
    one = write_tiny_set(str(tmp_path / "one"), splits={"train": 16, "test": 8})
    write_tiny_set(str(tmp_path / "same"), splits={"train": 16, "test": 8}, rows_per_shard=4)
    write_tiny_set(str(tmp_path / "other"), splits={"train": 16, "test": 8}, seed=1)
    first, same, other = (
        HeldOutSplit.of(FrameSet.open(str(tmp_path / name)), "test", "freihand") for name in ("one", "same", "other")
    )
    assert first.is_like(vars(same))
    assert first.test_digest != one.digest
    assert not first.is_like(vars(other))
    assert not first.is_like({**vars(same), "protocol": "peclr"})


def test_a_split_without_frames_or_labels_is_refused(tmp_path):
    write_tiny_set(str(tmp_path / "set"), splits={"train": 8, "val": 4})
    with pytest.raises(
        SettingsError, match=r"'winner.split' = 'test': .* has no frames .*8 train, 4 val.*--winner.seeds 0"
    ) as refused:
        HeldOutSplit.of(FrameSet.open(str(tmp_path / "set")), "test", "freihand")
    assert "\n" not in str(refused.value)
    write_tiny_set(str(tmp_path / "bare"), splits={"test": 8}, labelled=False)
    with pytest.raises(SettingsError, match=r"8 of its 8 frames in .* have no labels"):
        HeldOutSplit.of(FrameSet.open(str(tmp_path / "bare")), "test", "freihand")


def test_the_mean_counts_frames_not_clips():
    errors = ClipErrors(["a", "b"], [3, 1], [10.0, 20.0], [20.0, 40.0])
    assert (errors.mean, errors.constant_mean) == (12.5, 25.0)
    assert np.isclose(errors.mean, np.mean([10, 10, 10, 20]))
