"""Which modules of CuPy's lead to NVIDIA's libraries, and what stands in their places."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from . import cublas, cufft, curand, cusolver, cusolver_arrays, cusparse, generator
from .host import Host, Module, not_emulated
from .thrust import Thrust

# Libraries of machine code for real devices: their names and what programs want of them, by the
# modules through which CuPy reaches them.
_HOST_LIBRARIES = {
    "cupy.cuda.cufft": ("cuFFT", "Fourier transforms"),
    "cupy_backends.cuda.libs.cublas": ("cuBLAS", "products of floating-point matrices"),
    "cupy_backends.cuda.libs.curand": ("cuRAND", "random numbers"),
    "cupy_backends.cuda.libs.cusolver": ("cuSOLVER", "linear algebra"),
    "cupy_backends.cuda.libs.cusparse": ("cuSPARSE", "sparse matrices"),
    "cupyx._cusolver": ("cuSOLVER", "linear algebra"),
}
# The same inside CuPy: what is wanted of it, and its functions.
_PRECOMPILED = {
    "cupy.cuda.thrust": ("Thrust", "sorting", ("argsort", "lexsort", "sort")),
    "cupy.cuda.cub": (
        "CUB",
        "reductions and scans",
        (
            "cub_histogram",
            "cub_reduction",
            "cub_scan",
            "device_histogram",
            "device_reduce",
            "device_scan",
            "device_segmented_reduce",
        ),
    ),
}

# Those that have a stand-in: what makes their modules, and what makes functions inside CuPy.
_MODULES: dict[str, Callable[[str, Host, str], Module]] = {
    "cupy.cuda.cufft": cufft.module,
    "cupy_backends.cuda.libs.cublas": cublas.module,
    "cupy_backends.cuda.libs.curand": curand.module,
    "cupy_backends.cuda.libs.cusolver": cusolver.module,
    "cupy_backends.cuda.libs.cusparse": cusparse.module,
    "cupyx._cusolver": cusolver_arrays.module,
}


def _refusal(library: str, wanted: str, name: str) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise not_emulated(library, wanted, name)

    return refuse


def replace(host: Host | None) -> None:
    """Put stand-ins, which run on `host`, into the places of libraries; without it, refusals."""
    for name, (library, wanted) in _HOST_LIBRARIES.items():
        make = _MODULES.get(name) if host is not None else None
        package, _, leaf = name.rpartition(".")
        sys.modules[name] = (
            make(name, host, wanted)
            if make is not None and host is not None
            else Module(name, library, wanted)
        )
        setattr(importlib.import_module(package), leaf, sys.modules[name])
    for name, (library, wanted, functions) in _PRECOMPILED.items():
        module = importlib.import_module(name)
        for function in functions:
            setattr(module, function, _refusal(library, wanted, function))
    bits = importlib.import_module("cupy.random._bit_generator")
    bits._cuRANDGenerator.__init__ = _refusal("cuRAND", "random numbers", "a bit generator")
    if host is not None:
        generator.replace(host, importlib.import_module("cupy.random._generator_api"), bits)
        vars(importlib.import_module("cupy.cuda.thrust")).update(Thrust(host).functions())
    # CuPy prefers CUB for sums and scans; without it, it compiles kernels of its own.
    accelerator = importlib.import_module("cupy._core._accelerator")
    accelerator.set_routine_accelerators([])
    accelerator.set_reduction_accelerators([])
