"""cuRAND's stand-in: the right distributions, and the same numbers of a seed in every run."""

import math
import subprocess
import sys

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

N = 20_000
# Kolmogorov's statistic exceeds this once in a million samples of the right distribution; the seeds
# are fixed, so that a test passes always or never.
FAR = math.sqrt(-math.log(1e-6 / 2) / 2) / math.sqrt(N)


def distance(sample, cdf):
    """Return Kolmogorov's statistic: how far the sample's distribution is from a known one."""
    known = np.vectorize(cdf)(np.sort(sample.get().ravel().astype(np.float64)))
    steps = np.arange(known.size + 1) / known.size
    return max((known - steps[:-1]).max(), (steps[1:] - known).max())


def uniform(x):
    return min(max(x, 0.0), 1.0)


def normal(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def exponential(x):
    return 1 - math.exp(-x)


def log_normal(x):
    return normal(math.log(x))


def beta_two_one(x):
    return x * x


LEGACY = {
    "rand": (lambda r: r.rand(N), uniform),
    "random_sample of float32": (lambda r: r.random_sample(N, dtype="f"), uniform),
    "uniform": (lambda r: (r.uniform(-2, 3, N) + 2) / 5, uniform),
    "randn": (lambda r: r.randn(N), normal),
    "normal of float32": (lambda r: (r.normal(3, 2, N, dtype="f") - 3) / 2, normal),
    "an odd number of normals": (lambda r: r.standard_normal(N - 1), normal),
    "lognormal": (lambda r: r.lognormal(size=N), log_normal),
    "exponential": (lambda r: r.exponential(2.0, N) / 2, exponential),
    "beta": (lambda r: r.beta(2.0, 1.0, N), beta_two_one),
    "gamma": (lambda r: r.gamma(1.0, 1.0, N), exponential),
}
NEW = {
    "random": (lambda g: g.random(N), uniform),
    "random of float32": (lambda g: g.random(N, dtype="f"), uniform),
    "uniform": (lambda g: g.uniform(cupy.full(N, -1.0), 1.0) / 2 + 0.5, uniform),
    "standard_normal": (lambda g: g.standard_normal(N), normal),
    "standard_normal of float32": (lambda g: g.standard_normal(N, "f"), normal),
    "standard_exponential": (lambda g: g.standard_exponential(N), exponential),
    "exponential": (lambda g: g.exponential(2.0, N) / 2, exponential),
    "standard_gamma": (lambda g: g.standard_gamma(1.0, N), exponential),
    "gamma": (lambda g: g.gamma(cupy.ones(N), 1.0), exponential),
    "chisquare": (lambda g: g.chisquare(2.0, N) / 2, exponential),
    "beta": (lambda g: g.beta(2.0, 1.0, N), beta_two_one),
    "power": (lambda g: g.power(2.0, N), beta_two_one),
}


@pytest.mark.parametrize("name", LEGACY)
def test_random_state_has_the_distribution(name):
    draw, cdf = LEGACY[name]
    sample = draw(cupy.random.RandomState(11))
    assert distance(sample, cdf) < FAR


@pytest.mark.parametrize("name", NEW)
def test_a_generator_has_the_distribution(name):
    draw, cdf = NEW[name]
    sample = draw(cupy.random.default_rng(11))
    assert distance(sample, cdf) < FAR


# Whole numbers: their mean and variance.
COUNTS = {
    "randint": (lambda r, g: r.randint(-3, 4, N), 0, 4),
    "integers": (lambda r, g: g.integers(-3, 3, N, endpoint=True), 0, 4),
    "integers of 64 bits": (lambda r, g: g.integers(0, 7 << 40, N) >> 40, 3, 4),
    "poisson of RandomState": (lambda r, g: r.poisson(4.0, N), 4, 4),
    "poisson": (lambda r, g: g.poisson(4.0, N), 4, 4),
    "binomial": (lambda r, g: g.binomial(20, 0.25, N), 5, 3.75),
    "geometric": (lambda r, g: g.geometric(0.5, N), 2, 2),
    "hypergeometric": (lambda r, g: g.hypergeometric(10, 10, 5, N), 2.5, 1.25 * 15 / 19),
    "choice": (lambda r, g: r.choice(7, N), 3, 4),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_have_their_mean_and_variance(name):
    draw, mean, variance = COUNTS[name]
    sample = draw(cupy.random.RandomState(5), cupy.random.default_rng(5)).get()
    assert sample.dtype.kind in "iu"
    # Five standard errors of the mean, and of the variance for kurtosis up to `geometric`'s, 9.5.
    assert abs(sample.mean() - mean) < 5 * math.sqrt(variance / N)
    assert abs(sample.var() - variance) < 5 * variance * math.sqrt(8.5 / N)


def test_each_parameter_of_an_array_is_its_own():
    lam = cupy.asarray([[1.0], [1000.0]])
    drawn = cupy.random.default_rng(0).poisson(cupy.broadcast_to(lam, (2, 500))).get()
    assert abs(drawn[0].mean() - 1) < 5 / math.sqrt(500)
    assert abs(drawn[1].mean() - 1000) < 5 * math.sqrt(1000 / 500)


def test_a_permutation_has_each_number_once():
    cupy.random.seed(1)
    assert sorted(cupy.random.permutation(1000).tolist()) == list(range(1000))
    x = cupy.arange(100)
    cupy.random.shuffle(x)
    assert x.tolist() != list(range(100))
    assert sorted(x.tolist()) == list(range(100))
    drawn = cupy.random.choice(100, 50, replace=False)
    assert len(set(drawn.tolist())) == 50


PROGRAM = """
import cupy
cupy.random.seed(7)
rng = cupy.random.default_rng(7)
print(cupy.random.rand(2), cupy.random.randn(2), cupy.random.randint(0, 1 << 30, 2))
print(rng.random(2), rng.standard_normal(2), rng.integers(0, 1 << 30, 2), rng.gamma(2.0, size=2))
"""


def test_a_seed_gives_the_same_numbers_in_every_run():
    command = [sys.executable, "-m", "cunorm.simgpu", "-c", PROGRAM]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout != ""
    # Its name is said once, however often it is used.
    (line,) = runs[0].stderr.splitlines()
    assert line.startswith("cunorm.simgpu: cuRAND is a stand-in that computes with NumPy")


def test_a_seed_begins_again_and_seeds_differ():
    rng, state = cupy.random.default_rng, cupy.random.RandomState
    assert rng(3).random(5).tolist() == rng(3).random(5).tolist()
    assert rng(3).random(5).tolist() != rng(4).random(5).tolist()
    assert state(3).rand(5).tolist() != state(4).rand(5).tolist()
    one = state(3)
    first = one.rand(5).tolist()
    assert one.rand(5).tolist() != first
    one.seed(3)
    assert one.rand(5).tolist() == first


def test_curands_uniform_numbers_end_at_one_and_cupys_at_zero():
    # Of this seed's first million float32 numbers, two are at the end of the interval.
    state = cupy.random.RandomState(34)
    raw = state._random_sample_raw(1 << 20, "f").get()
    assert (raw > 0).all()
    assert (raw == 1).sum() == 2
    state.seed(34)
    found = state.random_sample(1 << 20, "f").get()
    assert (found < 1).all()
    assert (found == 0).sum() == 2


def test_raw_bits_of_each_algorithm():
    for kind in (cupy.random.XORWOW, cupy.random.MRG32k3a, cupy.random.Philox4x3210):
        bits = kind(3).random_raw(N)
        assert bits.dtype == np.int32
        ones = np.unpackbits(bits.get().view(np.uint8)).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / math.sqrt(32 * N)


def test_an_array_may_be_given():
    out = cupy.empty(5)
    rng = cupy.random.default_rng(0)
    assert rng.random(out=out) is out
    assert rng.standard_normal(out=out) is out
    with pytest.raises(TypeError, match="wrong type"):
        rng.random(dtype="f", out=out)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda g: g.integers(3, 3), ValueError),
        (lambda g: g.integers(0, 300, dtype=np.uint8), ValueError),
        (lambda g: g.standard_normal(3, "i"), TypeError),
        (lambda g: g.poisson("1"), TypeError),
        (lambda g: g.hypergeometric(-1, 1, 1), ValueError),
        (lambda g: g.standard_exponential(3, method="zig"), NotImplementedError),
    ],
)
def test_bad_arguments_raise_what_cupy_raises(call, error):
    with pytest.raises(error):
        call(cupy.random.default_rng(0))


def test_a_sequence_that_fills_space_is_refused():
    from cupy_backends.cuda.libs import curand

    with pytest.raises(curand.CURANDError, match="CURAND_STATUS_TYPE_ERROR"):
        curand.createGenerator(curand.CURAND_RNG_QUASI_SOBOL32)


def test_drawing_into_freed_memory_is_a_fault():
    from cupy_backends.cuda.libs import curand

    x = cupy.empty(8, np.float32)
    generator = curand.createGenerator(curand.CURAND_RNG_PSEUDO_DEFAULT)
    with pytest.raises(simgpu.OutOfBounds, match="curandGenerateUniform writes outputPtr"):
        curand.generateUniform(generator, x.data.ptr, 9)
    address = x.data.ptr
    del x
    with pytest.raises(simgpu.UseAfterFree, match="curandGenerateUniform writes outputPtr"):
        curand.generateUniform(generator, address, 8)


def test_the_profiler_counts_what_is_drawn():
    state = cupy.random.RandomState(0)
    with simgpu.profile(registers=False) as prof:
        state.rand(10, dtype="f")
    (call,) = prof.stand_ins
    assert (call.function, call.read_bytes, call.written_bytes) == ("curandGenerateUniform", 0, 40)
