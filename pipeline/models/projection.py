"""The projection heads between the encoder and the contrastive loss.

Both give (N, P) numbers that are read as P / 2 points in the plane: entry 2k is x, 2k + 1 is y of point k.
"""

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder, Stages
from pipeline.models.heads import SpatialMaps, cell_centres, full_precision


class ProjectionHead(nn.Sequential):
    """Linear (bias) - BatchNorm - ReLU - Linear (no bias) on the pooled features, as in PeCLR (Spurr et al. 2021, published
    code)."""

    def __init__(self, num_features: int, hidden: int = 512, num_outputs: int = 128) -> None:
        _check(num_outputs)
        super().__init__(
            nn.Linear(num_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_outputs, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_features) -> (N, num_outputs)."""
        return super().forward(features)


class SpatialProjection(SpatialMaps):
    """A heat map for each point, which lies where the map's softmax has its mean, in fractions of the view's side from its centre.

    So a point stands somewhere in the image and moves with it, and the encoder is trained through its maps, as it is by the
    pose heads with heat maps. Ours; landmarks found by undoing known transforms are due to Thewlis et al. 2017.
    """

    def __init__(self, num_features: int, num_outputs: int = 128) -> None:
        _check(num_outputs)
        super().__init__(num_features, num_outputs // 2)

    def forward(self, stages: Stages) -> Tensor:
        """The encoder's maps -> (N, num_outputs)."""
        maps = self.maps_of(stages)
        with torch.autocast(maps.device.type, enabled=False):
            share = full_precision(maps).flatten(-2).softmax(-1)
            return (share @ cell_centres(maps.shape[-2], maps.shape[-1], share)).flatten(1)


Projection = ProjectionHead | SpatialProjection


def project(encoder: Encoder, projection: Projection, stages: Stages) -> Tensor:
    """Projections (N, P) of views, from the encoder's maps of them."""
    projections: Tensor = projection(stages if isinstance(projection, SpatialProjection) else encoder.pool(stages[-1]))
    return projections


def _check(num_outputs: int) -> None:
    if num_outputs % 2:
        raise ValueError(f"num_outputs = {num_outputs}: must be even, the projection is read as points (x, y)")
