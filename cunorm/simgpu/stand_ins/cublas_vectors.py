"""cuBLAS's functions of vectors, and of a matrix and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .blas import typed
from .cublas_context import Context, require
from .host import Call
from .operand import matrix, vector

DType = np.dtype[Any]


class Vectors:
    """Levels 1 and 2 of BLAS.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        real, complex_ = "sd", "cz"

        def of(pattern: str, function: Callable[..., object], letters: str = "sdcz") -> Any:
            return typed("cublas", pattern, function, letters)

        return {
            **of("i{}amax", self._largest),
            **of("i{}amin", self._smallest),
            **of("{}asum", self._asum, real),
            **of("s{}asum", self._asum, "c"),
            **of("d{}asum", self._asum, "z"),
            **of("{}nrm2", self._nrm2, real),
            **of("s{}nrm2", self._nrm2, "c"),
            **of("d{}nrm2", self._nrm2, "z"),
            **of("{}axpy", self._axpy),
            **of("{}dot", self._dot, real),
            **of("{}dotu", self._dot, complex_),
            **of("{}dotc", self._dotc, complex_),
            **of("{}scal", self._scal),
            **of("{}sscal", self._scal_by_real, "c"),
            **of("{}dscal", self._scal_by_real, "z"),
            **of("{}gemv", self._gemv),
            **of("{}ger", self._ger, real),
            **of("{}geru", self._ger, complex_),
            **of("{}gerc", self._gerc, complex_),
            **of("{}sbmv", self._sbmv, real),
        }

    def _reduce(
        self,
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        x: int,
        incx: int,
        result: int,
        reduction: Callable[[Array], Array],
    ) -> None:
        """Write a number that is made of one vector; of none it is 0."""
        elements = vector("x", x, n if incx > 0 else 0, incx, dtype)

        def run(call: Call) -> None:
            self._context.result(handle, call, result, reduction(call.read(elements)))

        self._context.call(handle, function, run)

    def _largest(self, function: str, dtype: DType, *arguments: int) -> None:
        self._reduce(function, dtype, *arguments, reduction=lambda x: _position(x, np.argmax))

    def _smallest(self, function: str, dtype: DType, *arguments: int) -> None:
        self._reduce(function, dtype, *arguments, reduction=lambda x: _position(x, np.argmin))

    def _asum(self, function: str, dtype: DType, *arguments: int) -> None:
        kind = blas.real(dtype)
        self._reduce(function, dtype, *arguments, reduction=lambda x: _size(x).sum(dtype=kind))

    def _nrm2(self, function: str, dtype: DType, *arguments: int) -> None:
        def norm(x: Array) -> Array:
            # As BLAS does, it scales: no square overflows where the norm does not.
            largest = np.abs(x).max(initial=0)
            if largest == 0 or not np.isfinite(largest):
                return blas.real(dtype).type(largest)
            return blas.real(dtype).type(largest * np.linalg.norm(x / largest))

        self._reduce(function, dtype, *arguments, reduction=norm)

    def _axpy(
        self,
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        alpha: int,
        x: int,
        incx: int,
        y: int,
        incy: int,
    ) -> None:
        scale = self._context.scalar(handle, "alpha", alpha, dtype)
        source, target = vector("x", x, n, incx, dtype), vector("y", y, n, incy, dtype)

        def run(call: Call) -> None:
            total = call.read(target) + scale(call) * call.read(source)
            call.write(target, total, in_place=(x, incx) == (y, incy))

        self._context.call(handle, function, run)

    def _dot(
        self,
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        x: int,
        incx: int,
        y: int,
        incy: int,
        result: int,
        multiply: Callable[[Array, Array], Array] = np.dot,
    ) -> None:
        one, other = vector("x", x, n, incx, dtype), vector("y", y, n, incy, dtype)

        def run(call: Call) -> None:
            value = dtype.type(multiply(call.read(one), call.read(other)))
            self._context.result(handle, call, result, value)

        self._context.call(handle, function, run)

    def _dotc(self, function: str, dtype: DType, *arguments: int) -> None:
        self._dot(function, dtype, *arguments, multiply=np.vdot)

    def _scal(
        self,
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        alpha: int,
        x: int,
        incx: int,
        scale_type: DType | None = None,
    ) -> None:
        scale = self._context.scalar(handle, "alpha", alpha, scale_type or dtype)
        elements = vector("x", x, n if incx > 0 else 0, incx, dtype)

        def run(call: Call) -> None:
            call.write(elements, scale(call) * call.read(elements))

        self._context.call(handle, function, run)

    def _scal_by_real(self, function: str, dtype: DType, *arguments: int) -> None:
        self._scal(function, dtype, *arguments, scale_type=blas.real(dtype))

    def _gemv(
        self,
        function: str,
        dtype: DType,
        handle: int,
        trans: int,
        m: int,
        n: int,
        alpha: int,
        A: int,
        lda: int,
        x: int,
        incx: int,
        beta: int,
        y: int,
        incy: int,
    ) -> None:
        require(m >= 0, n >= 0, lda >= max(1, m), incx != 0, incy != 0)
        long_x, long_y = (n, m) if trans == blas.OP_N else (m, n)
        a = matrix("A", A, m, n, lda, dtype)
        source, target = vector("x", x, long_x, incx, dtype), vector("y", y, long_y, incy, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)
        keep = self._context.scalar(handle, "beta", beta, dtype)

        def run(call: Call) -> None:
            found = scale(call) * (blas.applied(trans, call.read(a)) @ call.read(source))
            kept = keep(call)
            call.write(target, found + kept * call.read(target) if kept != 0 else found)

        self._context.call(handle, function, run)

    def _ger(
        self,
        function: str,
        dtype: DType,
        handle: int,
        m: int,
        n: int,
        alpha: int,
        x: int,
        incx: int,
        y: int,
        incy: int,
        A: int,
        lda: int,
        conjugate: bool = False,
    ) -> None:
        require(m >= 0, n >= 0, lda >= max(1, m), incx != 0, incy != 0)
        a = matrix("A", A, m, n, lda, dtype)
        column, row = vector("x", x, m, incx, dtype), vector("y", y, n, incy, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)

        def run(call: Call) -> None:
            right = call.read(row).conj() if conjugate else call.read(row)
            call.write(a, call.read(a) + scale(call) * np.outer(call.read(column), right))

        self._context.call(handle, function, run)

    def _gerc(self, function: str, dtype: DType, *arguments: int) -> None:
        self._ger(function, dtype, *arguments, conjugate=True)

    def _sbmv(
        self,
        function: str,
        dtype: DType,
        handle: int,
        uplo: int,
        n: int,
        k: int,
        alpha: int,
        A: int,
        lda: int,
        x: int,
        incx: int,
        beta: int,
        y: int,
        incy: int,
    ) -> None:
        require(n >= 0, k >= 0, lda >= k + 1, incx != 0, incy != 0)
        # A's columns hold the diagonals: the main one in the first row of a lower matrix, in the
        # last of an upper one. What lies outside of the matrix is not read.
        source, target = vector("x", x, n, incx, dtype), vector("y", y, n, incy, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)
        keep = self._context.scalar(handle, "beta", beta, dtype)

        def run(call: Call) -> None:
            whole = np.zeros((n, n), dtype)
            for away in range(min(k, n - 1) + 1 if n else 0):
                first = away if uplo == blas.LOWER else k - away + away * lda
                address = A + first * dtype.itemsize
                diagonal = call.read(vector(f"A (diagonal {away})", address, n - away, lda, dtype))
                at = np.arange(n - away)
                whole[at + away, at] = whole[at, at + away] = diagonal
            found, kept = scale(call) * (whole @ call.read(source)), keep(call)
            call.write(target, found + kept * call.read(target) if kept != 0 else found)

        self._context.call(handle, function, run)


def _size(x: Array) -> Array:
    """Return BLAS's size of each element: of a complex one, |Re| + |Im|."""
    return np.abs(x.real) + np.abs(x.imag) if np.iscomplexobj(x) else np.abs(x)


def _position(x: Array, find: Callable[[Array], Any]) -> Array:
    """Return where `find` finds an element, counted from 1."""
    return np.int32(find(_size(x)) + 1 if x.size else 0)
