"""How sure an error and a difference of errors are, when the test clips, and the training seeds, are samples of many."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 4000
MIN_CLIPS = 5
"""With fewer there are no intervals over clips: too few to say anything of others."""


@dataclass(frozen=True)
class Difference:
    """One arm's mean error against another's, on the same test frames and with the same seeds."""

    value: float
    other: float
    percent: float
    """Of the other's error; negative where the error is smaller."""
    interval: tuple[float, float]
    """95 % of `percent`."""
    p_value: float
    """Of no difference, see `p_value`."""
    num_seeds: int
    num_clips: int

    @property
    def lower(self) -> bool:
        """Whether the error is smaller for sure."""
        return self.interval[1] < 0

    @property
    def higher(self) -> bool:
        """Whether it is larger for sure."""
        return self.interval[0] > 0


def compare(
    errors: npt.ArrayLike,
    others: npt.ArrayLike,
    clip_frames: npt.ArrayLike,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of two arms with a paired bootstrap interval over seeds and clips.

    errors, others: (S, C) mean errors of S seeds on C clips, row and column the same seed and clip in both.
    clip_frames: (C,) frames of each clip. Every resample draws S seeds and, apart from them, C clips, with replacement,
    the same for both arms (the pigeonhole bootstrap of Owen 2007 for crossed factors); the interval is of percentiles.
    With one seed it knows nothing of how trainings differ. Raises ValueError where the shapes do not fit.
    """
    ours, theirs = np.asarray(errors, dtype=float), np.asarray(others, dtype=float)
    frames = np.asarray(clip_frames, dtype=float)
    if ours.ndim != 2 or ours.shape != theirs.shape or ours.shape[1:] != frames.shape or not ours.size:
        raise ValueError(f"a comparison needs the same seeds and clips: {ours.shape}, {theirs.shape}, {frames.shape}")
    num_seeds, num_clips = ours.shape
    rng = np.random.default_rng(seed)
    # How often each seed and each clip is drawn, in every resample.
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_resamples)
    clips = rng.multinomial(num_clips, np.full(num_clips, 1 / num_clips), num_resamples) * frames
    # Both means are over the same frames, so their number cancels out of the ratio.
    sums = [((seeds @ table) * clips).sum(1) for table in (ours, theirs)]
    drawn = 100 * (sums[0] / sums[1] - 1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    value, other = (float((table @ frames).mean() / frames.sum()) for table in (ours, theirs))
    interval, percent = (float(low), float(high)), 100 * (value / other - 1)
    return Difference(value, other, percent, interval, p_value(drawn, num_clips), num_seeds, num_clips)


def clip_interval(
    errors: npt.ArrayLike, clips: Sequence[str], num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile interval of the mean error of frames (N,), from resampling their clips (a cluster bootstrap).

    Frames of one clip are alike, so whole clips are drawn. None with fewer than MIN_CLIPS.
    """
    names, clip_of = np.unique(np.asarray(clips), return_inverse=True)
    if len(names) < MIN_CLIPS:
        return None
    sums, frames = np.bincount(clip_of, weights=np.asarray(errors, dtype=float)), np.bincount(clip_of)
    drawn = np.random.default_rng(seed).integers(0, len(names), (num_resamples, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / frames[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def p_value(differences: npt.ArrayLike, num_clips: int) -> float:
    """Two-sided p of no difference, from the differences (R,) of R bootstrap resamples of so many clips: twice the share of them
    beyond zero, on the side where fewer are (the percentile interval turned round; Efron & Tibshirani 1993, 15.4).

    It is at least 2 / (R + 1), and at least 2 / 2^clips, below which no exact paired test of so few clips goes: a bootstrap of a
    handful of clips is too sure.
    """
    drawn = np.asarray(differences, dtype=float)
    fewer = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return min(1.0, max(2 * (1 + fewer) / (1 + len(drawn)), 2 * 0.5**num_clips))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that chance makes any of them fall below a level no more often than the level says
    (Holm 1979)."""
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def welch_interval(
    values: Sequence[float], others: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval of mean(values) - mean(others), where each is one training's result and the seeds are samples of many.

    Welch's, so the two may scatter differently; with few seeds it is much wider than a bootstrap over them, and rightly so. None where
    either has fewer than two.
    """
    if min(len(values), len(others)) < 2:
        return None
    from scipy.stats import ttest_ind  # it takes a second to import

    if np.ptp(values) == np.ptp(others) == 0:  # without any scatter there is no t
        difference = float(np.mean(values) - np.mean(others))
        return difference, difference
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of seeds that hardly differ
        low, high = ttest_ind(values, others, equal_var=False).confidence_interval(confidence)
    return float(low), float(high)
