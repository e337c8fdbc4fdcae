"""The gallery: one planted mistake for each fault, in CUDA C through CuPy, and the same mended.

Each picture says which line is to blame with `// HERE`; the fault must name that line, and the
kernel with its mistake mended must run in silence. After each fault the process is as good as new.
"""

from dataclasses import dataclass

import cupy
import numpy as np
import pytest

from cunorm import simgpu
from cunorm.simgpu import faults

pytestmark = pytest.mark.simgpu


@dataclass(frozen=True)
class Picture:
    """A kernel `k`, and what to replace in it to mend it; `launch` gets the compiled kernel."""

    fault: str
    source: str
    wrong: str
    mended: str
    says: str
    grid: int = 1
    block: int = 64
    arrays: tuple = (64,)
    shared: int = 0

    def run(self, source, name):
        kernel = cupy.RawKernel(f'#line 1 "gallery/{name}.cu"\n{source}', "k")
        arrays = [cupy.arange(size, dtype=np.float32) for size in self.arrays]
        kernel((self.grid,), (self.block,), arrays, shared_mem=self.shared)
        return arrays


GALLERY = {
    "past_the_end": Picture(
        "OutOfBounds",
        """extern "C" __global__ void k(float *x, float *unused) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= 60) x[i] = 1;  // HERE
}""",
        "i <= 60", "i < 60", "past the end of device allocation of 240 bytes", arrays=(60, 1),
    ),
    "between_two_rows": Picture(
        "Misaligned",
        """extern "C" __global__ void k(float *x) {
  float4 *packets = (float4 *)(x + 1);
  packets[threadIdx.x] = make_float4(0, 0, 0, 0);  // HERE
}""",
        "(x + 1)", "(x + 4)", "16-byte access to global address", block=8,
    ),
    "past_the_tile": Picture(
        "SharedOutOfBounds",
        """extern "C" __global__ void k(float *x) {
  __shared__ float tile[64];
  tile[threadIdx.x + 1] = x[threadIdx.x];  // HERE
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x + 1];
}""",
        "tile[64]", "tile[65]", "at offset 0x100 of 256 bytes of shared memory",
    ),
    "past_the_stack": Picture(
        "LocalOutOfBounds",
        """extern "C" __global__ void k(float *x) {
  volatile float own[4];
  for (int i = 0; i < 4; ++i) own[i] = i;
  x[threadIdx.x] = own[(int)x[threadIdx.x] % 9];  // HERE
}""",
        "% 9", "% 4", "local memory",
    ),
    "sum_without_a_barrier": Picture(
        "SharedRace",
        """extern "C" __global__ void k(float *x) {
  __shared__ float part[2];
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x[threadIdx.x];
  // then, in front of this line, nothing
  x[threadIdx.x] = part[0] + part[1];  // HERE
}""",
        "// then, in front of this line, nothing", "__syncthreads();",
        "wrote with no barrier since: PTX line",
    ),
    "two_warps_write_one_place": Picture(
        "SharedRace",
        """extern "C" __global__ void k(float *x) {
  __shared__ float last;
  if (threadIdx.x % 32 == 0) last = x[threadIdx.x];  // HERE
  __syncthreads();
  x[threadIdx.x] = last;
}""",
        "threadIdx.x % 32 == 0", "threadIdx.x == 0", "wrote at the same time",
    ),
    "reuse_without_a_barrier": Picture(
        "SharedRace",
        """extern "C" __global__ void k(float *x) {
  __shared__ float tile[64];
  for (int turn = 0; turn < 2; ++turn) {
    tile[threadIdx.x] = x[threadIdx.x];  // HERE
    __syncthreads();
    x[threadIdx.x] = tile[63 - threadIdx.x];
    ;  // nothing
  }
}""",
        ";  // nothing", "__syncthreads();", "read with no barrier since",
    ),
    "neighbours_rows": Picture(
        "GlobalRace",
        """extern "C" __global__ void k(float *x) {
  int i = blockIdx.x * 60 + threadIdx.x;
  x[i] = blockIdx.x;  // HERE
}""",
        "* 60", "* 64", "of the same launch wrote", grid=2, arrays=(128,),
    ),
    "the_other_blocks_result": Picture(
        "GlobalRace",
        """extern "C" __global__ void k(float *x, float *y) {
  float before = x[blockIdx.x * 64 + threadIdx.x];
  int next = (blockIdx.x + 1) % 2 * 64 + threadIdx.x;
  x[next] = before;  // HERE
}""",
        "x[next]", "y[next]", "of the same launch read", grid=2, arrays=(128, 128),
    ),
    "last_block_without_a_fence": Picture(
        "GlobalRace",
        """__device__ unsigned arrived = 0;
extern "C" __global__ void k(float *x, float *sum) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    x[blockIdx.x] = blockIdx.x;
    // no fence
    last = atomicAdd(&arrived, 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    float total = 0;
    for (int i = 0; i < gridDim.x; ++i) total += x[i];  // HERE
    *sum = total;
    arrived = 0;
  }
}""",
        "// no fence", "__threadfence();", "of the same launch wrote", grid=3, arrays=(3, 1),
    ),
    "half_a_buffer": Picture(
        "SharedUninitialised",
        """extern "C" __global__ void k(float *x) {
  extern __shared__ float tile[];
  if (threadIdx.x < 32) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x];  // HERE
}""",
        "threadIdx.x < 32", "true", "of which this launch has written", shared=256,
    ),
    "only_some_wait": Picture(
        "DivergentBarrier",
        """extern "C" __global__ void k(float *x) {
  if (threadIdx.x % 32 == 0) __syncthreads();  // HERE
  x[threadIdx.x] = 1;
}""",
        "if (threadIdx.x % 32 == 0) ", "", "threads 1-31, 33-63 do not reach",
    ),
    "a_shuffle_for_all": Picture(
        "MissingLanes",
        """extern "C" __global__ void k(float *x) {
  if (threadIdx.x % 32 < 16) {
    x[threadIdx.x] = __shfl_xor_sync(0xffffffff, x[threadIdx.x], 1);  // HERE
  } else {
    x[threadIdx.x] = sqrtf(x[threadIdx.x]);
    __syncwarp(0xffff0000);
  }
  __syncthreads();
}""",
        "(0xffffffff", "(0x0000ffff", "waits for lanes [16, 17",
    ),
    "a_vote_of_others": Picture(
        "MissingLanes",
        """extern "C" __global__ void k(float *x) {
  x[threadIdx.x] = __ballot_sync(0x0000ffff, x[threadIdx.x] > 3);  // HERE
}""",
        "0x0000ffff", "0xffffffff", "whose mask 0x0000ffff leaves it out",
    ),
    "a_loop_that_stays": Picture(
        "EndlessLoop",
        """extern "C" __global__ void k(volatile float *x) {
  while (x[threadIdx.x] >= 0) {  // HERE
    if (false) break;
  }
}""",
        "if (false)", "if (true)", "used up its budget",
    ),
    "a_failed_assertion": Picture(
        "Trap",
        """extern "C" __global__ void k(float *x) {
  if (x[threadIdx.x] > 40) __trap();  // HERE
}""",
        "> 40", "> 64", "the program trapped",
    ),
}  # fmt: skip


def still_works():
    assert cupy.arange(100).sum() == 4950


@pytest.fixture
def small_budget(monkeypatch):
    monkeypatch.setattr(simgpu._machine, "budget", 100_000)


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("name", GALLERY)
def test_the_mistake_is_named_with_its_line(name):
    picture = GALLERY[name]
    line = 1 + next(at for at, text in enumerate(picture.source.split("\n")) if "// HERE" in text)
    with pytest.raises(simgpu.Fault) as raised:
        picture.run(picture.source, name)
    assert type(raised.value).__name__ == picture.fault, raised.value
    message, place = str(raised.value), raised.value.place
    assert place.source == f"gallery/{name}.cu:{line}", message
    assert picture.says in message
    assert f"kernel k, PTX line {place.ptx_line} `" in message
    assert f"gallery/{name}.cu:{line}, block {place.block}, thread {place.thread}" in message
    still_works()


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("name", GALLERY)
def test_the_kernel_mended_is_silent(name):
    picture = GALLERY[name]
    assert picture.source.count(picture.wrong) == 1
    picture.run(picture.source.replace(picture.wrong, picture.mended), name)


PUT = '#line 1 "gallery/put.cu"\nextern "C" __global__ void put(float *x, const float *y) {\n'
PUT += "  x[threadIdx.x] = y[threadIdx.x];\n}"


def test_memory_used_after_it_was_freed():
    put = cupy.RawKernel(PUT, "put")
    x, y = cupy.zeros(32, np.float32), cupy.zeros(32, np.float32)
    address = y.data.ptr
    del y
    stale = cupy.ndarray(
        32,
        np.float32,
        cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(address, 128, x, 0), 0),
    )
    with pytest.raises(simgpu.UseAfterFree, match=r"gallery/put.cu:2") as raised:
        put((1,), (32,), (x, stale))
    assert "freed device allocation of 128 bytes" in str(raised.value)
    put((1,), (32,), (x, cupy.zeros(32, np.float32)))


def test_global_memory_that_nothing_wrote():
    put = cupy.RawKernel(PUT, "put")
    x, y = cupy.zeros(32, np.float32), cupy.empty(32, np.float32)
    with pytest.raises(simgpu.Uninitialised, match=r"gallery/put.cu:2") as raised:
        put((1,), (32,), (x, y))
    assert "device allocation of 128 bytes" in str(raised.value)
    with simgpu.uninitialised():
        put((1,), (32,), (x, y))
    y[:31] = 0
    with pytest.raises(simgpu.Uninitialised) as raised:
        put((1,), (32,), (x, y))
    assert raised.value.place.thread == (31, 0, 0)
    # A copy between arrays copies what is known of them; a copy to the host passes.
    z = cupy.empty(32, np.float32)
    z.data.copy_from_device(y.data, 128)
    y.get()
    with pytest.raises(simgpu.Uninitialised):
        put((1,), (32,), (x, z))
    put((1,), (31,), (x, z))
    y[31] = 0
    put((1,), (32,), (x, y))


@pytest.mark.parametrize(
    ("block", "shared", "says"),
    [
        (2000, 0, "a block of"),
        (32, 1 << 20, "bytes of dynamic shared memory, where 49152 are allowed"),
    ],
)
def test_launches_that_cannot_start(block, shared, says):
    put = cupy.RawKernel(PUT, "put")
    arrays = tuple(cupy.zeros(32, np.float32) for _ in range(2))
    with pytest.raises(simgpu.LaunchError, match=says) as raised:
        put((1,), (block,), arrays, shared_mem=shared)
    assert raised.value.place.kernel == "put"
    put((1,), (32,), arrays)


SCALE = """extern "C" __global__ void scale(float *x, float by, int n) {
  if (threadIdx.x < n) x[threadIdx.x] *= by;
}"""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: (x, np.float32(3)), "takes 3 arguments, and 2 were given"),
        (lambda x: (x, 3.5, 32), "argument 2 of 3 is 3.5, .*: pass numpy.float32"),
        (lambda x: (x, np.float32(3), 1 << 32), "argument 3 of 3 is 4294967296"),
        (lambda x: (x, np.float32(3), x), "argument 3 of 3 is an array"),
    ],
)
def test_launches_with_the_wrong_arguments(wrong, says):
    scale = cupy.RawKernel(SCALE, "scale")
    x = cupy.ones(32, np.float32)
    with pytest.raises(simgpu.LaunchError, match=says) as raised:
        scale((1,), (32,), wrong(x))
    assert raised.value.place.kernel == "scale"
    scale((1,), (32,), (x, np.float32(3), 32))
    assert (x == 3).all()


def test_more_arguments_than_parameters_are_never_read():
    # CUDA is given pointers without their number, and reads one for each parameter.
    scale = cupy.RawKernel(SCALE, "scale")
    x = cupy.ones(32, np.float32)
    with pytest.warns(RuntimeWarning, match="takes 3 arguments, and 4 were given") as warned:
        scale((1,), (32,), (x, np.float32(3), 32, 32))
    assert warned[0].filename == __file__
    assert (x == 3).all()


def test_every_fault_hangs_in_the_gallery():
    shown = {picture.fault for picture in GALLERY.values()}
    shown |= {"UseAfterFree", "Uninitialised", "LaunchError"}
    # Shown where clusters and instructions have their tests.
    elsewhere = {"AbsentBlock", "BarrierMisuse", "CopyInFlight", "NoPeerAccess"}
    elsewhere |= {"Fault", "NotEmulated", "UnknownInstruction"}
    kinds = {name for name, kind in vars(faults).items() if isinstance(kind, type)}
    assert {name for name in kinds if issubclass(getattr(faults, name), Exception)} <= (
        shown | elsewhere
    )
