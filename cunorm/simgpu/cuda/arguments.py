"""The arguments of a launch, held against the kernel's parameters before they are read.

CUDA is given an array of pointers, and neither its length nor the sizes of what they point to: it
reads as many bytes as the kernel's parameters have. What does not fit is read from beyond an
argument, or cut, on hardware without a word. Here the values themselves are at hand, as the program
gave them to ``cupy.cuda.Function``.

Only what the kernel would read wrongly is refused: an integer that fits into a narrower parameter
is what CuPy's own manual passes for an ``int``.
"""

from __future__ import annotations

import gc
import math
import struct
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..faults import LaunchError, Place
from ..ptx.declarations import Parameter
from ..ptx.module import Function

POINTER = 8  # bytes

# What CuPy makes of Python's own numbers.
_SIZES = {bool: 1, int: 8, float: 8, complex: 16}
# From `check` up to the program's line: CuPy's own functions between have no frames.
_PROGRAM = 4
_FORMATS = {"f32": "<f", "f64": "<d"}


def check(function: Function, given: Sequence[object]) -> None:
    """Raise LaunchError where the arguments of a launch are not what the kernel would read.

    More arguments than it has parameters are a RuntimeWarning: CUDA reads as many as there are.

    Parameters
    ----------
    function : Function
        The kernel. Of parameters that it never reads only the number counts.
    given : sequence
        What the program gave to ``cupy.cuda.Function``: arrays, numbers, NumPy's or CuPy's holders
        of a value. A holder whose size cannot be known is let pass.
    """
    kernel, parameters = function.name, function.parameters
    wanted = f"{len(parameters)} argument{'s' * (len(parameters) != 1)}"
    counts = f"the kernel takes {wanted}, and {len(given)} {_were(len(given))} given"
    if len(given) < len(parameters):
        raise LaunchError(counts, Place(kernel=kernel))
    for at, (parameter, value) in enumerate(zip(parameters, given, strict=False), 1):
        problem = _problem(parameter, _held(value)) if parameter.name in function.uses else None
        if problem is not None:
            which = f"argument {at} of {len(given)}"
            raise LaunchError(f"{which} is {problem}", Place(kernel=kernel))
    if len(given) > len(parameters):
        warnings.warn(
            f"{kernel}: {counts}; CUDA never reads those after them",
            RuntimeWarning,
            stacklevel=_PROGRAM,
        )


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _held(value: object) -> object:
    """Return what CuPy's holder of a NumPy value holds; anything else is itself."""
    from cupy.cuda.function import CNumpyArray

    # It has no attribute for it.
    return gc.get_referents(value)[0] if isinstance(value, CNumpyArray) else value


def _problem(parameter: Parameter, value: object) -> str | None:
    """Return what is wrong with one argument, in words, or None."""
    import cupy

    if isinstance(value, cupy.ndarray):
        return _array_problem(parameter, value)
    if isinstance(value, np.ndarray) and (value.size != 1 or value.dtype.names is not None):
        size: int = value.nbytes
        name = f"a NumPy array of {_bytes(size)} ({value.dtype}, shape {value.shape})"
        return None if size == parameter.size else f"{name}, where {_wants(parameter)}"
    if type(value) in _SIZES:
        return _number_problem(parameter, value, _SIZES[type(value)])
    if isinstance(value, (np.generic, np.ndarray)):
        return _number_problem(parameter, np.asarray(value)[()], value.itemsize)
    if isinstance(value, cupy.cuda.MemoryPointer) and parameter.size != POINTER:
        return f"a pointer of {POINTER} bytes, where {_wants(parameter)}"
    return None


def _wants(parameter: Parameter) -> str:
    kind = f" (.{parameter.kind})" if parameter.kind else ""
    return f"the kernel takes {_bytes(parameter.size)}{kind}"


def _bytes(count: int) -> str:
    return f"{count} byte{'s' * (count != 1)}"


def _array_problem(parameter: Parameter, value: Any) -> str | None:
    """Return what is wrong with an array, which a kernel takes as a pointer or CuPy's CArray."""
    # A CArray has the pointer, the size, the shape and the strides.
    right = parameter.size in (POINTER, 2 * POINTER * (1 + value.ndim))
    if right and not parameter.kind.startswith("f"):
        return None
    hint = f": pass {_numpy_type(parameter)}(...)" if parameter.kind else ""
    return (
        f"an array ({value.dtype}, shape {value.shape}), which is passed as a pointer of "
        f"{POINTER} bytes, where {_wants(parameter)}{hint}"
    )


def _number_problem(parameter: Parameter, value: Any, size: int) -> str | None:
    # NumPy's scalars may carry bits on purpose, and .b types take them; Python's are numbers.
    is_number = type(value) in (int, float) and parameter.kind[:1] in ("u", "s", "f")
    if size == parameter.size and not is_number:
        return None
    if size >= parameter.size and _survives(value, parameter):
        return None
    taken = "" if isinstance(value, np.generic) else f" as {np.asarray(value).dtype}"
    name = f"{value!r}, passed{taken} in {_bytes(size)}, where {_wants(parameter)}"
    return f"{name}: pass {_numpy_type(parameter)}(...)" if parameter.kind else name


def _survives(value: Any, parameter: Parameter) -> bool:
    """Return whether a kernel that reads the first bytes of a number reads that number."""
    data = np.asarray(value).tobytes()[: parameter.size]
    if parameter.kind in _FORMATS:
        (read,) = struct.unpack(_FORMATS[parameter.kind], data)
        return bool(read == value) and math.copysign(1, read) == math.copysign(1, value.real)
    if isinstance(value, (bool, int, np.bool_, np.integer)):
        return any(
            int.from_bytes(data, "little", signed=signed) == int(value) for signed in (False, True)
        )
    # The bits of a floating-point number are no integer, but for those of zero.
    return not any(np.asarray(value).tobytes())


def _numpy_type(parameter: Parameter) -> str:
    kind = "float" if parameter.kind.startswith("f") else "int"
    return f"numpy.{kind}{8 * parameter.size}"
