"""cuBLAS as CuPy imports it: `cupy_backends.cuda.libs.cublas`."""

from __future__ import annotations

from .cublas_context import CONSTANTS, LIBRARY, Context, CUBLASError
from .cublas_products import Products
from .cublas_solvers import Solvers
from .cublas_vectors import Vectors
from .host import Host, Module


def module(name: str, host: Host, wanted: str) -> Module:
    """Return the module."""
    made = Module(name, LIBRARY, wanted)
    context = Context(host)
    vars(made).update(CONSTANTS, CUBLASError=CUBLASError)
    for part in (context, Vectors(context), Products(context), Solvers(context)):
        vars(made).update(part.functions())
    return made
