"""CuPy's compiled functions over cuSOLVER: `cupyx._cusolver`, which take and return arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .cusolver_context import LIBRARY, VERSION
from .cusolver_eigen import eigen_symmetric, singular
from .host import Call, Host, Module, refuse_capture
from .operand import Operand

_AVAILABLE: dict[str, tuple[int, int | None]] = dict.fromkeys(
    [
        *("gesvdj", "gesvdjBatched", "gesvda", "potrfBatched", "potrsBatched"),
        *("syevj", "gesv", "gels", "csrlsvqr"),
    ],
    (0, None),
)
_AVAILABLE["geev"] = (11700, None)
_LETTERS = {dtype: letter.upper() for dtype, letter in blas.LETTERS.items()}


def check_availability(name: str) -> bool:
    """Return whether this cuSOLVER has a function."""
    if name not in _AVAILABLE:
        raise ValueError(f"No available version information specified for {name}")
    return _AVAILABLE[name][0] <= VERSION


def _operand(name: str, array: Any) -> Operand:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return Operand(name, array.data.ptr, array.shape, strides, array.dtype)


class Arrays:
    """The functions.

    Parameters
    ----------
    host : Host
        Where they run.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        names = ["gesvdj", "gesvda", "syevj", "gesv", "gels", "csrlsvqr"]
        names += ["_gesvdj_batched", "_gesvd_batched", "_syevj_batched", "_geqrf_orgqr_batched"]
        return {name: getattr(self, name) for name in names}

    def _apply(
        self,
        function: str,
        sources: dict[str, Any],
        shapes: Sequence[tuple[tuple[int, ...], np.dtype[Any]]],
        compute: Callable[..., Sequence[Array]],
    ) -> list[Any]:
        """Return new arrays of what `compute` makes of some arrays."""
        import cupy

        refuse_capture(LIBRARY, self._host.stream())
        results = [cupy.empty(shape, dtype) for shape, dtype in shapes]
        read = [_operand(name, array) for name, array in sources.items()]
        written = [_operand(f"result {at}", array) for at, array in enumerate(results)]

        def run(call: Call) -> None:
            found = compute(*map(call.read, read))
            for operand, values in zip(written, found, strict=True):
                call.write(operand, values)

        self._host.call(LIBRARY, function, run)
        return results

    def gesvdj(
        self, a: Any, full_matrices: bool = True, compute_uv: bool = True, overwrite_a: bool = False
    ) -> Any:
        """Return U, singular values and V (not its adjoint), or the values alone."""
        batched = "Batched" if a.ndim > 2 else ""
        return self._svd(f"gesvdj{batched}", a, a.dtype, full_matrices, compute_uv)

    _gesvdj_batched = gesvdj

    def _gesvd_batched(
        self, a: Any, a_dtype: str, full_matrices: bool, compute_uv: bool, overwrite_a: bool
    ) -> Any:
        """Return the same of a stack."""
        return self._svd("gesvd", a, np.dtype(a_dtype), full_matrices, compute_uv)

    def gesvda(self, a: Any, compute_uv: bool = True) -> Any:
        """Return the same without what is past the singular values."""
        return self._svd("gesvdaStridedBatched", a, a.dtype, False, compute_uv)

    def _svd(
        self, name: str, a: Any, dtype: np.dtype[Any], full_matrices: bool, compute_uv: bool
    ) -> Any:
        *stack, m, n = a.shape
        k = min(m, n)
        columns = (m, n) if full_matrices else (k, k)

        def compute(values: Array) -> Sequence[Array]:
            u, found, vh, _ = singular(values, full_matrices)
            return (u, found, vh.conj().swapaxes(-2, -1)) if compute_uv else (found,)

        shapes = [
            ((*stack, m, columns[0]), dtype),
            ((*stack, k), blas.real(dtype)),
            ((*stack, n, columns[1]), dtype),
        ]
        function = f"cusolverDn{_LETTERS[dtype]}{name}"
        given = {"A": a.astype(dtype, copy=False)}
        results = self._apply(function, given, shapes if compute_uv else shapes[1:2], compute)
        return tuple(results) if compute_uv else results[0]

    def syevj(self, a: Any, UPLO: str = "L", with_eigen_vector: bool = True) -> Any:
        """Return eigenvalues and vectors of symmetric matrices, or the values alone."""
        import cupy

        if UPLO not in ("L", "U"):
            raise ValueError("UPLO argument must be 'L' or 'U'")
        dtype, out_dtype = cupy.linalg._util.linalg_common_type(a, reject_float16=False)
        uplo = blas.LOWER if UPLO == "L" else blas.UPPER

        def compute(values: Array) -> Sequence[Array]:
            found, vectors, _ = eigen_symmetric(values, uplo)
            return found, vectors

        kind = "heevj" if dtype.kind == "c" else "syevj"
        batched = "Batched" if a.ndim > 2 else ""
        shapes = [(a.shape[:-1], blas.real(dtype)), (a.shape, dtype)]
        function = f"cusolverDn{_LETTERS[dtype]}{kind}{batched}"
        w, v = self._apply(function, {"A": a.astype(dtype, copy=False)}, shapes, compute)
        w = w.astype(out_dtype.char.lower(), copy=False)
        return (w, v.astype(out_dtype, copy=False)) if with_eigen_vector else w

    _syevj_batched = syevj

    def gesv(self, a: Any, b: Any) -> Any:
        """Return the solution of a system of equations."""
        _check_system(a, b)
        if a.shape[0] != a.shape[1]:
            raise ValueError("a must be a square matrix.")

        def compute(left: Array, right: Array) -> Sequence[Array]:
            lu, pivots, _ = blas.factor_lu(left)
            stacked = right.reshape(right.shape[0], -1)
            return (blas.solve_lu(lu, pivots, blas.OP_N, stacked).reshape(right.shape),)

        letter = _LETTERS[a.dtype]
        function = f"cusolverDn{letter}{letter}gesv"
        return self._apply(function, {"A": a, "B": b}, [(b.shape, b.dtype)], compute)[0]

    def gels(self, a: Any, b: Any) -> Any:
        """Return the solution with the least squares."""
        _check_system(a, b)
        if a.shape[0] < a.shape[1]:
            raise ValueError("m must be equal to or greater than n.")

        def compute(left: Array, right: Array) -> Sequence[Array]:
            q, r = np.linalg.qr(left)
            stacked = q.conj().T @ right.reshape(right.shape[0], -1)
            found = blas.solve_triangular(r, blas.UPPER, blas.OP_N, blas.NON_UNIT, stacked)
            return (found.reshape(a.shape[1], *right.shape[1:]),)

        letter = _LETTERS[a.dtype]
        shape = (a.shape[1], *b.shape[1:])
        function = f"cusolverDn{letter}{letter}gels"
        return self._apply(function, {"A": a, "B": b}, [(shape, b.dtype)], compute)[0]

    def csrlsvqr(self, A: Any, b: Any, tol: float = 0, reorder: int = 1) -> Any:
        """Return the solution of a sparse system of equations, which is made dense here."""
        if getattr(A, "format", None) != "csr":
            raise ValueError("A must be CSR sparse matrix")
        if b.ndim != 1 or not A.shape[0] == A.shape[1] == b.shape[0]:
            raise ValueError("invalid shape")
        if A.dtype != b.dtype:
            raise TypeError("dtype mismatch")
        singular = -1

        def compute(offsets: Array, indices: Array, values: Array, right: Array) -> Sequence[Array]:
            nonlocal singular
            dense = np.zeros(A.shape, A.dtype)
            np.add.at(dense, (np.repeat(np.arange(A.shape[0]), np.diff(offsets)), indices), values)
            q, r = np.linalg.qr(dense)
            small = np.abs(np.diagonal(r)) <= max(tol, 0)
            singular = int(small.argmax()) if small.any() else -1
            stacked = (q.conj().T @ right)[:, None]
            return (blas.solve_triangular(r, blas.UPPER, blas.OP_N, blas.NON_UNIT, stacked)[:, 0],)

        given = {"csrRowPtr": A.indptr, "csrColInd": A.indices, "csrVal": A.data, "b": b}
        function = f"cusolverSp{_LETTERS[A.dtype]}csrlsvqr"
        (x,) = self._apply(function, given, [(b.shape, b.dtype)], compute)
        if singular >= 0:
            warnings.warn(
                "A is not positive definite or near singular under tolerance "
                f"{tol} (singularity: {singular})",
                stacklevel=2,
            )
        return x

    def _geqrf_orgqr_batched(self, a: Any, mode: str) -> Any:
        """Return the QR factors of a stack, as `numpy.linalg.qr` does in this mode."""
        import cupy

        dtype, out_dtype = cupy.linalg._util.linalg_common_type(a)
        *stack, m, n = a.shape
        k = m if mode == "complete" and m > n else min(m, n)

        def compute(values: Array) -> Sequence[Array]:
            found = np.linalg.qr(values, mode)  # type: ignore[call-overload]
            return [found] if mode == "r" else list(found)

        shapes = {
            "r": [((*stack, min(m, n), n), dtype)],
            "raw": [((*stack, n, m), dtype), ((*stack, min(m, n)), dtype)],
        }.get(mode, [((*stack, m, k), dtype), ((*stack, k, n), dtype)])
        function = f"cusolverDn{_LETTERS[dtype]}geqrf"
        given = {"A": a.astype(dtype, copy=False)}
        results = self._apply(function, given, shapes, compute)
        converted = [each.astype(out_dtype, copy=False) for each in results]
        return converted[0] if mode == "r" else tuple(converted)


def _check_system(a: Any, b: Any) -> None:
    if a.ndim != 2:
        raise ValueError(f"a.ndim must be 2 (actual:{a.ndim})")
    if b.ndim not in (1, 2):
        raise ValueError(f"b.ndim must be 1 or 2 (actual:{b.ndim})")
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"shape mismatch (a:{a.shape}, b:{b.shape}).")
    if a.dtype != b.dtype:
        raise ValueError(f"dtype mismatch (a:{a.dtype}, b:{b.dtype}).")
    if a.dtype not in _LETTERS:
        raise ValueError(f"unsupported dtype (actual:{a.dtype})")


def module(name: str, host: Host, wanted: str) -> Module:
    """Return the module."""
    made = Module(name, LIBRARY, wanted)
    tables = {
        "_available_cuda_version": _AVAILABLE,
        "_available_compute_capability": {"gesv": 70, "gels": 70},
        "_available_hip_version": {},
    }
    vars(made).update(tables, check_availability=check_availability, **Arrays(host).functions())
    return made
