"""What the forward ops promise, asked of every kind of kernel: each kernel is compiled once."""

import cupy
import numpy as np
import pytest
from arrays import assert_matches, bits, random
from kinds import FORWARD, of_each_kind

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import GUARD, around, place

each_kind = of_each_kind(FORWARD)
nearly_each_kind = of_each_kind(FORWARD, long=False)
OTHER_WIDTH = {"float16": "float32", "bfloat16": "float32", "float32": "float16"}
# Rows whose squares leave the normal numbers of the type that they are summed in, at either end;
# those of float16 are as small and as large as they can be.
EXTREMES = {
    "float16": (1e-4, 1e4),
    "bfloat16": (1e-20, 1e30),
    "float32": (1e-20, 1e30),
    "float64": (1e-200, 1e200),
}


def dtypes_of_rows(kind):
    """Return the dtype of x, and of the residual where the op has one."""
    if not kind.op.startswith("add"):
        return (kind.dtype,)
    residual = OTHER_WIDTH.get(kind.dtype) if kind.options == "all" else None
    return (kind.dtype, residual or kind.dtype)


def rows_of(kind, scale=1.0):
    """Return x, and the residual where the op has one."""
    return [
        random(kind.shape, dtype, seed=seed, scale=scale, shift=0.3 * scale)
        for seed, dtype in enumerate(dtypes_of_rows(kind))
    ]


def parameters_of(kind):
    """Return gamma, and beta where the op has it, as far as the kind has them."""
    count = {"bare": 0, "all": 1}.get(kind.options, 2 if "layer_norm" in kind.op else 1)
    return [
        random(kind.cols, kind.parameter, seed=seed, scale=0.3, shift=1)
        for seed in range(2, 2 + count)
    ]


def options_of(kind):
    if "rms_norm" in kind.op and kind.options == "all":
        return {"gamma_offset": 1.0, "cast": "after"}
    return {}


def placed(kind, arrays):
    """Return the arrays on the device, as those of the kind lie."""
    return [place(a, kind.layout)[1] for a in arrays]


def into(views):
    """Return the arguments that have results written to some arrays of rows."""
    return dict(zip(("out", "residual_out"), views, strict=False))


def run(kind, rows, **more):
    """Return the op's outputs of some rows; those of rows lie as the rows do."""
    given = placed(kind, [*rows, *parameters_of(kind)])
    targets = placed(kind, [np.full_like(a, np.nan) for a in rows])
    return getattr(cunorm, kind.op)(*given, **into(targets), **options_of(kind), **more)


def expected_of(kind, rows, **more):
    reference = getattr(_reference, kind.op)
    with np.errstate(over="ignore"):
        return reference(*rows, *parameters_of(kind), **options_of(kind), **more)


@each_kind
def test_every_output_is_as_defined_and_nothing_else_is_written(kind):
    rows = rows_of(kind)
    sources = [place(a, kind.layout) for a in (*rows, *parameters_of(kind))]
    targets = [place(np.full_like(a, np.nan), kind.layout) for a in rows]
    before = [bits(whole) for whole, _ in sources]
    views = [view for _, view in targets]
    given = [view for _, view in sources]
    outputs = getattr(cunorm, kind.op)(*given, **into(views), **options_of(kind))
    assert all(output is view for output, view in zip(outputs, views, strict=False))
    for actual, expected in zip(outputs, expected_of(kind, rows), strict=True):
        assert_matches(actual, expected)
    assert [bits(whole) for whole, _ in sources] == before
    for whole, view in targets:
        beside = around(whole, view.shape, kind.layout)
        assert (beside.astype(np.float64) == GUARD).all()


@nearly_each_kind
def test_a_row_has_the_same_bits_alone_as_in_a_batch_that_lies_otherwise(kind):
    rows = rows_of(kind)
    for a in rows:
        a[-1, -1] = a[0, 0]
    outputs = run(kind, rows)
    given = map(cupy.asarray, [*(a[0, 0] for a in rows), *parameters_of(kind)])
    alone = [bits(a) for a in getattr(cunorm, kind.op)(*given, **options_of(kind))]
    assert [bits(output[0, 0]) for output in outputs] == alone
    assert [bits(output[-1, -1]) for output in outputs] == alone


@nearly_each_kind
def test_in_place_has_the_bits_of_out_of_place(kind):
    rows = rows_of(kind)
    apart = [bits(a) for a in run(kind, rows)]
    given = placed(kind, [*rows, *parameters_of(kind)])
    views = given[: len(rows)]
    together = getattr(cunorm, kind.op)(*given, **into(views), **options_of(kind))
    assert [bits(a) for a in together] == apart


@nearly_each_kind
def test_nan_and_infinity_stay_in_their_row(kind):
    # Short rows share a warp, and its shuffles, with their neighbours.
    rows = rows_of(kind)
    clean = run(kind, rows)
    for bad in (np.nan, np.inf, -np.inf):
        rows[0][0, -1, kind.cols // 2] = bad
        with np.errstate(invalid="ignore"):
            dirty = run(kind, rows)
        for before, after in zip(clean, dirty, strict=True):
            assert bits(after[0, :-1]) == bits(before[0, :-1])
            assert bits(after[1:]) == bits(before[1:])
        assert np.isnan(dirty[0][0, -1].get().astype(np.float64)).any()


@nearly_each_kind
@pytest.mark.parametrize("end", [0, 1], ids=["tiny", "huge"])
def test_rows_at_either_end_of_the_range_are_as_defined(kind, end):
    """pytorch#162489: float32 squares overflow at 1.8e19, and the row came out as zeros."""
    narrowest = "float16" if "float16" in dtypes_of_rows(kind) else kind.dtype
    rows = rows_of(kind, scale=EXTREMES[narrowest][end])
    outputs = run(kind, rows, eps=0)
    for actual, expected in zip(outputs, expected_of(kind, rows, eps=0), strict=True):
        assert_matches(actual, expected)


@of_each_kind([op for op in FORWARD if op.startswith("add")], long=False)
def test_a_residual_is_added_first_and_the_rounded_sum_normalised(kind):
    """vllm#52104, vllm#52151: the variance was that of the sum before it was rounded, or after."""
    x, residual = rows_of(kind)
    _, h, *statistics = run(kind, [x, residual])
    sums = np.float64 if kind.dtype == "float64" else np.float32
    assert bits(h) == bits((x.astype(sums) + residual.astype(sums)).astype(residual.dtype))
    norm = getattr(cunorm, kind.op.removeprefix("add_"))
    of_h = norm(h.copy(), *map(cupy.asarray, parameters_of(kind)), **options_of(kind))
    assert [bits(a) for a in statistics] == [bits(a) for a in of_h[1:]]
