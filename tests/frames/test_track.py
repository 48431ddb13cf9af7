import numpy as np
import pytest

from pipeline.frames.track import Detection, link, overlap, smooth_boxes, vote_hand


def box(x, y=50.0, side=20.0):
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def test_two_hands_that_cross_nearby_keep_their_numbers():
    times = [i / 10 for i in range(20)]
    boxes = [[box(20 + 3 * i, 40), box(80 - 3 * i, 64)] for i in range(20)]
    shuffled = [frame[::-1] if i % 3 == 0 else frame for i, frame in enumerate(boxes)]
    numbers = link(times, shuffled, max_gap=0.5, max_shift=1.0)
    first = [n[1] if i % 3 == 0 else n[0] for i, n in enumerate(numbers)]
    second = [n[0] if i % 3 == 0 else n[1] for i, n in enumerate(numbers)]
    assert len(set(first)) == len(set(second)) == 1
    assert set(first) != set(second)


def test_a_gap_ends_a_track_and_a_short_one_does_not():
    assert link([0.0, 0.1, 0.5, 1.2], [[box(10)]] * 4, max_gap=0.5, max_shift=1.0) == [[0], [0], [0], [1]]


def test_a_jump_begins_a_new_track():
    boxes = [[box(10)], [box(25)], [box(60)]]
    assert link([0, 1, 2], boxes, max_gap=9, max_shift=1.0) == [[0], [0], [1]]
    assert link([0, 1, 2], boxes, max_gap=9, max_shift=float("inf")) == [[0], [0], [0]]


def test_frames_without_boxes_are_no_trouble():
    assert link([0, 1, 2], [[], [box(1)], []], 1, 1) == [[], [0], []]


def test_overlap():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 0, 3, 2)) == 0
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1


def test_smoothing_calms_without_lag():
    rng = np.random.default_rng(0)
    times = [i / 30 for i in range(60)]
    clean = np.array([(100 + 40 * t, 50, 150 + 40 * t, 100) for t in times])
    noisy = clean + rng.normal(scale=3, size=clean.shape)
    smoothed = smooth_boxes(times, noisy, sigma_s=0.1)
    inner = slice(10, -10)
    assert np.abs(smoothed - clean)[inner].mean() < 0.45 * np.abs(noisy - clean)[inner].mean()
    np.testing.assert_allclose(smooth_boxes(times, clean, 0.1)[inner], clean[inner], atol=0.05)
    assert smooth_boxes(times, noisy, 0.0) is noisy


def test_votes_are_weighted():
    def seen(hand, score):
        return Detection(box(0), hand, score)

    assert vote_hand([seen("left", 0.6), seen("left", 0.6), seen("right", 0.99)]) == "left"
    assert vote_hand([seen("left", 0.5), seen("right", 0.99)]) == "right"
