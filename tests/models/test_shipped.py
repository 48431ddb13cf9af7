"""Models that come with the package: found by name, small, and better than one fixed hand on hands they have never seen."""

from pathlib import Path

import pytest
import torch

from pipeline.evaluation.metrics import joint_errors
from pipeline.frames.synthetic.clip import ClipSettings, sample_clip
from pipeline.frames.synthetic.render import render_clip
from pipeline.geometry import procrustes_align
from pipeline.models.shipped import model_uri, shipped_models
from pipeline.models.weights import load_encoder, load_pose_model, read_meta
from pipeline.prediction.poses import predict_poses


def test_names_are_folders_of_the_package_and_other_uris_stay(tmp_path, monkeypatch):
    assert "equihand-small" in shipped_models()
    monkeypatch.chdir(tmp_path)
    for uri in ("s3://bucket/equihand-small", "./equihand-small", "runs/first", "", ".."):
        assert model_uri(uri) == uri


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_are_small_and_say_what_they_are(name):
    folder = Path(model_uri(name))
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"model.safetensors", "meta.json", "MODEL_CARD.md"} <= sizes.keys()
    assert sum(sizes.values()) < 12e6
    card = (folder / "MODEL_CARD.md").read_text()
    assert "CC0" in card
    assert "python -m jobs.finetune" in card  # what trains it anew
    assert read_meta(name)["kind"] == "pose"
    assert load_encoder(name)[0].num_features == load_pose_model(name).model.encoder.num_features


@pytest.mark.parametrize("name", shipped_models())
def test_cards_give_the_bone_length_of_the_model(name):
    card = (Path(model_uri(name)) / "MODEL_CARD.md").read_text()
    length = float(load_pose_model(name).model.mean_bone_length)
    assert f"is {1000 * length:.2f} mm long" in card.replace("\n", " ")
    assert f"joints_3d * L / {length:.6g}`" in card


@pytest.mark.parametrize("viewpoint", ["desk", "anywhere"])
def test_equihand_small_is_better_than_one_fixed_hand(viewpoint):
    loaded = load_pose_model("equihand-small")
    settings = ClipSettings(frames_per_clip=1, image_size=128, seed=987_654, viewpoint=viewpoint)
    clips = [sample_clip(settings, index) for index in range(40)]
    frames = torch.cat([render_clip(clip) for clip in clips])
    joints_2d = torch.cat([clip.joints_2d for clip in clips])
    boxes = torch.cat([joints_2d.amin(1), joints_2d.amax(1)], 1)
    cameras = torch.stack([clip.camera for clip in clips])
    found = predict_poses(loaded.model, frames, cameras, boxes, loaded.view_size, loaded.view_margin, passes=1)
    true = torch.cat([clip.joints_3d for clip in clips]).double()
    error = joint_errors(procrustes_align(found.joints_3d.double(), true), true).mean()
    assert loaded.constant is not None
    constant = loaded.constant.errors(true)[0].mean()
    assert error < 0.8 * constant
    hand = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
    assert ((found.joints_2d - joints_2d).norm(dim=-1) / hand).median() < 0.08
