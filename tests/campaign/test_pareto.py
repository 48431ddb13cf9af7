"""The front is that of a naive loop."""

import numpy as np
import pytest

from pipeline.campaign.pareto import front


def naive(points: list[tuple[float, ...]]) -> list[int]:
    """By the definition, word for word."""

    def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_the_front_is_that_of_a_naive_loop(dimensions):
    rng = np.random.default_rng(dimensions)
    for num in (1, 2, 7, 60):
        # Whole numbers: many points agree in a coordinate, some in all.
        points = [tuple(map(float, row)) for row in rng.integers(0, 6, (num, dimensions))]
        assert front(points) == naive(points)


def test_equal_points_stand_beside_each_other():
    assert front([(1, 2), (1, 2), (2, 1), (2, 2)]) == [0, 1, 2]
    assert front([]) == []
