"""The network of pretraining: an encoder, and what the objective needs on top of it."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Settings
from pipeline.models.encoder import EncoderSettings, build_encoder
from pipeline.models.projection import Projection, ProjectionHead, SpatialProjection, project
from pipeline.objectives import ObjectiveSettings, PairwiseHead


class ProjectionSettings(Settings):
    """The heads on top of the encoder, used in pretraining only."""

    kind: Literal["mlp", "spatial"] = "mlp"
    """How the projection is made. `mlp`: from the pooled features by two linear layers, as published. `spatial`: each of its
    points is where a heat map has its mean, as in the pose heads with heat maps; goes with `objective.inverse` similarity."""
    hidden: int = Field(default=512, ge=1)
    """Units of the hidden layer of `mlp`."""
    outputs: int = Field(default=128, ge=4, multiple_of=2)
    """Length of the projection. It is read as half as many points in the plane."""
    pairwise_hidden: int = Field(default=1024, ge=1)
    """Units of the hidden layers that predict transforms (objectives `pairwise` and `hybrid`)."""


class PretrainModel(nn.Module):
    """Encoder, projection head where the objective contrasts, pairwise head where it regresses.

    forward takes `num_views` views of n frames each, (num_views * n, 3, H, W), row v * n + i being view v of frame i,
    and gives tensors with one row a frame:

    - "projections" (n, 2, P): of the first two views;
    - "transform" (n, K): the predicted parameters that turn the first view into the last, side by side;
    - "log_scales" (n, T): the learnt log scale of each parameter's loss, the same in every row, so that all that the
      loss needs comes out of the network a frame at a time.
    """

    def __init__(
        self,
        encoder: EncoderSettings,
        projection: ProjectionSettings,
        objective: ObjectiveSettings = ObjectiveSettings(),  # noqa: B008 (settings are immutable)
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder)
        num_features = self.encoder.num_features
        self.projection = _projection(num_features, projection) if objective.contrasts else None
        self.pairwise = (
            PairwiseHead(num_features, objective.regresses, projection.pairwise_hidden) if objective.regresses else None
        )
        self.num_views = 3 if self.projection is not None and self.pairwise is not None else 2

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images of all views -> see above."""
        stages = self.encoder.maps(images)
        num_frames = len(images) // self.num_views
        outputs: dict[str, Tensor] = {}
        if self.projection is not None:
            eighth, sixteenth, last = (stage[: 2 * num_frames] for stage in stages)
            projections = project(self.encoder, self.projection, (eighth, sixteenth, last))
            outputs["projections"] = projections.unflatten(0, (2, num_frames)).transpose(0, 1)
        if self.pairwise is not None:
            features = self.encoder.pool(stages[-1])
            predictions = self.pairwise(features[:num_frames], features[-num_frames:])
            scales = [self.pairwise.log_scales[name] for name in predictions]
            outputs["transform"] = torch.cat(list(predictions.values()), 1)
            outputs["log_scales"] = torch.cat([scale.expand(num_frames, 1) for scale in scales], 1)
        return outputs


def _projection(num_features: int, settings: ProjectionSettings) -> Projection:
    if settings.kind == "spatial":
        return SpatialProjection(num_features, settings.outputs)
    return ProjectionHead(num_features, settings.hidden, settings.outputs)
