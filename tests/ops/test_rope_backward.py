"""Gradients of heads that are normalised and rotated: those of the definition, on any heads."""

import cupy
import numpy as np
from arrays import assert_matches, bits, random
from kinds import covering, these
from test_rope import INTEGERS, PAIRS, TABLE, laid_out, tables

import cunorm
from cunorm import _reference

TOKENS = (2, 3)
ROPE = {
    "cols": [64, 80, 96, 128, 256],
    "share": [1, 2, 4],  # of the columns, one in so many is rotated
    "interleaved": [False, True],
    "dtypes": PAIRS,
    "positions": [None, "a row a token", *INTEGERS],
    "layout": ["contiguous", "a slice of a projection", "heads before tokens", "base + 1 element"],
    "first": [True, False],
    "heads": ["each", "a weight each", "across", "no weight"],
    "sums": [True, False],
}
# Rows that are no whole packets, or whose halves are none.
ODD = {"cols": [2, 6, 34, 66, 100, 130, 258, 770]}


def always():
    """Yield points of which each pair of a few values occurs."""
    few = {
        "cols": [96, 128],
        "share": [1, 2],
        "dtypes": [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")],
        "positions": [None, "int32"],
        "layout": ["contiguous", "a slice of a projection"],
        "sums": [True],
    }
    yield from covering((ROPE | few).values(), "few gradients")
    yield 34, 2, False, PAIRS[0], "int64", "a slice of a projection", True, "each", True


@these(
    ",".join(ROPE),
    list(always()),
    [
        *covering(ROPE.values(), "gradients"),
        *covering((ROPE | ODD).values(), "odd gradients"),
    ],
    "some three kernels each; rows that start anywhere compile in up to 7 s",
)
def test_gradients_are_as_defined(
    cols, share, interleaved, dtypes, positions, layout, first, heads, sums
):
    dtype, of_angles = dtypes
    x, dy = (random((*TOKENS, 3, cols), dtype, seed=seed, scale=2) for seed in range(2))
    weights = {"each": (cols,), "a weight each": (3, cols), "across": (3 * cols,)}
    gamma = None
    if heads in weights:
        gamma = random(weights[heads], dtype, seed=3, scale=0.3)
    options = {
        "interleaved": interleaved,
        "norm_first": first,
        "across_heads": heads == "across",
        "gamma_offset": 0.0 if gamma is None else 1.0,
    }
    pairs = max(1, cols // 2 // share)
    rows = None
    if positions == "a row a token":
        cos, sin = tables((*TOKENS, pairs), of_angles)
    else:
        cos, sin = tables((TABLE, pairs), of_angles)
        if positions is not None:
            rows = np.random.default_rng(0).integers(0, TABLE, TOKENS).astype(positions)
    own, own_dy = (laid_out(a, layout) for a in (x, dy))
    beside = [None if a is None else cupy.asarray(a) for a in (gamma, cos, sin, rows)]
    y, rstd = cunorm.rms_norm_rope_fwd(own, *beside, **options)
    assert bits(y) == bits(cunorm.rms_norm_rope(own, *beside, **options))
    assert_matches(rstd, _reference.rms_norm_rope_fwd(x, gamma, cos, sin, rows, **options)[1])
    options["sums"] = sums
    dx, dgamma = cunorm.rms_norm_rope_bwd(own_dy, own, *beside[:3], rstd, beside[3], **options)
    expected, total = _reference.rms_norm_rope_bwd(
        dy, x, gamma, cos, sin, rstd.get(), rows, **options
    )
    assert_matches(dx, expected)
    assert dx.flags.c_contiguous
    if total is None:
        assert dgamma is None
    else:
        assert_matches(dgamma, total)
