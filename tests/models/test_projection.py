"""The spatial projection: points that stand in the image and move with it."""

import math

import pytest
import torch
from torch import nn

from pipeline.evaluation.probes import equivariance_score
from pipeline.models.checkpoints import save_checkpoint
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.pretrain import PretrainModel, ProjectionSettings
from pipeline.models.projection import ProjectionHead, SpatialProjection, project
from pipeline.models.weights import load_projection
from pipeline.objectives import ObjectiveSettings

SPATIAL = ProjectionSettings(kind="spatial", outputs=12)


def _spatial(points: int = 3) -> SpatialProjection:
    """Its heat map k is channel k of the finest maps, sharpened."""
    head = SpatialProjection(64, 2 * points).eval()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        head.norm.weight.fill_(1)
        head.merge.get_parameter("1.weight").fill_(1)
        for point in range(points):
            head.lateral.get_parameter("0.weight")[point, point] = 1.0
            head.merge.get_parameter("0.weight")[point, point, 1, 1] = 1.0
            head.maps.weight[point, point] = 50.0
    return head


def test_a_point_lies_where_its_heat_map_is_hot():
    stages = (torch.zeros(2, 16, 8, 8), torch.zeros(2, 32, 4, 4), torch.zeros(2, 64, 2, 2))
    hot = {(0, 0): (1, 6), (0, 1): (4, 4), (1, 0): (7, 0)}  # frame, point: row, column
    for (frame, point), (row, column) in hot.items():
        stages[0][frame, point, row, column] = 1.0
    points = _spatial()(stages).view(2, 3, 2)
    for (frame, point), (row, column) in hot.items():
        centre = [1.25 * ((place + 0.5) / 8 - 0.5) for place in (column, row)]
        assert points[frame, point].tolist() == pytest.approx(centre, abs=1e-4)
    assert points[0, 2].tolist() == pytest.approx([0, 0], abs=1e-6)  # nothing is hot: the middle


def test_points_turn_with_the_maps():
    stages = (torch.rand(4, 16, 8, 8), torch.zeros(4, 32, 4, 4), torch.zeros(4, 64, 2, 2))
    head = _spatial(points=8)
    turned = tuple(torch.rot90(stage, 1, (2, 3)) for stage in stages)
    before, after = head(stages), head(turned)
    score = equivariance_score(before, after, torch.full((4,), math.pi / 2))
    assert score["cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("objective", [ObjectiveSettings(inverse="similarity"), ObjectiveSettings(name="hybrid")])
def test_pretraining_with_it_reaches_every_weight(objective):
    torch.manual_seed(0)
    model = PretrainModel(EncoderSettings(width=8), SPATIAL, objective)
    images = torch.randn(model.num_views * 4, 3, 32, 32)
    outputs = model(images)
    assert outputs["projections"].shape == (4, 2, 12)
    sum(values.square().sum() for values in outputs.values()).backward()
    idle = {name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    # One bias for all cells of a heat map moves no point; the scales of the losses begin at 0.
    assert {name for name in idle if "log_scales" not in name} <= {"projection.maps.bias"}


def test_projections_are_those_of_the_views_in_turn():
    torch.manual_seed(0)
    model = PretrainModel(EncoderSettings(width=8), SPATIAL, ObjectiveSettings()).eval()
    assert isinstance(model.projection, SpatialProjection)
    images = torch.randn(6, 3, 32, 32)
    projections = model(images)["projections"]
    alone = project(model.encoder, model.projection, model.encoder.maps(images))
    torch.testing.assert_close(projections, torch.stack([alone[:3], alone[3:]], 1))


@pytest.mark.parametrize("kind", ["mlp", "spatial"])
def test_a_checkpoint_gives_its_projection_back(tmp_path, kind):
    heads = ProjectionSettings(kind=kind, hidden=24, outputs=12)
    model = PretrainModel(EncoderSettings(width=8), heads, ObjectiveSettings()).eval()
    save_checkpoint(tmp_path, model, {}, {"kind": "pretrain"})
    loaded = load_projection(str(tmp_path))
    assert isinstance(loaded, SpatialProjection if kind == "spatial" else ProjectionHead)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(
        project(model.encoder, loaded.eval(), model.encoder.maps(images)),
        model(torch.cat([images, images]))["projections"][:, 0],
    )


def test_an_odd_number_of_outputs_is_no_plane():
    encoder = build_encoder(EncoderSettings(width=8))
    with pytest.raises(ValueError, match="num_outputs = 7"):
        SpatialProjection(encoder.num_features, 7)
