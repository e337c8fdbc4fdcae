"""A file of tensors that a model normalised: what `python -m cunorm check --data` compares with.

The keys are ``{f32,bf16}/{layer0,layer15,layer29,final}/{x,gamma,y}`` and ``eps``; bfloat16 is
stored as the uint16 of its bits. What x and gamma give must be y.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cupy
import numpy as np

import cunorm

from .. import _reference
from .._progress import counted, percent
from .._reference import BFLOAT16, DTYPES
from .checks import Check, Outcome, share_of, worst_of
from .layouts import Array

LAYERS = ("layer0", "layer15", "layer29", "final")

# A one-ulp flip of the normalised value, from an rstd that differs in its last bit, can be two ulps
# after gamma, and is rare.
BFLOAT16_EQUAL = 0.995
BFLOAT16_ULPS = 2.0
FLOAT32_ULPS = 4.0
FLOAT32_RELATIVE = 1e-6


class BadFile(Exception):
    """The file of tensors cannot be used, and why."""


def read(path: Path) -> dict[str, Array]:
    """Return the tensors of a file, or raise BadFile."""
    try:
        # np.load does not close a file that it cannot read.
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise BadFile(f"{path} holds one array, not the named tensors of an .npz file")
            with file:
                tensors = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise BadFile(f"cannot read {path}: {error}") from error
    groups = [f"{kind}/{layer}" for kind in ("f32", "bf16") for layer in LAYERS]
    wanted = ["eps", *(f"{group}/{name}" for group in groups for name in ("x", "gamma", "y"))]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise BadFile(f"{path} lacks {', '.join(missing)}")
    for group in groups:
        _check_group(path, group, tensors)
    if tensors["eps"].ndim != 0 or tensors["eps"].dtype.kind != "f":
        raise BadFile(f"{path}: eps must be one number, but is {tensors['eps']!r}")
    return tensors


def checks(tensors: dict[str, Array]) -> Iterator[Check]:
    """Yield a check for each norm of the file."""
    eps = float(tensors["eps"])
    for kind, dtype, compare in (
        ("f32", DTYPES["float32"], _compare_float32),
        ("bf16", BFLOAT16, _compare_bfloat16),
    ):
        for layer in LAYERS:
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
    relative = np.abs(expected.value) / _reference.ulp(expected.value, expected.dtype)
    allowed = np.maximum(FLOAT32_ULPS, FLOAT32_RELATIVE * relative)
    model = share_of(_reference.ulps(stored, expected.value, expected.dtype), allowed)
    note = f"the model's own: {percent(float(model.max()))}"
    return _outcome(expected.ulps(y), allowed, note)


def _compare_bfloat16(x: Array, gamma: Array, eps: float, stored: Array, y: Array) -> Outcome:
    """Hold y against the bits that the model computed."""
    distance = _reference.ulps(y, stored.astype(np.float64), BFLOAT16)
    equal = float(np.mean(y.view(np.uint16) == stored.view(np.uint16)))
    note = f"{equal:.2%} the model's bits"
    outcome = _outcome(distance, np.full_like(distance, BFLOAT16_ULPS), note)
    if equal < BFLOAT16_EQUAL:
        outcome.faults.append("bits differ")
    return outcome


def _outcome(distance: Array, allowed: Array, note: str) -> Outcome:
    off = int((~(distance <= allowed)).sum())
    faults = [f"{counted(off, 'element')} off"] if off else []
    return Outcome(*worst_of(distance, allowed), faults, note)


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
