"""Which modules of CuPy's lead to NVIDIA's libraries, and what stands in their places."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from . import cublas, cufft, curand, cusolver, cusolver_arrays, cusparse, generator
from .cub import Cub
from .host import Host, Module, not_emulated
from .thrust import Thrust

# Libraries of machine code for real devices, by the modules through which CuPy reaches them: their
# names, what programs want of them, and what makes a module that stands in.
_HOST_LIBRARIES: dict[str, tuple[str, str, Callable[[str, Host, str], Module]]] = {
    "cupy.cuda.cufft": ("cuFFT", "Fourier transforms", cufft.module),
    "cupy_backends.cuda.libs.cublas": (
        "cuBLAS",
        "products of floating-point matrices",
        cublas.module,
    ),
    "cupy_backends.cuda.libs.curand": ("cuRAND", "random numbers", curand.module),
    "cupy_backends.cuda.libs.cusolver": ("cuSOLVER", "linear algebra", cusolver.module),
    "cupy_backends.cuda.libs.cusparse": ("cuSPARSE", "sparse matrices", cusparse.module),
    "cupyx._cusolver": ("cuSOLVER", "linear algebra", cusolver_arrays.module),
}
# The same inside CuPy: what is wanted of it, and its functions.
_PRECOMPILED = {
    "cupy.cuda.thrust": ("Thrust", "sorting", ("argsort", "lexsort", "sort")),
    "cupy.cuda.cub": (
        "CUB",
        "reductions and scans",
        ("device_histogram", "device_reduce", "device_scan", "device_segmented_reduce"),
    ),
}


def _refusal(library: str, wanted: str, name: str) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise not_emulated(library, wanted, name)

    return refuse


def replace(host: Host | None) -> None:
    """Put stand-ins, which run on `host`, into the places of libraries; without it, refusals."""
    for name, (library, wanted, make) in _HOST_LIBRARIES.items():
        module = Module(name, library, wanted) if host is None else make(name, host, wanted)
        package, _, leaf = name.rpartition(".")
        sys.modules[name] = module
        setattr(importlib.import_module(package), leaf, module)
    for name, (library, wanted, functions) in _PRECOMPILED.items():
        for function in functions:
            refusal = _refusal(library, wanted, function)
            setattr(importlib.import_module(name), function, refusal)
    bits = importlib.import_module("cupy.random._bit_generator")
    bits._cuRANDGenerator.__init__ = _refusal("cuRAND", "random numbers", "a bit generator")
    if host is not None:
        generator.replace(host, importlib.import_module("cupy.random._generator_api"), bits)
        vars(importlib.import_module("cupy.cuda.thrust")).update(Thrust(host).functions())
        vars(importlib.import_module("cupy.cuda.cub")).update(Cub(host).functions())
    if "CUPY_ACCELERATORS" not in os.environ:
        # CuPy prefers CUB for sums and scans; without it, it compiles kernels of its own, which
        # are executed and checked instruction by instruction.
        accelerator = importlib.import_module("cupy._core._accelerator")
        accelerator.set_routine_accelerators([])
        accelerator.set_reduction_accelerators([])
