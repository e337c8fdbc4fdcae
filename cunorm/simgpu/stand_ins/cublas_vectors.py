"""cuBLAS's functions of vectors, and of a matrix and vectors.

As in BLAS, what is multiplied by an alpha or a beta of 0 is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

        # Of complex numbers the sizes are real: their functions have two letters.
        return {
            **of("i{}amax", partial(self._reduce, _largest)),
            **of("i{}amin", partial(self._reduce, _smallest)),
            **of("{}asum", partial(self._reduce, _sum_of_sizes), real),
            **of("s{}asum", partial(self._reduce, _sum_of_sizes), "c"),
            **of("d{}asum", partial(self._reduce, _sum_of_sizes), "z"),
            **of("{}nrm2", partial(self._reduce, _norm), real),
            **of("s{}nrm2", partial(self._reduce, _norm), "c"),
            **of("d{}nrm2", partial(self._reduce, _norm), "z"),
            **of("{}axpy", self._axpy),
            **of("{}dot", partial(self._dot, np.dot), real),
            **of("{}dotu", partial(self._dot, np.dot), complex_),
            **of("{}dotc", partial(self._dot, np.vdot), complex_),
            **of("{}scal", partial(self._scal, False)),
            **of("{}sscal", partial(self._scal, True), "c"),
            **of("{}dscal", partial(self._scal, True), "z"),
            **of("{}gemv", self._gemv),
            **of("{}ger", partial(self._ger, False), real),
            **of("{}geru", partial(self._ger, False), complex_),
            **of("{}gerc", partial(self._ger, True), complex_),
            **of("{}sbmv", self._sbmv, real),
        }

    def _reduce(
        self,
        reduction: Callable[[Array], Array],
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        x: int,
        incx: int,
        result: int,
    ) -> None:
        """Write a number that is made of one vector; of none it is 0."""
        elements = vector("x", x, n if incx > 0 else 0, incx, dtype)

        def run(call: Call) -> None:
            self._context.result(handle, call, result, reduction(call.read(elements)))

        self._context.call(handle, function, run)

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
            factor = scale(call)
            if factor != 0:
                total = call.read(target) + factor * call.read(source)
                call.write(target, total, in_place=(x, incx) == (y, incy))

        self._context.call(handle, function, run)

    def _dot(
        self,
        multiply: Callable[[Array, Array], Any],
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        x: int,
        incx: int,
        y: int,
        incy: int,
        result: int,
    ) -> None:
        one, other = vector("x", x, n, incx, dtype), vector("y", y, n, incy, dtype)

        def run(call: Call) -> None:
            value = np.asarray(multiply(call.read(one), call.read(other)), dtype)
            self._context.result(handle, call, result, value)

        self._context.call(handle, function, run)

    def _scal(
        self,
        by_real: bool,
        function: str,
        dtype: DType,
        handle: int,
        n: int,
        alpha: int,
        x: int,
        incx: int,
    ) -> None:
        scale_type = blas.real(dtype) if by_real else dtype
        scale = self._context.scalar(handle, "alpha", alpha, scale_type)
        elements = vector("x", x, n if incx > 0 else 0, incx, dtype)

        def run(call: Call) -> None:
            call.write(elements, scale(call) * call.read(elements))

        self._context.call(handle, function, run)

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
            found, factor, kept = np.zeros(long_y, dtype), scale(call), keep(call)
            if factor != 0:
                found = factor * (blas.applied(trans, call.read(a)) @ call.read(source))
            call.write(target, found + kept * call.read(target) if kept != 0 else found)

        self._context.call(handle, function, run)

    def _ger(
        self,
        conjugate: bool,
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
    ) -> None:
        require(m >= 0, n >= 0, lda >= max(1, m), incx != 0, incy != 0)
        a = matrix("A", A, m, n, lda, dtype)
        column, row = vector("x", x, m, incx, dtype), vector("y", y, n, incy, dtype)
        scale = self._context.scalar(handle, "alpha", alpha, dtype)

        def run(call: Call) -> None:
            factor = scale(call)
            if factor != 0:
                right = call.read(row).conj() if conjugate else call.read(row)
                call.write(a, call.read(a) + factor * np.outer(call.read(column), right))

        self._context.call(handle, function, run)

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


def _largest(x: Array) -> Array:
    """Return where the largest element is, counted from 1."""
    return np.asarray(_size(x).argmax() + 1 if x.size else 0, np.int32)


def _smallest(x: Array) -> Array:
    """Return where the smallest element is, counted from 1."""
    return np.asarray(_size(x).argmin() + 1 if x.size else 0, np.int32)


def _sum_of_sizes(x: Array) -> Array:
    return np.asarray(_size(x).sum(dtype=blas.real(x.dtype)))


def _norm(x: Array) -> Array:
    # As BLAS does, it scales: no square overflows where the norm does not.
    norm = largest = np.abs(x).max(initial=0)
    if largest > 0 and np.isfinite(largest):
        norm = largest * np.linalg.norm(x / largest)
    return np.asarray(norm, blas.real(x.dtype))
