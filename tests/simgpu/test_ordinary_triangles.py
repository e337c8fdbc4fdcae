"""`cupyx.scipy.spatial.Delaunay`, by its definition: no point lies within a triangle's circle."""

from collections import Counter
from itertools import combinations

import cupy
import numpy as np
import pytest

spatial = pytest.importorskip("cupyx.scipy.spatial")


# CuPy gives a kernel an array's 18 numbers where it means the array.
@pytest.mark.filterwarnings("ignore:_Z16kerInitPredicatePd:RuntimeWarning")
@pytest.mark.parametrize("count", [12, 400])  # of one block, and of several
def test_triangles_are_all_of_those_around_which_circles_are_empty(count):
    points = np.random.default_rng(0).random((count, 2))
    found = spatial.Delaunay(cupy.asarray(points)).simplices.get()
    corners = points[found]
    sides, squares = corners[:, 1:] - corners[:, :1], (corners**2).sum(axis=2)
    centres = np.linalg.solve(2 * sides, (squares[:, 1:] - squares[:, :1])[..., None])[..., 0]
    distances = ((points - centres[:, None]) ** 2).sum(axis=2)
    radii = np.take_along_axis(distances, found[:, :1], axis=1)
    np.put_along_axis(distances, found, np.inf, axis=1)
    assert (distances > radii).all()
    # An edge is of two triangles, or of the hull: by Euler's formula there are no more.
    edges = Counter(
        edge for triangle in np.sort(found).tolist() for edge in combinations(triangle, 2)
    )
    assert set(edges.values()) == {1, 2}
    assert len(found) == 2 * count - 2 - list(edges.values()).count(1)
