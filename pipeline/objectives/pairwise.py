"""The paper's other baselines: pairwise regression of the relative transform, and its hybrid with NT-Xent.

Pairwise: from the two encodings of a pair of views, predict how the second view's transform differs from the first's.
The published code takes the rotation's difference modulo 360 degrees, with a jump at 0, and the scale's modulo 360 too;
here the rotation's difference is wrapped to half a turn either way and scales differ by their logarithm.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.objectives.contrastive import nt_xent
from pipeline.views import Views

TARGET_SIZES: dict[str, int] = {"rotation": 1, "translation": 2, "scale": 1, "colour": 4}
"""The transform parameters that are regressed, and how many numbers each has."""

GEOMETRY = ("rotation", "translation", "scale")


def relative_transform(views_1: Views, views_2: Views) -> dict[str, Tensor]:
    """What turns views 1 into views 2, by parameter.

    "rotation": (N, 1) radians in [-pi, pi); "translation": (N, 2) fractions of the side; "scale": (N, 1) difference of
    logarithms; "colour": (N, 4) differences of brightness, contrast, saturation and hue.
    """
    turn = views_2.angle - views_1.angle
    colours = ("brightness", "contrast", "saturation", "hue")
    return {
        "rotation": (torch.remainder(turn + math.pi, 2 * math.pi) - math.pi)[:, None],
        "translation": views_2.translation - views_1.translation,
        "scale": (views_2.scale.log() - views_1.scale.log())[:, None],
        "colour": torch.stack([getattr(views_2, c) - getattr(views_1, c) for c in colours], -1),
    }


class PairwiseHead(nn.Module):
    """Predicts the relative transform from two encodings (N, F) each: one small perceptron for every parameter.

    Linear(2F -> hidden) - BatchNorm - ReLU - Linear(hidden -> k, no bias), and a learnt log scale for each parameter's
    loss, as in the published code (hidden 1024).
    """

    def __init__(self, num_features: int, targets: tuple[str, ...] = tuple(TARGET_SIZES), hidden: int = 1024) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(2 * num_features, hidden),
                    nn.BatchNorm1d(hidden),
                    nn.ReLU(inplace=True),
                    nn.Linear(hidden, TARGET_SIZES[name], bias=False),
                )
                for name in targets
            }
        )
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in targets})

    def forward(self, encodings_1: Tensor, encodings_2: Tensor) -> dict[str, Tensor]:
        """{parameter: (N, k)} from encodings (N, F) of the first and second views."""
        pair = torch.cat([encodings_1, encodings_2], -1)
        return {name: branch(pair) for name, branch in self.branches.items()}


def pairwise_loss(
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    log_scales: Mapping[str, Tensor] | nn.ParameterDict,
) -> Tensor:
    """Scalar: sum over the predicted parameters of L1 / exp(s) + s, s being a learnt log scale (Kendall & Gal 2017).

    predictions, targets: {parameter: (N, k)}; targets may hold more parameters than are predicted. log_scales:
    {parameter: ()}.
    """
    terms = [
        (predictions[name].float() - targets[name]).abs().mean() * torch.exp(-log_scales[name]) + log_scales[name]
        for name in predictions
    ]
    return torch.stack(terms).sum()


def hybrid_loss(
    projections_1: Tensor,
    projections_2: Tensor,
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    log_scales: Mapping[str, Tensor] | nn.ParameterDict,
    temperature: float = 0.5,
) -> Tensor:
    """Scalar: NT-Xent on pairs that differ in colour, plus pairwise regression on pairs that differ in geometry.

    projections_1, projections_2: (N, D) of the colour pair. predictions, targets, log_scales: as in `pairwise_loss`,
    for the geometry pair, over `GEOMETRY`. `pipeline.views.exchange_colour` makes such pairs.
    """
    contrast = nt_xent(projections_1, projections_2, temperature)
    return contrast + pairwise_loss(predictions, targets, log_scales)
