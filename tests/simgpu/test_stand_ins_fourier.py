"""cuFFT's stand-in: transforms of every kind and layout, held against NumPy."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

RANDOM = np.random.default_rng(0)
SHAPE = (4, 6, 10)
CALLS = {
    "fft": lambda f, x: f.fft(x),
    "ifft": lambda f, x: f.ifft(x),
    "fft of columns": lambda f, x: f.fft(x, axis=0),
    "fft of the middle axis": lambda f, x: f.fft(x, axis=1),
    "fft, padded": lambda f, x: f.fft(x, n=16),
    "fft, cut": lambda f, x: f.fft(x, n=7),
    "fft, orthonormal": lambda f, x: f.fft(x, norm="ortho"),
    "ifft, forward": lambda f, x: f.ifft(x, norm="forward"),
    "fft of a step": lambda f, x: f.fft(x[::2, ::-1, ::3]),
    "fft2": lambda f, x: f.fft2(x),
    "fft2 of the first axes": lambda f, x: f.fft2(x, axes=(0, 1)),
    "ifft2": lambda f, x: f.ifft2(x),
    "fftn": lambda f, x: f.fftn(x),
    "ifftn, padded": lambda f, x: f.ifftn(x, (5, 7, 11), (0, 1, 2)),
    "fftn of two axes that are apart": lambda f, x: f.fftn(x, axes=(0, 2)),
    "hfft": lambda f, x: f.hfft(x),
    "irfft": lambda f, x: f.irfft(x),
    "irfft, odd": lambda f, x: f.irfft(x, n=17),
    "irfft2": lambda f, x: f.irfft2(x),
    "irfftn": lambda f, x: f.irfftn(x),
    "irfftn of the first axes": lambda f, x: f.irfftn(x, axes=(0, 1)),
}
OF_REAL = {
    "rfft": lambda f, x: f.rfft(x),
    "rfft of columns": lambda f, x: f.rfft(x, axis=0),
    "rfft, odd": lambda f, x: f.rfft(x, n=9),
    "rfft2": lambda f, x: f.rfft2(x),
    "rfftn": lambda f, x: f.rfftn(x),
    "rfftn of the first axes": lambda f, x: f.rfftn(x, axes=(0, 1)),
    "ihfft": lambda f, x: f.ihfft(x),
    "fft of real numbers": lambda f, x: f.fft(x),
    "there and back": lambda f, x: f.irfft(f.rfft(x)),
}


def close(found, expected, dtype):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # The same butterflies of the same numbers: at most 10 of them, of at most 240 numbers each.
    tolerance = 10 * np.finfo(dtype).eps * max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(found.get(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.complex64, np.complex128], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_the_transform_is_numpys(name, dtype, order):
    x = RANDOM.standard_normal((*SHAPE, 2)).view(np.complex128)[..., 0].astype(dtype)
    device = cupy.asarray(x, order=order)
    close(CALLS[name](cupy.fft, device), CALLS[name](np.fft, x), dtype)
    np.testing.assert_array_equal(device.get(), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", OF_REAL)
def test_the_transform_of_real_numbers_is_numpys(name, dtype):
    x = RANDOM.standard_normal(SHAPE).astype(dtype)
    close(OF_REAL[name](cupy.fft, cupy.asarray(x)), OF_REAL[name](np.fft, x), dtype)


def test_scipys_transform_with_a_plan_in_place():
    fft = pytest.importorskip("cupyx.scipy.fft")
    x = cupy.asarray(RANDOM.standard_normal((4, 8)) + 0j)
    expected = np.fft.fft2(x.get())
    with fft.get_fft_plan(x) as plan:
        assert type(plan).__name__ == "PlanNd"
        found = fft.fft2(x, overwrite_x=True)
    close(found, expected, np.float64)
    row = cupy.ones(8, np.complex64)
    one = fft.get_fft_plan(row)
    with pytest.raises(ValueError, match="Batch size"):
        fft.fft(cupy.ones((2, 8), np.complex64), plan=one)


@pytest.mark.parametrize(
    "call", [lambda m, x: m.convolve(x, x[:9]), lambda m, x: m.correlate(x, x)]
)
def test_convolutions_of_floats(call):
    x = RANDOM.integers(-8, 9, 33).astype(np.float64)
    np.testing.assert_allclose(call(cupy, cupy.asarray(x)).get(), call(np, x), rtol=0, atol=1e-11)


def test_faults():
    from cupy.cuda import cufft

    x = cupy.empty(8, np.complex64)
    x[:5] = 1
    plan = cufft.Plan1d(8, cufft.CUFFT_C2C, 1)
    with pytest.raises(simgpu.Uninitialised, match=r"cufftExecC2C reads idata\[0, 5\]"):
        plan.fft(x, x, cufft.CUFFT_FORWARD)
    x[:] = 1
    with pytest.raises(simgpu.OutOfBounds, match="cufftExecC2C writes odata"):
        plan.fft(x, cupy.zeros(7, np.complex64), cufft.CUFFT_FORWARD)
    both = cupy.ones(12, np.complex64)
    with pytest.raises(simgpu.GlobalRace, match="writes odata where it reads idata"):
        plan.fft(both, both[4:], cufft.CUFFT_FORWARD)
    plan.fft(x, x, cufft.CUFFT_FORWARD)
    assert x.tolist() == [8, *[0] * 7]
    with pytest.raises(simgpu.NotEmulated, match="a plan of several devices"):
        cufft.Plan1d(64, cufft.CUFFT_C2C, 1, devices=[0, 1])
    with pytest.raises(simgpu.NotEmulated, match="XtPlanNd"):
        cufft.XtPlanNd  # noqa: B018


def test_the_profiler_counts_a_transform():
    x = cupy.ones((3, 8), np.float32)
    with simgpu.profile(registers=False) as prof:
        cupy.fft.rfft(x)
    (call,) = prof.stand_ins
    assert (call.function, call.read_bytes, call.written_bytes) == ("cufftExecR2C", 96, 120)
