"""What needs NVIDIA's closed libraries or CuPy's precompiled kernels: one line says so, at once.

Most of it has a stand-in, and is refused with ``--no-stand-ins``.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu

SQUARE = np.array([[4.0, 1], [1, 3]])
ROW = np.array([3.0, 1, 2])

# Everything a user may try, by the library behind it; `s` is a square matrix and `r` a row.
CALLS = {
    "cuBLAS": {
        "@": lambda s, r: s @ s,
        "@ of float32": lambda s, r: s.astype("f4") @ s.astype("f4"),
        "@ of float16": lambda s, r: s.astype("f2") @ s.astype("f2"),
        "@ of complex": lambda s, r: (s + 1j) @ s,
        "matmul with a vector": lambda s, r: cupy.matmul(s, r[:2]),
        "matmul of stacks": lambda s, r: cupy.matmul(s[None], s[None]),
        "dot": lambda s, r: cupy.dot(s, s),
        "inner": lambda s, r: cupy.inner(s, s),
        "tensordot": lambda s, r: cupy.tensordot(s, s, 1),
        "einsum with a contraction": lambda s, r: cupy.einsum("ij,jk->ik", s, s),
        "matrix_power": lambda s, r: cupy.linalg.matrix_power(s, 3),
        "det": lambda s, r: cupy.linalg.det(s),
        "cov": lambda s, r: cupy.cov(s),
        "corrcoef": lambda s, r: cupy.corrcoef(s),
        "asfortranarray of floats": lambda s, r: cupy.asfortranarray(s),
    },
    "cuSOLVER": {
        "inv": lambda s, r: cupy.linalg.inv(s),
        "solve": lambda s, r: cupy.linalg.solve(s, r[:2]),
        "qr": lambda s, r: cupy.linalg.qr(s),
        "cholesky": lambda s, r: cupy.linalg.cholesky(s),
        "eigh": lambda s, r: cupy.linalg.eigh(s),
        "eigvalsh": lambda s, r: cupy.linalg.eigvalsh(s),
        "svd": lambda s, r: cupy.linalg.svd(s),
        "lstsq": lambda s, r: cupy.linalg.lstsq(s, r[:2]),
        "pinv": lambda s, r: cupy.linalg.pinv(s),
        "matrix_rank": lambda s, r: cupy.linalg.matrix_rank(s),
        "the norm of a matrix": lambda s, r: cupy.linalg.norm(s, 2),
        "polyfit": lambda s, r: cupy.polyfit(r, r, 1),
    },
    "cuFFT": {
        "fft": lambda s, r: cupy.fft.fft(r),
        "rfft": lambda s, r: cupy.fft.rfft(r),
        "fft2": lambda s, r: cupy.fft.fft2(s),
        "irfftn": lambda s, r: cupy.fft.irfftn(s),
        "scipy's": lambda s, r: importlib.import_module("cupyx.scipy.fft").fft(r),
        "convolve": lambda s, r: cupy.convolve(r, r),
        "correlate": lambda s, r: cupy.correlate(r, r),
    },
    "cuRAND": {
        "seed": lambda s, r: cupy.random.seed(0),
        "rand": lambda s, r: cupy.random.rand(3),
        "randn": lambda s, r: cupy.random.randn(3),
        "randint": lambda s, r: cupy.random.randint(3),
        "normal": lambda s, r: cupy.random.normal(size=3),
        "uniform": lambda s, r: cupy.random.uniform(size=3),
        "permutation": lambda s, r: cupy.random.permutation(3),
        "shuffle": lambda s, r: cupy.random.shuffle(r),
        "choice": lambda s, r: cupy.random.choice(3),
        "RandomState": lambda s, r: cupy.random.RandomState(0),
        "default_rng": lambda s, r: cupy.random.default_rng(0),
        "Generator": lambda s, r: cupy.random.Generator(cupy.random.Philox4x3210(0)),
    },
    "cuSPARSE": {
        "csr_matrix": lambda s, r: importlib.import_module("cupyx.scipy.sparse").csr_matrix(s),
        "a handle": lambda s, r: cupy.cuda.Device().cusparse_handle,
    },
    "Thrust": {
        "sort": lambda s, r: cupy.sort(r),
        "sort in place": lambda s, r: r.sort(),
        "argsort": lambda s, r: cupy.argsort(r),
        "lexsort": lambda s, r: cupy.lexsort(s),
        "sort_complex": lambda s, r: cupy.sort_complex(r),
        "unique": lambda s, r: cupy.unique(r),
        "median": lambda s, r: cupy.median(r),
        "percentile": lambda s, r: cupy.percentile(r, 30),
        "quantile": lambda s, r: cupy.quantile(r, 0.3),
        "partition": lambda s, r: cupy.partition(r, 1),
        "argpartition": lambda s, r: cupy.argpartition(r, 1),
        "isin": lambda s, r: cupy.isin(r, r[:2]),
        "union1d": lambda s, r: cupy.union1d(r, r),
        "intersect1d": lambda s, r: cupy.intersect1d(r, r),
        "setdiff1d": lambda s, r: cupy.setdiff1d(r, r),
    },
}


def tell():
    """Print what each call raises, and end: what a process without stand-ins runs."""
    told = {}
    for calls in CALLS.values():
        for name, call in calls.items():
            with pytest.raises(Exception) as raised:  # noqa: PT011
                call(cupy.asarray(SQUARE), cupy.asarray(ROW))
            told[name] = (raised.type.__name__, str(raised.value))
    print(json.dumps(told))


@pytest.fixture(scope="module")
def told():
    """What each call raises without stand-ins."""
    child = [sys.executable, "-m", "cunorm.simgpu", "--no-stand-ins"]
    child += ["-c", "import test_refusals; test_refusals.tell()"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    variables = {name: text for name, text in os.environ.items() if name != "CUNORM_SIMGPU"}
    done = subprocess.run(
        child, capture_output=True, text=True, check=True, env=variables | {"PYTHONPATH": path}
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("library", "call"), [(name, call) for name in CALLS for call in CALLS[name]]
)
def test_a_library_of_machine_code_is_refused_by_name(library, call, told):
    kind, message = told[call]
    assert kind == "NotEmulated"
    assert message.startswith(f"simgpu does not emulate {library}, ")
    assert " for " in message
    assert "\n" not in message


def test_regions_are_labelled():
    # Blocks of the kernels race on purpose, and are let pass.
    label = importlib.import_module("cupyx.scipy.ndimage").label
    stripes = np.zeros((40, 40), bool)
    stripes[::4], stripes[:, -1] = True, True
    labels, count = label(cupy.asarray(stripes))
    assert count == 1
    np.testing.assert_array_equal(labels.get(), stripes)


def test_a_refusal_leaves_the_process_usable():
    row = cupy.asarray(ROW)
    with pytest.raises(simgpu.NotEmulated, match="does not emulate cuFFT"):
        cupy.cuda.cufft.XtPlanNd((8,))
    assert (row * 2).get().tolist() == [6, 2, 4]


def test_cub_is_not_asked_unless_a_program_does():
    assert cupy._core.get_routine_accelerators() == []
    assert cupy._core.get_reduction_accelerators() == []
    cupy._core.set_routine_accelerators(["cub"])
    try:
        with simgpu.profile(registers=False) as prof:
            assert cupy.asarray(ROW).sum() == 6
        assert [call.library for call in prof.stand_ins] == ["CUB"]
    finally:
        cupy._core.set_routine_accelerators([])


def test_jitify_is_refused_by_name():
    with (
        pytest.warns(DeprecationWarning, match="jitify"),
        pytest.raises(simgpu.NotEmulated, match="does not emulate Jitify"),
    ):
        cupy.RawModule(code='extern "C" __global__ void nothing() {}', jitify=True).compile()


def test_textures_are_refused_by_name():
    texture = cupy.cuda.texture
    kind = cupy.cuda.runtime.cudaChannelFormatKindFloat
    says = r"does not emulate cudaMalloc3DArray \(textures and surfaces\)"
    with pytest.raises(simgpu.NotEmulated, match=says):
        texture.CUDAarray(texture.ChannelFormatDescriptor(32, 0, 0, 0, kind), 5)


def test_launches_from_kernels_are_refused_by_name():
    code = """__global__ void child() {}
    extern "C" __global__ void k() { child<<<1, 1>>>(); }"""
    with pytest.raises(simgpu.NotEmulated, match=r"cuLinkCreate \(.*dynamic parallelism\)"):
        cupy.RawKernel(code, "k", options=("-dc",)).compile()


def test_machine_code_is_refused():
    with pytest.raises(simgpu.NotEmulated, match="this module is machine code"):
        cupy.cuda.function.Module().load(b"\x7fELF" + bytes(60))


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        (
            """__device__ __noinline__
            int sum(int n) { return n < 2 ? n : sum(n - 1) + sum(n / 2); }
            extern "C" __global__ void k(int* o) { *o = sum(5); }""",
            "sum calls itself: recursion is not supported",
        ),
        (
            """__device__ int odd(int n);
            struct A {
                static __device__ __noinline__ int even(int n) { return n ? odd(n - 1) : 1; } };
            __device__ __noinline__ int odd(int n) { return n ? 3 * A::even(n - 1) : 0; }
            extern "C" __global__ void k(int* o) { *o = A::even(*o + 5); }""",
            "A::even calls itself through odd: recursion is not supported",
        ),
        (
            """typedef int (*function)(int);
            __device__ int twice(int n) { return 2 * n; }
            __device__ int thrice(int n) { return 3 * n; }
            __device__ function functions[2] = {twice, thrice};
            extern "C" __global__ void k(int* o) { *o = functions[*o](1); }""",
            "calls through pointers, of functions or virtual methods, are not supported",
        ),
        (
            """struct A { __device__ virtual int f() { return 1; } };
            struct B : A { __device__ int f() override { return 2; } };
            extern "C" __global__ void k(int* o) {
                A a; B b; A* p = *o ? &a : &b; *o = p->f(); }""",
            "calls through pointers, of functions or virtual methods, are not supported",
        ),
        (
            """extern "C" __global__ void k(int* o) {
                *o = tex1Dfetch<int>((cudaTextureObject_t)*o, 0); }""",
            "textures are not supported",
        ),
        (
            """extern "C" __global__ void k(int* o) {
                surf1Dwrite(3, (cudaSurfaceObject_t)*o, 0); }""",
            "surfaces are not supported",
        ),
        (
            """extern "C" __global__ void k(int* o) { int a = *o; asm(
                "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%0];" : "+r"(a)); *o = a; }""",
            r"matrix instructions \(tensor cores\) are not supported",
        ),
        ('extern "C" __global__ void k(int* o) { asm("pmevent.mask 3;"); }', "pmevent.mask 3"),
    ],
)
def test_what_no_instruction_does_is_named_with_its_line(code, missing):
    with pytest.raises(simgpu.UnknownInstruction, match=missing) as raised:
        cupy.RawKernel(code, "k")((1,), (1,), (cupy.zeros(1, np.int32),))
    assert raised.value.place.ptx_line is not None


@pytest.mark.skipif(cupy.cuda.get_nvcc_path() is None, reason="there is no nvcc")
def test_what_nvcc_compiles_is_executed():
    source = 'extern "C" __global__ void four(int* x) { *x = 4; }'
    x = cupy.zeros(1, np.int32)
    cupy.RawKernel(source, "four", backend="nvcc")((1,), (1,), (x,))
    assert x == 4
