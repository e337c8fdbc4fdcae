"""What no kernel can beat: copies of as many bytes, and a kernel that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import cupy

from .timing import Launch

PACKET = 16  # bytes that a lane of the kernel moves at once
CODE = r"""
extern "C" __global__ void copy(uint4* to, const uint4* from, long long n) {
  const long long step = (long long)gridDim.x * blockDim.x;
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < n; i += 4 * step) {
    const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    to[i] = a; to[i + step] = b; to[i + 2 * step] = c; to[i + 3 * step] = d;
  }
  for (; i < n; i += step) to[i] = from[i];
}
extern "C" __global__ void nothing() {}
"""


@cache
def _kernel(name: str) -> Callable[..., None]:
    kernel: Callable[..., None] = cupy.RawKernel(CODE, name)
    return kernel


def copies(least_bytes: int, count: int) -> dict[str, list[Launch]]:
    """Return copies that read half of so many bytes and write the other half, over `count` pairs.

    Of ``cudaMemcpyAsync`` and of a kernel that has four packets of a lane in flight, the faster one
    is what a copy takes.
    """
    packets = max(1, least_bytes // 2 // PACKET)
    size = packets * PACKET
    multiprocessors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    blocks = max(1, min(packets // 256, 8 * multiprocessors))
    pairs = [(cupy.empty(size, "uint8"), cupy.zeros(size, "uint8")) for _ in range(count)]

    def memcpy(target: cupy.ndarray, source: cupy.ndarray) -> None:
        target.data.copy_from_device_async(source.data, size, cupy.cuda.get_current_stream())

    def kernel(target: cupy.ndarray, source: cupy.ndarray) -> None:
        _kernel("copy")((blocks,), (256,), (target, source, cupy.int64(packets)))

    return {
        "memcpy": [partial(memcpy, *pair) for pair in pairs],
        "copy kernel": [partial(kernel, *pair) for pair in pairs],
    }


def nothing() -> None:
    """Launch a kernel that does nothing: the least that any launch takes."""
    _kernel("nothing")((1,), (32,), ())
