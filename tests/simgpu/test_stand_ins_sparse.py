"""cuSPARSE's stand-in: sparse matrices, held against dense ones of NumPy's."""

import cupy
import numpy as np
import pytest
from kinds import in_pairs

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

sparse = pytest.importorskip("cupyx.scipy.sparse")
linalg = pytest.importorskip("cupyx.scipy.sparse.linalg")

RANDOM = np.random.default_rng(0)
DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
FORMATS = ["csr", "csc", "coo"]


def holes(*shape, dtype=np.float64):
    values = RANDOM.integers(-3, 4, shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * RANDOM.integers(-3, 4, shape)
    return np.where(RANDOM.random(shape) < 0.5, 0, values).astype(dtype)


def dense(found):
    return (found.toarray() if sparse.issparse(found) else found).get()


# Small whole numbers, so that every answer is exact.
CALLS = {
    "from a dense matrix": (lambda s, a, b, v: s(a), lambda a, b, v: a),
    "to CSR": (lambda s, a, b, v: s(a).tocsr(), lambda a, b, v: a),
    "to CSC": (lambda s, a, b, v: s(a).tocsc(), lambda a, b, v: a),
    "to COO": (lambda s, a, b, v: s(a).tocoo(), lambda a, b, v: a),
    "transpose": (lambda s, a, b, v: s(a).T, lambda a, b, v: a.T),
    "@ a vector": (lambda s, a, b, v: s(a) @ v, lambda a, b, v: a @ v),
    "the transpose @ a vector": (
        lambda s, a, b, v: s(a).T @ (s(a) @ v),
        lambda a, b, v: a.T @ (a @ v),
    ),
    "@ a dense matrix": (lambda s, a, b, v: s(a) @ b, lambda a, b, v: a @ b),
    "@ a sparse matrix": (lambda s, a, b, v: s(a) @ s(b), lambda a, b, v: a @ b),
    "+": (lambda s, a, b, v: s(a) + 2 * s(-a[::-1]), lambda a, b, v: a - 2 * a[::-1]),
    "a difference of nothing": (lambda s, a, b, v: s(a) - s(a), lambda a, b, v: 0 * a),
    "multiply": (lambda s, a, b, v: s(a).multiply(s(a)), lambda a, b, v: a * a),
    "sums": (lambda s, a, b, v: s(a).sum(axis=0), lambda a, b, v: a.sum(0, keepdims=True)),
    "rows": (lambda s, a, b, v: s(a).tocsr()[1:4], lambda a, b, v: a[1:4]),
    "columns": (lambda s, a, b, v: s(a).tocsc()[:, 2:5], lambda a, b, v: a[:, 2:5]),
    "kron": (
        lambda s, a, b, v: sparse.kron(s(a), s(b)),
        lambda a, b, v: np.kron(a, b),
    ),
    "vstack": (lambda s, a, b, v: sparse.vstack([s(a), s(a)]), lambda a, b, v: np.vstack([a, a])),
}


@in_pairs(name=list(CALLS), kind=FORMATS, dtype=DTYPES)
def test_the_answer_is_that_of_dense_matrices(name, kind, dtype):
    a, b, v = holes(6, 8, dtype=dtype), holes(8, 5, dtype=dtype), holes(8, dtype=dtype)
    call, expected = CALLS[name]
    make = getattr(sparse, f"{kind}_matrix")
    found = call(make, *map(cupy.asarray, (a, b, v)))
    np.testing.assert_array_equal(dense(found), expected(a, b, v))


def test_elements_in_any_order_and_twice():
    data = cupy.asarray([1.0, 2, 3, 4])
    places = (cupy.asarray([2, 0, 2, 1]), cupy.asarray([1, 1, 1, 0]))
    for kind in ("csr", "csc"):
        found = sparse.coo_matrix((data, places), shape=(3, 3)).asformat(kind)
        found.sum_duplicates()
        assert found.nnz == 3
        assert dense(found).tolist() == [[0, 2, 0], [4, 0, 0], [0, 4, 0]]


def system(n=12):
    a = np.where(RANDOM.random((n, n)) < 0.3, RANDOM.standard_normal((n, n)), 0) / 4
    return a @ a.T + np.eye(n)  # eigenvalues of at least 1


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("kind", ["csr", "csc"])
def test_triangular_systems(lower, unit, kind):
    a = np.tril(system()) if lower else np.triu(system())
    b = RANDOM.standard_normal((12, 2))
    if unit:
        np.fill_diagonal(a, 1)
    on = getattr(sparse, f"{kind}_matrix")(cupy.asarray(a))
    found = linalg.spsolve_triangular(on, cupy.asarray(b), lower=lower, unit_diagonal=unit)
    np.testing.assert_allclose(found.get(), np.linalg.solve(a, b), rtol=0, atol=1e-12)


def test_systems_and_eigenvalues():
    a, b = system(), RANDOM.standard_normal(12)
    on, right = sparse.csr_matrix(cupy.asarray(a)), cupy.asarray(b)
    expected = np.linalg.solve(a, b)
    np.testing.assert_allclose(linalg.spsolve(on, right).get(), expected, rtol=0, atol=1e-12)
    for solver in (linalg.cg, linalg.gmres):
        found, failed = solver(on, right, rtol=1e-12)
        assert not failed
        np.testing.assert_allclose(found.get(), expected, rtol=0, atol=1e-9)
    cupy.random.seed(0)
    many = sparse.diags(cupy.arange(1.0, 41), format="csr")
    values = linalg.eigsh(many, k=3, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(values.get()), [38, 39, 40], rtol=1e-9)
    singular = sparse.csr_matrix(cupy.asarray(np.diag([1.0, 0, 1])))
    with pytest.warns(UserWarning, match="near singular"):
        linalg.spsolve(singular, cupy.ones(3))


def test_faults():
    a = sparse.csr_matrix(cupy.asarray(holes(6, 8)))
    v = cupy.empty(8)
    v[:7] = 1
    with pytest.raises(simgpu.Uninitialised, match=r"cusparseSpMV reads vector\[7\]"):
        a @ v
    v[7] = 1
    a.indices[0] = 8
    with pytest.raises(simgpu.OutOfBounds, match=r"reads indices from \d to 8, of an axis of 8"):
        a @ v
    a.indices[0] = 0
    a.indptr[-1] += 1
    with pytest.raises(simgpu.OutOfBounds, match="reads offsets that are not 0 to"):
        a @ v


def banded(dtype, n=9):
    """Return a matrix whose elements lie where LU fills nothing in: its ILU(0) is its LU."""
    a = sum(np.diag(RANDOM.standard_normal(n - abs(k)), k) for k in (-1, 0, 1)) + 4 * np.eye(n)
    return (a + 1j * np.triu(a, 1) if np.dtype(dtype).kind == "c" else a).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_incomplete_factors_are_those_that_fill_nothing_in(dtype):
    from cupyx import cusparse

    a = banded(dtype)
    on = sparse.csr_matrix(cupy.asarray(a))
    cusparse.csrilu02(on)
    factors = on.toarray().get()
    lower, upper = np.tril(factors, -1) + np.eye(9), np.triu(factors)
    near = 1e-5 if np.finfo(dtype).bits == 32 else 1e-13
    np.testing.assert_allclose(lower @ upper, a, rtol=0, atol=near)
    # Where something would be filled in, the product is A at A's own elements alone.
    a = (system() + 0.1 * np.tril(system(), -1)).astype(dtype)
    on = sparse.csr_matrix(cupy.asarray(a))
    kept = on.toarray().get() != 0
    cusparse.csrilu02(on)
    factors = on.toarray().get()
    assert not factors[~kept].any()
    product = (np.tril(factors, -1) + np.eye(12)) @ np.triu(factors)
    np.testing.assert_allclose(product[kept], a[kept], rtol=0, atol=10 * near)


def test_incomplete_factors_say_which_pivot_there_is_not():
    from cupyx import cusparse

    for elements, told in (
        ([[1.0, 2, 0], [2, 0, 1], [0, 1, 3]], r"a\(1,1\) is missing"),
        ([[1.0, 2, 0], [2, 4, 1], [0, 1, 3]], r"u\(1,1\) is zero"),
    ):
        with pytest.raises(ValueError, match=told):
            cusparse.csrilu02(sparse.csr_matrix(cupy.asarray(elements)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_cholesky_solves(dtype):
    from cupyx.linalg.sparse import lschol

    a, b = system().astype(dtype), RANDOM.standard_normal(12).astype(dtype)
    found = lschol(sparse.csr_matrix(cupy.asarray(a)), cupy.asarray(b)).get()
    near = 1e-4 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(found, np.linalg.solve(a, b), rtol=0, atol=near)
    # Of a matrix that is not positive definite there is no solution to read.
    with pytest.raises(simgpu.Uninitialised):
        lschol(sparse.csr_matrix(cupy.asarray(-a)), cupy.asarray(b)) + 1


def test_factors_are_checked():
    from cupyx import cusparse
    from cupyx.linalg.sparse import lschol

    a = sparse.csr_matrix(cupy.asarray(system()))
    b = cupy.empty(12)
    b[:3] = 1
    with pytest.raises(simgpu.Uninitialised, match=r"cusolverSpDcsrlsvchol reads b\[3\]"):
        lschol(a, b)
    a.indices[0] = 12
    with pytest.raises(simgpu.OutOfBounds, match=r"csrilu02.* reads indices from \d to 12"):
        cusparse.csrilu02(a)


def test_what_it_does_not_have_is_refused_by_name():
    from cupy_backends.cuda.libs import cusparse

    with pytest.raises(simgpu.NotEmulated, match=r"cuSPARSE, .* \(dgtsv2_nopivot was asked for\)"):
        cusparse.dgtsv2_nopivot  # noqa: B018


def test_the_profiler_counts_a_product():
    a = sparse.csr_matrix(cupy.asarray(np.diag([1.0, 2, 3])))
    a @ cupy.ones(3)
    with simgpu.profile(registers=False) as prof:
        a @ cupy.ones(3)
    (call,) = [each for each in prof.stand_ins if each.function == "cusparseSpMV"]
    # Three values, three indices and four offsets of 4 bytes, the vector; its product.
    assert (call.read_bytes, call.written_bytes) == (24 + 12 + 16 + 24, 24)
