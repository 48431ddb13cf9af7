"""How the views of a batch are related (same frame, same clip, time apart, similar pose), and what follows for NT-Xent.

Which view is a frame's positive, and how much the other views of its clip count as negatives.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.objectives.settings import NegativeSettings

_TIME_TOLERANCE_S = 1e-3  # container timestamps are rounded


class Members(NamedTuple):
    """What M views show."""

    frame: Tensor
    """(M,) int64 key of the frame."""
    clip: Tensor
    """(M,) int64 key of the clip."""
    time_s: Tensor
    """(M,) float64, time in the clip in seconds; NaN where it is not known."""
    joints_2d: Tensor
    """(M, 21, 2) 2D joints in the view, fractions of its side; NaN where not known, (M, 0, 2) where not needed."""

    def take(self, index: Tensor) -> "Members":
        """The views at these positions."""
        return Members(*(field[index] for field in self))


def cat_members(parts: Sequence[Members]) -> Members:
    """The views one after the other."""
    return Members(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def key(name: str) -> int:
    """A 63-bit number for a name, the same on every worker."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def temporal_partners(
    clips: Sequence[str], times: Sequence[float | None], max_seconds: float, generator: torch.Generator | None = None
) -> Tensor:
    """For each of n frames another frame of its clip, at most max_seconds away, at random: a permutation (n,).

    clips: the frames' clips; times: in seconds, None where not known. A frame keeps itself where no other is near
    enough, or those that are have all found partners nearer to their own. Being a permutation, it makes pairs (first
    view of i, second view of its partner) in which every view appears once.
    """
    groups: dict[str, list[int]] = {}
    for frame in torch.randperm(len(clips), generator=generator).tolist():
        groups.setdefault(clips[frame], []).append(frame)

    def near(one: int, other: int) -> bool:
        start, end = times[one], times[other]
        return start is not None and end is not None and 0 < abs(start - end) <= max_seconds + _TIME_TOLERANCE_S

    partner = list(range(len(clips)))
    for members in groups.values():
        waiting, alone = list(members), []
        while waiting:
            frame = waiting.pop()
            other = next((candidate for candidate in waiting if near(frame, candidate)), None)
            if other is None:
                alone.append(frame)
            else:
                waiting.remove(other)
                partner[frame], partner[other] = other, frame
        for frame in alone:  # who is left over steps between two partners: a -> b becomes a -> frame -> b
            for other in members:
                if partner[other] != other and near(frame, other) and near(frame, partner[other]):
                    partner[frame], partner[other] = partner[other], frame
                    break
    return torch.tensor(partner, dtype=torch.long)


def negative_log_weights(anchors: Members, columns: Members, settings: NegativeSettings) -> Tensor:
    """(r, M) float32: logarithm of the weight of each of M views among the negatives of each of r anchors.

    A view of the anchor's own frame is never a negative (-inf). Other views of its clip follow `settings`; where
    `beyond` meets an unknown time, the view counts as near.
    """
    same_clip = anchors.clip[:, None] == columns.clip
    result = torch.zeros(same_clip.shape, device=same_clip.device)
    if settings.same_clip == "mask":
        result = result.masked_fill(same_clip, -torch.inf)
    elif settings.same_clip == "weight":
        result = result.masked_fill(same_clip, torch.tensor(settings.weight).log().item())
    elif settings.same_clip == "beyond":
        far = (anchors.time_s[:, None] - columns.time_s).abs() > settings.beyond_seconds
        result = result.masked_fill(same_clip & ~far, -torch.inf)
    return result.masked_fill(anchors.frame[:, None] == columns.frame, -torch.inf)


def joint_distances(anchors: Tensor, columns: Tensor) -> Tensor:
    """Mean distance of corresponding joints, (r, M), from 2D joints (r, J, 2) and (M, J, 2)."""
    total = anchors.new_zeros(len(anchors), len(columns))
    for joint in range(anchors.shape[1]):  # one joint at a time: (r, M) floats, not (r, M, J)
        total += torch.cdist(anchors[:, joint], columns[:, joint], compute_mode="donot_use_mm_for_euclid_dist")
    return total / anchors.shape[1]


def adaptive_factor(distances: Tensor, smallest: Tensor | float, largest: Tensor | float) -> Tensor:
    """SiMHand's linear weight of a cosine: (largest - d) / (largest - smallest); 1 where the distance is not known.

    Source: published code of SiMHand (Lin et al., ICLR 2025), `get_weights_linear` with `mpjpe`.
    """
    span = torch.as_tensor(largest - smallest).clamp_min(1e-12)
    return torch.nan_to_num((largest - distances) / span, nan=1.0)
