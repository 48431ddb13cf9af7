"""NT-Xent, the contrastive loss of SimCLR (Chen et al. 2020) and PeCLR, and figures that describe an embedding."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.geometry import at_least_float32


class PairWeights(NamedTuple):
    """How single pairs of views count in NT-Xent, for r anchors and all 2N views; None leaves the plain loss."""

    log_weight: Tensor | None = None
    """(r, 2N) logarithm of what a view's term in the denominator is multiplied by; -inf leaves it out. The positive
    always counts once, whatever stands here."""
    factor: Tensor | None = None
    """(r, 2N) multiplies the cosines in the denominator, the positive's too."""
    positive_factor: Tensor | None = None
    """(r,) multiplies the positive's cosine in the numerator."""


WeightsOf = Callable[[Tensor], PairWeights]
"""The weights of given anchors: indices (r,) into this worker's 2n anchors, those of the first views first."""


def nt_xent(view_1: Tensor, view_2: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent loss of N pairs, a scalar.

    The mean over the 2N anchors of -log softmax of the positive among all other 2N - 1 views, by cosine / temperature.
    view_1, view_2: (N, D), row i of both shows sample i; need not be normalised. Computed in float32, or float64 for
    float64 inputs, whatever the autocast. Source: Chen et al. 2020, eq. 1.
    """
    return nt_xent_global(view_1, view_2, view_1, view_2, 0, temperature)


def nt_xent_global(
    local_1: Tensor,
    local_2: Tensor,
    all_1: Tensor,
    all_2: Tensor,
    offset: int,
    temperature: float = 0.5,
    *,
    weights_of: WeightsOf | None = None,
    max_rows: int | None = None,
) -> Tensor:
    """NT-Xent of one worker's n pairs against all 2N views of all workers: a scalar, the mean over its 2n anchors.

    local_1, local_2: (n, D) of this worker; all_1, all_2: (N, D) of all workers in order, through which the gradient
    must flow back to their owners; offset: this worker's samples are rows offset ... offset + n - 1 of all_1 and all_2.
    Workers may hold different n: the loss of the whole batch is sum over workers of (n / N) * loss. So under
    DistributedDataParallel, which averages gradients over W workers, each worker multiplies by W * n / N. A worker with
    no pairs gives 0.
    weights_of: how single pairs count. max_rows: anchors whose logits are held at a time, (max_rows, 2N) floats; the
    backward pass computes them again. None holds all.
    """
    anchors = _unit(torch.cat([local_1, local_2]))
    columns = _unit(torch.cat([all_1, all_2]))
    num_local, num_all = local_1.shape[0], all_1.shape[0]
    if offset < 0 or offset + num_local > num_all:
        raise ValueError(f"rows {offset} ... {offset + num_local - 1} are not among the {num_all} gathered samples")
    rows = torch.arange(offset, offset + num_local, device=anchors.device)
    itself = torch.cat([rows, rows + num_all])
    positive = torch.cat([rows + num_all, rows])
    index = torch.arange(2 * num_local, device=anchors.device)

    def loss_sum(part: Tensor) -> Tensor:
        weights = weights_of(part) if weights_of is not None else PairWeights()
        own, partner = itself[part, None], positive[part, None]
        logits = anchors[part] @ columns.T / temperature
        target = logits.gather(1, partner)[:, 0]
        if weights.positive_factor is not None:
            target = target * weights.positive_factor
        if weights.factor is not None:
            logits = logits * weights.factor
        if weights.log_weight is not None:
            logits = logits + weights.log_weight.scatter(1, partner, 0)
        return (logits.scatter(1, own, -torch.inf).logsumexp(1) - target).sum()

    with torch.autocast(anchors.device.type, enabled=False):
        if max_rows is None or 2 * num_local <= max_rows:
            total = loss_sum(index)
        else:
            parts = [
                checkpoint(loss_sum, part, use_reentrant=False, preserve_rng_state=False)
                for part in index.split(max_rows)
            ]
            total = torch.stack(parts).sum()
    return total / max(2 * num_local, 1)


@torch.no_grad()
def similarity_stats(view_1: Tensor, view_2: Tensor) -> dict[str, Tensor]:
    """Figures of an embedding, 0-d tensors without gradient.

    view_1, view_2: (N, D), row i of both shows sample i; N > 1.
    positive_similarity, negative_similarity: mean cosine of the N pairs, and of all pairs of different samples.
    alignment: mean squared distance of the pairs on the unit sphere, lower = views of a sample agree more.
    uniformity: log of the mean of exp(-2 squared distance) over different samples within a view (mean of the two
        views), lower = spread more evenly. Both after Wang & Isola 2020, "Understanding Contrastive Representation
        Learning through Alignment and Uniformity".
    """
    view_1, view_2 = _unit(view_1), _unit(view_2)
    num_pairs = len(view_1) * (len(view_1) - 1)
    with torch.autocast(view_1.device.type, enabled=False):
        within = torch.stack([view_1 @ view_1.T, view_2 @ view_2.T])
        across = view_1 @ view_2.T
    positive = across.diagonal().mean()
    itself = torch.eye(len(view_1), dtype=torch.bool, device=view_1.device)
    # Among ordered pairs of different samples each pair across views counts twice (1 with 2, 2 with 1), as in the loss.
    same_view, other_view = within.masked_fill(itself, 0).sum(), across.masked_fill(itself, 0).sum()
    # On the unit sphere the squared distance is 2 - 2 cosine.
    spread = (4 * within - 4).masked_fill(itself, -torch.inf).flatten(1).logsumexp(-1)
    return {
        "positive_similarity": positive,
        "negative_similarity": (same_view + 2 * other_view) / (4 * max(num_pairs, 1)),
        "alignment": 2 - 2 * positive,
        "uniformity": spread.mean() - math.log(max(num_pairs, 1)),
    }


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(at_least_float32(vectors), dim=-1)
