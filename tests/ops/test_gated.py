"""Gated norms: the bits of the norm and of NumPy's operators after it or before it."""

from itertools import product

import cupy
import numpy as np
import pytest
from arrays import EVERY, assert_matches, bits, random
from kinds import covering, these

import cunorm
from cunorm import _reference
from cunorm._reference import DTYPES, round_to, ulps
from cunorm._selfcheck.layouts import GUARD, around, place

# A sub-warp; a warp; a block; shared memory; a cluster. Few rows have an odd length, and so start
# anywhere: their kernels compile in up to 7 s.
COLS = [96, 768, 4096, 20_000, 70_000]
PAIRS = [
    *(("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16")),
    *(("bfloat16", "float16"), ("float32", "float32"), ("float32", "bfloat16")),
    ("float64", "float64"),
]
LAYOUTS = ["contiguous", "base + 1 element", "row-strided", "strided heads"]


def wide_of(dtype):
    return np.float64 if dtype == "float64" else np.float32


def inputs(cols, dtype, gate_dtype, parameter=None, rows=(2, 3)):
    shape = (1, 2, cols) if cols > 20000 else (*rows, cols)
    x, gate = random(shape, dtype, scale=2), random(shape, gate_dtype, seed=1, scale=3)
    return x, gate, random(cols, parameter or dtype, seed=2, scale=0.3, shift=1)


def activated(gate, activation, wide):
    """Return what multiplies, by CuPy's operators, in the accumulator's dtype."""
    g = cupy.asarray(gate.astype(wide))
    if activation is None:
        return g.get()
    return (g / (1 + cupy.exp(-g)) if activation == "silu" else 1 / (1 + cupy.exp(-g))).get()


GATED = {
    "cols": COLS,
    "dtypes": PAIRS,
    "layout": LAYOUTS,
    "activation": ["silu", "sigmoid", None],
    "first": [False, True],
    "cast": ["before", "after"],
    "parameter": [None, "float32"],
}


def always():
    """Yield points of which each pair occurs, but of long rows only such as start on 16 bytes."""
    yield 769, PAIRS[3], "contiguous", "silu", False, "before", "float32"
    yield 769, PAIRS[4], "strided heads", "sigmoid", True, "after", None
    yield from covering((GATED | {"cols": COLS[:3]}).values(), "short rows")
    narrow = {"dtypes": [PAIRS[0], PAIRS[3], PAIRS[5]], "layout": LAYOUTS[:1]}
    yield from covering((GATED | narrow | {"cols": COLS[3:]}).values(), "long rows")


@these(
    ",".join(GATED),
    list(always()),
    list(covering((GATED | {"cols": [96, 769, 4096, 20001, 400_003]}).values(), "off 16 bytes")),
    "rows that start anywhere compile in up to 7 s; KINDS has them, without a gate",
)
def test_a_gated_norm_has_the_bits_of_its_parts(
    cols, dtypes, layout, activation, first, cast, parameter
):
    dtype, gate_dtype = dtypes
    if dtype == "float64":
        parameter = None
    x, gate, gamma = inputs(cols, dtype, gate_dtype, parameter)
    wide = wide_of(dtype)
    given = [place(a, layout)[1] for a in (x, gate, gamma)]
    options = {"activation": activation, "gate_first": first, "cast": cast}
    y, rstd = cunorm.rms_norm_gated_fwd(*given, **options)

    s = activated(gate, activation, wide)
    h = x.astype(wide) * s if first else x
    _, own_rstd = cunorm.rms_norm_fwd(cupy.asarray(h), cupy.ones(cols, wide))
    assert bits(rstd) == bits(own_rstd)
    n = h.astype(wide) * own_rstd.get()[..., None]
    if cast == "before":
        n = n.astype(x.dtype).astype(wide)
    n = n * gamma.astype(wide)
    if not first:
        n = (n.astype(x.dtype).astype(wide) if cast == "before" else n) * s
    assert bits(y) == bits(n.astype(x.dtype))


LAYER = {
    "cols": [96, 768, 4096],
    "dtypes": PAIRS,
    "layout": LAYOUTS,
    "first": [False, True],
    "groups": [1, 2],
}


@these(
    ",".join(LAYER),
    list(covering((LAYER | {"cols": [96, 768], "dtypes": PAIRS[::2]}).values(), "layer norms")),
    list(covering((LAYER | {"cols": [771 * 2, 4096, 20_001 * 2]}).values(), "longer layer norms")),
    "each pair of dtypes, and rows that start anywhere, which compile in seconds",
)
def test_a_gated_layer_norm_has_the_bits_of_its_parts(cols, dtypes, layout, first, groups):
    x, gate, gamma = inputs(cols, *dtypes)
    beta = random(cols, dtypes[0], seed=4)
    wide = wide_of(dtypes[0])
    given = [place(a, layout)[1] for a in (x, gate, gamma, beta)]
    options = {"gate_first": first, "group": cols // groups}
    y, mean, rstd = cunorm.layer_norm_gated_fwd(*given, **options)
    assert bits(y) == bits(cunorm.layer_norm_gated(*given, **options))
    s = activated(gate, "silu", wide)
    h = x.astype(wide) * s if first else x
    for group in range(groups):
        columns = slice(group * cols // groups, (group + 1) * cols // groups)
        own = [cupy.asarray(np.ascontiguousarray(a[..., columns])) for a in (h, gamma, beta)]
        n, *kept = cunorm.layer_norm_fwd(*own)
        expected = n.get() if first else n.get().astype(wide) * s[..., columns]
        assert bits(np.ascontiguousarray(y.get()[..., columns])) == bits(expected.astype(x.dtype))
        for statistic, of_group in zip((mean, rstd), kept, strict=True):
            assert bits(np.ascontiguousarray(statistic.get()[..., group])) == bits(of_group)


@pytest.mark.parametrize("activation", ["silu", "sigmoid", None])
@pytest.mark.parametrize("cast", ["before", "after"])
def test_a_gated_layer_norm_is_as_defined_without_parameters_too(activation, cast):
    x, gate, _ = inputs(768, "bfloat16", "float16")
    options = {"activation": activation, "cast": cast}
    y = cunorm.layer_norm_gated(cupy.asarray(x), cupy.asarray(gate), **options)
    assert_matches(y, _reference.layer_norm_gated(x, gate, **options))


def test_beta_spans_all_columns_of_groups():
    x, gate = (cupy.ones((2, 3, 8), "float32") for _ in range(2))
    with pytest.raises(ValueError, match=r"^beta must have one axis where group"):
        cunorm.layer_norm_gated(x, gate, None, cupy.ones((3, 8), "float32"), group=4)


GROUPS = {
    "cols": [96, 3072, 20000],
    "groups": [1, 2, 8],
    "dtypes": PAIRS,
    "first": [False, True],
    "layout": ["contiguous", "base + 1 element", "row-strided"],
}


@these(
    ",".join(GROUPS),
    list(covering((GROUPS | {"cols": [96, 3072], "dtypes": PAIRS[::2]}).values(), "short")),
    list(covering(GROUPS.values(), "every length")),
    "each pair of dtypes, and long rows, which compile in seconds where they start anywhere",
)
def test_groups_of_columns_are_rows_of_their_own(cols, groups, dtypes, first, layout):
    x, gate, gamma = inputs(cols, *dtypes)
    given = [place(a, layout)[1] for a in (x, gate, gamma)]
    y, rstd = cunorm.rms_norm_gated_fwd(*given, group=cols // groups, gate_first=first)
    assert rstd.shape == (*x.shape[:-1], groups)
    assert bits(y) == bits(cunorm.rms_norm_gated(*given, group=cols // groups, gate_first=first))
    for group in range(groups):
        columns = slice(group * cols // groups, (group + 1) * cols // groups)
        own = [cupy.asarray(np.ascontiguousarray(a[..., columns])) for a in (x, gate, gamma)]
        of_group, rstd_of_group = cunorm.rms_norm_gated_fwd(*own, gate_first=first)
        assert bits(np.ascontiguousarray(y.get()[..., columns])) == bits(of_group)
        assert bits(np.ascontiguousarray(rstd.get()[..., group])) == bits(rstd_of_group)


@these(
    "dtype,out_dtype,cols",
    [(dtype, out_dtype, 96) for dtype in EVERY for out_dtype in EVERY]
    + [("bfloat16", EVERY[2], 771)],
    list(product(EVERY, EVERY, [96, 771])),
    "rows that start anywhere compile in seconds",
)
def test_y_may_have_any_dtype_rounded_once_from_the_product(dtype, out_dtype, cols):
    x, gate, gamma = inputs(cols, dtype, dtype)
    given = [cupy.asarray(a) for a in (x, gate, gamma)]
    y = cunorm.rms_norm_gated(*given, cast="after", dtype=out_dtype)
    layout = "row-strided" if cols == 96 else "base + 1 element"  # which has a kernel of its own
    out = place(np.zeros(x.shape, DTYPES[out_dtype]), layout)[1]
    assert cunorm.rms_norm_gated(*given, cast="after", out=out) is out
    assert bits(out) == bits(y)
    wide = wide_of(dtype)
    product = x.astype(wide) * cunorm.rms_norm_fwd(*given[::2])[1].get()[..., None]
    product = product * gamma.astype(wide) * activated(gate, "silu", wide)
    # `astype` rounds float64 to bfloat16 by way of float32.
    exactly = round_to(product.astype(np.float64), DTYPES[out_dtype]).astype(DTYPES[out_dtype])
    assert y.dtype == DTYPES[out_dtype]
    assert bits(y) == bits(exactly)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_as_defined_in_place_and_nothing_else_is_written(layout, first):
    x, gate, gamma = inputs(769, "float16", "float16")
    (whole, view), (gates, gate_view) = place(x, layout), place(gate, layout)
    before = bits(gates)
    y = cunorm.rms_norm_gated(view, gate_view, cupy.asarray(gamma), gate_first=first, out=view)
    assert y is view
    assert_matches(y, _reference.rms_norm_gated(x, gate, gamma, gate_first=first))
    assert bits(gates) == before
    assert (around(whole, x.shape, layout).astype(np.float64) == GUARD).all()


def test_a_gate_may_be_a_slice_of_the_projection_that_x_is_one_of():
    projection = cupy.asarray(random((5, 3 * 256), "bfloat16"))
    x, gate = projection[:, :256], projection[:, 300:556]  # 8 bytes past a boundary of 16
    y = cunorm.rms_norm_gated(x, gate)
    assert bits(y) == bits(cunorm.rms_norm_gated(x.copy(), gate.copy()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_activations_are_within_two_and_a_half_ulps_of_any_number(activation, dtype):
    largest = {"float32": 86, "float64": 700}[dtype]
    spread = np.linspace(-largest, largest, 40_000)
    small = np.logspace(-30, 0, 5000)
    worst = [-1.1051380634307861]  # sigmoid's, of random numbers: 2.21
    gate = np.concatenate([spread, small, -small, worst]).astype(dtype)[None]
    # Rows of ones whose rstd is 1: y is the activation.
    x = cupy.ones(gate.shape, dtype)
    y = cunorm.rms_norm_gated(x, cupy.asarray(gate), eps=0, activation=activation)
    g = gate.astype(np.longdouble)
    expected = (g if activation == "silu" else 1) / (1 + np.exp(-g))
    assert ulps(y.get(), expected, DTYPES[dtype]).max() <= 2.5


def test_activations_at_the_ends_of_the_range():
    gate = cupy.asarray([[0.0, -0.0, 1e38, -1e38, -90.0, np.inf, np.nan, 1.0]], "float32")
    ones = cupy.ones_like(gate)
    silu = cunorm.rms_norm_gated(ones, gate, eps=0).get()[0]
    assert silu[0] == 0
    assert np.signbit(silu[1])
    assert silu[2] == np.float32(1e38)
    assert silu[3] == 0
    assert silu[4] == 0  # exp(-90) is below the normal numbers
    assert silu[5] == np.inf
    assert np.isnan(silu[6])
    sigmoid = cunorm.rms_norm_gated(ones, gate, eps=0, activation="sigmoid").get()[0]
    assert sigmoid[:4].tolist() == [0.5, 0.5, 1.0, 0.0]
    assert sigmoid[4] == 0
    assert sigmoid[5] == 1
    assert np.isnan(sigmoid[6])


def test_a_row_has_the_same_bits_alone_as_in_a_batch():
    x, gate, gamma = (cupy.asarray(a) for a in inputs(770, "bfloat16", "float32", rows=(5, 9)))
    for options in ({}, {"gate_first": True}, {"group": 154}):
        whole = cunorm.rms_norm_gated(x, gate, gamma, **options)
        alone = cunorm.rms_norm_gated(x[3, 7], gate[3, 7], gamma, **options)
        assert bits(whole[3, 7]) == bits(alone)


def test_rows_without_columns_or_without_rows():
    for shape in ((0, 8), (3, 0)):
        x = cupy.empty(shape, "float16")
        y, rstd = cunorm.rms_norm_gated_fwd(x, x, group=None)
        assert y.shape == shape
        assert rstd.shape == shape[:1]


X, GATE, GAMMA = (
    cupy.ones((4, 64), "float16"),
    cupy.ones((4, 64), "float32"),
    cupy.ones(64, "float16"),
)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gate": None}, TypeError, "gate must be a cupy.ndarray, but is a NoneType"),
        ({"gate": GATE[:, :32]}, ValueError, r"gate must have the shape of x, \(4, 64\), but has"),
        (
            {"gate": GATE.astype("float64")},
            TypeError,
            "gate must be float16, bfloat16 or float32 w",
        ),
        (
            {"activation": "relu"},
            ValueError,
            "activation must be 'silu', 'sigmoid' or None, but is",
        ),
        (
            {"activation": 1},
            TypeError,
            "activation must be 'silu', 'sigmoid' or None, but is a int",
        ),
        ({"group": 48}, ValueError, "group must divide the columns of x, 64, but is 48"),
        ({"group": 0}, ValueError, "group must divide the columns of x, 64, but is 0"),
        ({"group": 32.0}, TypeError, "group must be an int or None, but is a float"),
        ({"group": True}, TypeError, "group must be an int or None, but is a bool"),
        (
            {"gamma": cupy.ones((4, 64), "float16"), "group": 32},
            ValueError,
            "gamma must have one a",
        ),
        ({"dtype": "int8"}, TypeError, "dtype must be float16, .* or float64, but is int8"),
        ({"dtype": "float32", "out": X.copy()}, TypeError, "out must have the dtype that is asked"),
        ({"out": cupy.ones((4, 64), "int16")}, TypeError, "out must be float16, .* but is int16"),
        ({"out": X.view("bfloat16")}, ValueError, "out must be x itself or not overlap it"),
        ({"out": GATE}, ValueError, "out must not overlap gate, but shares memory with it"),
        ({"out": cupy.ones((4, 63), "float16")}, ValueError, "out must have the shape of x"),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_nothing_is_written(change, error, message):
    before = [bits(a) for a in (X, GATE)]
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm_gated(**{"x": X, "gate": GATE, "gamma": GAMMA} | change)
    assert [bits(a) for a in (X, GATE)] == before


def test_ten_runs_have_the_same_bits():
    given = [cupy.asarray(a) for a in inputs(4096, "float16", "float16")]
    results = {bits(cunorm.rms_norm_gated(*given, gate_first=True)) for _ in range(10)}
    assert len(results) == 1
