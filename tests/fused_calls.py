"""Calls of ops that do more than a norm, and their arrays: what is counted of them and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cupy
import numpy as np
from arrays import DTYPES

import cunorm
from cunorm import Quant
from cunorm._bench.cases import COUNTED_BYTES, VALUES

OFF_16_BYTES = 769
COLS = (128, OFF_16_BYTES, 1024, 3072, 4096, 8192)
IN_GROUPS = (128, 1024, 3072, 4096, 8192)
HEADS = (64, 80, 128, 256)
SAMPLES = 4


@dataclass(frozen=True)
class Call:
    """A call, the names of its arrays of rows after x, and the N that it is counted of."""

    name: str
    function: Callable
    rows: tuple[str, ...] = ()
    cols: tuple[int, ...] = COLS


def _rope(a):
    return cunorm.rms_norm_rope(a.x, a.gamma, a.cos, a.sin, a.positions)


def _rms_norm_bwd(a):
    return cunorm.rms_norm_bwd(a.dy, a.x, a.gamma, a.rstd)


def _modulated_bwd(a):
    return cunorm.rms_norm_bwd(a.dy, a.x, a.gamma, a.rstd, scale=a.scale, shift=a.shift)


def _added_bwd(a):
    return cunorm.add_rms_norm_bwd(a.dy, a.residual, a.gamma, a.rstd, a.x, a.gate)


def _quantised(quant):
    return lambda a: cunorm.rms_norm_quant(a.x, a.gamma, quant=quant)


CALLS = (
    Call("rms_norm(x, gamma)", lambda a: cunorm.rms_norm(a.x, a.gamma)),
    Call(
        "rms_norm(x, gamma, scale=scale, shift=shift)",
        lambda a: cunorm.rms_norm(a.x, a.gamma, scale=a.scale, shift=a.shift),
    ),
    Call("layer_norm(x)", lambda a: cunorm.layer_norm(a.x)),
    Call(
        "layer_norm(x, scale=scale, shift=shift)",
        lambda a: cunorm.layer_norm(a.x, scale=a.scale, shift=a.shift),
    ),
    Call(
        "layer_norm(x, scale=scale_of_rows, shift=shift_of_rows)",
        lambda a: cunorm.layer_norm(a.x, scale=a.scale_of_rows, shift=a.shift_of_rows),
        ("scale_of_rows", "shift_of_rows"),
    ),
    Call(
        "add_layer_norm(x, residual, gate=gate, scale=scale, shift=shift)",
        lambda a: cunorm.add_layer_norm(a.x, a.residual, gate=a.gate, scale=a.scale, shift=a.shift),
        ("residual",),
    ),
    Call(
        "rms_norm_gated(x, gate_of_rows, gamma)",
        lambda a: cunorm.rms_norm_gated(a.x, a.gate_of_rows, a.gamma),
        ("gate_of_rows",),
    ),
    Call(
        "rms_norm_gated(x, gate_of_rows, gamma, gate_first=True)",
        lambda a: cunorm.rms_norm_gated(a.x, a.gate_of_rows, a.gamma, gate_first=True),
        ("gate_of_rows",),
    ),
    Call(
        "layer_norm_gated(x, gate_of_rows, gamma, beta)",
        lambda a: cunorm.layer_norm_gated(a.x, a.gate_of_rows, a.gamma, a.beta),
        ("gate_of_rows",),
    ),
    Call(
        "rms_norm_add(x, residual, gamma)",
        lambda a: cunorm.rms_norm_add(a.x, a.residual, a.gamma),
        ("residual",),
    ),
    Call(
        "layer_norm_add(x, residual, gamma, beta)",
        lambda a: cunorm.layer_norm_add(a.x, a.residual, a.gamma, a.beta),
        ("residual",),
    ),
    Call(
        "rms_norm_add_rms_norm(x, residual, gamma, gamma)",
        lambda a: cunorm.rms_norm_add_rms_norm(a.x, a.residual, a.gamma, a.gamma),
        ("residual",),
    ),
    Call("rms_norm_bwd(dy, x, gamma, rstd)", _rms_norm_bwd, ("dy",)),
    Call("rms_norm_bwd(dy, x, gamma, rstd, scale=scale, shift=shift)", _modulated_bwd, ("dy",)),
    Call("add_rms_norm_bwd(dy, h, gamma, rstd, x, gate)", _added_bwd, ("dy", "residual")),
    Call(
        "rms_norm_gated_bwd(dy, x, gate_of_rows, gamma, rstd)",
        lambda a: cunorm.rms_norm_gated_bwd(a.dy, a.x, a.gate_of_rows, a.gamma, a.rstd),
        ("dy", "gate_of_rows"),
    ),
    Call("rms_norm_rope(x, gamma, cos, sin, positions)", _rope, cols=HEADS),
    Call("rms_norm_quant(x, gamma, quant=fp8_row)", _quantised(Quant.fp8_row())),
    Call("rms_norm_quant(x, gamma, quant=int8_row)", _quantised(Quant.int8_row())),
    Call("rms_norm_quant(x, gamma, quant=deepseek)", _quantised(Quant.deepseek()), cols=IN_GROUPS),
    Call("rms_norm_quant(x, gamma, quant=mxfp8)", _quantised(Quant.mxfp8()), cols=IN_GROUPS),
    Call("rms_norm_quant(x, gamma, quant=nvfp4)", _quantised(Quant.nvfp4(1.0)), cols=IN_GROUPS),
)
GRID = {(call.name, cols): call for call in CALLS for cols in call.cols}


class Arrays:
    """The arrays of a call, made as they are asked for.

    Parameters
    ----------
    cols : int
        N.
    dtype : str
        That of all but statistics and positions.
    rows : int, optional
        Of each of some samples; as many as 2 MiB of x have, if left out.
    """

    def __init__(self, cols, dtype="float16", rows=None):
        self._dtype = DTYPES[dtype]
        if rows is None:
            rows = COUNTED_BYTES // (cols * self._dtype.itemsize) // SAMPLES
        sample = (SAMPLES, 1, cols)
        self._whole = (SAMPLES, rows, cols)
        self._shapes = dict.fromkeys(("gamma", "beta"), (cols,))
        self._shapes |= dict.fromkeys(("scale", "shift", "gate"), sample)
        self._shapes |= dict.fromkeys(("cos", "sin"), (max(rows, SAMPLES), cols // 2))

    def __getattr__(self, name):
        if name == "rstd":
            made = cupy.ones(self._whole[:-1], "float32")
        elif name == "positions":
            made = cupy.arange(self._whole[0])
        else:
            shape = self._shapes.get(name, self._whole)
            values = np.random.default_rng(sum(map(ord, name))).standard_normal(VALUES)
            made = cupy.asarray(np.resize(values.astype(self._dtype), shape))
        setattr(self, name, made)
        return made
