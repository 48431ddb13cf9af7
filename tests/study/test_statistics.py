"""The paired bootstrap over seeds and clips, against scipy's, a plain loop, and what is known of its coverage."""

import numpy as np
import pytest
from scipy import stats

from pipeline.study.statistics import compare


def tables(num_seeds: int, num_clips: int, effect: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors of two arms that share how hard each clip is, and the clips' frames."""
    rng = np.random.default_rng(seed)
    hardness = rng.gamma(9, 1.5, num_clips)
    luck = rng.normal(0, 0.3, (2, num_seeds, 1))
    noise = rng.normal(0, 1, (2, num_seeds, num_clips))
    ours, theirs = np.maximum(hardness + luck + noise, 0.1) * np.array([1 + effect, 1])[:, None, None]
    return ours, theirs, rng.integers(1, 5, num_clips)


def test_one_seed_equals_scipys_paired_percentile_bootstrap():
    ours, theirs, _ = tables(1, 60, -0.05)
    frames = np.ones(60)

    def percent(x, y, axis=-1):
        return 100 * (x.mean(axis) / y.mean(axis) - 1)

    expected = stats.bootstrap(
        (ours[0], theirs[0]),
        percent,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = compare(ours, theirs, frames, num_resamples=20_000)
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.15)
    assert found.percent == pytest.approx(percent(ours[0], theirs[0]))


def test_several_seeds_equal_a_plain_loop():
    ours, theirs, frames = tables(3, 25, -0.1)
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(6000):
        seeds, clips = rng.integers(0, 3, 3), rng.integers(0, 25, 25)
        weights = frames[clips]
        sums = [sum((table[s][clips] * weights).sum() for s in seeds) for table in (ours, theirs)]
        drawn.append(100 * (sums[0] / sums[1] - 1))
    found = compare(ours, theirs, frames, num_resamples=20_000)
    assert found.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.25)
    weighted = [(table * frames).sum() / (3 * frames.sum()) for table in (ours, theirs)]
    assert (found.value, found.other) == pytest.approx(weighted)
    assert (found.num_seeds, found.num_clips) == (3, 25)


def test_seeds_that_disagree_widen_the_interval_beyond_that_of_clips():
    ours, theirs, frames = tables(3, 200, 0.0)
    ours = ours * np.array([0.9, 1.0, 1.1])[:, None]
    together = compare(ours, theirs, frames)
    one = compare(ours[:1], theirs[:1], frames)
    assert one.lower  # its clips alone would be sure of a gain that the other seeds do not have
    assert not together.lower
    assert not together.higher
    assert np.diff(together.interval) > 5 * np.diff(one.interval)


def test_no_effect_is_rarely_called_one_and_a_large_effect_always():
    """Of two arms that do not differ, about one in twenty should look different; three seeds make it some more."""
    wrong = sum(
        found.lower or found.higher for found in (compare(*tables(3, 40, 0.0, seed), 400) for seed in range(200))
    )
    assert wrong <= 200 * 0.1
    assert all(compare(*tables(3, 40, -0.2, seed), 400).lower for seed in range(30))
    assert all(compare(*tables(3, 40, 0.2, seed), 400).higher for seed in range(30))


def test_other_shapes_are_refused():
    ours, theirs, frames = tables(2, 10, 0.0)
    for arguments in ((ours, theirs[:1], frames), (ours, theirs, frames[:5]), (ours[0], theirs[0], frames)):
        with pytest.raises(ValueError, match="same seeds and clips"):
            compare(*arguments)
