"""How sure a difference is, when both the test clips and the training seeds are samples of many."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Difference:
    """One arm's mean error against another's, on the same test frames and with the same seeds."""

    value: float
    other: float
    percent: float
    """Of the other's error; negative where the error is smaller."""
    interval: tuple[float, float]
    """95 % of `percent`."""
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
    low, high = np.percentile(100 * (sums[0] / sums[1] - 1), [2.5, 97.5])
    value, other = (float((table @ frames).mean() / frames.sum()) for table in (ours, theirs))
    return Difference(value, other, 100 * (value / other - 1), (float(low), float(high)), num_seeds, num_clips)
