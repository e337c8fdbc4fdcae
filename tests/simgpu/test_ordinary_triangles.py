"""`cupyx.scipy.spatial.Delaunay`, by its definition."""

from itertools import combinations

import cupy
import numpy as np
import pytest

spatial = pytest.importorskip("cupyx.scipy.spatial")


def is_empty(triangle, points):
    """Whether no other point lies within the circle through three points."""
    corners = points[list(triangle)]
    squares = (corners**2).sum(axis=1)
    centre = np.linalg.solve(2 * (corners[1:] - corners[0]), squares[1:] - squares[0])
    distance = ((points - centre) ** 2).sum(axis=1)
    return np.delete(distance, triangle).min() > distance[triangle[0]]


# CuPy gives a kernel an array's 18 numbers where it means the array.
@pytest.mark.filterwarnings("ignore:_Z16kerInitPredicatePd:RuntimeWarning")
def test_triangles_are_those_around_which_circles_are_empty():
    points = np.random.default_rng(0).random((12, 2))
    expected = {t for t in combinations(range(12), 3) if is_empty(t, points)}
    found = spatial.Delaunay(cupy.asarray(points)).simplices.get()
    assert len(found) == len(expected)
    assert set(map(tuple, np.sort(found, axis=1).tolist())) == expected
