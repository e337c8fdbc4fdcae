"""cuSPARSE as CuPy imports it: `cupy_backends.cuda.libs.cusparse`.

Its functions that CuPy's sparse matrices use, but for tridiagonal systems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .blas import typed
from .cusparse_descriptors import CONSTANTS, LIBRARY, Context, CuSparseError, values_of
from .cusparse_factors import Factors
from .cusparse_products import Products
from .host import Call, Host, Module
from .operand import vector
from .sparse import Sparse, compressed, expanded, summed

DType = np.dtype[Any]
_INT = np.dtype(np.int32)


class Conversions:
    """Formats, orders and sums of sparse matrices, whose indices are ints.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        names = ["xcoo2csr", "xcsr2coo", "createIdentityPermutation", "xcsrsort", "xcscsort"]
        names += ["xcoosortByRow", "xcoosortByColumn", "xcsrgeam2Nnz", "csr2cscEx2"]
        sizes = ["xcsrsort_bufferSizeExt", "xcscsort_bufferSizeExt", "xcoosort_bufferSizeExt"]
        return {
            **{name: getattr(self, name) for name in names},
            **dict.fromkeys([*sizes, "csr2cscEx2_bufferSize"], one),
            **typed("cusparse", "{}csrgeam2_bufferSizeExt", one),
            **typed("cusparse", "{}csrgeam2", self._csrgeam2),
            **typed("cusparse", "{}nnz_compress", self._nnz_compress),
            **typed("cusparse", "{}csr2csr_compress", self._csr2csr_compress),
        }

    def xcoo2csr(self, handle: int, rows: int, nnz: int, m: int, offsets: int, base: int) -> None:
        """Write the offsets of sorted rows."""
        source = vector("cooRowInd", rows, nnz, 1, _INT)

        def run(call: Call) -> None:
            target = vector("csrRowPtr", offsets, m + 1, 1, _INT)
            call.write(target, compressed(call.read(source), m))

        self._context.call(handle, "cusparseXcoo2csr", run)

    def xcsr2coo(self, handle: int, offsets: int, nnz: int, m: int, rows: int, base: int) -> None:
        """Write the row of each element."""
        source = vector("csrRowPtr", offsets, m + 1, 1, _INT)

        def run(call: Call) -> None:
            target = vector("cooRowInd", rows, nnz, 1, _INT)
            call.write(target, expanded(call, call.read(source), nnz))

        self._context.call(handle, "cusparseXcsr2coo", run)

    def createIdentityPermutation(self, handle: int, n: int, p: int) -> None:
        """Write 0, 1, 2, ..."""

        def run(call: Call) -> None:
            call.write(vector("p", p, n, 1, _INT), np.arange(n))

        self._context.call(handle, "cusparseCreateIdentityPermutation", run)

    def xcsrsort(
        self, handle: int, m: int, n: int, nnz: int, descr: int, offsets: int, indices: int,
        p: int, buffer: int, function: str = "cusparseXcsrsort",
    ) -> None:  # fmt: skip
        """Sort the indices of each row, and a permutation with them."""

        def run(call: Call) -> None:
            rows = expanded(call, call.read(vector("offsets", offsets, m + 1, 1, _INT)), nnz)
            columns, moved = (
                vector("indices", indices, nnz, 1, _INT),
                vector("P", p, nnz, 1, _INT),
            )
            found, before = call.read(columns), call.read(moved)
            order = np.lexsort((found, rows))
            found, before = found[order], before[order]
            call.write(columns, found)
            call.write(moved, before)

        self._context.call(handle, function, run)

    def xcscsort(
        self, handle: int, m: int, n: int, nnz: int, descr: int, offsets: int, indices: int,
        p: int, buffer: int,
    ) -> None:  # fmt: skip
        """Sort the indices of each column, and a permutation with them."""
        arguments = (nnz, descr, offsets, indices, p, buffer)
        self.xcsrsort(handle, n, m, *arguments, "cusparseXcscsort")

    def xcoosortByRow(
        self, handle: int, m: int, n: int, nnz: int, rows: int, cols: int, p: int, buffer: int,
        function: str = "cusparseXcoosortByRow",
    ) -> None:  # fmt: skip
        """Sort elements by row and column, and a permutation with them."""
        names = ("cooRows", "cooCols", "P")
        arrays = [
            vector(name, at, nnz, 1, _INT) for name, at in zip(names, (rows, cols, p), strict=True)
        ]

        def run(call: Call) -> None:
            found = [call.read(each) for each in arrays]
            order = np.lexsort((found[1], found[0]))
            for array, values in zip(arrays, [each[order] for each in found], strict=True):
                call.write(array, values)

        self._context.call(handle, function, run)

    def xcoosortByColumn(
        self, handle: int, m: int, n: int, nnz: int, rows: int, cols: int, p: int, buffer: int
    ) -> None:
        """Sort elements by column and row, and a permutation with them."""
        self.xcoosortByRow(handle, n, m, nnz, cols, rows, p, buffer, "cusparseXcoosortByColumn")

    def csr2cscEx2(
        self, handle: int, m: int, n: int, nnz: int, values: int, offsets: int, indices: int,
        csc_values: int, csc_offsets: int, csc_indices: int, dtype: int, action: int, base: int,
        algorithm: int, buffer: int,
    ) -> None:  # fmt: skip
        """Write the same matrix in CSC."""
        kind = values_of(dtype)
        source = Sparse("csr", m, n, nnz, offsets, indices, values, _INT, kind)
        target = Sparse("csc", m, n, nnz, csc_offsets, csc_indices, csc_values, _INT, kind)

        def run(call: Call) -> None:
            rows, cols, elements = source.read(call)
            order = np.lexsort((rows, cols))
            target.write(call, rows[order], cols[order], elements[order])

        self._context.call(handle, "cusparseCsr2cscEx2", run)

    def xcsrgeam2Nnz(
        self, handle: int, m: int, n: int, descrA: int, nnzA: int, offsetsA: int, indicesA: int,
        descrB: int, nnzB: int, offsetsB: int, indicesB: int, descrC: int, offsetsC: int,
        nnz: int, workspace: int,
    ) -> None:  # fmt: skip
        """Write the offsets of a sum, and to the host how many elements it has."""

        def run(call: Call) -> None:
            rows, cols = [], []
            for count, offsets, indices in ((nnzA, offsetsA, indicesA), (nnzB, offsetsB, indicesB)):
                start = call.read(vector("csrRowPtr", offsets, m + 1, 1, _INT))
                rows.append(expanded(call, start, count))
                cols.append(call.read(vector("csrColInd", indices, count, 1, _INT)))
            everywhere = np.concatenate(rows), np.concatenate(cols)
            kept, _, _ = summed(*everywhere, np.zeros(everywhere[0].size))
            call.write(vector("csrRowPtrC", offsetsC, m + 1, 1, _INT), compressed(kept, m))
            self._context.host.to_host(nnz, np.asarray(kept.size, np.int32), "nnz")

        self._context.call(handle, "cusparseXcsrgeam2Nnz", run)

    def _csrgeam2(
        self, function: str, dtype: DType, handle: int, m: int, n: int, alpha: int, descrA: int,
        nnzA: int, valuesA: int, offsetsA: int, indicesA: int, beta: int, descrB: int, nnzB: int,
        valuesB: int, offsetsB: int, indicesB: int, descrC: int, valuesC: int, offsetsC: int,
        indicesC: int, buffer: int,
    ) -> None:  # fmt: skip
        one_a = Sparse("csr", m, n, nnzA, offsetsA, indicesA, valuesA, _INT, dtype)
        one_b = Sparse("csr", m, n, nnzB, offsetsB, indicesB, valuesB, _INT, dtype)
        scale_a = self._context.scalar("alpha", alpha, dtype)
        scale_b = self._context.scalar("beta", beta, dtype)

        def run(call: Call) -> None:
            a, b = one_a.read(call), one_b.read(call)
            values = np.concatenate([scale_a * a[2], scale_b * b[2]])
            rows, cols = (np.concatenate([a[at], b[at]]) for at in (0, 1))
            found = summed(rows, cols, values)
            count = found[0].size
            target = Sparse("csr", m, n, count, offsetsC, indicesC, valuesC, _INT, dtype)
            target.write(call, *found)

        self._context.call(handle, function, run)

    def _nnz_compress(
        self, function: str, dtype: DType, handle: int, m: int, descr: int, values: int,
        offsets: int, counts: int, tol: complex,
    ) -> int:  # fmt: skip
        """Write how many elements of each row are larger than a number; return how many in all."""
        total = 0

        def run(call: Call) -> None:
            nonlocal total
            start = call.read(vector("csrRowPtr", offsets, m + 1, 1, _INT))
            rows = expanded(call, start, int(start[-1]))
            kept = np.abs(call.read(vector("values", values, rows.size, 1, dtype))) > abs(tol)
            call.write(
                vector("nnzPerRow", counts, m, 1, _INT), np.bincount(rows[kept], minlength=m)
            )
            total = int(kept.sum())

        self._context.call(handle, function, run)
        return total

    def _csr2csr_compress(
        self, function: str, dtype: DType, handle: int, m: int, n: int, descr: int, values: int,
        indices: int, offsets: int, nnz: int, counts: int, out_values: int, out_indices: int,
        out_offsets: int, tol: complex,
    ) -> None:  # fmt: skip
        source = Sparse("csr", m, n, nnz, offsets, indices, values, _INT, dtype)

        def run(call: Call) -> None:
            rows, cols, elements = source.read(call)
            kept = np.abs(elements) > abs(tol)
            target = Sparse(
                "csr", m, n, int(kept.sum()), out_offsets, out_indices, out_values, _INT, dtype
            )
            target.write(call, rows[kept], cols[kept], elements[kept])

        self._context.call(handle, function, run)


def one(*_: object) -> int:
    """Return bytes to work in, which are not used."""
    return 1


def module(name: str, host: Host, wanted: str) -> Module:
    """Return the module."""
    made = Module(name, LIBRARY, wanted)
    context = Context(host)
    vars(made).update({f"CUSPARSE_{each}": number for each, number in CONSTANTS.items()})
    vars(made)["CuSparseError"] = CuSparseError
    for part in (context, Conversions(context), Products(context), Factors(context)):
        vars(made).update(part.functions())
    return made
