"""The projection head between the encoder's features and the contrastive loss."""

from torch import Tensor, nn


class ProjectionHead(nn.Sequential):
    """Linear (bias) - BatchNorm - ReLU - Linear (no bias), as in PeCLR (Spurr et al. 2021, published code).

    The output, (N, num_outputs), is read as num_outputs / 2 points in the plane: entry 2k is x, 2k + 1 is y of point k.
    """

    def __init__(self, num_features: int, hidden: int = 512, num_outputs: int = 128) -> None:
        if num_outputs % 2:
            raise ValueError(f"num_outputs = {num_outputs}: must be even, the projection is read as points (x, y)")
        super().__init__(
            nn.Linear(num_features, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_outputs, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(N, num_features) -> (N, num_outputs)."""
        return super().forward(features)
