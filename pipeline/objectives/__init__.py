"""Self-supervised objectives as pure functions on tensors."""

from pipeline.objectives.contrastive import PairWeights, nt_xent, nt_xent_global, similarity_stats
from pipeline.objectives.pairwise import (
    GEOMETRY,
    PairwiseHead,
    pairwise_loss,
    relative_transform,
)
from pipeline.objectives.peclr import reference_translation, undo_similarity, undo_transform
from pipeline.objectives.settings import NegativeSettings, ObjectiveSettings, PositiveSettings, latent

__all__ = [
    "GEOMETRY",
    "NegativeSettings",
    "ObjectiveSettings",
    "PairWeights",
    "PairwiseHead",
    "PositiveSettings",
    "latent",
    "nt_xent",
    "nt_xent_global",
    "pairwise_loss",
    "reference_translation",
    "relative_transform",
    "similarity_stats",
    "undo_similarity",
    "undo_transform",
]
