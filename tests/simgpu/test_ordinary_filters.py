"""Recursive filters of `cupyx.scipy.signal`, against the recursion itself."""

import cupy
import numpy as np
import pytest

signal = pytest.importorskip("cupyx.scipy.signal")

RANDOM = np.random.default_rng(0)
B, A = np.array([0.1, 0.2, 0.1]), np.array([1, -0.5, 0.2])
SECTIONS = np.array([[0.1, 0.2, 0.1, 1, -0.5, 0.2], [1, -0.3, 0.1, 1, 0.4, 0.1]])


def recursion(b, a, x):
    y = np.zeros(x.shape)
    for i in range(x.shape[-1]):
        y[..., i] = sum(b[j] * x[..., i - j] for j in range(len(b)) if i >= j)
        y[..., i] -= sum(a[j] * y[..., i - j] for j in range(1, len(a)) if i >= j)
    return y


# Less than one of CuPy's blocks of 1,024, a part of one more, and several rows.
@pytest.mark.parametrize("shape", [(500,), (1025,), (2, 1300)])
def test_a_filter_is_the_recursion_and_sections_are_filters_in_turn(shape):
    x = RANDOM.standard_normal(shape)
    on = cupy.asarray(x)
    found = signal.lfilter(cupy.asarray(B), cupy.asarray(A), on)
    np.testing.assert_allclose(found.get(), recursion(B, A, x), rtol=0, atol=1e-12)
    expected = x
    for section in SECTIONS:
        expected = recursion(section[:3], section[3:], expected)
    found = signal.sosfilt(cupy.asarray(SECTIONS), on)
    np.testing.assert_allclose(found.get(), expected, rtol=0, atol=1e-12)
