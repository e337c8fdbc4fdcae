"""cuSOLVER's eigenvalues and singular values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .blas import named, typed
from .cusolver_context import LIBRARY, Context, require, worked
from .host import Call, not_emulated
from .operand import Operand, matrix, vector

DType = np.dtype[Any]
_NO_CONVERGENCE = 1  # the info where LAPACK finds no values: of how many it did not is not known


class Eigen:
    """The functions.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        found: dict[str, Callable[..., object]] = {}
        for name, letters in (("{}syevd", "sd"), ("{}heevd", "cz")):
            found |= typed("cusolverDn", name, self._syevd, letters)
            size = f"{name}_bufferSize"
            found |= typed("cusolverDn", size, self._context.working_memory, letters)
        found |= typed("cusolverDn", "{}gesvd", self._gesvd)
        found |= typed("cusolverDn", "{}gesvd_bufferSize", self._context.working_memory)
        for name in ("xsyevd", "xgeev"):
            found[f"{name}_bufferSize"] = named(f"{name}_bufferSize", self._bytes)
        found["xsyevd"] = named("xsyevd", self._xsyevd)
        found["xgeev"] = named("xgeev", self._xgeev)
        return found

    def _bytes(self, handle: int, *_: int) -> tuple[int, int]:
        """Return bytes to work in on the device and on the host."""
        return 1, 1

    def _symmetric(
        self, handle: int, function: str, jobz: int, uplo: int, a: Operand, values: Operand,
        info: int,
    ) -> None:  # fmt: skip
        def run(call: Call) -> None:
            known = call.read_triangle(a, uplo)
            found, vectors, failed = eigen_symmetric(known, uplo)
            call.write(values, found)
            if jobz:
                call.write(a, vectors, in_place=True)
            worked(call, info, failed)

        self._context.call(handle, function, run)

    def _syevd(
        self, function: str, dtype: DType, handle: int, jobz: int, uplo: int, n: int, A: int,
        lda: int, W: int, work: int, lwork: int, info: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n))
        a, values = matrix("A", A, n, n, lda, dtype), vector("W", W, n, 1, blas.real(dtype))
        self._symmetric(handle, function, jobz, uplo, a, values, info)

    def _xsyevd(
        self, handle: int, params: int, jobz: int, uplo: int, n: int, dataTypeA: int, A: int,
        lda: int, dataTypeW: int, W: int, computeType: int, bufferOnDevice: int,
        workspaceInBytesOnDevice: int, bufferOnHost: int, workspaceInBytesOnHost: int, info: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n))
        types = _types("cusolverDnXsyevd", dataTypeA, dataTypeW)
        a, values = matrix("A", A, n, n, lda, types[0]), vector("W", W, n, 1, types[1])
        self._symmetric(handle, "cusolverDnXsyevd", jobz, uplo, a, values, info)

    def _xgeev(
        self, handle: int, params: int, jobvl: int, jobvr: int, n: int, dataTypeA: int, A: int,
        lda: int, dataTypeW: int, W: int, dataTypeVL: int, VL: int, ldvl: int, dataTypeVR: int,
        VR: int, ldvr: int, computeType: int, bufferOnDevice: int, workspaceInBytesOnDevice: int,
        bufferOnHost: int, workspaceInBytesOnHost: int, info: int,
    ) -> None:  # fmt: skip
        require(n >= 0, lda >= max(1, n), not jobvl)  # cuSOLVER has no left ones
        types = _types("cusolverDnXgeev", dataTypeA, dataTypeW, dataTypeVR)
        a, values = matrix("A", A, n, n, lda, types[0]), vector("W", W, n, 1, types[1])

        def run(call: Call) -> None:
            found, vectors, failed = eigen(call.read(a))
            call.write(values, found)
            if jobvr:
                if types[2].kind == "f":
                    vectors = blas.packed_eigenvectors(found, vectors)
                call.write(matrix("VR", VR, n, n, ldvr, types[2]), vectors)
            worked(call, info, failed)

        self._context.call(handle, "cusolverDnXgeev", run)

    def _gesvd(
        self, function: str, dtype: DType, handle: int, jobu: int, jobvt: int, m: int, n: int,
        A: int, lda: int, S: int, U: int, ldu: int, VT: int, ldvt: int, Work: int, lwork: int,
        rwork: int, devInfo: int,
    ) -> None:  # fmt: skip
        require(m >= n >= 0, lda >= max(1, m), *(chr(job) in "ASON" for job in (jobu, jobvt)))
        a, values = matrix("A", A, m, n, lda, dtype), vector("S", S, n, 1, blas.real(dtype))
        columns = {"A": m, "S": n}.get(chr(jobu))
        is_full = chr(jobu) == "A"

        def run(call: Call) -> None:
            u, found, vh, failed = singular(call.read(a), is_full)
            call.write(values, found)
            if columns is not None:
                call.write(matrix("U", U, m, columns, ldu, dtype), u[:, :columns])
            if chr(jobvt) in "AS":
                call.write(matrix("VT", VT, n, n, ldvt, dtype), vh)
            if chr(jobu) == "O":
                call.write(a, u[:, :n])
            if chr(jobvt) == "O":
                call.write(matrix("A", A, n, n, lda, dtype), vh, in_place=True)
            worked(call, devInfo, failed)

        self._context.call(handle, function, run)


def eigen_symmetric(a: Array, uplo: int) -> tuple[Array, Array, int]:
    """Return eigenvalues and vectors of a symmetric matrix, or of each in a stack, and the info."""
    try:
        values, vectors = np.linalg.eigh(a, "L" if uplo == blas.LOWER else "U")
    except np.linalg.LinAlgError:
        values = np.full(a.shape[:-1], np.nan, blas.real(a.dtype))
        return values, np.full_like(a, np.nan), _NO_CONVERGENCE
    return values, vectors, 0


def eigen(a: Array) -> tuple[Array, Array, int]:
    """Return eigenvalues and right eigenvectors of a matrix, and the info."""
    try:
        values, vectors = np.linalg.eig(a)
    except np.linalg.LinAlgError:
        return np.full(a.shape[0], np.nan), np.full(a.shape, np.nan), _NO_CONVERGENCE
    return values, vectors, 0


def singular(a: Array, full_matrices: bool) -> tuple[Array, Array, Array, int]:
    """Return U, the singular values and V^H of a matrix, or of each in a stack, and the info."""
    try:
        u, values, vh = np.linalg.svd(a, full_matrices)
    except np.linalg.LinAlgError:
        u, values, vh = np.linalg.svd(np.zeros_like(a), full_matrices)
        holes = (np.full_like(each, np.nan) for each in (u, values, vh))
        return (*holes, _NO_CONVERGENCE)  # type: ignore[return-value]
    return u, values, vh, 0


def _types(function: str, *numbers: int) -> list[DType]:
    """Return the types behind cudaDataType numbers."""
    known = [blas.DATA_TYPES.get(number) for number in numbers]
    types = [dtype for dtype in known if dtype in blas.TYPES.values() and dtype is not None]
    if len(types) < len(numbers):
        raise not_emulated(LIBRARY, "linear algebra", f"{function} of cudaDataType {numbers}")
    return types
