"""cuSPARSE's generic functions: products, triangular systems, and dense matrices made sparse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .cusparse_descriptors import CONSTANTS, Context
from .host import Call
from .sparse import Sparse, summed

_UPPER, _UNIT = CONSTANTS["FILL_MODE_UPPER"], CONSTANTS["DIAG_TYPE_UNIT"]


class Products:
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
        names = ["spMV", "spMM", "gather", "denseToSparse_analysis", "denseToSparse_convert"]
        names += ["sparseToDense", "spGEMM_compute", "spGEMM_copy", "spSM_solve"]
        sizes = ["spMV_bufferSize", "spMM_bufferSize", "denseToSparse_bufferSize"]
        sizes += ["sparseToDense_bufferSize", "spGEMM_workEstimation", "spSM_bufferSize"]
        found = {name: getattr(self, name) for name in names}
        found |= dict.fromkeys(sizes, lambda *_: 1)
        found["spSM_analysis"] = lambda *_: None
        for name in ("spGEMM", "spSM"):
            found[f"{name}_createDescr"] = lambda: self._context.describe([])
            found[f"{name}_destroyDescr"] = self._context.forget
        return found

    def gather(self, handle: int, vecY: int, vecX: int) -> None:
        """Write the elements of a vector that the indices of a sparse one name."""
        source, (indices, values) = self._context.get(vecY), self._context.get(vecX)

        def run(call: Call) -> None:
            call.write(values, call.read(source)[call.read(indices)])

        self._context.call(handle, "cusparseGather", run)

    def spMV(
        self, handle: int, opA: int, alpha: int, matA: int, vecX: int, beta: int, vecY: int,
        computeType: int, alg: int, buffer: int,
    ) -> None:  # fmt: skip
        """Write ``alpha op(A) x + beta y``."""
        a, x, y = map(self._context.get, (matA, vecX, vecY))
        self._multiply(handle, "cusparseSpMV", (opA, blas.OP_N), (alpha, beta), (a, x, y))

    def spMM(
        self, handle: int, opA: int, opB: int, alpha: int, matA: int, matB: int, beta: int,
        matC: int, computeType: int, alg: int, buffer: int,
    ) -> None:  # fmt: skip
        """Write ``alpha op(A) op(B) + beta C``."""
        a, b, c = map(self._context.get, (matA, matB, matC))
        self._multiply(handle, "cusparseSpMM", (opA, opB), (alpha, beta), (a, b, c))

    def _multiply(
        self, handle: int, function: str, ops: tuple[int, int], scales: tuple[int, int],
        operands: tuple[Sparse, Any, Any],
    ) -> None:  # fmt: skip
        a, b, c = operands
        alpha = self._context.scalar("alpha", scales[0], a.dtype)
        beta = self._context.scalar("beta", scales[1], a.dtype)

        def run(call: Call) -> None:
            rows, cols, values = _turned(a.read(call), ops[0])
            right = call.read(b)
            right = blas.applied(ops[1], right) if right.ndim == 2 else right
            found = np.zeros(c.shape, a.dtype)
            weights = alpha * values
            np.add.at(found, rows, (weights[:, None] if found.ndim == 2 else weights) * right[cols])
            call.write(c, found + beta * call.read(c) if beta != 0 else found)

        self._context.call(handle, function, run)

    def denseToSparse_analysis(
        self, handle: int, matA: int, matB: int, alg: int, buffer: int
    ) -> None:
        """Count the elements that are not 0, and write the offsets."""
        dense, sparse = self._context.get(matA), self._context.get(matB)

        def run(call: Call) -> None:
            rows, cols = _places(call.read(dense), sparse)
            sparse.nnz = rows.size
            if sparse.format != "coo":
                counted = np.bincount(cols if sparse.format == "csc" else rows,
                                      minlength=sparse.extents[0])  # fmt: skip
                call.write(sparse.offsets(), np.concatenate([[0], np.cumsum(counted)]))

        self._context.call(handle, "cusparseDenseToSparse_analysis", run)

    def denseToSparse_convert(
        self, handle: int, matA: int, matB: int, alg: int, buffer: int
    ) -> None:
        """Write the elements that are not 0."""
        dense, sparse = self._context.get(matA), self._context.get(matB)

        def run(call: Call) -> None:
            values = call.read(dense)
            rows, cols = _places(values, sparse)
            sparse.write(call, rows, cols, values[rows, cols])

        self._context.call(handle, "cusparseDenseToSparse_convert", run)

    def sparseToDense(self, handle: int, matA: int, matB: int, alg: int, buffer: int) -> None:
        """Write a sparse matrix as a dense one."""
        sparse, dense = self._context.get(matA), self._context.get(matB)

        def run(call: Call) -> None:
            rows, cols, values = sparse.read(call)
            whole = np.zeros(dense.shape, dense.dtype)
            np.add.at(whole, (rows, cols), values)
            call.write(dense, whole)

        self._context.call(handle, "cusparseSparseToDense", run)

    def spGEMM_compute(
        self, handle: int, opA: int, opB: int, alpha: int, matA: int, matB: int, beta: int,
        matC: int, computeType: int, alg: int, descr: int, bufferSize: int, buffer: int,
    ) -> int:  # fmt: skip
        """Multiply two sparse matrices, and keep the product until it is copied."""
        if not bufferSize:
            return 1
        a, b, c = map(self._context.get, (matA, matB, matC))
        scale, kept = self._context.scalar("alpha", alpha, a.dtype), self._context.get(descr)

        def run(call: Call) -> None:
            left, right = _turned(a.read(call), opA), _turned(b.read(call), opB)
            kept[:] = _product(left, right, scale)
            c.nnz = kept[0].size

        self._context.call(handle, "cusparseSpGEMM_compute", run)
        return bufferSize

    def spGEMM_copy(
        self, handle: int, opA: int, opB: int, alpha: int, matA: int, matB: int, beta: int,
        matC: int, computeType: int, alg: int, descr: int,
    ) -> None:  # fmt: skip
        """Write the product."""
        c, kept = self._context.get(matC), self._context.get(descr)
        self._context.call(handle, "cusparseSpGEMM_copy", lambda call: c.write(call, *kept))

    def spSM_solve(
        self, handle: int, opA: int, opB: int, alpha: int, matA: int, matB: int, matC: int,
        computeType: int, alg: int, descr: int, buffer: int = 0,
    ) -> None:  # fmt: skip
        """Write the solution of ``op(A) C = alpha op(B)`` with a triangle of A."""
        a, b, c = map(self._context.get, (matA, matB, matC))
        scale, attributes = self._context.scalar("alpha", alpha, a.dtype), replace(a).attributes
        upper = attributes.get(CONSTANTS["SPMAT_FILL_MODE"], 0) == _UPPER
        unit = attributes.get(CONSTANTS["SPMAT_DIAG_TYPE"], 0) == _UNIT

        def run(call: Call) -> None:
            rows, cols, values = a.read(call)
            inside = rows <= cols if upper else rows >= cols
            part = _turned((rows[inside], cols[inside], values[inside]), opA)
            right = scale * blas.applied(opB, call.read(b))
            forward = upper == (opA != blas.OP_N)
            call.write(c, _substituted(part, right, forward=forward, unit=unit))

        self._context.call(handle, "cusparseSpSM_solve", run)


def _turned(elements: tuple[Array, Array, Array], op: int) -> tuple[Array, Array, Array]:
    """Return the elements of a matrix, of its transpose or its conjugate transpose."""
    rows, cols, values = elements
    if op == blas.OP_N:
        return elements
    return cols, rows, values.conj() if op == blas.OP_C else values


def _places(values: Array, sparse: Sparse) -> tuple[Array, Array]:
    """Return rows and columns of the elements that are not 0, in the order of the format."""
    if sparse.format == "csc":
        cols, rows = np.nonzero(values.T)
        return rows, cols
    rows, cols = np.nonzero(values)
    return rows, cols


def _product(
    left: tuple[Array, Array, Array], right: tuple[Array, Array, Array], scale: Any
) -> tuple[Array, Array, Array]:
    """Return the elements of a product: each of the left meets a row of the right."""
    order = np.argsort(right[0], kind="stable")
    rows, cols, values = (each[order] for each in right)
    first = np.searchsorted(rows, left[1], "left")
    counts = np.searchsorted(rows, left[1], "right") - first
    which = np.repeat(np.arange(counts.size), counts)
    within = np.arange(which.size) - np.repeat(np.cumsum(counts) - counts, counts)
    met = first[which] + within
    products = scale * left[2][which] * values[met]
    return summed(left[0][which], cols[met], products.astype(left[2].dtype, copy=False))


def _substituted(
    elements: tuple[Array, Array, Array], right: Array, *, forward: bool, unit: bool
) -> Array:
    """Return the solution of a triangular system, row by row."""
    order = np.argsort(elements[0], kind="stable")
    rows, cols, values = (each[order] for each in elements)
    x = np.array(right, copy=True)
    count = x.shape[0]
    starts = np.searchsorted(rows, np.arange(count + 1))
    for row in range(count) if forward else reversed(range(count)):
        here = slice(starts[row], starts[row + 1])
        others = cols[here] != row
        x[row] -= values[here][others] @ x[cols[here][others]]
        if not unit:
            x[row] /= values[here][~others].sum()
    return x
