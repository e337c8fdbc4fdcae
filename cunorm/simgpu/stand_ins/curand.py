"""cuRAND's generators as CuPy's `RandomState` uses them: `cupy_backends.cuda.libs.curand`.

The distributions are cuRAND's, and a seed gives the same numbers in every run. They are not those
of hardware: whatever the algorithm is called, NumPy's Philox makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from .host import Call, Host, Module, StatusError, refuse_capture
from .operand import vector

LIBRARY = "cuRAND"
VERSION = 10310

PSEUDO = {
    "DEFAULT": 100,
    "XORWOW": 101,
    "MRG32K3A": 121,
    "MTGP32": 141,
    "MT19937": 142,
    "PHILOX4_32_10": 161,
}
_CONSTANTS = {
    **{f"CURAND_RNG_PSEUDO_{name}": number for name, number in PSEUDO.items()},
    "CURAND_RNG_QUASI_DEFAULT": 200,
    "CURAND_RNG_QUASI_SOBOL32": 201,
    "CURAND_RNG_QUASI_SCRAMBLED_SOBOL32": 202,
    "CURAND_RNG_QUASI_SOBOL64": 203,
    "CURAND_RNG_QUASI_SCRAMBLED_SOBOL64": 204,
    "CURAND_ORDERING_PSEUDO_BEST": 100,
    "CURAND_ORDERING_PSEUDO_DEFAULT": 101,
    "CURAND_ORDERING_PSEUDO_SEEDED": 102,
    "CURAND_ORDERING_QUASI_DEFAULT": 201,
}
_NOT_INITIALISED, _TYPE_ERROR, _OUT_OF_RANGE = 101, 103, 104
_STATUS = {
    _NOT_INITIALISED: "CURAND_STATUS_NOT_INITIALIZED",
    _TYPE_ERROR: "CURAND_STATUS_TYPE_ERROR",
    _OUT_OF_RANGE: "CURAND_STATUS_OUT_OF_RANGE",
}
_BITS, _FLOAT, _DOUBLE = map(np.dtype, (np.uint32, np.float32, np.float64))
_FIRST_SEED = 0  # of a generator that was given none


class CURANDError(StatusError):
    """What CuPy raises for a status of cuRAND."""

    names = _STATUS


class Stream:
    """The numbers of one generator: a seed, and how many of them are passed over at its start."""

    def __init__(self) -> None:
        self.begin(_FIRST_SEED, 0)

    def begin(self, seed: int, offset: int) -> None:
        """Begin again."""
        self.seed = seed
        bits = np.random.Philox(key=seed)
        bits.advance(offset)
        self.numbers = np.random.Generator(bits)


class Generators:
    """The functions.

    Parameters
    ----------
    host : Host
        Where they run.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._streams: dict[int, Stream] = {}

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        names = [name for name in vars(type(self)) if not name.startswith("_")]
        return {name: getattr(self, name) for name in names if name != "functions"}

    def _of(self, generator: int) -> Stream:
        found = self._streams.get(generator)
        if found is None:
            raise CURANDError(_NOT_INITIALISED)
        return found

    def createGenerator(self, rng_type: int) -> int:
        """Return a generator of pseudorandom numbers; sequences that fill space have none here."""
        if rng_type not in PSEUDO.values():
            raise CURANDError(_TYPE_ERROR)
        generator = self._host.new_handle()
        self._streams[generator] = Stream()
        return generator

    def destroyGenerator(self, generator: int) -> None:
        """Forget a generator."""
        self._of(generator)
        del self._streams[generator]

    def getVersion(self) -> int:
        """Return the version that the stand-in imitates."""
        return VERSION

    def setStream(self, generator: int, stream: int) -> None:
        """Check that the stream is not being captured; work goes to the current one."""
        refuse_capture(LIBRARY, stream)
        self._of(generator)

    def setPseudoRandomGeneratorSeed(self, generator: int, seed: int) -> None:
        """Begin the numbers of a seed."""
        self._of(generator).begin(seed, 0)

    def setGeneratorOffset(self, generator: int, offset: int) -> None:
        """Begin again, some numbers later."""
        stream = self._of(generator)
        stream.begin(stream.seed, offset)

    def setGeneratorOrdering(self, generator: int, order: int) -> None:
        """Do nothing: numbers come in one order."""
        self._of(generator)

    def generate(self, generator: int, outputPtr: int, num: int) -> None:
        """Write 32 random bits a number."""

        def draw(numbers: np.random.Generator, n: int) -> Array:
            return numbers.integers(0, 1 << 32, n, np.uint32)

        self._draw("curandGenerate", generator, outputPtr, num, _BITS, draw)

    def generateUniform(self, generator: int, outputPtr: int, num: int) -> None:
        """Write numbers above 0, up to and with 1."""
        self._uniform("curandGenerateUniform", generator, outputPtr, num, _FLOAT)

    def generateUniformDouble(self, generator: int, outputPtr: int, num: int) -> None:
        """Write numbers above 0, up to and with 1."""
        self._uniform("curandGenerateUniformDouble", generator, outputPtr, num, _DOUBLE)

    def generateNormal(
        self, generator: int, outputPtr: int, n: int, mean: float, stddev: float
    ) -> None:
        """Write normally distributed numbers, an even number of them."""
        self._normal("curandGenerateNormal", generator, outputPtr, n, mean, stddev, _FLOAT)

    def generateNormalDouble(
        self, generator: int, outputPtr: int, n: int, mean: float, stddev: float
    ) -> None:
        """Write normally distributed numbers, an even number of them."""
        self._normal("curandGenerateNormalDouble", generator, outputPtr, n, mean, stddev, _DOUBLE)

    def generateLogNormal(
        self, generator: int, outputPtr: int, n: int, mean: float, stddev: float
    ) -> None:
        """Write numbers whose logarithms are normally distributed, an even number of them."""
        name = "curandGenerateLogNormal"
        self._normal(name, generator, outputPtr, n, mean, stddev, _FLOAT, np.exp)

    def generateLogNormalDouble(
        self, generator: int, outputPtr: int, n: int, mean: float, stddev: float
    ) -> None:
        """Write numbers whose logarithms are normally distributed, an even number of them."""
        name = "curandGenerateLogNormalDouble"
        self._normal(name, generator, outputPtr, n, mean, stddev, _DOUBLE, np.exp)

    def generatePoisson(self, generator: int, outputPtr: int, n: int, lam: float) -> None:
        """Write counts of a Poisson distribution."""
        if not lam > 0:
            raise CURANDError(_OUT_OF_RANGE)

        def draw(numbers: np.random.Generator, n: int) -> Array:
            return numbers.poisson(lam, n)

        self._draw("curandGeneratePoisson", generator, outputPtr, n, _BITS, draw)

    def _uniform(
        self, function: str, generator: int, output: int, num: int, dtype: np.dtype[Any]
    ) -> None:
        def draw(numbers: np.random.Generator, n: int) -> Array:
            return 1 - numbers.random(n, dtype)

        self._draw(function, generator, output, num, dtype, draw)

    def _normal(
        self,
        function: str,
        generator: int,
        output: int,
        n: int,
        mean: float,
        stddev: float,
        dtype: np.dtype[Any],
        transform: Callable[[Array], Array] = np.asarray,
    ) -> None:
        if n % 2:
            raise ValueError(
                f"{function} can only generate even number of random variables simultaneously"
            )

        def draw(numbers: np.random.Generator, n: int) -> Array:
            return transform(
                numbers.standard_normal(n, dtype) * dtype.type(stddev) + dtype.type(mean)
            )

        self._draw(function, generator, output, n, dtype, draw)

    def _draw(
        self,
        function: str,
        generator: int,
        output: int,
        n: int,
        dtype: np.dtype[Any],
        draw: Callable[[np.random.Generator, int], Array],
    ) -> None:
        self.setStream(generator, self._host.stream())
        stream, target = self._of(generator), vector("outputPtr", output, n, 1, dtype)

        def run(call: Call) -> None:
            call.write(target, draw(stream.numbers, n))

        self._host.call(LIBRARY, function, run)


def module(name: str, host: Host, wanted: str) -> Module:
    """Return the module."""
    made = Module(name, LIBRARY, wanted)
    vars(made).update(_CONSTANTS, CURANDError=CURANDError, **Generators(host).functions())
    return made
