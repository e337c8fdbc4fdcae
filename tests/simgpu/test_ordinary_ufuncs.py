"""CuPy's ufuncs over every dtype, and its mathematics within the errors that CUDA documents."""

import cupy
import cupyx.scipy.special
import ml_dtypes
import numpy as np
import pytest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
INTEGERS = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
FLOATS = [np.dtype(code) for code in ("f2", "f4", "f8")]
COMPLEX = [np.dtype(code) for code in ("c8", "c16")]
BOOL = np.dtype(bool)


def operand(dtype, seed):
    """Return values of a dtype; small halves where it has fractions, so that products are exact."""
    random = np.random.default_rng(seed)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        edges = np.array([0, 1, 2, limits.max, limits.min, limits.max // 3], dtype)
        random.shuffle(edges)
        return np.append(random.integers(limits.min, limits.max, 44, dtype), edges)
    if dtype == BOOL:
        return random.random(50) > 0.5
    values = random.integers(-15, 16, 50) / 2
    if dtype.kind == "c":
        return (values + 1j * random.integers(-15, 16, 50) / 2).astype(dtype)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan]
    return np.append(values, edges if seed else edges[::-1]).astype(dtype)


ORDERED = [*INTEGERS, *FLOATS]
BINARY = {
    "add": [BOOL, *ORDERED, *COMPLEX],
    "subtract": [*ORDERED, *COMPLEX],
    "multiply": [BOOL, *ORDERED, *COMPLEX],
    "true_divide": ORDERED,
    "floor_divide": ORDERED,
    "remainder": INTEGERS,
    "maximum": [BOOL, *ORDERED],
    "fmin": ORDERED,
    "equal": [BOOL, *ORDERED, *COMPLEX],
    "less": [BOOL, *ORDERED],
    "logical_xor": [BOOL, *ORDERED],
    "bitwise_and": [BOOL, *INTEGERS],
    "bitwise_xor": [BOOL, *INTEGERS],
    "gcd": INTEGERS,
    "copysign": FLOATS,
    "nextafter": FLOATS[2:],
}
UNARY = {
    "negative": [*ORDERED, *COMPLEX],
    "absolute": [BOOL, *ORDERED],
    "sign": ORDERED,
    "square": [*ORDERED, *COMPLEX],
    "conjugate": [*INTEGERS, *COMPLEX],
    "invert": [BOOL, *INTEGERS],
    "sqrt": FLOATS,
    "reciprocal": FLOATS,
    "floor": FLOATS,
    "rint": FLOATS,
    "signbit": FLOATS,
    "isnan": FLOATS,
}


def check(name, *operands):
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(*operands)
    found = getattr(cupy, name)(*map(cupy.asarray, operands)).get()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "dtype"), [(n, t) for n in BINARY for t in BINARY[n]], ids=str)
def test_two_operands_have_numpys_answer(name, dtype):
    check(name, operand(dtype, 1), operand(dtype, 2))


@pytest.mark.parametrize(("name", "dtype"), [(n, t) for n in UNARY for t in UNARY[n]], ids=str)
def test_one_operand_has_numpys_answer(name, dtype):
    check(name, operand(dtype, 1))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_shifts_and_powers_have_numpys_answer(dtype):
    small = (np.arange(50) % (8 * dtype.itemsize)).astype(dtype)
    for name in ("left_shift", "right_shift"):
        check(name, operand(dtype, 1), small)
    check("power", operand(dtype, 1), small % dtype.type(6))


@pytest.mark.parametrize("wanted", [BOOL, *INTEGERS, *FLOATS, *COMPLEX, BFLOAT16], ids=str)
def test_every_dtype_is_cast_to(wanted):
    for given in (BOOL, np.dtype("u8"), np.dtype("f2"), np.dtype("f8"), BFLOAT16):
        values = np.array([0, 1, 2.5, 100, 117.75]).astype(given)
        found = cupy.asarray(values).astype(wanted).get()
        np.testing.assert_array_equal(found, values.astype(wanted), strict=True)


@pytest.mark.parametrize(
    ("left", "right"), [("i1", "u1"), ("i8", "u8"), ("f2", "i2"), ("f4", "i4"), ("f4", "c8")]
)
def test_mixed_dtypes_meet_where_numpys_do(left, right):
    check("add", operand(np.dtype(left), 1)[:50], operand(np.dtype(right), 2)[:50])


@pytest.mark.parametrize("name", ["add", "multiply", "true_divide", "maximum", "less"])
def test_bfloat16_rounds_once(name):
    a, b = (operand(np.dtype("f4"), seed)[:50].astype(BFLOAT16) for seed in (1, 2))
    with np.errstate(all="ignore"):
        expected = getattr(np, name)(a.astype("f4"), b.astype("f4"))
    found = getattr(cupy, name)(cupy.asarray(a), cupy.asarray(b)).get()
    np.testing.assert_array_equal(found, expected.astype(found.dtype))
    assert found.dtype == (BOOL if name == "less" else BFLOAT16)


# The largest errors in ulp of float and double, from the CUDA programming guide's appendix on
# mathematical functions; the arguments go to the edges of each function's domain.

ANY = [0, -0.0, 1e-30, -1e-5, 0.1, -0.5, 0.75, 1, -1, 1.5, 2, 3.14159265, -10, 30, 1000, 1e5, -1e10]
POSITIVE = [0, 1e-30, 1e-5, 0.1, 0.5, 0.999, 1, 1.001, 2, 3, 10, 1e5, 1e30]
UNIT = [-1, -0.999, -0.5, -1e-5, -0.0, 0, 1e-30, 0.1, 0.5, 0.75, 1]
MODERATE = [-80, -10, -2, -0.5, -1e-5, 0, 1e-30, 0.1, 0.5, 1, 3, 10, 80]
MATHEMATICS = {
    "sin": (ANY, 2, 2), "cos": (ANY, 2, 2), "tan": (ANY, 4, 2), "arctan": (ANY, 2, 2),
    "arcsin": (UNIT, 2, 2), "arccos": (UNIT, 2, 2), "arctanh": (UNIT, 3, 2),
    "sinh": (MODERATE, 3, 2), "cosh": (MODERATE, 2, 1), "tanh": (MODERATE, 2, 1),
    "arcsinh": (ANY, 3, 3), "arccosh": (POSITIVE, 4, 3), "cbrt": (ANY, 1, 1),
    "exp": (MODERATE, 2, 1), "exp2": (MODERATE, 2, 1), "expm1": (MODERATE, 1, 1),
    "log": (POSITIVE, 1, 1), "log2": (POSITIVE, 1, 1), "log10": (POSITIVE, 2, 1),
    "log1p": (POSITIVE, 1, 1),
}  # fmt: skip
SPECIAL = [np.inf, -np.inf, np.nan]


def assert_within(found, exact, ulps):
    """Compare with an exact result, to half an ulp more: that of rounding it."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(found.dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    off = np.abs(found[finite].astype(exact.dtype) - exact[finite])
    allowed = (ulps + 0.5) * np.spacing(np.abs(rounded[finite])).astype(exact.dtype)
    # CuPy compiles with -ftz=true: a subnormal float is zero.
    allowed += np.finfo(np.float32).tiny if found.dtype == np.float32 else 0
    assert (off <= allowed).all(), (off / allowed).max()


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_is_as_exact_as_cuda_documents(name, dtype):
    arguments, *ulps = MATHEMATICS[name]
    x = np.array([*arguments, *SPECIAL], dtype)
    if np.finfo(np.longdouble).precision <= np.finfo(np.float64).precision:
        pytest.skip("long double is no wider than double here")
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble))
    found = getattr(cupy, name)(cupy.asarray(x)).get()
    assert found.dtype == dtype
    assert_within(found, exact, ulps[dtype == np.float64])


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize(("name", "ulps"), [("power", (4, 2)), ("arctan2", (3, 2)), ("hypot", 3)])
def test_mathematics_of_two_arguments_is_too(name, ulps, dtype):
    bound = ulps if isinstance(ulps, int) else ulps[dtype == np.float64]
    x, y = np.meshgrid([*ANY, *SPECIAL], [0.0, 0.5, -1, 2, -3, 7.25, *SPECIAL])
    x, y = x.astype(dtype), y.astype(dtype)
    with np.errstate(all="ignore"):
        exact = getattr(np, name)(x.astype(np.longdouble), y.astype(np.longdouble))
    found = getattr(cupy, name)(cupy.asarray(x), cupy.asarray(y)).get()
    assert_within(found, exact, bound)


@pytest.mark.parametrize(
    ("name", "x", "exact", "ulps"),
    [
        ("erf", [0, 0.5, -1], [0, 0.5204998778130465, -0.8427007929497149], 2),
        ("erfc", [0, 0.5, 10], [1, 0.4795001221869535, 2.088487583762545e-45], 5),
        ("erfinv", [0, 0.5, 1], [0, 0.4769362762044699, np.inf], 5),
        ("gamma", [0.5, 1, 5, -0.5], [1.772453850905516, 1, 24, -3.544907701811032], 10),
        ("gammaln", [0.5, 1, 100], [0.5723649429247001, 0, 359.1342053695754], 4),
        ("j0", [0, 1, 10], [1, 0.7651976865579666, -0.2459357644513483], 7),
        ("ndtr", [0, 1], [0.5, 0.8413447460685429], 5),
    ],
)  # fmt: skip
def test_special_functions_are_as_exact_as_cuda_documents(name, x, exact, ulps):
    found = getattr(cupyx.scipy.special, name)(cupy.asarray(x, np.float64)).get()
    assert_within(found, np.array(exact), ulps)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "sin", "tanh", "true_divide", "power"])
def test_complex_mathematics_is_within_a_few_roundings(name, dtype):
    a, b = (operand(dtype, seed) + dtype.type(0.25) for seed in (1, 2))
    operands = (a / 4,) if name not in ("true_divide", "power") else (a / 4, b / 4)
    expected = getattr(np, name)(*(x.astype(np.complex128) for x in operands))
    found = getattr(cupy, name)(*map(cupy.asarray, operands)).get()
    assert found.dtype == dtype
    # Sixteen roundings of the larger part; a power is exp(b log a), whose argument is up to 8.
    roundings = 128 if name == "power" else 16
    off = np.abs(found - expected) / np.abs(expected)
    assert off.max() <= roundings * np.finfo(dtype).eps
