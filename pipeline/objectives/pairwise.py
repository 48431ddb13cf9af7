"""The paper's other baseline: regression of the relative transform of a pair of views.

Its hybrid adds NT-Xent on pairs that differ in colour only (`pipeline.views.exchange_colour` makes them).

Pairwise: from the two encodings of a pair of views, predict how the second view's transform differs from the first's.
The published code takes the rotation's difference modulo 360 degrees, with a jump at 0, and the scale's modulo 360 too;
here the rotation's difference is wrapped to half a turn either way and scales differ by their logarithm.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.geometry import at_least_float32
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
    {parameter: () or (N,)}.
    """
    total = torch.zeros(())
    for name, predicted in predictions.items():
        scale = at_least_float32(log_scales[name])
        error = (at_least_float32(predicted) - targets[name]).abs().mean(1)
        total = total + (error * torch.exp(-scale) + scale).mean()
    return total
