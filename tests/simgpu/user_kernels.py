"""Kernels as a user launches them, from host arrays to host arrays."""

import cupy
import numpy as np

ARCH = int(cupy.cuda.Device().compute_capability)


def kernel(code, name="k", **options):
    return cupy.RawKernel(code, name, **options)


def run(code, block, *arrays, grid=1, shared_mem=0, **options):
    """Launch the kernel `k` on copies of host arrays, and return what became of them."""
    arguments = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in arrays]
    kernel(code, **options)((grid,), (block,), tuple(arguments), shared_mem=shared_mem)
    return [a.get() for a in arguments if isinstance(a, cupy.ndarray)]
