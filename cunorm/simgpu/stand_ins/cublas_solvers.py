"""cuBLAS's functions of triangles, sums of matrices, and factors of many small matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .blas import typed
from .cublas_context import Context, require, stored
from .host import Call
from .operand import Operand, columns_of, matrix, vector

DType = np.dtype[Any]
_INT = np.dtype(np.int32)


class Solvers:
    """What cuBLAS has besides vectors and products.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        return {
            **typed("cublas", "{}trsm", self._trsm),
            **typed("cublas", "{}trsmBatched", self._trsm_batched),
            **typed("cublas", "{}syrk", self._syrk),
            **typed("cublas", "{}geam", self._geam),
            **typed("cublas", "{}dgmm", self._dgmm),
            **typed("cublas", "{}getrfBatched", self._getrf),
            **typed("cublas", "{}getrsBatched", self._getrs),
            **typed("cublas", "{}getriBatched", self._getri),
            **typed("cublas", "{}tpttr", self._tpttr, "sd"),
            **typed("cublas", "{}trttp", self._trttp, "sd"),
        }

    def _trsm(
        self, function: str, dtype: DType, handle: int, side: int, uplo: int, trans: int,
        diag: int, m: int, n: int, alpha: int, A: int, lda: int, B: int, ldb: int,
    ) -> None:  # fmt: skip
        order = m if side == blas.LEFT else n
        require(m >= 0, n >= 0, lda >= max(1, order), ldb >= max(1, m))
        a, b = matrix("A", A, order, order, lda, dtype), matrix("B", B, m, n, ldb, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)

        def run(call: Call) -> None:
            right = scale(call) * call.read(b)
            call.write(
                b,
                _solved(
                    call.read_triangle(a, uplo, strict=diag == blas.UNIT),
                    side,
                    uplo,
                    trans,
                    diag,
                    right,
                ),
            )

        self._context.call(handle, function, run)

    def _trsm_batched(
        self, function: str, dtype: DType, handle: int, side: int, uplo: int, trans: int,
        diag: int, m: int, n: int, alpha: int, Aarray: int, lda: int, Barray: int, ldb: int,
        batchCount: int,
    ) -> None:  # fmt: skip
        order = m if side == blas.LEFT else n
        require(m >= 0, n >= 0, lda >= max(1, order), ldb >= max(1, m), batchCount >= 0)
        like = matrix("A", 0, order, order, lda, dtype), matrix("B", 0, m, n, ldb, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)

        def run(call: Call) -> None:
            stack_a = call.batch("A", Aarray, batchCount, like[0])
            stack_b = call.batch("B", Barray, batchCount, like[1])
            for a, b in zip(stack_a, stack_b, strict=True):
                known = call.read_triangle(a, uplo, strict=diag == blas.UNIT)
                right = scale(call) * call.read(b)
                call.write(b, _solved(known, side, uplo, trans, diag, right))

        self._context.call(handle, function, run)

    def _syrk(
        self, function: str, dtype: DType, handle: int, uplo: int, trans: int, n: int, k: int,
        alpha: int, A: int, lda: int, beta: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        require(n >= 0, k >= 0, ldc >= max(1, n))
        a, c = stored("A", A, trans, n, k, lda, dtype), matrix("C", C, n, n, ldc, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)
        keep = self._context.scalar(handle, "beta", beta, dtype)

        def run(call: Call) -> None:
            # The other triangle of C is neither read nor written.
            factor = blas.applied(trans, call.read(a))
            found, kept = scale(call) * (factor @ factor.T), keep(call)
            for column in columns_of(c, uplo):
                values = found[column.rows, column.number]
                if kept != 0:
                    values = values + kept * call.read(column.operand)
                call.write(column.operand, values)

        self._context.call(handle, function, run)

    def _geam(
        self, function: str, dtype: DType, handle: int, transa: int, transb: int, m: int, n: int,
        alpha: int, A: int, lda: int, beta: int, B: int, ldb: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        require(m >= 0, n >= 0, ldc >= max(1, m))
        scale = self._context.scalar(handle, "alpha", alpha, dtype)
        scale_b = self._context.scalar(handle, "beta", beta, dtype)
        a = stored("A", A, transa, m, n, lda, dtype)
        b = stored("B", B, transb, m, n, ldb, dtype)
        c = matrix("C", C, m, n, ldc, dtype)
        # In place is allowed for a matrix that is not transposed.
        in_place = {(A, lda): transa, (B, ldb): transb}.get((C, ldc)) == blas.OP_N

        def run(call: Call) -> None:
            total = np.zeros((m, n), dtype)
            for factor, op, operand in ((scale, transa, a), (scale_b, transb, b)):
                # A matrix whose factor is 0 is not read, and may be no matrix at all.
                value = factor(call)
                if value != 0:
                    total += value * blas.applied(op, call.read(operand))
            call.write(c, total, in_place=in_place)

        self._context.call(handle, function, run)

    def _dgmm(
        self, function: str, dtype: DType, handle: int, mode: int, m: int, n: int, A: int,
        lda: int, x: int, incx: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        require(m >= 0, n >= 0, lda >= max(1, m), ldc >= max(1, m))
        a, c = matrix("A", A, m, n, lda, dtype), matrix("C", C, m, n, ldc, dtype)
        diagonal = vector("x", x, m if mode == blas.LEFT else n, incx, dtype)

        def run(call: Call) -> None:
            factors = call.read(diagonal)
            product = (factors[:, None] if mode == blas.LEFT else factors) * call.read(a)
            call.write(c, product, in_place=(A, lda) == (C, ldc))

        self._context.call(handle, function, run)

    def _getrf(
        self, function: str, dtype: DType, handle: int, n: int, Aarray: int, lda: int,
        PivotArray: int, infoArray: int, batchSize: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n), batchSize >= 0)
        like = matrix("A", 0, n, n, lda, dtype)

        def run(call: Call) -> None:
            info = np.zeros(batchSize, np.int32)
            for at, a in enumerate(call.batch("A", Aarray, batchSize, like)):
                factors, pivots, info[at] = blas.factor_lu(call.read(a), pivoting=PivotArray != 0)
                call.write(a, factors)
                if PivotArray:
                    call.write(_pivots(PivotArray, at, n), pivots)
            call.write(vector("infoArray", infoArray, batchSize, 1, _INT), info)

        self._context.call(handle, function, run)

    def _getrs(
        self, function: str, dtype: DType, handle: int, trans: int, n: int, nrhs: int,
        Aarray: int, lda: int, devIpiv: int, Barray: int, ldb: int, info: int, batchSize: int,
    ) -> int:  # fmt: skip
        require(n >= 0, nrhs >= 0, lda >= max(1, n), ldb >= max(1, n), batchSize >= 0)
        like = matrix("A", 0, n, n, lda, dtype), matrix("B", 0, n, nrhs, ldb, dtype)

        def run(call: Call) -> None:
            stack_a = call.batch("A", Aarray, batchSize, like[0])
            stack_b = call.batch("B", Barray, batchSize, like[1])
            for at, (a, b) in enumerate(zip(stack_a, stack_b, strict=True)):
                pivots = np.arange(1, n + 1)
                if devIpiv:
                    pivots = call.read(_pivots(devIpiv, at, n))
                call.write(b, blas.solve_lu(call.read(a), pivots, trans, call.read(b)))

        self._context.host.to_host(info, np.zeros((), np.int32), "info")
        self._context.call(handle, function, run)
        return 0

    def _getri(
        self, function: str, dtype: DType, handle: int, n: int, Aarray: int, lda: int,
        PivotArray: int, Carray: int, ldc: int, infoArray: int, batchSize: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n), ldc >= max(1, n), batchSize >= 0)
        like = matrix("A", 0, n, n, lda, dtype), matrix("C", 0, n, n, ldc, dtype)

        def run(call: Call) -> None:
            info = np.zeros(batchSize, np.int32)
            stack_a = call.batch("A", Aarray, batchSize, like[0])
            stack_c = call.batch("C", Carray, batchSize, like[1])
            for at, (a, c) in enumerate(zip(stack_a, stack_c, strict=True)):
                factors, pivots = call.read(a), np.arange(1, n + 1)
                if PivotArray:
                    pivots = call.read(_pivots(PivotArray, at, n))
                zeros = np.diagonal(factors) == 0
                info[at] = zeros.argmax() + 1 if zeros.any() else 0
                if not info[at]:
                    ones = np.eye(n, dtype=dtype)
                    call.write(c, blas.solve_lu(factors, pivots, blas.OP_N, ones))
            call.write(vector("infoArray", infoArray, batchSize, 1, _INT), info)

        self._context.call(handle, function, run)

    def _tpttr(
        self, function: str, dtype: DType, handle: int, uplo: int, n: int, AP: int, A: int, lda: int
    ) -> None:
        require(n >= 0, lda >= max(1, n))
        packed = vector("AP", AP, n * (n + 1) // 2, 1, dtype)
        target = matrix("A", A, n, n, lda, dtype)

        def run(call: Call) -> None:
            values, start = call.read(packed), 0
            for column in columns_of(target, uplo):
                (length,) = column.operand.shape
                call.write(column.operand, values[start : start + length])
                start += length

        self._context.call(handle, function, run)

    def _trttp(
        self, function: str, dtype: DType, handle: int, uplo: int, n: int, A: int, lda: int, AP: int
    ) -> None:
        require(n >= 0, lda >= max(1, n))
        source = matrix("A", A, n, n, lda, dtype)
        packed = vector("AP", AP, n * (n + 1) // 2, 1, dtype)

        def run(call: Call) -> None:
            columns = [call.read(column.operand) for column in columns_of(source, uplo)]
            call.write(packed, np.concatenate([*columns, np.zeros(0, dtype)]))

        self._context.call(handle, function, run)


def _pivots(address: int, at: int, n: int) -> Operand:
    return vector(f"PivotArray[{at}]", address + at * n * _INT.itemsize, n, 1, _INT)


def _solved(a: Array, side: int, uplo: int, trans: int, diag: int, b: Array) -> Array:
    if side == blas.LEFT:
        return blas.solve_triangular(a, uplo, trans, diag, b)
    # X op(A) = B is op(A)^T X^T = B^T, and the transpose of A^H is the conjugate of A.
    if trans == blas.OP_N:
        return blas.solve_triangular(a, uplo, blas.OP_T, diag, b.T).T
    known = a.conj() if trans == blas.OP_C else a
    return blas.solve_triangular(known, uplo, blas.OP_N, diag, b.T).T
