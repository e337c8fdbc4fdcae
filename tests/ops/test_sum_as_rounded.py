"""What docs/coming-from.md says of norms of a sum that other libraries do not round first."""

import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rms_norm(h):
    return h / np.sqrt((h * h).mean(axis=-1, keepdims=True) + 1e-6)


def layer_norm(h):
    centred = h - h.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)


def both(norm, shift):
    """Return y in bfloat16 of a sum that is rounded before the norm, and of one that is not."""
    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal((64, 4096)) + c for c in (0, shift))
    h = sum(a.astype(BFLOAT16).astype(np.float64) for a in (x, residual))
    return [norm(a).astype(BFLOAT16) for a in (h.astype(BFLOAT16).astype(np.float64), h)]


@pytest.mark.parametrize("shift", [0, 16])
def test_y_of_an_rms_norm_is_never_more_than_an_ulp_away(shift):
    ours, theirs = both(rms_norm, shift)
    assert (np.sign(ours) == np.sign(theirs)).all()
    ulps = abs(ours.view(np.int16).astype(int) - theirs.view(np.int16))
    assert ulps.max() == 1
    assert 0.15 < (ulps > 0).mean() < 0.35


def test_y_of_a_layer_norm_is_further_away_the_further_the_mean_is_from_zero():
    apart = []
    for shift in (0, 4, 16):
        ours, theirs = (y.astype(np.float64) for y in both(layer_norm, shift))
        apart.append(abs(ours - theirs)[abs(theirs) < 1].max())
    assert apart == sorted(apart)
    assert apart[0] < 0.01
    assert 0.02 < apart[-1] < 0.07
