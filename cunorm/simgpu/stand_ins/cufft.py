"""cuFFT's plans as CuPy makes them: `cupy.cuda.cufft`.

A plan that is given several devices, or callbacks, is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ..lanes import Array
from .host import Call, Host, Module, not_emulated
from .operand import Operand

LIBRARY = "cuFFT"
VERSION = 11400
FORWARD, INVERSE = -1, 1


class Kind(NamedTuple):
    """A kind of transform: the name of the function, and the dtypes of its input and output."""

    function: str
    source: np.dtype[Any]
    target: np.dtype[Any]


def _kind(name: str, source: str, target: str) -> Kind:
    return Kind(f"cufftExec{name}", np.dtype(source), np.dtype(target))


KINDS = {
    0x29: _kind("C2C", "F", "F"),
    0x2A: _kind("R2C", "f", "F"),
    0x2C: _kind("C2R", "F", "f"),
    0x69: _kind("Z2Z", "D", "D"),
    0x6A: _kind("D2Z", "d", "D"),
    0x6C: _kind("Z2D", "D", "d"),
}
_CONSTANTS = {
    **{kind.function.replace("cufftExec", "CUFFT_"): code for code, kind in KINDS.items()},
    "CUFFT_FORWARD": FORWARD,
    "CUFFT_INVERSE": INVERSE,
}
_INVALID_SIZE = 8


class CuFFTError(RuntimeError):
    """What CuPy raises for a result of cuFFT."""

    def __init__(self, result: int) -> None:
        self.result = result
        super().__init__({_INVALID_SIZE: "CUFFT_INVALID_SIZE"}[result])

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.result,)


_current = threading.local()


def get_current_plan() -> Plan | None:
    """Return the plan whose ``with`` statement this thread is in."""
    plan: Plan | None = getattr(_current, "plan", None)
    return plan


class Layout(NamedTuple):
    """Where the elements of one side lie: strides of the axes and from one of a batch to the next.

    All are in elements.
    """

    strides: tuple[int, ...]
    distance: int


def _embedded(
    embed: Sequence[int] | None, extents: Sequence[int], stride: int, distance: int
) -> Layout:
    """Return cuFFT's advanced layout, or the plain one where `embed` is not given."""
    if embed is None:
        embed, stride, distance = extents, 1, int(np.prod(extents))
    inner = [int(np.prod(embed[axis + 1 :])) for axis in range(len(embed))]
    return Layout(tuple(stride * each for each in inner), distance)


class Plan:
    """A plan of transforms of one shape.

    Parameters
    ----------
    host : Host
        Where they run.
    shape : sequence of int
        Extents of the transform.
    fft_type, batch : int
        The kind, and how many transforms there are.
    """

    handle = 0
    gpus = None
    work_area = None

    def __init__(self, host: Host, shape: Sequence[int], fft_type: int, batch: int) -> None:
        self._host = host
        self.fft_type, self.batch = fft_type, batch
        self._extents = tuple(shape)
        self._kind = KINDS[fft_type]
        if batch and min(self._extents) < 1:
            raise CuFFTError(_INVALID_SIZE)
        # Of a spectrum of real numbers, half is kept.
        half = (*self._extents[:-1], self._extents[-1] // 2 + 1)
        is_real = self._kind.source.kind == "f", self._kind.target.kind == "f"
        self._source_extents = half if is_real[1] else self._extents
        self._target_extents = half if is_real[0] else self._extents
        self._layouts = (
            _embedded(None, self._source_extents, 1, 0),
            _embedded(None, self._target_extents, 1, 0),
        )

    def __enter__(self) -> Plan:
        _current.plan = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _current.plan = None

    def fft(self, a: Any, out: Any, direction: int) -> None:
        """Transform, without a factor; `direction` is for complex numbers alone."""
        kind = self._kind
        source = self._operand("idata", a.data.ptr, 0, self._source_extents, kind.source)
        target = self._operand("odata", out.data.ptr, 1, self._target_extents, kind.target)

        def run(call: Call) -> None:
            transformed = self._transform(call.read(source), direction)
            call.write(target, transformed, in_place=a.data.ptr == out.data.ptr)

        if self.batch:
            self._host.call(LIBRARY, kind.function, run)

    def _operand(
        self, name: str, address: int, side: int, extents: tuple[int, ...], dtype: np.dtype[Any]
    ) -> Operand:
        layout = self._layouts[side]
        shape, strides = (self.batch, *extents), (layout.distance, *layout.strides)
        return Operand(name, address, shape, strides, dtype)

    def _transform(self, values: Array, direction: int) -> Array:
        axes = tuple(range(1, values.ndim))
        if self._kind.source.kind == "f":
            return np.fft.rfftn(values, axes=axes)
        if self._kind.target.kind == "f":
            return np.fft.irfftn(values, self._extents, axes, norm="forward")
        if direction == FORWARD:
            return np.fft.fftn(values, axes=axes)
        return np.fft.ifftn(values, axes=axes, norm="forward")

    def _shape_of(self, a: Any, axis: int, size: int) -> tuple[int, ...]:
        shape = list(a.shape)
        if self._kind.source != self._kind.target:
            shape[axis] = size
        return tuple(shape)


class Plan1d(Plan):
    """A plan over the last axis of an array in C order."""

    def __init__(
        self,
        host: Host,
        nx: int,
        fft_type: int,
        batch: int,
        *,
        devices: Any = None,
        out: Any = None,
        prealloc_plan: int = 0,
    ) -> None:
        if devices is not None or prealloc_plan:
            raise not_emulated(LIBRARY, "Fourier transforms", "a plan of several devices")
        super().__init__(host, (nx,), fft_type, batch)
        self.nx = nx

    def _output_dtype_and_shape(self, a: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._shape_of(a, -1, self._target_extents[-1]), self._kind.target

    def get_output_array(self, a: Any) -> Any:
        """Return an array for the result."""
        import cupy

        return cupy.empty(*self._output_dtype_and_shape(a))

    def check_output_array(self, a: Any, out: Any) -> None:
        """Raise where the result does not fit into an array."""
        shape, dtype = self._output_dtype_and_shape(a)
        if out.shape != shape:
            raise ValueError(f"out must have shape {shape}.")
        if out.dtype != dtype:
            raise ValueError(f"out dtype mismatch: found {out.dtype}, expected {dtype}")


class PlanNd(Plan):
    """A plan over one to three axes, with strides and distances of its own."""

    def __init__(
        self,
        host: Host,
        shape: Sequence[int],
        inembed: Sequence[int] | None,
        istride: int,
        idist: int,
        onembed: Sequence[int] | None,
        ostride: int,
        odist: int,
        fft_type: int,
        batch: int,
        order: str,
        last_axis: int,
        last_size: int | None,
        *,
        prealloc_plan: int = 0,
    ) -> None:
        if prealloc_plan:
            raise not_emulated(LIBRARY, "Fourier transforms", "a plan with callbacks")
        super().__init__(host, shape, fft_type, batch)
        self.shape, self.order = tuple(shape), order
        self.last_axis, self.last_size = last_axis, last_size
        self._layouts = (
            _embedded(inembed, self._source_extents, istride, idist),
            _embedded(onembed, self._target_extents, ostride, odist),
        )

    def get_output_array(self, a: Any, order: str = "C") -> Any:
        """Return an array for the result."""
        import cupy

        shape = self._shape_of(a, self.last_axis, self.last_size or 0)
        return cupy.empty(shape, self._kind.target, order=order)

    def check_output_array(self, a: Any, out: Any) -> None:
        """Raise where the result does not fit into an array."""
        if out is a:
            return
        shape = self._shape_of(a, self.last_axis, self.last_size or 0)
        if out.shape != shape:
            raise ValueError(f"output shape mismatch: found {out.shape}, expected {shape}")
        if out.dtype != self._kind.target:
            expected = self._kind.target
            raise ValueError(f"output dtype mismatch: found {out.dtype}, expected {expected}")
        if (out.flags.f_contiguous, out.flags.c_contiguous) != (
            a.flags.f_contiguous,
            a.flags.c_contiguous,
        ):
            raise ValueError("output contiguity mismatch")


def module(name: str, host: Host, wanted: str) -> Module:
    """Return the module."""
    made = Module(name, LIBRARY, wanted)
    for plan in (Plan1d, PlanNd):
        # CuPy asks isinstance of them, so that each is a class.
        own = type(plan.__name__, (plan,), {"__init__": _begin(plan, host), "__module__": name})
        setattr(made, plan.__name__, own)
    made.__dict__.update(
        _CONSTANTS,
        CuFFTError=CuFFTError,
        get_current_plan=get_current_plan,
        getVersion=partial(int, VERSION),
    )
    return made


def _begin(plan: type[Plan], host: Host) -> Any:
    def begin(self: Any, *arguments: Any, **named: Any) -> None:
        plan.__init__(self, host, *arguments, **named)

    return begin
