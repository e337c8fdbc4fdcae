"""What must notice a mistake in kernels/: lines of `python -m cunorm check`, and more like them.

Each passes on the kernels as they are.
"""

import math
from functools import partial

import cupy
import numpy as np
from arrays import random

import cunorm
from cunorm import _quant_reference, _reference, simgpu
from cunorm._selfcheck import checks, rope
from cunorm._selfcheck.checks import Check, Outcome


def far_from_zero(check):
    """LayerNorm of 1000 + noise, in float32."""
    x = random(check.shape, check.dtype, shift=1000)
    off = ~_reference.layer_norm(x).accepts(cunorm.layer_norm(cupy.asarray(x)).get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def out_of_range(check):
    """RMSNorm and LayerNorm of rows whose squares leave float32's range, at either end."""
    x = random(check.shape, check.dtype, scale=float(check.where))
    off = ~getattr(_reference, check.op)(x, eps=0).accepts(
        getattr(cunorm, check.op)(cupy.asarray(x), eps=0).get()
    )
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def far_apart(check):
    """RMSNorm of rows more than 2^31 elements apart."""
    x = random((2, 128), check.dtype)
    buffer = cupy.empty(2**31 + 128, check.dtype)
    buffer[:128], buffer[2**31 :] = cupy.asarray(x[0]), cupy.asarray(x[1])
    rows = cupy.lib.stride_tricks.as_strided(buffer, x.shape, (2**31 * x.itemsize, x.itemsize))
    off = ~_reference.rms_norm(x).accepts(cunorm.rms_norm(rows).get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def warps_out_of_step(check):
    """RMSNorm where lanes of a warp are ordered by ``__syncwarp`` alone."""
    x = random(check.shape, check.dtype)
    with simgpu.warp_races():
        off = ~_reference.rms_norm(x).accepts(cunorm.rms_norm(cupy.asarray(x)).get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def heads_out_of_step(check):
    """RoPE of heads whose lanes hand packets over, ordered by ``__syncwarp`` alone."""
    with simgpu.warp_races():
        return rope.measure(check)


def backward(check, **options):
    """Every gradient of a backward op, with a second gradient of x."""
    x, dy, dresidual = (random(check.shape, check.dtype, seed=seed) for seed in range(3))
    gamma = random(check.shape[-1], check.dtype, seed=3)
    x_on_device, gamma_on_device = cupy.asarray(x), cupy.asarray(gamma)
    forward = getattr(cunorm, check.op.replace("bwd", "fwd"))
    kept = forward(x_on_device, gamma_on_device)[1:]
    actual = getattr(cunorm, check.op)(
        *(cupy.asarray(dy), x_on_device, gamma_on_device, *kept),
        dresidual=cupy.asarray(dresidual),
        **options,
    )
    expected = getattr(_reference, check.op)(
        *(dy, x, gamma, *(k.get() for k in kept)), dresidual=dresidual, **options
    )
    off = sum((~e.accepts(a.get())).sum() for a, e in zip(actual, expected, strict=True))
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def gated_first(check):
    """RMSNorm of rows that their gates have multiplied."""
    x, gate = (random(check.shape, check.dtype, seed=seed) for seed in range(2))
    y = cunorm.rms_norm_gated(cupy.asarray(x), cupy.asarray(gate), gate_first=True)
    off = ~_reference.rms_norm_gated(x, gate, gate_first=True).accepts(y.get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def beside(check):
    """A norm with a scale, a shift and a gate, each of them as the check says."""
    shape = {"columns": check.shape[-1:], "rows": check.shape, "numbers": (check.shape[0], 1)}
    given = {
        name: random(shape[check.where], check.dtype, seed=seed)
        for seed, name in enumerate(("scale", "shift", "gate"), 2)
    }
    x, residual = (random(check.shape, check.dtype, seed=seed) for seed in range(2))
    on_device = {name: cupy.asarray(a) for name, a in given.items()}
    actual = cunorm.add_rms_norm(cupy.asarray(x), cupy.asarray(residual), **on_device)
    expected = _reference.add_rms_norm(x, residual, **given)
    off = sum((~e.accepts(a.get())).sum() for a, e in zip(actual, expected, strict=True))
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def modulated(check):
    """The gradients of a norm whose scale and shift are those of samples."""
    x, dy = (random(check.shape, check.dtype, seed=seed) for seed in range(2))
    gamma, beta = (random(check.shape[-1], check.dtype, seed=seed) for seed in (2, 3))
    scale = random((check.shape[0], 1, check.shape[-1]), check.dtype, seed=4)
    given = [cupy.asarray(a) for a in (dy, x, gamma)]
    kept = cunorm.layer_norm_fwd(*given[1:])[1:]
    beside = {"scale": scale, "shift": scale, "beta": beta}
    actual = cunorm.layer_norm_bwd(
        *given, *kept, **{name: cupy.asarray(a) for name, a in beside.items()}
    )
    expected = _reference.layer_norm_bwd(dy, x, gamma, *(k.get() for k in kept), **beside)
    off = sum((~e.accepts(a.get())).sum() for a, e in zip(actual, expected, strict=True))
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def given_sums(check):
    """Norms of rows by sums that are given, which are their own."""
    x = random(check.shape, check.dtype, shift=1)
    row = cupy.asarray(x)
    squares, moments = cunorm.row_sums(row), cunorm.row_sums(row, kind="moments")
    off = 0
    for y, expected in (
        (
            cunorm.rms_norm(row, squares=squares, count=check.shape[-1]),
            _reference.rms_norm(x),
        ),
        (
            cunorm.layer_norm(row, moments=moments, count=check.shape[-1]),
            _reference.layer_norm(x),
        ),
    ):
        off += (~expected.accepts(y.get())).sum()
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def codes(check):
    """Codes of rows that start anywhere, their scales, and what lies between the rows."""
    x = cupy.asarray(random(check.shape, check.dtype, scale=3))
    quant, (rows, cols) = cunorm.Quant.int8_row(), check.shape
    gap = 16 + (cols + 1) % 2  # an odd number of bytes a row: one starts on each of a sector
    whole = cupy.full((rows, cols + gap), 85, "int8")
    _, scale = cunorm.rms_norm_quant(x, quant=quant, out=whole[:, :cols])
    codes, scales = _quant_reference.quantize(cunorm.rms_norm(x).get(), quant)
    expected = np.pad(codes, ((0, 0), (0, gap)), constant_values=85)
    off = (whole.get() != expected).sum() + (scale.get() != scales).sum()
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


BACKWARD = [
    Check("rms_norm_bwd", "float32", (300, 1024), "backward", backward),
    Check("layer_norm_bwd", "float16", (300, 769), "backward", backward),
    Check("layer_norm_bwd", "float32", (70, 40), "backward", backward),
    Check("rms_norm_bwd", "float16", (2, 20000), "backward", backward),
    Check("layer_norm_bwd", "float32", (2, 40000), "backward", backward),
    Check("rms_norm_bwd", "bfloat16", (5, 96), "offset", partial(backward, gamma_offset=1.0)),
]
PROBES = {str(check): check for check in checks.grid()} | {
    "1000 + noise": Check("layer_norm", "float32", (2, 769), "1000 + noise", far_from_zero),
    **{
        f"{op} of {size}": Check(op, "float32", (3, 96), size, out_of_range)
        for op in ("rms_norm", "layer_norm")
        for size in ("1e30", "1e-20")
    },
    "rms_norm of 1e30 in warps": Check("rms_norm", "float32", (3, 4096), "1e30", out_of_range),
    "codes of 769 columns": Check("rms_norm_quant", "float16", (32, 769), "codes", codes),
    "codes of 3080 columns": Check("rms_norm_quant", "float16", (32, 3080), "codes", codes),
    "a cluster": Check("layer_norm", "float16", (1, 150_000), "1.0", out_of_range),
    "2^31 apart": Check("rms_norm", "float16", (2, 128), "2^31 apart", far_apart),
    "rms_norm_gated of 700,000 columns": Check(
        "rms_norm_gated", "float16", (1, 700_000), "read again", gated_first
    ),
    "rms_norm_gated of 769 columns": Check(
        "rms_norm_gated", "float16", (7, 769), "packs of 8 bytes", gated_first
    ),
    "warps out of step": Check("rms_norm", "float16", (3, 769), "out of step", warps_out_of_step),
    "heads out of step": Check(
        "qk_norm_rope", "bfloat16", (3, 4, 96), "contiguous", heads_out_of_step
    ),
}
BESIDE = [
    Check("add_rms_norm", "float16", (5, 7), "numbers", beside),
    Check("add_rms_norm", "float16", (3, 769), "columns", beside),
    Check("add_rms_norm", "float16", (3, 20000), "rows", beside),
]
SEVERAL = [
    Check("layer_norm_bwd", "float32", (3, 70, 40), "modulated", modulated),
    Check("layer_norm", "float32", (5, 96), "given sums", given_sums),
]
PROBES |= {str(check): check for check in (*BACKWARD, *BESIDE, *SEVERAL)}
