"""Which contrastive objective, and what of a projection enters NT-Xent under it."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.config import Settings
from pipeline.geometry import at_least_float32
from pipeline.objectives.pairwise import GEOMETRY, TARGET_SIZES
from pipeline.objectives.peclr import reference_translation, undo_similarity, undo_transform
from pipeline.views import Views


class PositiveSettings(Settings):
    """What a view is pulled towards."""

    kind: Literal["same-frame", "temporal", "similar"] = "same-frame"
    """What a view is pulled towards. `same-frame`: the other view of its frame. `temporal`: a view of another frame of
    its clip, from its frame group. `similar`: a view of a frame of another video with a similar 2D pose, mined by
    `jobs.mine` (SiMHand)."""

    max_seconds: float = Field(default=0.5, gt=0)
    """For `temporal`: largest time in seconds between the two frames. A frame without such a partner uses its own other
    view."""

    pairs: str = "similar"
    """For `similar`: the name under which `jobs.mine` wrote the pairs beside the frame set."""

    adaptive_weights: bool = False
    """For `similar`: whether cosines are weighted by the distance of the 2D joints in the two views, as SiMHand
    does."""

    @model_validator(mode="after")
    def _weights_need_joints(self) -> "PositiveSettings":
        if self.adaptive_weights and self.kind != "similar":
            raise ValueError("adaptive_weights needs kind 'similar', whose pairs carry 2D joints")
        return self


class NegativeSettings(Settings):
    """What other frames of a frame's own clip count for among its negatives.

    With frame groups a batch holds some of them: same background, skin and light, and only the pose tells them apart.
    """

    same_clip: Literal["keep", "beyond", "weight", "mask"] = "keep"
    """How negatives from the same clip count. `keep`: like all others (they are hard negatives). `beyond`: only those
    more than `beyond_seconds` away. `weight`: multiplied by `weight`. `mask`: not at all."""

    beyond_seconds: float = Field(default=0.5, ge=0)
    """For `beyond`: frames of the same clip that are nearer than this many seconds (near-duplicates) are no
    negatives."""

    weight: float = Field(default=1.0, gt=0)
    """For `weight`: factor on the terms of such negatives in the denominator of the loss. Below 1 they count less,
    above 1 more."""


class ObjectiveSettings(Settings):
    """The pretraining objective."""

    name: Literal["peclr", "simclr", "pairwise", "hybrid"] = "peclr"
    """`peclr` undoes the geometric transform of each view on its projection (equivariance). `simclr`, the baseline,
    compares projections as they are (invariance). `pairwise` predicts the transform between two views. `hybrid`
    contrasts views that differ in colour and predicts the transform between views that differ in geometry."""

    inverse: Literal["exact-units", "similarity", "reference"] = "exact-units"
    """How `peclr` undoes the transform. `exact-units`: as in the paper. `similarity`: reads the projection as image
    points and inverts the whole similarity transform. `reference`: uses the units of translation of the published code,
    for comparisons."""

    undone: tuple[Literal["rotation", "translation"], ...] = ("rotation", "translation")
    """Which transforms `peclr` undoes; leave one out for ablations. The last normalisation removes the scale in any
    case."""

    temperature: float = Field(default=0.5, gt=0)
    """Temperature of NT-Xent. The paper has 0.5. 0.1 gives hard negatives more weight, which helps where a batch holds
    several frames of one clip."""

    positives: PositiveSettings = PositiveSettings()
    negatives: NegativeSettings = NegativeSettings()

    max_logits_rows: int | None = Field(default=None, ge=1)
    """For how many anchors (each frame has two) the similarities are held in memory at a time; none holds all. Worth
    setting above some 16,000 views."""

    @property
    def contrasts(self) -> bool:
        """Whether NT-Xent is part of it, for which a projection head is needed."""
        return self.name != "pairwise"

    @property
    def regresses(self) -> tuple[str, ...]:
        """Parameters of the transform between two views that are regressed."""
        return {"pairwise": tuple(TARGET_SIZES), "hybrid": GEOMETRY}.get(self.name, ())

    @property
    def needs_relations(self) -> bool:
        """Whether it asks which clip a frame is from."""
        return self.positives.kind != "same-frame" or self.negatives.same_clip != "keep"

    @model_validator(mode="after")
    def _undoes_what_it_can(self) -> "ObjectiveSettings":
        if self.inverse == "similarity" and set(self.undone) != {"rotation", "translation"}:
            raise ValueError(
                "inverse 'similarity' undoes the whole transform; leave undone at rotation and translation"
            )
        return self

    @model_validator(mode="after")
    def _other_frames_need_a_contrast(self) -> "ObjectiveSettings":
        if self.positives.kind != "same-frame" and self.regresses:
            raise ValueError(
                f"positives '{self.positives.kind}' do not go with '{self.name}', which regresses the transform between "
                "two views of one frame"
            )
        if self.negatives.same_clip != "keep" and not self.contrasts:
            raise ValueError(f"'{self.name}' has no negatives; leave negatives.same_clip at 'keep'")
        return self


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
    if settings.name != "peclr":
        return F.normalize(at_least_float32(projections), dim=-1)
    if settings.inverse == "similarity":
        return undo_similarity(projections, views.angle, views.translation, views.scale)
    translation = views.translation
    if settings.inverse == "reference":
        translation = reference_translation(translation, views.scale, crop_side, view_size)
    return undo_transform(
        projections,
        views.angle if "rotation" in settings.undone else torch.zeros_like(views.angle),
        translation if "translation" in settings.undone else torch.zeros_like(translation),
    )
