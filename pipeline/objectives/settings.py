"""Which contrastive objective, and what of a projection enters NT-Xent under it."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipeline.config import Settings
from pipeline.geometry import at_least_float32
from pipeline.objectives.peclr import reference_translation, undo_similarity, undo_transform
from pipeline.views import Views


class ObjectiveSettings(Settings):
    """The pretraining objective."""

    name: Literal["peclr", "simclr"] = "peclr"
    """`peclr` undoes each view's geometric transform on its projection (equivariance); `simclr` compares projections as
    they are (invariance), the baseline."""

    inverse: Literal["exact-units", "similarity", "reference"] = "exact-units"
    """How `peclr` undoes the transform: `exact-units` as in the paper; `similarity` reads the projection as image
    points and inverts the whole similarity transform; `reference` repeats the published code's translation units, for
    comparisons."""

    temperature: float = Field(default=0.5, gt=0)
    """NT-Xent temperature. 0.5 is the paper's; 0.1 weights hard negatives more, which helps where frames of one clip
    share a batch."""


def latent(
    projections: Tensor,
    views: Views,
    settings: ObjectiveSettings,
    crop_side: Tensor | float = 160.0,
    view_size: int = 128,
) -> Tensor:
    """What enters NT-Xent: unit vectors (N, 2P) from projections (N, 2P), row i belonging to row i of `views`.

    crop_side, view_size matter to the inverse `reference` only: side of the stored crop in source pixels ((N,) or one
    number; where it is unknown the stored size, 160, stands for it) and pixels of the network's input.
    """
    if settings.name == "simclr":
        return F.normalize(at_least_float32(projections), dim=-1)
    if settings.inverse == "similarity":
        return undo_similarity(projections, views.angle, views.translation, views.scale)
    translation = views.translation
    if settings.inverse == "reference":
        translation = reference_translation(translation, views.scale, crop_side, view_size)
    return undo_transform(projections, views.angle, translation)
