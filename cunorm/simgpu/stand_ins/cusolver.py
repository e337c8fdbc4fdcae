"""cuSOLVER's functions as CuPy imports them: `cupy_backends.cuda.libs.cusolver`.

Working memory is not used: one element is asked for where cuSOLVER would ask for more. The contents
of matrices that it destroys are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .blas import typed
from .cusolver_context import LIBRARY, Context, CUSOLVERError, require, worked
from .cusolver_eigen import Eigen
from .cusolver_sparse import SparseSystems
from .host import Call, Host, Module
from .operand import matrix, vector

DType = np.dtype[Any]
_INT = np.dtype(np.int32)
_CONSTANTS = {
    "CUSOLVER_EIG_TYPE_1": 1,
    "CUSOLVER_EIG_TYPE_2": 2,
    "CUSOLVER_EIG_TYPE_3": 3,
    "CUSOLVER_EIG_MODE_NOVECTOR": 0,
    "CUSOLVER_EIG_MODE_VECTOR": 1,
}


class Factors:
    """LU, Cholesky and QR, and systems that are solved with them.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""

        def of(pattern: str, function: Callable[..., object], letters: str = "sdcz") -> Any:
            return typed("cusolverDn", pattern, function, letters)

        working = ["{}potrf", "{}getrf", "{}geqrf"]
        ortho = {"sd": ("{}orgqr", "{}ormqr"), "cz": ("{}ungqr", "{}unmqr")}
        found: dict[str, Callable[..., object]] = {}
        for name in working:
            found |= of(f"{name}_bufferSize", self._context.working_memory)
        for letters, (generate, multiply) in ortho.items():
            for name in (generate, multiply):
                found |= of(f"{name}_bufferSize", self._context.working_memory, letters)
            found |= of(generate, self._orgqr, letters)
            found |= of(multiply, self._ormqr, letters)
        return {
            **found,
            **of("{}getrf", self._getrf),
            **of("{}getrs", self._getrs),
            **of("{}potrf", self._potrf),
            **of("{}potrs", self._potrs),
            **of("{}potrfBatched", self._potrf_batched),
            **of("{}potrsBatched", self._potrs_batched),
            **of("{}geqrf", self._geqrf),
        }

    def _getrf(
        self, function: str, dtype: DType, handle: int, m: int, n: int, A: int, lda: int,
        work: int, devIpiv: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(m >= 0, n >= 0, lda >= max(1, m))
        a = matrix("A", A, m, n, lda, dtype)

        def run(call: Call) -> None:
            factors, pivots, info = blas.factor_lu(call.read(a), pivoting=devIpiv != 0)
            call.write(a, factors)
            if devIpiv:
                call.write(vector("devIpiv", devIpiv, min(m, n), 1, _INT), pivots)
            worked(call, devInfo, info)

        self._context.call(handle, function, run)

    def _getrs(
        self, function: str, dtype: DType, handle: int, trans: int, n: int, nrhs: int, A: int,
        lda: int, devIpiv: int, B: int, ldb: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(n >= 0, nrhs >= 0, lda >= max(1, n), ldb >= max(1, n))
        a, b = matrix("A", A, n, n, lda, dtype), matrix("B", B, n, nrhs, ldb, dtype)

        def run(call: Call) -> None:
            pivots = np.arange(1, n + 1)
            if devIpiv:
                pivots = call.read(vector("devIpiv", devIpiv, n, 1, _INT))
            call.write(b, blas.solve_lu(call.read(a), pivots, trans, call.read(b)))
            worked(call, devInfo)

        self._context.call(handle, function, run)

    def _potrf(
        self, function: str, dtype: DType, handle: int, uplo: int, n: int, A: int, lda: int,
        work: int, lwork: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n))
        a = matrix("A", A, n, n, lda, dtype)

        def run(call: Call) -> None:
            factor, info = blas.factor_cholesky(call.read_triangle(a, uplo), uplo)
            call.write_triangle(a, uplo, factor)
            worked(call, devInfo, info)

        self._context.call(handle, function, run)

    def _potrs(
        self, function: str, dtype: DType, handle: int, uplo: int, n: int, nrhs: int, A: int,
        lda: int, B: int, ldb: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(n >= 0, nrhs >= 0, lda >= max(1, n), ldb >= max(1, n))
        a, b = matrix("A", A, n, n, lda, dtype), matrix("B", B, n, nrhs, ldb, dtype)

        def run(call: Call) -> None:
            call.write(b, _solved(call.read_triangle(a, uplo), uplo, call.read(b)))
            worked(call, devInfo)

        self._context.call(handle, function, run)

    def _potrf_batched(
        self, function: str, dtype: DType, handle: int, uplo: int, n: int, Aarray: int, lda: int,
        infoArray: int, batchSize: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n), batchSize >= 0)
        like = matrix("A", 0, n, n, lda, dtype)

        def run(call: Call) -> None:
            info = np.zeros(batchSize, np.int32)
            for at, a in enumerate(call.batch("A", Aarray, batchSize, like)):
                factor, info[at] = blas.factor_cholesky(call.read_triangle(a, uplo), uplo)
                call.write_triangle(a, uplo, factor)
            call.write(vector("infoArray", infoArray, batchSize, 1, _INT), info)

        self._context.call(handle, function, run)

    def _potrs_batched(
        self, function: str, dtype: DType, handle: int, uplo: int, n: int, nrhs: int, Aarray: int,
        lda: int, Barray: int, ldb: int, devInfo: int, batchSize: int,
    ) -> None:  # fmt: skip
        require(n >= 0, nrhs >= 0, lda >= max(1, n), ldb >= max(1, n), batchSize >= 0)
        like = matrix("A", 0, n, n, lda, dtype), matrix("B", 0, n, nrhs, ldb, dtype)

        def run(call: Call) -> None:
            stack_a = call.batch("A", Aarray, batchSize, like[0])
            stack_b = call.batch("B", Barray, batchSize, like[1])
            for a, b in zip(stack_a, stack_b, strict=True):
                call.write(b, _solved(call.read_triangle(a, uplo), uplo, call.read(b)))
            worked(call, devInfo)

        self._context.call(handle, function, run)

    def _geqrf(
        self, function: str, dtype: DType, handle: int, m: int, n: int, A: int, lda: int,
        tau: int, work: int, lwork: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(m >= 0, n >= 0, lda >= max(1, m))
        a, factors = matrix("A", A, m, n, lda, dtype), vector("tau", tau, min(m, n), 1, dtype)

        def run(call: Call) -> None:
            turned, scales = np.linalg.qr(call.read(a), "raw")
            call.write(a, turned.T)
            call.write(factors, scales)
            worked(call, devInfo)

        self._context.call(handle, function, run)

    def _orgqr(
        self, function: str, dtype: DType, handle: int, m: int, n: int, k: int, A: int, lda: int,
        tau: int, work: int, lwork: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(m >= 0, 0 <= n <= m, 0 <= k <= n, lda >= max(1, m))
        # Of A, the first k columns are read.
        reflectors, a = matrix("A", A, m, k, lda, dtype), matrix("A", A, m, n, lda, dtype)

        def run(call: Call) -> None:
            scales = call.read(vector("tau", tau, k, 1, dtype))
            q = blas.reflected(call.read(reflectors), scales, np.eye(m, n, dtype=dtype))
            call.write(a, q, in_place=True)
            worked(call, devInfo)

        self._context.call(handle, function, run)

    def _ormqr(
        self, function: str, dtype: DType, handle: int, side: int, trans: int, m: int, n: int,
        k: int, A: int, lda: int, tau: int, C: int, ldc: int, work: int, lwork: int, devInfo: int,
    ) -> None:  # fmt: skip
        order = m if side == blas.LEFT else n
        require(m >= 0, n >= 0, 0 <= k <= order, lda >= max(1, order), ldc >= max(1, m))
        a, c = matrix("A", A, order, k, lda, dtype), matrix("C", C, m, n, ldc, dtype)

        def run(call: Call) -> None:
            scales = call.read(vector("tau", tau, k, 1, dtype))
            left = side == blas.LEFT
            # C Q is the adjoint of the adjoint of Q times that of C.
            target = call.read(c) if left else call.read(c).conj().T
            adjoint = (trans != blas.OP_N) == left
            product = blas.reflected(call.read(a), scales, target, adjoint=adjoint)
            call.write(c, product if left else product.conj().T)
            worked(call, devInfo)

        self._context.call(handle, function, run)


def _solved(factor: Array, uplo: int, b: Array) -> Array:
    """Return x of ``L L^H x = b``, or of ``U^H U x = b``."""
    first, second = (blas.OP_N, blas.OP_C) if uplo == blas.LOWER else (blas.OP_C, blas.OP_N)
    y = blas.solve_triangular(factor, uplo, first, blas.NON_UNIT, b)
    return blas.solve_triangular(factor, uplo, second, blas.NON_UNIT, y)


def module(name: str, host: Host, wanted: str) -> Module:
    """Return the module."""
    made = Module(name, LIBRARY, wanted)
    context = Context(host)
    vars(made).update(_CONSTANTS, CUSOLVERError=CUSOLVERError)
    for part in (context, Factors(context), Eigen(context), SparseSystems(context)):
        vars(made).update(part.functions())
    return made
