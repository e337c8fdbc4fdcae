"""What hardware takes for a call, beside a copy of the same bytes and CuPy's own expressions.

Launches are captured into a graph, so that the host is no part of it, and the graph is replayed
between two events. `cold` rotates through buffers that together are larger than the L2 cache;
`warm` uses one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import cupy

from .._families import ADDED, BESIDE_RESIDUAL, LAYER_NORM, NORMED, RMS_NORM
from .._plan import accumulator
from .cases import Case, arrays, call

LAUNCHES = 48  # in a graph, at least
ROUNDS = 20  # replays, of which the best counts: other work on the device only ever adds
CACHES = 3  # rotating buffers hold so many times the L2 cache
MOST_SETS = 512  # of buffers: a call of a few KB finds its data in the cache in any program
# What the ops take where nothing is given.
RMS_EPS, LAYER_EPS = (family.eps for family in (RMS_NORM, LAYER_NORM))

Launch = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """The times of one call in microseconds, and what follows from them.

    Attributes
    ----------
    op, dtype, cols, rows, offset
        The case.
    arch : int
        The architecture, like 90.
    cold, warm : float
        One launch, with data from memory and with what the L2 cache keeps of it.
    cold_gb_per_s, warm_gb_per_s : float
        The bytes that must move over that time.
    copy : float
        A copy from device to device that reads and writes the same bytes, cold.
    expression, fuse : float or None
        The same result by CuPy's operators, and by functions under ``cupy.fuse``, cold; None where
        CuPy cannot compile it: ``cupy.fuse`` knows no bfloat16, and no sum over rows beside one
        over columns.
    """

    op: str
    dtype: str
    cols: int
    rows: int
    offset: int
    arch: int
    cold: float
    warm: float
    cold_gb_per_s: float
    warm_gb_per_s: float
    copy: float
    expression: float | None
    fuse: float | None

    @property
    def share(self) -> float:
        """The speed of a copy that was reached: 1 where the call takes no longer."""
        return self.copy / self.cold


def time(case: Case) -> Times:
    """Measure one case on the current device."""
    sets = [arrays(case) for _ in range(_buffers(case))]
    calls: list[Launch] = [partial(call, case, given) for given in sets]
    cold, warm = microseconds(calls), microseconds(calls[:1])
    fuse = None
    if case.dtype != "bfloat16" and not case.is_backward:
        fuse = microseconds([partial(fused, case, given) for given in sets])
    expression = microseconds([partial(expressed, case, given) for given in sets])
    del calls
    return Times(
        case.op,
        case.dtype,
        case.cols,
        case.rows,
        case.offset,
        int(cupy.cuda.Device().compute_capability),
        cold,
        warm,
        case.floor_bytes / cold / 1e3,
        case.floor_bytes / warm / 1e3,
        microseconds(_copies(case, len(sets))),
        expression,
        fuse,
    )


def microseconds(launches: Sequence[Launch]) -> float:
    """Return the time of one of `launches`, which take turns in a graph."""
    turns = -(-LAUNCHES // len(launches))
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    best = float("inf")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for launch in launches:  # kernels are compiled, and the pool has what they allocate
            launch()
        stream.synchronize()
        stream.begin_capture()
        for launch in list(launches) * turns:
            launch()
        graph = stream.end_capture()
        for _ in range(1 + ROUNDS):
            graph.launch(stream)  # keeps the device at work until all that is timed is enqueued
            start.record(stream)
            graph.launch(stream)
            end.record(stream)
            end.synchronize()
            best = min(best, cupy.cuda.get_elapsed_time(start, end))
    return best * 1e3 / (turns * len(launches))


def _buffers(case: Case) -> int:
    """Return how many sets of arrays are larger than the L2 cache together, within bounds."""
    device = cupy.cuda.Device().id
    l2_bytes = int(cupy.cuda.runtime.getDeviceProperties(device)["l2CacheSize"])
    return min(max(2, -(-CACHES * l2_bytes // case.floor_bytes)), MOST_SETS)


def _copies(case: Case, count: int) -> list[Launch]:
    """Return copies that read half of the least bytes and write the other half."""
    half = case.floor_bytes // 2
    stream = cupy.cuda.get_current_stream
    pairs = [(cupy.empty(half, "uint8"), cupy.zeros(half, "uint8")) for _ in range(count)]

    def copy(target: cupy.ndarray, source: cupy.ndarray) -> None:
        target.data.copy_from_device_async(source.data, half, stream())

    return [partial(copy, *pair) for pair in pairs]


def expressed(case: Case, given: dict[str, cupy.ndarray]) -> cupy.ndarray:
    """Return y, or every gradient, by CuPy's operators, as one writes it without cunorm."""
    if case.is_backward:
        return _expressed_backward(given)
    source = case.kind.source
    h = given["x"] + given["residual"] if source is ADDED else given["x"]
    y = _expressed_norm(case, h, given["gamma"], given.get("beta"))
    if source in (BESIDE_RESIDUAL, NORMED):
        y = given["residual"] + y
    if source is NORMED:
        return _expressed_norm(case, y, given["gamma2"], None)
    if "gate" in given:
        gate = given["gate"].astype(accumulator(case.dtype))
        return (y * (gate / (1 + cupy.exp(-gate)))).astype(h.dtype)
    return y


def _expressed_norm(case: Case, h: Any, gamma: Any, beta: Any) -> Any:
    wide = h.astype(accumulator(case.dtype))
    family = case.kind.family
    if "mean" in family.saves:
        wide = wide - wide.mean(-1, keepdims=True)
    rstd = 1 / cupy.sqrt((wide * wide).mean(-1, keepdims=True) + family.eps)
    y = (wide * rstd).astype(h.dtype) * gamma
    return y if beta is None else y + beta


def _expressed_backward(given: dict[str, cupy.ndarray]) -> tuple[cupy.ndarray, ...]:
    sums = given["rstd"].dtype
    dy, x, gamma = (given[name].astype(sums) for name in ("dy", "x", "gamma"))
    normal = x * given["rstd"][:, None]
    if "mean" in given:
        normal = (x - given["mean"][:, None]) * given["rstd"][:, None]
    weighted = dy * gamma
    inner = weighted - normal * (weighted * normal).mean(-1, keepdims=True)
    if "mean" in given:
        inner = inner - weighted.mean(-1, keepdims=True)
    dx = inner * given["rstd"][:, None] + given["dresidual"].astype(sums)
    totals = [(dy * normal).sum(0)] + ([dy.sum(0)] if "mean" in given else [])
    return dx.astype(given["x"].dtype), *(t.astype(given["gamma"].dtype) for t in totals)


def fused(case: Case, given: dict[str, cupy.ndarray]) -> cupy.ndarray:
    """Return y by ``cupy.fuse``, which makes a kernel of each sum and of what follows it."""
    source, gated = case.kind.source, _fused_functions(case.dtype)[-1]
    h = given["x"] + given["residual"] if source is ADDED else given["x"]
    y = _fused_norm(case, h, given["gamma"], given.get("beta"))
    if source in (BESIDE_RESIDUAL, NORMED):
        y = given["residual"] + y
    if source is NORMED:
        return _fused_norm(case, y, given["gamma2"], None)
    return gated(y, given["gate"]) if "gate" in given else y


def _fused_norm(case: Case, h: Any, gamma: Any, beta: Any) -> Any:
    total, squares, scale, shift, _ = _fused_functions(case.dtype)
    if beta is None:
        return scale(h, (squares(h) / case.cols)[:, None], gamma)
    mean = (total(h) / case.cols)[:, None]
    variance = (squares(h - mean.astype(h.dtype)) / case.cols)[:, None]
    return shift(h, mean, variance, gamma, beta)


@cache
def _fused_functions(dtype: str) -> tuple[Callable[..., Any], ...]:
    """Return the sum, the sum of squares, the last steps of RMSNorm and LayerNorm, and a gate."""
    is_wide = dtype == accumulator(dtype)

    def widen(a: Any) -> Any:
        return a if is_wide else a.astype(cupy.float32)

    def narrow(a: Any) -> Any:
        return a if is_wide else a.astype(cupy.float16)

    def total(h: Any) -> Any:
        return cupy.sum(widen(h), axis=1)

    def squares(h: Any) -> Any:
        return cupy.sum(widen(h) * widen(h), axis=1)

    def scale(h: Any, mean_square: Any, gamma: Any) -> Any:
        return narrow(widen(h) / cupy.sqrt(mean_square + RMS_EPS)) * gamma

    def shift(h: Any, mean: Any, variance: Any, gamma: Any, beta: Any) -> Any:
        return narrow((widen(h) - mean) / cupy.sqrt(variance + LAYER_EPS)) * gamma + beta

    def gated(y: Any, gate: Any) -> Any:
        return narrow(widen(y) * (widen(gate) / (1 + cupy.exp(-widen(gate)))))

    functions = (total, squares, scale, shift, gated)
    return tuple(cupy.fuse()(function) for function in functions)
