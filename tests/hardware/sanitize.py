"""What compute-sanitizer looks at: every op, dtype class and way to keep a row, on few rows.

    compute-sanitizer --tool memcheck python -m hardware.sanitize few|longest

CuPy's pool is off, so that each array is an allocation of its own, as memcheck wants it; inputs are
written whole, so that initcheck has nothing to say of them. Results are not compared here.
"""

from __future__ import annotations

import sys
from typing import Any

from arrays import random

from .session import DRY, log, start_device

cupy = start_device()

import cunorm  # noqa: E402

# N on each side of what a plan draws: a warp, several, shared memory; clusters.
SIZES = {"few": (128, 1025, 20001), "longest": (262144, 300001)}
DRY_SIZES = {"few": (64,), "longest": (64,)}


def calls(cols: int, rows: int, shift: int) -> int:
    """Call every op on rows that begin `shift` elements past an allocation; return how many."""

    def of(*shape: int) -> Any:
        count = 1
        for extent in shape:
            count *= extent
        return cupy.asarray(random((count + shift,), "float16"))[shift:].reshape(shape)

    x, residual, dy = (of(rows, cols) for _ in range(3))
    gamma, beta = of(cols), of(cols)
    _, rstd = cunorm.rms_norm_fwd(x, gamma)
    _, mean, rstd_of_mean = cunorm.layer_norm_fwd(x, gamma, beta)
    cunorm.add_rms_norm(x, residual, gamma)
    cunorm.add_layer_norm(x, residual, gamma, beta, out=x, residual_out=residual)
    cunorm.rms_norm_bwd(dy, x, gamma, rstd)
    cunorm.layer_norm_bwd(dy, x, gamma, mean, rstd_of_mean, dresidual=residual)
    cunorm.rms_norm(x[::2, : cols // 2])
    cupy.cuda.get_current_stream().synchronize()
    return 7


def main(which: str) -> None:
    """Make the calls of the sizes that `which` names."""
    if not DRY:
        cupy.cuda.set_allocator(None)
    count = 0
    for cols in (DRY_SIZES if DRY else SIZES)[which]:
        for shift in (0,) if DRY else (0, 1):
            count += calls(cols, 5 if cols < 20000 else 2, shift)
    log(f"{count} calls")


if __name__ == "__main__":
    main(sys.argv[1])
