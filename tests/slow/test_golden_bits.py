"""Results of some 600 calls have the bits that are on record, in golden_bits.json.

Each way of keeping a row, each pair of dtypes, and, drawn for each, how the arrays lie and which
options there are; and calls of what is fused with a norm. A change of kernels changes no bit; this
records them anew, of which the changelog must say why:

    PYTHONPATH=tests python -m cunorm.simgpu tests/slow/test_golden_bits.py
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import bits
from arrays import random as normal
from fused_calls import GRID, Arrays

pytestmark = pytest.mark.slow(
    "620 kernels, which all are built; a change of kernels/ runs them all by hand", shares=60
)

HERE = Path(__file__).parent
RECORD = HERE / "golden_bits.json"
ROWS_OF = {True: (2, 3), False: (1, 2)}  # batch and rows, of short rows and of long ones
# Columns of 16-bit rows; wide dtypes have half or a quarter of them, and so are kept alike.
FORWARD = (7, 96, 211, 768, 1025, 4096, 10531, 16384, 33000, 262144, 1300005)
BACKWARD = (7, 96, 211, 768, 1025, 4096, 10531, 20001, 65536)
DTYPES = (
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", "float32"),
    ("float32", "float16"),
    ("float64", "float64"),
)
OPS = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm")
LAYOUTS = ("aligned", "one element off", "an odd distance", "three levels", "mixed")
SCALES = (1.0, 1.0, 1.0, 1.0, 1e-3, 30.0)


def columns(op, dtype):
    """Return the lengths of rows that an op is asked for in a dtype."""
    narrower = np.dtype(dtype).itemsize // 2 if dtype != "bfloat16" else 1
    sizes = BACKWARD if op.endswith("bwd") else FORWARD
    return [max(5, cols // narrower | cols & 1) for cols in sizes]


CASES = [
    f"{op} {dtype} {parameter} {cols}"
    for op in (*(f"{op}_fwd" for op in OPS), "rms_norm_bwd", "layer_norm_bwd")
    for dtype, parameter in DTYPES
    for cols in columns(op, dtype)
]


# Calls of what is fused with a norm, by name, N and dtype.
FUSED = {
    f"{name} {dtype} {cols}": (call, cols, dtype)
    for (name, cols), call in GRID.items()
    for dtype in ("float16", "bfloat16", "float32")
    if cols in (80, 128, 769, 4096)
}


class Call:
    """One call: its op, its arrays and its options, all of which follow from its name."""

    def __init__(self, name):
        self.op, self.dtype, self.parameter, cols = name.split()
        self.cols = int(cols)
        self.choose = random.Random(name)
        self.seed = self.choose.randrange(2**31)
        self.layout = self.choose.choice(LAYOUTS)
        self.scale = self.choose.choice(SCALES)
        self.without_gamma = False
        if self.dtype != "float16" and self.cols < 5000:
            self.scale = self.choose.choice((*SCALES, 1e-20, 1e20))

    def results(self):
        """Return the arrays that the call gives."""
        import cunorm

        call = getattr(cunorm, self.op)
        if self.op.endswith("bwd"):
            return [a for a in call(*self._of_backward(), **self._options()) if a is not None]
        arrays = [self.rows("x")]
        if self.op.startswith("add"):
            wide = self.choose.random() < 0.3 and self.dtype != "float64"
            residual = self.rows("residual", "float32" if wide else self.dtype)
            arrays.append(residual)
        arrays.append(self.of_columns("gamma"))
        if "layer" in self.op:
            arrays.append(self.of_columns("beta"))
        options = self._options() | {"eps": self.choose.choice((1e-6, 1e-5, 0.0))}
        return call(*arrays, **options)

    def _of_backward(self):
        import cupy

        accumulator = "float64" if self.dtype == "float64" else "float32"
        self.scale = 1.0
        dy, x, gamma = self.rows("dy"), self.rows("x"), self.of_columns("gamma")
        rstd = cupy.asarray(np.abs(normal(x.shape[:-1], accumulator, seed=self.seed)) + 0.5)
        mean = cupy.asarray(normal(x.shape[:-1], accumulator, seed=self.seed + 1))
        return (dy, x, gamma, rstd) if "rms" in self.op else (dy, x, gamma, mean, rstd)

    def _options(self):
        options = {}
        if "rms" in self.op:
            offset = self.choose.choice((0.0, 0.0, 1.0))
            options["gamma_offset"] = 0.0 if self.without_gamma else offset
            if "fwd" in self.op:
                options["cast"] = self.choose.choice(("before", "before", "after"))
        if "bwd" in self.op:
            options["dresidual"] = self.rows("dresidual") if self.choose.random() < 0.5 else None
            options["sums"] = self.choose.random() < 0.8
        return options

    def of_columns(self, name):
        """Return gamma or beta, sometimes off 16 bytes; None now and then."""
        import cupy

        drawn = self.choose.random()
        if drawn < 0.12:
            self.without_gamma |= name == "gamma"
            return None
        off = int(drawn > 0.8)
        values = normal((off + self.cols,), self.parameter, seed=self.seed + len(name), scale=0.5)
        return cupy.asarray(values)[off:]

    def rows(self, name, dtype=None):
        """Return an array of rows that lies as this call's arrays lie."""
        import cupy

        shape = (*ROWS_OF[self.cols < 5000], self.cols)
        seed = self.seed + sum(map(ord, name))
        values = cupy.asarray(normal(shape, dtype or self.dtype, seed=seed, scale=self.scale))
        layout = self.layout
        if layout == "mixed":
            layout = self.choose.choice(LAYOUTS[:3])
        batch, rows, cols = shape
        if layout == "aligned":
            return values
        if layout == "one element off":
            memory = cupy.zeros(values.size + 1, values.dtype)
            there = memory[1:].reshape(shape)
        elif layout == "an odd distance":
            there = cupy.zeros((batch, rows, cols + 3), values.dtype)[..., :cols]
        else:
            there = cupy.zeros((batch + 1, 2 * rows, cols + 8), values.dtype)[:batch, ::2, :cols]
        there[...] = values
        return there


def results_of_fused(name):
    """Return the arrays that a call of something fused gives."""
    call, cols, dtype = FUSED[name]
    made = call.function(Arrays(cols, dtype, rows=3))
    return made if isinstance(made, tuple) else (made,)


def hashed(name):
    """Return the hash of all results of a call."""
    digest = hashlib.sha256()
    for array in results_of_fused(name) if name in FUSED else Call(name).results():
        digest.update(f"{array.dtype} {array.shape} ".encode() + bits(array))
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", [*CASES, *FUSED])
def test_results_have_the_bits_on_record(name):
    assert hashed(name) == json.loads(RECORD.read_text())[name]


@pytest.mark.simgpu("devices of other architectures")
@pytest.mark.parametrize("arch", [75, 80, 89, 120])
def test_rows_that_an_architecture_shares_out_otherwise_have_the_same_bits(arch):
    """The longest rows are kept in as much memory as there is, and by more than one block."""
    names = [name for name in CASES if int(name.split()[-1]) > 8000][:: 9 if arch == 120 else 11]
    program = f"import test_golden_bits as t; print(*map(t.hashed, {names}))"
    done = subprocess.run(
        [sys.executable, "-m", "cunorm.simgpu", "--arch", f"sm_{arch}", "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))},
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads(RECORD.read_text())
    assert done.stdout.split() == [record[name] for name in names]


def main():
    """Record the bits of every call."""
    from multiprocessing import Pool

    with Pool() as pool:
        names = [*CASES, *FUSED]
        found = dict(zip(names, pool.map(hashed, names, chunksize=4), strict=True))
    RECORD.write_text(json.dumps(found, indent=0) + "\n")
    print(f"{len(found)} calls, {len(set(found.values()))} different results")


if __name__ == "__main__":
    sys.exit(main())
