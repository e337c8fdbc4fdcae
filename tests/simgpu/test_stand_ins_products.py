"""cuBLAS's stand-in: products of every dtype and layout, held against NumPy.

The data are quarters below 8, whose products and sums of a few dozen float32 holds exactly, so that
most answers are NumPy's own in any order of additions.
"""

import cupy
import ml_dtypes
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

RANDOM = np.random.default_rng(0)
REAL = [np.float32, np.float64]
ALL = [*REAL, np.complex64, np.complex128]


def quarters(*shape, dtype=np.float32):
    values = RANDOM.integers(-31, 32, shape) / 4
    if np.dtype(dtype).kind == "c":
        values = values + 1j * RANDOM.integers(-31, 32, shape) / 4
    return values.astype(dtype)


# In each, `m` is the module (NumPy or CuPy), `a` brings a host array to it, `t` is the dtype.
X, Y, V, W = (5, 7), (7, 6), (7,), (5,)
STACK, OTHER = (4, 5, 7), (4, 7, 6)
CALLS = {
    "@": lambda m, x, y, v, s, o: x @ y,
    "@ of a transpose": lambda m, x, y, v, s, o: x.T @ x,
    "@ with a transpose": lambda m, x, y, v, s, o: x @ x.T,
    "@ of both transposed": lambda m, x, y, v, s, o: y.T @ x.T,
    "@ of a step": lambda m, x, y, v, s, o: x[::2, ::3] @ y[::3, 1:],
    "@ of reversed rows": lambda m, x, y, v, s, o: x[::-1] @ y[:, ::-1],
    "@ of columns of Fortran order": lambda m, x, y, v, s, o: m.asfortranarray(x)[1:4] @ y,
    "@ of one row": lambda m, x, y, v, s, o: x[:1] @ y,
    "@ with a vector": lambda m, x, y, v, s, o: x @ v,
    "a vector @": lambda m, x, y, v, s, o: v @ y,
    "@ of vectors": lambda m, x, y, v, s, o: v @ v,
    "@ over nothing": lambda m, x, y, v, s, o: x[:, :0] @ y[:0],
    "@ of stacks": lambda m, x, y, v, s, o: s @ o,
    "@ of stacks, transposed": lambda m, x, y, v, s, o: s.swapaxes(1, 2) @ s,
    "@ of a stack and a matrix": lambda m, x, y, v, s, o: s @ y,
    "@ of a matrix and a stack": lambda m, x, y, v, s, o: x @ o,
    "@ of stacks that are broadcast": lambda m, x, y, v, s, o: s[:, None] @ o[None, :2],
    "@ of a stack and a vector": lambda m, x, y, v, s, o: s @ v,
    "dot": lambda m, x, y, v, s, o: m.dot(x, y),
    "dot of a stack": lambda m, x, y, v, s, o: m.dot(s, y),
    "inner": lambda m, x, y, v, s, o: m.inner(x, s),
    "vdot": lambda m, x, y, v, s, o: m.vdot(x, x),
    "outer": lambda m, x, y, v, s, o: m.outer(v, v),
    "tensordot": lambda m, x, y, v, s, o: m.tensordot(s, y, 1),
    "tensordot over two axes": lambda m, x, y, v, s, o: m.tensordot(s, s, ((0, 2), (0, 2))),
    "einsum": lambda m, x, y, v, s, o: m.einsum("ij,jk->ki", x, y),
    "einsum of stacks": lambda m, x, y, v, s, o: m.einsum("bij,bjk->bik", s, o),
    "einsum of heads": lambda m, x, y, v, s, o: m.einsum("bqd,bkd->bqk", s, s),
    "einsum of three": lambda m, x, y, v, s, o: m.einsum("ij,jk,j->ik", x, y, v),
    "matrix_power": lambda m, x, y, v, s, o: m.linalg.matrix_power(x[:, :5] / 4, 2),
    "asfortranarray": lambda m, x, y, v, s, o: m.asfortranarray(x),
    "matmul into an array": lambda m, x, y, v, s, o: m.matmul(x, y, out=m.empty((5, 6), x.dtype)),
}


def operands(dtype):
    return [quarters(*shape, dtype=dtype) for shape in (X, Y, V, STACK, OTHER)]


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_the_product_is_numpys(name, dtype):
    host = operands(dtype)
    expected = CALLS[name](np, *host)
    found = CALLS[name](cupy, *map(cupy.asarray, host))
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found.get(), expected)


@pytest.mark.parametrize("shape", ["x @ y", "s @ o", "x @ v"])
def test_halves_are_summed_in_float32(shape):
    x, y, v, s, o = (each * np.float16(1.001) for each in operands(np.float16))
    left, right = {"x @ y": (x, y), "s @ o": (s, o), "x @ v": (x, v)}[shape]
    expected = (left.astype(np.float32) @ right.astype(np.float32)).astype(np.float16)
    found = cupy.asarray(left) @ cupy.asarray(right)
    assert found.dtype == np.float16
    # Both round sums of at most 7 products once; in float32 they differ in its last bits alone,
    # and so by one unit of float16 where they are near the middle between two.
    np.testing.assert_array_almost_equal_nulp(found.get(), expected, 1)


def test_a_sum_that_float16_would_lose_is_kept():
    x = np.full((2, 4096), 1, np.float16)
    x[:, 0] = 2048  # from there on, float16 counts by twos
    found = cupy.asarray(x) @ cupy.ones((4096, 2), np.float16)
    assert found.get().tolist() == [[6144, 6144]] * 2  # 6143, to the nearest float16


def test_bfloat16_is_summed_in_float32():
    x, y, *_ = operands(np.float32)
    left, right = x.astype(ml_dtypes.bfloat16), y.astype(ml_dtypes.bfloat16)
    expected = (left.astype(np.float32) @ right.astype(np.float32)).astype(ml_dtypes.bfloat16)
    found = cupy.dot(cupy.asarray(left), cupy.asarray(right))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.get(), expected)


def test_random_products_are_as_close_as_their_additions_allow():
    for dtype in (np.float32, np.float64):
        x = RANDOM.standard_normal((65, 130)).astype(dtype)
        y = RANDOM.standard_normal((130, 33)).astype(dtype)
        exact = x.astype(np.longdouble) @ y.astype(np.longdouble)
        # Each of 130 products and 129 additions rounds once: k u |x| |y|, as in Higham, 3.5.
        bound = 131 * np.finfo(dtype).eps / 2 * (np.abs(x) @ np.abs(y)).astype(np.float64)
        found = (cupy.asarray(x) @ cupy.asarray(y)).get()
        assert (np.abs(found - exact) <= bound).all()


@pytest.fixture
def blas():
    import cupy.cublas as blas

    return blas


VECTORS = {
    "nrm2": lambda b, x, y: (b.nrm2(x), np.linalg.norm(x.get())),
    "asum": lambda b, x, y: (b.asum(x), (np.abs(x.get().real) + np.abs(x.get().imag)).sum()),
    "iamax": lambda b, x, y: (
        b.iamax(x),
        (np.abs(x.get().real) + np.abs(x.get().imag)).argmax() + 1,
    ),
    "iamin": lambda b, x, y: (
        b.iamin(x),
        (np.abs(x.get().real) + np.abs(x.get().imag)).argmin() + 1,
    ),
    "dotu": lambda b, x, y: (b.dotu(x, y), x.get() @ y.get()),
    "dotc": lambda b, x, y: (b.dotc(x, y), np.vdot(x.get(), y.get())),
}


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", VECTORS)
def test_numbers_of_vectors(name, dtype, blas):
    x, y = cupy.asarray(quarters(37, dtype=dtype)), cupy.asarray(quarters(37, dtype=dtype))
    found, expected = VECTORS[name](blas, x, y)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found.get(), expected, rtol=4 * eps if name == "nrm2" else 0)


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.__name__)
def test_updates_of_vectors_and_matrices(dtype, blas):
    a, x, y = quarters(5, 7, dtype=dtype), quarters(7, dtype=dtype), quarters(5, dtype=dtype)
    device = [cupy.asarray(each) for each in (a, x, y)]
    blas.gemv("N", 2.0, device[0], device[1], 0.5, device[2])
    y = (2 * (a @ x) + y / 2).astype(dtype)
    np.testing.assert_array_equal(device[2].get(), y)
    blas.axpy(0.25, device[1], device[1])
    blas.scal(4, device[1])
    np.testing.assert_array_equal(device[1].get(), 5 * x)
    blas.gemv("T", 1.0, device[0], device[2], 0.0, device[1])
    np.testing.assert_array_equal(device[1].get(), a.T @ y)
    outer = cupy.asfortranarray(device[0])
    rank_one = blas.gerc if np.dtype(dtype).kind == "c" else blas.ger
    rank_one(1.0, device[2], device[2][:1].repeat(7), outer)
    np.testing.assert_array_equal(outer.get(), a + np.outer(y, y[:1].conj().repeat(7)))


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("lower", [True, False])
def test_a_product_with_itself_fills_one_triangle(dtype, lower, blas):
    a = quarters(4, 6, dtype=dtype)
    found = blas.syrk("N", cupy.asarray(a), lower=lower)
    keep = np.tril if lower else np.triu
    np.testing.assert_array_equal(found.get(), keep(a @ a.T))


@pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.__name__)
def test_sums_and_diagonals_of_matrices(dtype, blas):
    a, b, x = quarters(4, 6, dtype=dtype), quarters(6, 4, dtype=dtype), quarters(6, dtype=dtype)
    on = [cupy.asarray(each) for each in (a, b, x)]
    found = blas.geam("N", "H", 2.0, on[0], 0.5, on[1])
    np.testing.assert_array_equal(found.get(), 2 * a + b.conj().T / 2)
    np.testing.assert_array_equal(blas.dgmm("R", on[0], on[2]).get(), a * x)
    np.testing.assert_array_equal(blas.dgmm("L", on[1], on[2]).get(), x[:, None] * b)
    product = blas.gemm("T", "N", on[1], on[2][:, None], alpha=0.5)
    np.testing.assert_array_equal(product.get(), b.T @ x[:, None] / 2)


@pytest.mark.parametrize("side", ["L", "R"])
@pytest.mark.parametrize("trans", ["N", "T", "C"])
@pytest.mark.parametrize("lower", [True, False])
def test_a_triangle_is_solved(side, trans, lower):
    from cupy.cuda import cublas, device

    # What is not of the triangle is not read: it was never written.
    n, k = 6, 3
    whole = quarters(n, n, dtype=np.complex128) + 32 * np.eye(n)
    known = np.tril(whole) if lower else np.triu(whole)
    a = cupy.empty((n, n), np.complex128, order="F")
    for column in range(n):
        rows = slice(column, n) if lower else slice(0, column + 1)
        a[rows, column] = cupy.asarray(known[rows, column])
    right = quarters(n, k, dtype=np.complex128) if side == "L" else quarters(k, n).astype("D")
    b = cupy.asarray(right, order="F")
    one = np.array(2, np.complex128)
    cublas.ztrsm(
        device.get_cublas_handle(), "LR".index(side), 0 if lower else 1, "NTC".index(trans), 0,
        *right.shape, one.ctypes.data, a.data.ptr, n, b.data.ptr, right.shape[0],
    )  # fmt: skip
    op = {"N": known, "T": known.T, "C": known.conj().T}[trans]
    back = op @ b.get() if side == "L" else b.get() @ op
    np.testing.assert_allclose(back, 2 * right, rtol=0, atol=1e-12)


def bytes_multiplied(a, b, c, lda=None, compute="CUBLAS_COMPUTE_32I"):
    """Let cuBLAS write ``2 a b + 3 c`` of int8 matrices a and b, which lie column by column."""
    from cupy.cuda import cublas, device

    (m, k), n = a.shape, b.shape[1]
    alpha, beta = np.array(2, np.int32), np.array(3, np.int32)
    cublas.gemmEx(
        device.get_cublas_handle(), 0, 0, m, n, k, alpha.ctypes.data, a.data.ptr, 3, lda or m,
        b.data.ptr, 3, k, beta.ctypes.data, c.data.ptr, 10, m, getattr(cublas, compute), 0,
    )  # fmt: skip


def test_bytes_are_multiplied_and_added_as_32_bits():
    a, b = (RANDOM.integers(-128, 128, shape, np.int8) for shape in ((8, 64), (64, 3)))
    c = RANDOM.integers(-9, 9, (8, 3), np.int32)
    on = [cupy.asarray(each, order="F") for each in (a, b, c)]
    bytes_multiplied(*on)
    np.testing.assert_array_equal(on[2].get(), 2 * (a.astype(int) @ b) + 3 * c)


def test_bytes_of_a_column_are_read_by_fours():
    from cupy.cuda import cublas

    a, b = cupy.zeros((6, 4), np.int8, order="F"), cupy.zeros((4, 3), np.int8, order="F")
    with pytest.raises(cublas.CUBLASError, match="CUBLAS_STATUS_NOT_SUPPORTED"):
        bytes_multiplied(a, b, cupy.zeros((6, 3), np.int32, order="F"))


def test_many_small_systems_are_solved(blas):
    a = RANDOM.standard_normal((3, 2, 5, 5))
    b = RANDOM.standard_normal((3, 2, 5, 4))
    found = blas.batched_gesv(cupy.asarray(a), cupy.asarray(b)).get()
    np.testing.assert_allclose(found, np.linalg.solve(a, b), rtol=1e-9)


def test_the_profiler_counts_the_call_and_its_bytes():
    x, y = cupy.ones((5, 7), np.float32), cupy.ones((7, 6), np.float32)
    with simgpu.profile(registers=False) as prof:
        x @ y
        x @ y
    assert prof.launches == []
    assert [tuple(vars(call).values()) for call in prof.stand_ins] == [
        ("cuBLAS", "cublasGemmEx", 4 * (35 + 42), 4 * 30)
    ] * 2
    assert prof.table().splitlines()[-1].split() == ["2", "cuBLAS", "cublasGemmEx", "308", "120"]
    assert "cublasGemmEx" in prof._repr_html_()


def test_a_launch_beside_it_is_counted_as_before(tmp_path):
    x = cupy.ones((5, 7), np.float32)
    with simgpu.profile(registers=False) as prof:
        (x @ x.T) + 1
    assert (len(prof.launches), len(prof.stand_ins)) == (1, 1)
    assert "calls of stand-ins" in prof.table()
    prof.save(tmp_path / "counts.json")
    assert '"function": "cublasGemmEx"' in (tmp_path / "counts.json").read_text()
    prof.save(tmp_path / "counts.csv")
    assert len((tmp_path / "counts.csv").read_text().splitlines()) == 2


def test_what_is_only_enqueued_is_not_computed():
    x = cupy.ones((2, 2))
    out = cupy.zeros((2, 2))
    with simgpu.enqueue_only():
        cupy.matmul(x, x, out=out)
    assert not out.any()


def test_cupy_refuses_a_product_while_its_stream_is_captured():
    stream = cupy.cuda.Stream(non_blocking=True)
    x = cupy.ones((2, 2))
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
            x @ x
        stream.end_capture()
