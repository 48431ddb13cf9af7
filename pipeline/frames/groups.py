"""Which frames stay together, which split a clip belongs to, and which bucket a group goes to.

Everything is decided by hashes of names and a seed, so that it does not depend on who does the work, or in which order.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

_TIME_TOLERANCE_S = 1e-3  # container timestamps are rounded


def form_groups(times: Sequence[float], group_size: int, stride_s: float) -> list[list[int]]:
    """Put the frames of one clip into groups; every frame is in exactly one.

    times: seconds, ascending, one per frame. Members of a group are at least stride_s apart. Gives lists of positions in
    `times`, ascending, `group_size` long. Frames that are left over make smaller groups: at most group_size - 1 frames
    of a clip that is long enough to hold one group, all frames of a shorter clip.

    A clip is cut into the largest number of equal windows that hold whole groups, and the groups of a window are
    interleaved: of 8 frames that must be 2 apart, groups of 4 are 0 2 4 6 and 1 3 5 7.
    """
    num_frames = len(times)
    step = _frames_apart(np.asarray(times, dtype=np.float64), stride_s)
    num_windows = num_frames // (step * group_size)
    if num_windows == 0:
        return _greedy(times, range(num_frames), group_size, stride_s)
    num_groups = num_frames // group_size
    groups: list[list[int]] = []
    first = 0
    for window in range(num_windows):
        groups_here = num_groups // num_windows + (window < num_groups % num_windows)
        groups += [[first + g + k * groups_here for k in range(group_size)] for g in range(groups_here)]
        first += groups_here * group_size
    return groups + _greedy(times, range(first, num_frames), group_size, stride_s)


def _frames_apart(times: np.ndarray, stride_s: float) -> int:
    """The smallest number of frames between which at least stride_s passes anywhere in the clip."""
    step = 1
    while step < len(times) and (times[step:] - times[:-step]).min() < stride_s - _TIME_TOLERANCE_S:
        step += 1
    return step


def _greedy(times: Sequence[float], frames: range, group_size: int, stride_s: float) -> list[list[int]]:
    """Each frame joins the first group with room whose last member is far enough away, else begins one."""
    groups: list[list[int]] = []
    for frame in frames:
        for group in groups:
            if len(group) < group_size and times[frame] - times[group[-1]] >= stride_s - _TIME_TOLERANCE_S:
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def assign_splits(names: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for each recording: their order by hash(seed, name), cut at the fractions.

    Exact to half a recording, unlike a coin toss for each, so that a small set has its validation and test clips too: a
    split with a fraction above 0 gets at least one recording where there are enough of them.
    """
    order = sorted(set(names), key=lambda name: (_hash(seed, "split", name), name))
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    counts = dict(zip(wanted, apportion(len(order), [fractions[split] for split in wanted]), strict=True))
    splits = [split for split in wanted for _ in range(counts[split])]
    return dict(zip(order, splits, strict=True))


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, close to the shares, none of them 0 while `total` is large enough."""
    exact = np.asarray(shares) / sum(shares) * total
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: total - counts.sum()]:
        counts[index] += 1
    if total >= len(counts):
        for index in np.flatnonzero(counts == 0):
            counts[counts.argmax()] -= 1
            counts[index] = 1
    return counts.tolist()


def bucket_of(group_id: str, num_buckets: int, seed: int) -> int:
    """The shuffle bucket of a group, uniform over range(num_buckets)."""
    return _hash(seed, "bucket", group_id) % num_buckets


def _hash(seed: int, purpose: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest(), "little")
