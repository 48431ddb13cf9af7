"""One step's pairs and their loss: where objective, positives, negatives, workers and views meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.frames.batches import Batch
from pipeline.geometry import at_least_float32, transform_points
from pipeline.objectives import (
    ObjectiveSettings,
    PairWeights,
    latent,
    nt_xent_global,
    pairwise_loss,
    relative_transform,
)
from pipeline.objectives.relations import (
    Members,
    adaptive_factor,
    cat_members,
    joint_distances,
    key,
    negative_log_weights,
    temporal_partners,
)
from pipeline.training.distributed import gather, gather_values, world
from pipeline.views import Views, ViewSettings, apply_views, cat_views, exchange_colour, sample_views, view_matrix

_ROWS_AT_ONCE = 1024


@dataclass
class Pairs:
    """A worker's n frames of one step, their views, and which views belong together."""

    frames: Tensor
    """uint8 (n, 3, S, S)."""
    partners: Tensor | None
    """uint8 (n, 3, S, S), what the second views show, where that is not the frames themselves."""
    views: list[Views]
    """First, second (and for `hybrid` third) views, n each."""
    view_settings: ViewSettings
    second: Tensor
    """(n,) which second view is paired with each first view."""
    members: tuple[Members, Members] | None
    """What the first and the second views show, where the objective asks for it."""
    fallback: float
    """Share of the frames that found no partner and are paired with themselves."""
    counts: tuple[int, ...] | None = None
    """n of every worker; None: the same on all."""

    def __len__(self) -> int:
        return len(self.frames)

    def render(self, part: slice) -> Tensor:
        """Images of some of the frames, (views * frames, 3, size, size), the first views of all first."""
        views = [Views(*(field[part] for field in view)) for view in self.views]
        if self.partners is None:
            return apply_views(self.frames[part], cat_views(*views), self.view_settings)
        both = zip((self.frames, self.partners), views, strict=True)
        return torch.cat([apply_views(frames[part], view, self.view_settings) for frames, view in both])

    def examples(self, num: int) -> tuple[Tensor, Tensor]:
        """Images of the first pairs, (num, 3, size, size) each: first views, and those they are paired with."""
        first, second = self.views[:2]
        chosen = self.second[:num]
        seconds = self.frames if self.partners is None else self.partners
        return (
            apply_views(self.frames[:num], Views(*(field[:num] for field in first)), self.view_settings),
            apply_views(seconds[chosen], Views(*(field[chosen] for field in second)), self.view_settings),
        )


class StepLoss(NamedTuple):
    """What a step says about itself; no gradients."""

    loss: Tensor
    """() this worker's share: the mean over workers is the loss of the global batch."""
    latents: Tensor | None
    """(N, 2, D) what entered NT-Xent, of all workers, pairs in rows."""
    terms: dict[str, Tensor]
    """() parts of the loss, by name."""


def columns_for(objective: ObjectiveSettings) -> tuple[str, ...]:
    """Columns of the frame set (and of its pairs) that `make_pairs` needs besides the frames."""
    columns: tuple[str, ...] = ("frame_id", "clip_id", "timestamp_s") if objective.needs_relations else ()
    if objective.positives.kind == "similar":
        columns += ("pair_frame_id", "pair_clip_id", "pair_timestamp_s")
        if objective.positives.adaptive_weights:
            columns += ("keypoints", "pair_keypoints")
    return columns


def make_pairs(
    batch: Batch,
    objective: ObjectiveSettings,
    views: ViewSettings,
    generator: torch.Generator,
    device: torch.device,
    part: tuple[int, slice] | None = None,
) -> Pairs:
    """Draw the views of a batch, and pair them. generator: on the CPU, for the same views on every kind of device.

    part: where the batch is only some rows of one for which the views are drawn: the rows of that, and which of them.
    """
    frames, partners = _to(batch.frames, device), None if batch.partners is None else _to(batch.partners, device)
    count = len(frames)
    drawn_for, own = part or (count, slice(None))
    both = (sample_views(views, drawn_for, generator=generator, device=device) for _ in range(2))
    first, second = (Views(*(field[own] for field in each)) for each in both)
    drawn = [first, second]
    if objective.name == "hybrid":
        recoloured = exchange_colour(geometry_of=first, colour_of=second)
        turned = exchange_colour(geometry_of=second, colour_of=first)
        drawn = [first, recoloured, turned]
    order = torch.arange(count)
    members, fallback = None, 0.0
    if objective.needs_relations:
        columns, positives = batch.columns, objective.positives
        if positives.kind == "temporal":
            order = temporal_partners(columns["clip_id"], columns["timestamp_s"], positives.max_seconds, generator)
            fallback = float((order == torch.arange(count)).float().mean())
        elif positives.kind == "similar":
            same = [own == other for own, other in zip(columns["frame_id"], columns["pair_frame_id"], strict=True)]
            fallback = sum(same) / count
        size = frames.shape[-1]
        one = _members(columns, "", drawn[0], size, views.size, device)
        other = _members(columns, "pair_" if partners is not None else "", drawn[1], size, views.size, device)
        members = one, other.take(order.to(device))
    return Pairs(frames, partners, drawn, views, order.to(device), members, fallback)


def join_pairs(parts: Sequence[Pairs], counts: tuple[int, ...] | None = None) -> Pairs:
    """Pairs of several shares of a batch as one. counts: how many every worker has."""
    first = parts[0]
    starts = torch.tensor([0, *(len(part) for part in parts[:-1])]).cumsum(0).tolist()
    members = [part.members for part in parts if part.members is not None]
    return Pairs(
        torch.cat([part.frames for part in parts]),
        None if first.partners is None else torch.cat([part.partners for part in parts if part.partners is not None]),
        [cat_views(*views) for views in zip(*(part.views for part in parts), strict=True)],
        first.view_settings,
        torch.cat([part.second + start for part, start in zip(parts, starts, strict=True)]),
        (cat_members([one for one, _ in members]), cat_members([other for _, other in members])) if members else None,
        sum(part.fallback * len(part) for part in parts) / sum(len(part) for part in parts),
        counts,
    )


def step_loss(outputs: dict[str, Tensor], pairs: Pairs, objective: ObjectiveSettings) -> tuple[Tensor, StepLoss]:
    """The loss to call backward on, and what to report. outputs: the network's, one row a frame (models/pretrain.py).

    DistributedDataParallel's mean over workers gives the gradient of the loss over the global batch.
    """
    terms: dict[str, Tensor] = {}
    latents = None
    if objective.contrasts:
        terms["contrast"], latents = _contrast(outputs["projections"], pairs, objective)
    if objective.regresses:
        terms["transform"] = _regression(outputs["transform"], outputs["log_scales"], pairs, objective.regresses)
    if pairs.counts is not None:
        weight = len(pairs) * len(pairs.counts) / sum(pairs.counts)
        terms = {name: weight * value for name, value in terms.items()}
    loss = torch.stack(list(terms.values())).sum()
    return loss, StepLoss(loss.detach(), latents, {name: value.detach() for name, value in terms.items()})


def _contrast(projections: Tensor, pairs: Pairs, objective: ObjectiveSettings) -> tuple[Tensor, Tensor]:
    side, size = pairs.frames.shape[-1], pairs.view_settings.size
    first, second = (
        latent(at_least_float32(projections[:, number]), pairs.views[number], objective, crop_side=side, view_size=size)
        for number in range(2)
    )
    second = second[pairs.second]
    everyone = gather(torch.stack([first, second], dim=1), pairs.counts)
    weights_of = None
    if pairs.members is not None:
        weights_of = _Weights(pairs.members, objective, pairs.counts)
    loss = nt_xent_global(
        first,
        second,
        everyone[:, 0],
        everyone[:, 1],
        sum(pairs.counts[: world()[0]]) if pairs.counts is not None else world()[0] * len(pairs),
        objective.temperature,
        weights_of=weights_of,
        max_rows=objective.max_logits_rows,
    )
    return loss, everyone.detach()


def _regression(transform: Tensor, log_scales: Tensor, pairs: Pairs, names: tuple[str, ...]) -> Tensor:
    targets = relative_transform(pairs.views[0], pairs.views[-1])
    predictions = transform.split([targets[name].shape[1] for name in names], 1)
    return pairwise_loss(
        dict(zip(names, predictions, strict=True)), targets, dict(zip(names, log_scales.T, strict=True))
    )


class _Weights:
    """How the pairs of views count: negatives of the same clip, and SiMHand's adaptive weights."""

    def __init__(
        self, members: tuple[Members, Members], objective: ObjectiveSettings, counts: tuple[int, ...] | None
    ) -> None:
        self.objective = objective
        self.anchors = cat_members(members)
        self.adaptive = objective.positives.adaptive_weights
        everyone = [
            Members(
                gather(each.frame, counts),
                gather(each.clip, counts),
                gather(each.time_s, counts),
                gather(each.joints_2d, counts) if self.adaptive else each.joints_2d,
            )
            for each in members
        ]
        self.columns = cat_members(everyone)
        if self.adaptive:
            own, other = (each.joints_2d for each in members)
            self.positive_distances = (own - other).norm(dim=-1).mean(-1).repeat(2)
            self.positive_range = _range([self.positive_distances])
            blocks = self.anchors.joints_2d.split(_ROWS_AT_ONCE)
            # A view is at no distance from itself, so the smallest distance of all is 0, as in the published code.
            self.largest = _range([joint_distances(block, self.columns.joints_2d) for block in blocks])[1]

    def __call__(self, rows: Tensor) -> PairWeights:
        anchors = self.anchors.take(rows)
        log_weight = negative_log_weights(anchors, self.columns, self.objective.negatives)
        if not self.adaptive:
            return PairWeights(log_weight)
        distances = joint_distances(anchors.joints_2d, self.columns.joints_2d)
        return PairWeights(
            log_weight,
            adaptive_factor(distances, 0.0, self.largest),
            adaptive_factor(self.positive_distances[rows], *self.positive_range),
        )


def _range(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Smallest and largest known value over all workers; (0, 0) where there is none."""
    smallest = torch.stack([torch.nan_to_num(part, nan=torch.inf).amin() for part in parts]).amin()
    largest = torch.stack([torch.nan_to_num(part, nan=-torch.inf).amax() for part in parts]).amax()
    everyone = gather_values(torch.stack([smallest, largest])).to(smallest.device)
    smallest, largest = everyone[:, 0].amin(), everyone[:, 1].amax()
    unknown = largest < smallest
    return smallest.masked_fill(unknown, 0.0), largest.masked_fill(unknown, 0.0)


def _members(
    columns: dict[str, Any], prefix: str, views: Views, crop_size: int, view_size: int, device: torch.device
) -> Members:
    names, clips, times = (columns[prefix + name] for name in ("frame_id", "clip_id", "timestamp_s"))
    joints = torch.empty(len(names), 0, 2, device=device)
    if prefix + "keypoints" in columns:
        keypoints = columns[prefix + "keypoints"].to(device)
        joints = transform_points(view_matrix(views, crop_size, view_size), keypoints) / view_size
    return Members(
        torch.tensor([key(str(name)) for name in names], device=device),
        torch.tensor([key(str(name)) for name in clips], device=device),
        torch.tensor([float("nan") if time is None else time for time in times], dtype=torch.float64, device=device),
        joints,
    )


def _to(frames: Tensor, device: torch.device) -> Tensor:
    return frames.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else frames
