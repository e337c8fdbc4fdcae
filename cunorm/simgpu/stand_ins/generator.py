"""What CuPy's `Generator` and its bit generators do with kernels that are compiled into CuPy.

They are Python classes, whose methods that launch such a kernel are replaced; the others (`gamma`,
`chisquare`, ...) are made of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from ..lanes import Array
from .curand import LIBRARY
from .host import Call, Host
from .operand import row_major

Draw = Callable[..., Array]


class Distributions:
    """The methods, each of which takes the `Generator` first.

    Parameters
    ----------
    host : Host
        Where they run.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def _draw(
        self, bits: Any, name: str, shape: Any, dtype: Any, draw: Draw, parameters: Sequence[Any]
    ) -> Any:
        """Return an array of what `draw` draws, given NumPy's generator and the parameters."""
        import cupy

        bits._check_device()
        out = cupy.empty(() if shape is None else shape, dtype)
        whole = [cupy.ascontiguousarray(cupy.broadcast_to(each, out.shape)) for each in parameters]
        target = row_major("out", out.data.ptr, out.shape, out.dtype)
        sources = [
            row_major(f"parameter {at}", each.data.ptr, out.shape, each.dtype)
            for at, each in enumerate(whole)
        ]

        def run(call: Call) -> None:
            given = [call.read(source) for source in sources]
            call.write(target, draw(bits._numbers, *given, out.shape))

        if out.size:
            self._host.call(LIBRARY, f"{name} of a Generator", run)
        return out

    def random_raw(self, bits: Any, out: Any) -> None:
        """Fill an array with 32 random bits a number."""
        draw = _integers(0, (1 << 32) - 1)
        out[...] = self._draw(bits, "raw", out.shape, np.uint32, draw, ()).view(out.dtype)

    def random(self, generator: Any, size: Any = None, dtype: Any = float, out: Any = None) -> Any:
        """Draw from [0, 1)."""
        kind = np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
        return self._given(generator, "random", size, dtype, out, kind, _uniform(kind))

    def uniform(
        self, generator: Any, low: Any = 0.0, high: Any = 1.0, size: Any = None, dtype: Any = float
    ) -> Any:
        """Draw from [low, high)."""
        import cupy

        low, high = cupy.asarray(low), cupy.asarray(high)
        shape = cupy.broadcast(low, high).shape if size is None else size
        kind = np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
        drawn = self._draw(generator.bit_generator, "uniform", shape, kind, _uniform(kind), ())
        return (low + (high - low) * drawn).astype(dtype, copy=False)

    def integers(
        self,
        generator: Any,
        low: Any,
        high: Any = None,
        size: Any = None,
        dtype: Any = np.int64,
        endpoint: bool = False,
    ) -> Any:
        """Draw whole numbers from [low, high), or to `high` itself with `endpoint`."""
        import cupy

        first, last = (0, int(low)) if high is None else (int(low), int(high))
        last -= not endpoint
        if first > last:
            raise ValueError("low >= high")
        limits, name = np.iinfo(dtype), np.dtype(dtype).name
        if first < limits.min:
            raise ValueError(f"low is out of bounds for {name}")
        if last > limits.max:
            raise ValueError(f"high is out of bounds for {name}")
        span = last - first
        kind = np.uint32 if span < 1 << 32 else np.uint64
        bits = generator.bit_generator
        drawn = self._draw(bits, "integers", size, kind, _integers(0, span), ())
        return cupy.add(first, drawn, dtype=dtype)

    def standard_normal(
        self, generator: Any, size: Any = None, dtype: Any = float, out: Any = None
    ) -> Any:
        """Draw from the normal distribution."""
        kind = np.dtype(dtype) if out is None else out.dtype
        if kind.char not in "fd":
            raise TypeError(f"Unsupported dtype {kind.name} for standard_normal")

        def draw(numbers: np.random.Generator, shape: Any) -> Array:
            return np.asarray(numbers.standard_normal(shape, kind))

        return self._given(generator, "standard_normal", size, dtype, out, kind, draw)

    def standard_exponential(
        self,
        generator: Any,
        size: Any = None,
        dtype: Any = float,
        method: str = "inv",
        out: Any = None,
    ) -> Any:
        """Draw from the exponential distribution."""
        if method == "zig":
            raise NotImplementedError("Ziggurat method is not supported")

        def draw(numbers: np.random.Generator, shape: Any) -> Array:
            return np.asarray(numbers.standard_exponential(shape))

        kind = np.dtype(np.float64)
        return self._given(generator, "standard_exponential", size, dtype, out, kind, draw)

    def standard_gamma(
        self, generator: Any, shape: Any, size: Any = None, dtype: Any = float, out: Any = None
    ) -> Any:
        """Draw from the gamma distribution."""
        if np.dtype(dtype).char not in "fd":
            raise TypeError(f"Unsupported dtype {np.dtype(dtype).name} for standard_gamma")
        if size is None and out is not None:
            size = out.shape
        if out is not None:
            generator._check_output_array(dtype, size, out, True)
        drawn = self._of(
            generator, "standard_gamma", np.random.Generator.standard_gamma, size, shape=shape
        )
        return _into(drawn, dtype, out)

    def beta(self, generator: Any, a: Any, b: Any, size: Any = None, dtype: Any = float) -> Any:
        """Draw from the beta distribution."""
        drawn = self._of(generator, "beta", np.random.Generator.beta, size, a=a, b=b)
        return drawn.astype(dtype, copy=False)

    def geometric(self, generator: Any, p: Any, size: Any = None) -> Any:
        """Draw how often one tries until a success."""
        return self._of(generator, "geometric", np.random.Generator.geometric, size, int, p=p)

    def logseries(self, generator: Any, p: Any, size: Any = None) -> Any:
        """Draw from the logarithmic series distribution."""
        return self._of(generator, "logseries", np.random.Generator.logseries, size, int, p=p)

    def poisson(self, generator: Any, lam: Any = 1.0, size: Any = None) -> Any:
        """Draw from the Poisson distribution."""
        return self._of(generator, "poisson", np.random.Generator.poisson, size, int, lam=lam)

    def hypergeometric(
        self, generator: Any, ngood: Any, nbad: Any, nsample: Any, size: Any = None
    ) -> Any:
        """Draw how many of a sample are good."""
        given = {"ngood": ngood, "nbad": nbad, "nsample": nsample}
        for name, value in given.items():
            if type(value) in (float, int) and value < 0:
                raise ValueError(f"{name} < 0")
        draw = np.random.Generator.hypergeometric
        kinds = dict.fromkeys(given, np.int64)
        return self._of(generator, "hypergeometric", draw, size, int, kinds, **given)

    def binomial(self, generator: Any, n: Any, p: Any, size: Any = None) -> Any:
        """Draw how many of n tries succeed."""
        draw, kinds = np.random.Generator.binomial, {"n": np.int64}
        return self._of(generator, "binomial", draw, size, int, kinds, n=n, p=p)

    def _of(
        self,
        generator: Any,
        name: str,
        draw: Draw,
        size: Any,
        dtype: Any = float,
        kinds: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> Any:
        """Draw from a distribution of NumPy's, with parameters that are numbers or arrays."""
        import cupy

        arrays = []
        for each, value in parameters.items():
            if not isinstance(value, cupy.ndarray) and type(value) not in (float, int):
                raise TypeError(f"{each} is required to be a cupy.ndarray or a scalar")
            arrays.append(cupy.asarray(value).astype((kinds or {}).get(each, float), copy=False))
        shape = cupy.broadcast(*arrays).shape if size is None else size
        return self._draw(generator.bit_generator, name, shape, dtype, draw, arrays)

    def _given(
        self,
        generator: Any,
        name: str,
        size: Any,
        dtype: Any,
        out: Any,
        kind: np.dtype[Any],
        draw: Draw,
    ) -> Any:
        """Draw into an array that the program may have given."""
        if out is not None:
            generator._check_output_array(dtype, size, out)
            size = out.shape
        return _into(self._draw(generator.bit_generator, name, size, kind, draw, ()), dtype, out)


def _into(drawn: Any, dtype: Any, out: Any) -> Any:
    if out is None:
        return drawn.astype(dtype, copy=False)
    out[...] = drawn
    return out


def _uniform(kind: np.dtype[Any]) -> Draw:
    return lambda numbers, shape: numbers.random(shape, kind)


def _integers(first: int, last: int) -> Draw:
    kind = np.uint32 if last < 1 << 32 else np.uint64
    return lambda numbers, shape: numbers.integers(first, last, shape, kind, endpoint=True)


def replace(host: Host, generators: ModuleType, bit_generators: ModuleType) -> None:
    """Give CuPy's classes methods that draw with NumPy, seeded as CuPy seeds its own."""
    distributions = Distributions(host)
    own = [name for name in vars(Distributions) if not name.startswith("_")]
    for name in own:
        if name != "random_raw":
            setattr(generators.Generator, name, _method(getattr(distributions, name)))
    vars(generators)["random_raw"] = distributions.random_raw
    base = bit_generators.BitGenerator

    def begin(bits: Any, seed: Any = None, *, size: int = -1) -> None:
        base.__init__(bits, seed)
        bits._size = size
        bits._numbers = np.random.Generator(np.random.Philox(bits._seed_seq))

    bit_generators._cuRANDGenerator.__init__ = begin


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(generator: Any, *arguments: Any, **named: Any) -> Any:
        return function(generator, *arguments, **named)

    method.__name__, method.__doc__ = function.__name__, function.__doc__
    return method
