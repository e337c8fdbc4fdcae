"""cuSOLVER's sparse Cholesky solver, which `cupyx.linalg.sparse.lschol` calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import blas
from .blas import typed
from .cusolver_context import Context
from .host import Call
from .operand import vector
from .sparse import Sparse


class SparseSystems:
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
        context = self._context
        return {
            "spCreate": context.create,
            "spDestroy": context.destroy,
            "spSetStream": context.setStream,
            "spGetStream": context.getStream,
            **typed("cusolverSp", "{}csrlsvchol", self._csrlsvchol, "sd"),
        }

    def _csrlsvchol(
        self, function: str, dtype: np.dtype[Any], handle: int, m: int, nnz: int, descr: int,
        values: int, offsets: int, indices: int, b: int, tol: float, reorder: int, x: int,
        singularity: int,
    ) -> None:  # fmt: skip
        """Write the solution; of a matrix that is not positive definite, none.

        The matrix is made a dense one. `singularity`, on the host, is its first column for which
        there is no factor, -1 where there is one.
        """
        a = Sparse("csr", m, m, nnz, offsets, indices, values, np.dtype(np.int32), dtype)

        def run(call: Call) -> None:
            rows, cols, elements = a.read(call)
            right = call.read(vector("b", b, m, 1, dtype))[:, None]
            dense = np.zeros((m, m), dtype)
            np.add.at(dense, (rows, cols), elements)
            factor, info = blas.factor_cholesky(dense, blas.LOWER)
            found = np.asarray(info - 1, np.int32)
            self._context.host.to_host(singularity, found, "singularity")
            if info:
                return
            for op in (blas.OP_N, blas.OP_T):
                right = blas.solve_triangular(factor, blas.LOWER, op, blas.NON_UNIT, right)
            call.write(vector("x", x, m, 1, dtype), right[:, 0])

        self._context.call(handle, function, run)
