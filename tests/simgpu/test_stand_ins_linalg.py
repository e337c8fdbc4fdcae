"""cuSOLVER's stand-in: `cupy.linalg` and what uses it, against NumPy or against the definition.

Systems are well conditioned (at most about 10), so that a backward stable method is within some
dozens of units in the last place of the largest entry.
"""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

RANDOM = np.random.default_rng(0)
ALL = [np.float32, np.float64, np.complex64, np.complex128]
kinds = pytest.mark.parametrize("dtype", ALL, ids=lambda dtype: dtype.__name__)
stacks = pytest.mark.parametrize("stack", [(), (3,), (2, 2)], ids=str)


def sample(*shape, dtype=np.float64):
    values = RANDOM.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * RANDOM.standard_normal(shape)
    return values.astype(dtype)


def orthonormal(*shape, dtype=np.float64):
    return np.linalg.qr(sample(*shape, dtype=dtype))[0]


def conditioned(m, n, stack=(), dtype=np.float64):
    """Return matrices whose singular values go from 1 to 8."""
    k = min(m, n)
    u, v = orthonormal(*stack, m, k, dtype=dtype), orthonormal(*stack, n, k, dtype=dtype)
    return ((u * np.linspace(8, 1, k)) @ v.conj().swapaxes(-1, -2)).astype(dtype)


def definite(n, stack=(), dtype=np.float64):
    q = orthonormal(*stack, n, n, dtype=dtype)
    a = (q * np.linspace(8, 1, n)) @ q.conj().swapaxes(-1, -2)
    return ((a + a.conj().swapaxes(-1, -2)) / 2).astype(dtype)


def close(found, expected, dtype=None, units=200):
    found = found.get() if isinstance(found, cupy.ndarray) else found
    assert found.shape == expected.shape
    if dtype is not None:
        assert found.dtype == dtype
    eps = np.finfo(found.dtype).eps
    tolerance = units * eps * max(np.abs(expected).max(initial=0), 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@kinds
@stacks
@pytest.mark.parametrize("columns", [None, 3])
def test_solve(stack, columns, dtype):
    a = conditioned(5, 5, stack, dtype)
    b = sample(*stack, 5, *([] if columns is None else [columns]), dtype=dtype)
    expected = np.linalg.solve(a, b if columns else b[..., None])
    found = cupy.linalg.solve(
        cupy.asarray(a), cupy.asarray(b if columns or not stack else b[..., None])
    )
    close(found, expected if columns or stack else expected[..., 0], dtype)


@kinds
@stacks
def test_inv_det_and_pinv(stack, dtype):
    a = conditioned(6, 6, stack, dtype)
    on = cupy.asarray(a)
    close(cupy.linalg.inv(on), np.linalg.inv(a), dtype)
    close(cupy.linalg.det(on), np.linalg.det(a), units=2000)
    sign, logarithm = cupy.linalg.slogdet(on)
    close(sign, np.linalg.slogdet(a)[0])
    close(logarithm, np.linalg.slogdet(a)[1])
    close(cupy.linalg.pinv(on), np.linalg.pinv(a))
    assert (cupy.linalg.matrix_rank(on) == 6).all()


@kinds
@stacks
def test_cholesky(stack, dtype):
    a = definite(6, stack, dtype)
    close(cupy.linalg.cholesky(cupy.asarray(a)), np.linalg.cholesky(a), dtype)


@kinds
@stacks
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (40, 36)])
@pytest.mark.parametrize("mode", ["reduced", "complete", "r", "raw"])
def test_qr(stack, shape, mode, dtype):
    a = sample(*stack, *shape, dtype=dtype)
    found = cupy.linalg.qr(cupy.asarray(a), mode)
    expected = np.linalg.qr(a, mode)
    pairs = [(found, expected)] if mode == "r" else zip(found, expected, strict=True)
    for one, other in pairs:
        close(one, other, dtype)


@kinds
@stacks
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (40, 36)])
def test_svd(stack, shape, full, dtype):
    a = conditioned(*shape, stack, dtype)
    u, s, vh = cupy.linalg.svd(cupy.asarray(a), full_matrices=full)
    expected = np.linalg.svd(a, full_matrices=full)
    assert [each.shape for each in (u, s, vh)] == [each.shape for each in expected]
    close(s, expected[1], np.zeros(0, dtype).real.dtype)
    u, s, vh = u.get(), s.get(), vh.get()
    for q in (u, vh.conj().swapaxes(-1, -2)):
        unit = np.broadcast_to(np.eye(q.shape[-1], dtype=dtype), (*stack, *[q.shape[-1]] * 2))
        close(q.conj().swapaxes(-1, -2) @ q, unit)
    k = min(shape)
    close((u[..., :k] * s[..., None, :]) @ vh[..., :k, :], a, dtype)
    close(cupy.linalg.svd(cupy.asarray(a), compute_uv=False), s)


@kinds
@stacks
@pytest.mark.parametrize("uplo", ["L", "U"])
def test_eigh(stack, uplo, dtype):
    a = definite(6, stack, dtype)
    # The other triangle does not count.
    spoiled = a + 100 * (
        np.triu(np.ones((6, 6)), 1) if uplo == "L" else np.tril(np.ones((6, 6)), -1)
    )
    w, v = cupy.linalg.eigh(cupy.asarray(spoiled.astype(dtype)), uplo)
    close(w, np.linalg.eigvalsh(a, uplo), np.zeros(0, dtype).real.dtype)
    close(a @ v.get(), v.get() * w.get()[..., None, :])
    close(cupy.linalg.eigvalsh(cupy.asarray(a), uplo), w.get())


@kinds
@pytest.mark.parametrize("stack", [(), (3,)], ids=str)
def test_eig(stack, dtype):
    a = conditioned(6, 6, stack, dtype)
    w, v = cupy.linalg.eig(cupy.asarray(a))
    assert w.dtype.kind == "c"
    close(a @ v.get(), v.get() * w.get()[..., None, :], units=1000)
    found = np.sort_complex(cupy.linalg.eigvals(cupy.asarray(a)).get())
    close(found, np.sort_complex(np.linalg.eigvals(a)), units=1000)


@kinds
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_lstsq(shape, dtype):
    a, b = conditioned(*shape, dtype=dtype), sample(shape[0], 2, dtype=dtype)
    found = cupy.linalg.lstsq(cupy.asarray(a), cupy.asarray(b), rcond=None)
    expected = np.linalg.lstsq(a, b, rcond=None)
    close(found[0], expected[0])
    close(found[3], expected[3])
    assert int(found[2]) == expected[2]


def test_what_is_made_of_them():
    a = conditioned(5, 5)
    on = cupy.asarray(a)
    for order in (2, -2, "nuc"):
        close(cupy.linalg.norm(on, order), np.asarray(np.linalg.norm(a, order)))
    close(cupy.linalg.matrix_power(on, -2), np.linalg.matrix_power(a, -2), units=1000)
    close(cupy.cov(on), np.cov(a))
    close(cupy.corrcoef(on), np.corrcoef(a))
    x = np.linspace(-1, 1, 20)
    y = 3 * x**2 - x + 0.5
    close(cupy.polyfit(cupy.asarray(x), cupy.asarray(y), 2), np.polyfit(x, y, 2))
    tensor = sample(6, 2, 3)
    close(cupy.linalg.tensorsolve(cupy.asarray(tensor), cupy.ones(6)),
          np.linalg.tensorsolve(tensor, np.ones(6)), units=2000)  # fmt: skip


@kinds
def test_systems_of_cupyx(dtype):
    from cupyx import cusolver, lapack

    a, b = conditioned(6, 6, dtype=dtype), sample(6, 2, dtype=dtype)
    on, right = cupy.asarray(a), cupy.asarray(b)
    in_place = right.copy(order="F")
    lapack.gesv(on.copy(order="F"), in_place)
    close(in_place, np.linalg.solve(a, b), dtype)
    close(cusolver.gesv(on, right), np.linalg.solve(a, b), dtype)
    tall = conditioned(9, 4, dtype=dtype)
    rhs = sample(9, dtype=dtype)
    expected = np.linalg.lstsq(tall, rhs, rcond=None)[0]
    close(cusolver.gels(cupy.asarray(tall), cupy.asarray(rhs)), expected, dtype)
    close(lapack.gels(cupy.asarray(tall), cupy.asarray(rhs)), expected, dtype)
    wide = conditioned(4, 9, dtype=dtype)
    close(
        lapack.gels(cupy.asarray(wide), cupy.asarray(rhs[:4])),
        np.linalg.lstsq(wide, rhs[:4], rcond=None)[0],
    )
    spd = definite(6, dtype=dtype)
    close(lapack.posv(cupy.asarray(spd), right), np.linalg.solve(spd, b), dtype)
    many = definite(6, (3,), dtype)
    close(
        lapack.posv(cupy.asarray(many), cupy.asarray(np.stack([b] * 3))),
        np.linalg.solve(many, np.stack([b] * 3)),
    )


def test_triangles_of_cupyx_scipy():
    linalg = pytest.importorskip("cupyx.scipy.linalg")
    a, b = conditioned(6, 6), sample(6, 2)
    lower = np.tril(a) + 4 * np.eye(6)
    found = linalg.solve_triangular(cupy.asarray(lower), cupy.asarray(b), lower=True)
    close(found, np.linalg.solve(lower, b))
    factors = linalg.lu_factor(cupy.asarray(a))
    close(linalg.lu_solve(factors, cupy.asarray(b)), np.linalg.solve(a, b))
    close(linalg.lu_solve(factors, cupy.asarray(b), trans=1), np.linalg.solve(a.T, b))
    p, low, up = linalg.lu(cupy.asarray(a))
    close(p @ low @ up, a)


def test_what_cannot_be_is_told_where_a_program_asks():
    import cupyx

    with cupyx.errstate(linalg="raise"):
        with pytest.raises(np.linalg.LinAlgError, match=r"potrf in cuSOLVER. devInfo = \[3\]"):
            cupy.linalg.cholesky(cupy.diag(cupy.asarray([1.0, 1, -1, 1])))
        with pytest.raises(np.linalg.LinAlgError):
            cupy.linalg.inv(cupy.zeros((2, 2)))
        with pytest.raises(np.linalg.LinAlgError):
            cupy.linalg.cholesky(-cupy.ones((2, 1, 1)))


def test_multivariate_normal():
    cupy.random.seed(0)
    covariance = np.array([[2.0, 1], [1, 3]])
    with pytest.warns(FutureWarning, match="experimental"):
        drawn = cupy.random.multivariate_normal([1, -1], covariance, 4000).get()
    # Five standard errors.
    assert (np.abs(drawn.mean(axis=0) - [1, -1]) < 5 * np.sqrt(np.diag(covariance) / 4000)).all()
    assert (np.abs(np.cov(drawn.T) - covariance) < 5 * 3 * np.sqrt(2 / 4000)).all()


def test_a_triangle_is_all_that_is_read():
    a = cupy.empty((3, 3))
    for row in range(3):
        a[row, : row + 1] = cupy.asarray([0.25, 0.25, 1])[: row + 1]
        a[row, row] = 2
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas, cusolver

    info = cupy.empty(1, np.int32)
    # In the order of columns, the lower triangle is the upper one.
    cusolver.dpotrf(
        device.get_cusolver_handle(), cublas.CUBLAS_FILL_MODE_UPPER, 3, a.data.ptr, 3, 0, 0,
        info.data.ptr,
    )  # fmt: skip
    assert info[0] == 0
    with pytest.raises(simgpu.Uninitialised):
        a + 1
    with pytest.raises(simgpu.Uninitialised, match=r"cusolverDnDpotrf reads A, column \d\[\d\]"):
        cusolver.dpotrf(
            device.get_cusolver_handle(), cublas.CUBLAS_FILL_MODE_LOWER, 3, a.data.ptr, 3, 0, 0,
            info.data.ptr,
        )  # fmt: skip


def test_a_diagonal_of_ones_is_not_read():
    linalg = pytest.importorskip("cupyx.scipy.linalg")
    ones = np.ones((3, 1))
    for lower in (True, False):
        a = cupy.empty((3, 3), order="F")
        for at in range(3):
            a[at, slice(0, at) if lower else slice(at + 1, 3)] = 2
        found = linalg.solve_triangular(
            a, cupy.asarray(ones), lower=lower, unit_diagonal=True, check_finite=False
        )
        whole = np.eye(3) + 2 * (np.tril if lower else np.triu)(np.ones((3, 3)) - np.eye(3))
        np.testing.assert_array_equal(found.get(), np.linalg.solve(whole, ones))


def test_faults():
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cusolver

    a, pivots, info = cupy.ones((3, 3)), cupy.empty(2, np.int32), cupy.empty(1, np.int32)
    with pytest.raises(simgpu.OutOfBounds, match="cusolverDnDgetrf writes devIpiv"):
        cusolver.dgetrf(
            device.get_cusolver_handle(), 3, 3, a.data.ptr, 3, 0, pivots.data.ptr, info.data.ptr
        )
    with pytest.raises(cusolver.CUSOLVERError, match="INVALID_VALUE"):
        cusolver.dgetrf(
            device.get_cusolver_handle(), 3, 3, a.data.ptr, 2, 0, pivots.data.ptr, info.data.ptr
        )
    with pytest.raises(simgpu.Uninitialised, match=r"cusolverDnDgesvdjBatched reads A\[0, 0, 0\]"):
        cupy.linalg.svd(cupy.empty((2, 3, 3)))
    with pytest.raises(simgpu.NotEmulated, match=r"cuSOLVER, .* \(dsytrf was asked for\)"):
        cusolver.dsytrf  # noqa: B018


def test_the_profiler_counts_a_factorisation():
    a = cupy.asarray(definite(4))
    with simgpu.profile(registers=False) as prof:
        cupy.linalg.cholesky(a)
    (call,) = prof.stand_ins
    # A triangle of 4 rows is 10 elements; the info is an int.
    assert (call.function, call.read_bytes, call.written_bytes) == ("cusolverDnDpotrf", 80, 84)
