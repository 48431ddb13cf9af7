"""Bootstraps over clips, and over seeds and clips, against scipy's, a plain loop, and what is known of their coverage; p-values
and Holm's correction against tests that we did not write, and its definition; Welch's interval."""

import itertools

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.statistics import clip_interval, compare, holm, p_value, welch_interval


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


def test_the_interval_of_a_mean_equals_scipys_where_clips_are_equally_long():
    errors = np.random.default_rng(0).gamma(4, 6, (60, 5)) + np.random.default_rng(1).gamma(9, 2, (60, 1))
    expected = stats.bootstrap(
        (errors.mean(1),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    clips = [f"clip-{number}" for number in range(60) for _ in range(5)]
    found = clip_interval(errors.ravel(), clips, num_resamples=20_000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.15)


def test_the_interval_of_a_mean_equals_a_plain_loop_where_clips_are_not():
    rng = np.random.default_rng(3)
    clips = [f"clip-{number}" for number in range(12) for _ in range(1 + number)]
    errors = rng.gamma(4, 6, len(clips)) + np.repeat(rng.gamma(9, 2, 12), np.arange(1, 13))
    of_clip = [errors[[name == f"clip-{number}" for name in clips]] for number in range(12)]
    means = [np.concatenate([of_clip[i] for i in rng.integers(0, 12, 12)]).mean() for _ in range(6000)]
    # In whatever order the frames come.
    order = rng.permutation(len(clips))
    found = clip_interval(errors[order], [clips[i] for i in order], num_resamples=20_000)
    assert found == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.3)
    assert clip_interval(errors[:10], clips[:10]) is None  # four clips


def p_of_clips(differences: np.ndarray, seed: int = 0) -> float:
    drawn = np.random.default_rng(seed).integers(0, len(differences), (4000, len(differences)))
    return p_value(differences[drawn].mean(1), len(differences))


def test_p_values_are_near_those_of_the_t_test_with_many_clips():
    rng = np.random.default_rng(4)
    for effect in (0.0, 0.05, 0.15, 0.25):
        differences = rng.normal(effect, 1, 200)
        assert p_of_clips(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.03)


def test_where_there_is_no_difference_p_falls_below_a_level_as_often_as_the_level_says():
    found = [p_of_clips(np.random.default_rng(seed).normal(0, 1, 60)) for seed in range(300)]
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.1
    assert 0.4 < np.mean(np.array(found) < 0.5) < 0.6
    assert p_value(np.zeros(100), 100) == 1


def test_few_clips_are_never_surer_than_the_exact_test():
    """Of the signs, where all are alike."""
    for num_clips in (5, 6, 8):
        assert p_of_clips(np.full(num_clips, 2.0)) == pytest.approx(stats.binomtest(num_clips, num_clips).pvalue)


def test_holms_correction_is_the_closed_test_of_bonferronis():
    """By its definition: of every set of hypotheses that a test is in, Bonferroni's p; the largest counts."""
    rng = np.random.default_rng(5)
    for num_tests in (1, 2, 5):
        p_values = [*(rng.uniform(size=num_tests) ** 3).tolist(), 0.01, 0.01]
        sets = [
            each for size in range(1, len(p_values) + 1) for each in itertools.combinations(range(len(p_values)), size)
        ]
        expected = [
            max(min(1.0, len(each) * min(p_values[i] for i in each)) for each in sets if test in each)
            for test in range(len(p_values))
        ]
        assert holm(p_values) == pytest.approx(expected)
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize(("num", "other"), [(2, 2), (3, 3), (3, 5), (40, 2), (1000, 1000)])
def test_welchs_interval_is_scipys(num, other):
    rng = np.random.default_rng(num)
    values, others = rng.normal(20, 1, num), rng.normal(21, 0.2, other)
    expected = stats.ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    assert welch_interval([*values], [*others]) == pytest.approx((expected.low, expected.high), rel=1e-4)


def test_welchs_interval_of_seeds_that_agree_is_a_point_and_of_one_seed_unknown():
    assert welch_interval([2.0, 2.0], [3.0, 3.0, 3.0]) == (-1.0, -1.0)
    assert welch_interval([2.0], [3.0, 3.1]) is None
    assert welch_interval([2.0, 2.1], [3.0]) is None
