import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames.groups import assign_splits, bucket_of, form_groups


@given(
    gaps=st.lists(st.floats(0.02, 0.5), max_size=60),
    group_size=st.integers(1, 6),
    stride=st.floats(0, 0.7),
)
def test_every_frame_is_in_one_group_and_members_are_apart(gaps, group_size, stride):
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    groups = form_groups(times, group_size, stride)
    assert sorted(i for group in groups for i in group) == list(range(len(times)))
    for group in groups:
        assert 1 <= len(group) <= group_size
        assert all(times[b] - times[a] >= stride - 0.0011 for a, b in itertools.pairwise(group))


@given(num_frames=st.integers(1, 200), group_size=st.integers(1, 6), step=st.integers(1, 5))
def test_an_even_clip_loses_no_whole_group(num_frames, group_size, step):
    groups = form_groups([i / 10 for i in range(num_frames)], group_size, step / 10)
    full = sum(len(group) == group_size for group in groups)
    if num_frames >= step * group_size:
        assert full >= num_frames // group_size
    # A group does not spread over the whole of a long clip.
    assert max(group[-1] - group[0] for group in groups) < 2 * (step + 1) * group_size


def test_groups_are_interleaved():
    assert form_groups([0, 1, 2, 3, 4, 5, 6, 7], 4, 2.0) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert form_groups([0, 1, 2, 3, 4], 4, 1.0) == [[0, 1, 2, 3], [4]]
    assert form_groups([0, 1, 2, 3, 4], 4, 2.0) == [[0, 2, 4], [1, 3]]
    assert form_groups([], 4, 1.0) == []


def test_splits_follow_the_fractions():
    names = [f"clip_{i}" for i in range(200)]
    splits = assign_splits(names, {"train": 0.8, "val": 0.05, "test": 0.15}, seed=0)
    assert Counter(splits.values()) == {"train": 160, "val": 10, "test": 30}
    assert splits == assign_splits(names[::-1], {"train": 0.8, "val": 0.05, "test": 0.15}, seed=0)
    assert splits != assign_splits(names, {"train": 0.8, "val": 0.05, "test": 0.15}, seed=1)


@given(
    count=st.integers(0, 40),
    weights=st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)).filter(lambda w: sum(w) > 0),
)
def test_a_small_set_has_every_split_that_it_can(count, weights):
    fractions = dict(zip(("train", "val", "test"), (w / sum(weights) for w in weights), strict=True))
    splits = Counter(assign_splits([str(i) for i in range(count)], fractions, seed=3).values())
    assert sum(splits.values()) == count
    wanted = {name for name, fraction in fractions.items() if fraction > 0}
    assert set(splits) <= wanted
    if count >= len(wanted):
        assert set(splits) == wanted
    assert all(abs(splits[name] - count * fractions[name]) <= math.ceil(len(wanted)) for name in wanted)


def test_buckets_are_even_and_reproducible():
    counts = Counter(bucket_of(f"s/clip/{i:06d}", 8, seed=0) for i in range(8000))
    assert set(counts) == set(range(8))
    assert max(counts.values()) < 1150
    assert bucket_of("a", 1000, 0) == bucket_of("a", 1000, 0)


@pytest.mark.parametrize("seed", range(3))
def test_buckets_depend_on_the_seed(seed):
    assert [bucket_of(str(i), 1000, seed) for i in range(5)] != [bucket_of(str(i), 1000, seed + 1) for i in range(5)]
