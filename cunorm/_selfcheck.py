"""What `python -m cunorm check` runs: every op over dtypes, sizes and layouts, and over a file.

Results are held against the definitions of `_reference`, which also derives the tolerance, element
by element. Every array lies between guard elements, which must come back as they were.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

import cunorm

from . import _reference
from ._reference import BFLOAT16, DTYPES, Expected

Array = npt.NDArray[Any]

GUARD = 96.0  # an ordinary number in every dtype, and no result of a norm of these inputs
GUARDS = 32  # elements on either side of an array; a packet is at most 16

# Each side of every boundary that a kernel may draw: one packet, a warp, a block, registers.
SIZES = [1, 7, 64, 128, 769, 1024, 4096, 5125, 20000]
BEYOND_REGISTERS = 70000
LAYOUTS = [
    "row-strided",
    "base + 1 element",
    "in place",
    "in place, row-strided",
    "strided heads",
    "transposed",
    "2-D gamma",
    "no gamma",
    "no beta",
    "float32 gamma",
    "gamma offset 1",
    "cast after",
    "zero rows",
]

FILE_LAYERS = ("layer0", "layer15", "layer29", "final")
FILE_EQUAL = 0.995  # share of bfloat16 elements that must have the model's own bits
FILE_ULPS = 2.0  # one ulp of the normalised value can be two of its product with gamma
FILE_FLOAT32_ULPS = 4.0
FILE_FLOAT32_RELATIVE = 1e-6


@dataclass(frozen=True)
class Outcome:
    """The worst error in ulps of the output dtype, what is wrong, if anything, and a remark."""

    worst: float
    faults: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Check:
    """One call of a public op; `where` is its layout, or the tensors of a file that it runs on."""

    op: str
    dtype: str
    shape: tuple[int, ...]
    where: str
    measure: Callable[[Check], Outcome]

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} {self.shape} {self.where}"

    def run(self) -> Outcome:
        """Measure; an exception, a fault of the software GPU included, is an outcome too."""
        try:
            return self.measure(self)
        except Exception as error:
            return Outcome(math.inf, [f"{type(error).__name__}: {error}"])


class BadFile(Exception):
    """The file of tensors cannot be used, and why."""


def grid() -> Iterator[Check]:
    """Yield the grid: sizes on the ops that return statistics, layouts on those that do not."""
    for dtype in DTYPES:
        for op in ("rms_norm_fwd", "layer_norm_fwd"):
            for cols in SIZES:
                yield Check(op, dtype, (3 if cols > 128 else 37, cols), "contiguous", _measure)
            yield Check(op, dtype, (1, BEYOND_REGISTERS), "contiguous", _measure)
        for op, foreign in (
            ("rms_norm", {"no beta"}),
            ("layer_norm", {"gamma offset 1", "cast after"}),
        ):
            for layout in LAYOUTS:
                if layout not in foreign and (dtype, layout) != ("float32", "float32 gamma"):
                    yield Check(op, dtype, _shape(layout), layout, _measure)


def _measure(check: Check) -> Outcome:
    """Run an op on random data and compare every output with its definition."""
    rng = np.random.default_rng(zlib.crc32(str(check).encode()))
    x = _random(rng, check.shape, DTYPES[check.dtype])
    arguments, options = _arguments(rng, check)
    whole, view = place(x, check.where)
    out = {"out": view} if check.where.startswith("in place") else {}
    on_device = {
        name: None if value is None else place(value, check.where)[1]
        for name, value in arguments.items()
    }
    before = cupy.asnumpy(whole)
    result = getattr(cunorm, check.op)(view, **on_device, **options, **out)
    outputs = result if isinstance(result, tuple) else (result,)

    stem = check.op.removesuffix("_fwd")
    expected = getattr(_reference, f"{stem}_fwd")(x, **arguments, **options)
    names = ("y", "rstd") if stem == "rms_norm" else ("y", "mean", "rstd")
    faults: list[str] = []
    worst = 0.0
    for name, actual, want in zip(names, outputs, expected, strict=False):
        worst = max(worst, _compare(name, actual, want, faults))
    if out and outputs[0] is not view:
        faults.append("out was not returned")
    after = cupy.asnumpy(whole)
    if out:
        _, spared = _slots(x.shape, check.where)
        before, after = before[spared], after[spared]
    if before.tobytes() != after.tobytes():
        faults.append("wrote outside out" if out else "changed its input")
    return Outcome(worst, faults)


def _arguments(
    rng: np.random.Generator, check: Check
) -> tuple[dict[str, Array | None], dict[str, Any]]:
    """Return the array arguments beside x, and the other ones, that the layout asks for."""
    shape = check.shape[-2:] if check.where == "2-D gamma" else check.shape[-1:]
    dtype = DTYPES["float32" if check.where == "float32 gamma" else check.dtype]
    arguments: dict[str, Array | None] = {
        "gamma": None if check.where == "no gamma" else _random(rng, shape, dtype)
    }
    if check.op.startswith("layer_norm"):
        without = check.where in ("no gamma", "no beta")
        arguments["beta"] = None if without else _random(rng, shape, dtype)
    options: dict[str, dict[str, Any]] = {
        "gamma offset 1": {"gamma_offset": 1.0},
        "cast after": {"cast": "after"},
    }
    return arguments, options.get(check.where, {})


def place(values: Array, layout: str) -> tuple[Any, Any]:
    """Put `values` on the device in `layout`: the guarded buffer, and the view of the values."""
    index, _ = _slots(values.shape, layout)
    padded, offset = _padding(values.shape, layout)
    size = int(np.prod(padded))
    host = np.full(GUARDS + offset + size + GUARDS, GUARD).astype(values.dtype)
    host[index.ravel()] = values.ravel()
    whole = cupy.asarray(host)
    start = GUARDS + offset
    view = whole[start : start + size].reshape(padded)
    if layout == "transposed":
        return whole, view.T
    return whole, view[tuple(slice(n) for n in values.shape)]


def read_file(path: Path) -> dict[str, Array]:
    """Return the tensors of a file: ``{f32,bf16}/{layer}/{x,gamma,y}`` and ``eps``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, "files"):
                raise BadFile(f"{path} holds one array, not the named tensors of an .npz file")
            tensors = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise BadFile(f"cannot read {path}: {error}") from error
    groups = [f"{kind}/{layer}" for kind in ("f32", "bf16") for layer in FILE_LAYERS]
    wanted = ["eps", *(f"{group}/{name}" for group in groups for name in ("x", "gamma", "y"))]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise BadFile(f"{path} lacks {', '.join(missing)}")
    for group in groups:
        _check_group(path, group, tensors)
    if tensors["eps"].ndim != 0 or tensors["eps"].dtype.kind != "f":
        raise BadFile(f"{path}: eps must be one number, but is {tensors['eps']!r}")
    return tensors


def of_file(tensors: dict[str, Array]) -> Iterator[Check]:
    """Yield the norms whose tensors a file holds, as a model computed them."""
    eps = float(tensors["eps"])
    for kind, dtype, compare in (
        ("f32", DTYPES["float32"], _compare_float32),
        ("bf16", BFLOAT16, _compare_bfloat16),
    ):
        for layer in FILE_LAYERS:
            x, gamma, stored = (
                np.ascontiguousarray(tensors[f"{kind}/{layer}/{name}"]).view(dtype)
                for name in ("x", "gamma", "y")
            )

            def measure(
                _: Check,
                x: Array = x,
                gamma: Array = gamma,
                stored: Array = stored,
                compare: Callable[..., Outcome] = compare,
            ) -> Outcome:
                y = cupy.asnumpy(cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), eps))
                return compare(x, gamma, eps, stored, y)

            yield Check("rms_norm", str(dtype), x.shape, f"{kind}/{layer}", measure)


def _compare_float32(x: Array, gamma: Array, eps: float, stored: Array, y: Array) -> Outcome:
    """Hold y against the definition; what the model computed had float32 roundings of its own."""
    expected = _reference.rms_norm(x, gamma, eps)
    distance = expected.ulps(y)
    relative = np.abs(y - expected.value) / np.abs(expected.value)
    off = (distance > FILE_FLOAT32_ULPS) & ~(relative <= FILE_FLOAT32_RELATIVE)
    faults = [f"{off.sum()} elements off"] if off.any() else []
    model = _reference.ulps(stored, expected.value, expected.dtype)
    return Outcome(float(distance.max()), faults, f"the model's own: {model.max():.2f}")


def _compare_bfloat16(x: Array, gamma: Array, eps: float, stored: Array, y: Array) -> Outcome:
    """Hold y against the bits that the model computed."""
    distance = _reference.ulps(y, stored.astype(np.float64), BFLOAT16)
    equal = float(np.mean(y.view(np.uint16) == stored.view(np.uint16)))
    faults = []
    if equal < FILE_EQUAL:
        faults.append("bits differ")
    if not distance.max() <= FILE_ULPS:
        faults.append(f"{(~(distance <= FILE_ULPS)).sum()} elements off")
    return Outcome(float(distance.max()), faults, f"{equal:.2%} the model's bits")


def _compare(name: str, actual: Any, want: Expected, faults: list[str]) -> float:
    """Return the worst error of one output, and add to `faults` what is wrong with it."""
    if actual.shape != want.value.shape or actual.dtype != want.dtype:
        faults.append(f"{name} is {actual.dtype} {actual.shape}")
        return float("inf")
    host = cupy.asnumpy(actual)
    off = ~want.accepts(host)
    if off.any():
        first = tuple(int(i) for i in np.argwhere(off)[0])
        faults.append(f"{name}: {off.sum()} elements off, first {first}")
    return float(want.ulps(host).max(initial=0.0))


def _shape(layout: str) -> tuple[int, ...]:
    """Return a shape that brings out what the layout tests; 769 is odd and past one warp."""
    return {
        "strided heads": (3, 4, 128),
        "2-D gamma": (3, 5, 154),
        "zero rows": (0, 769),
    }.get(layout, (3, 769))


def _padding(shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of what the array is cut out of, and its distance from a whole alignment."""
    if layout == "transposed":
        return shape[::-1], 0
    if layout == "strided heads" and len(shape) == 3:
        return (shape[0], 2 * shape[1], 2 * shape[2]), 0
    if layout in ("row-strided", "in place, row-strided"):
        return (*shape[:-1], 2 * shape[-1]), 0
    return shape, int(layout == "base + 1 element")


def _slots(shape: tuple[int, ...], layout: str) -> tuple[npt.NDArray[np.intp], Array]:
    """Return where in the guarded buffer each value lies, and a mask of all the other elements."""
    padded, offset = _padding(shape, layout)
    size = int(np.prod(padded))
    index = np.arange(size).reshape(padded) + GUARDS + offset
    index = index.T if layout == "transposed" else index[tuple(slice(n) for n in shape)]
    spared = np.ones(GUARDS + offset + size + GUARDS, bool)
    spared[index] = False
    return index, spared


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    return (rng.standard_normal(shape) * 2 + 0.25).astype(dtype)


def _check_group(path: Path, group: str, tensors: dict[str, Array]) -> None:
    """Refuse tensors that do not fit together."""
    want = np.dtype(np.float32 if group.startswith("f32") else np.uint16)
    x, gamma, y = (tensors[f"{group}/{name}"] for name in ("x", "gamma", "y"))
    for name, tensor in (("x", x), ("gamma", gamma), ("y", y)):
        if tensor.dtype != want:
            raise BadFile(f"{path}: {group}/{name} must be {want}, but is {tensor.dtype}")
    if x.ndim < 1 or gamma.shape != x.shape[-1:] or y.shape != x.shape:
        raise BadFile(
            f"{path}: {group} must have x and y of one shape and gamma of its last axis, "
            f"but they are {x.shape}, {y.shape} and {gamma.shape}"
        )
