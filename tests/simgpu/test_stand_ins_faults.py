"""Stand-ins check their operands as a kernel's accesses are checked, and change nothing then."""

import subprocess
import sys

import cupy
import numpy as np
import pytest
from cupy.cuda import device
from cupy_backends.cuda.libs import cublas

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

ONE, ZERO = np.ones((), np.float32), np.zeros((), np.float32)


def multiply(a, b, c, n=4, ld=4, beta=ZERO, address=None):
    cublas.sgemm(
        device.get_cublas_handle(), 0, 0, n, n, n, ONE.ctypes.data, address or a.data.ptr, ld,
        b.data.ptr, ld, beta.ctypes.data, c.data.ptr, ld,
    )  # fmt: skip


def square(n=4, fill=1.0):
    return cupy.full((n, n), fill, np.float32)


def test_a_matrix_past_its_end_is_out_of_bounds():
    a, b, c = square(), square(), cupy.zeros((4, 4), np.float32)
    says = (
        r"cublasSgemm reads A: 144 bytes at 0x\w+, 80 past the end of the device allocation of 64"
    )
    with pytest.raises(simgpu.OutOfBounds, match=says):
        multiply(a, b, c, n=6, ld=6)
    says = "cublasSgemm writes C: 100 bytes at .*, 36 past the end"
    with pytest.raises(simgpu.OutOfBounds, match=says):
        multiply(square(5), square(5), c, n=5, ld=5)
    assert not c.any()


def test_a_leading_dimension_that_reaches_too_far_is_out_of_bounds():
    a, b, c = square(), square(5), square(5)
    with pytest.raises(simgpu.OutOfBounds, match=r"reads A: 76 bytes .* 12 past the end"):
        multiply(a, b, c, ld=5)


def test_a_matrix_that_was_freed():
    b, c = square(), square()
    address = square().data.ptr
    with pytest.raises(simgpu.UseAfterFree, match=r"cublasSgemm reads A: 64 bytes .* in the freed"):
        multiply(None, b, c, address=address)


def test_an_address_of_nothing():
    b, c = square(), square()
    with pytest.raises(simgpu.OutOfBounds, match="which no allocation holds"):
        multiply(None, b, c, address=64)


def test_an_address_between_elements():
    a, b, c = square(5), square(), square()
    with pytest.raises(simgpu.Misaligned, match=r"reads A: .* where each element is 4 bytes"):
        multiply(a, b, c, address=a.data.ptr + 2)


def test_one_element_that_nothing_has_written():
    a, b, c = cupy.empty((4, 4), np.float32), square(), square()
    a[:3] = 1
    a[3, :2] = a[3, 3] = 1
    says = r"cublasSgemm reads A\[2, 3\]: 4 bytes at global address 0x\w+, 56 bytes into"
    with pytest.raises(simgpu.Uninitialised, match=says):
        multiply(a, b, c)


def test_what_lies_between_columns_need_not_be_written():
    a, b, c = cupy.empty((4, 5), np.float32), square(5), cupy.empty((4, 5), np.float32)
    a[:, :4] = 1
    multiply(a, b, c, ld=5)
    assert (c[:, :4] == 4).all()
    # Nor is it written by the product.
    with pytest.raises(simgpu.Uninitialised):
        c[:, 4] + 1


def test_what_is_written_over_need_not_be_written():
    a, b, c = square(), square(), cupy.empty((4, 4), np.float32)
    with pytest.raises(simgpu.Uninitialised, match=r"reads C\[0, 0\]"):
        multiply(a, b, c, beta=ONE)
    multiply(a, b, c)
    assert (c == 4).all()
    multiply(a, b, c, beta=ONE)
    assert (c == 8).all()


def test_what_is_multiplied_by_zero_is_not_read():
    # CuPy's eigsh gives axpy a vector that it has not written yet, and an alpha of 0.
    import cupy.cublas as blas

    x, y, a = cupy.empty(4), cupy.ones(4), cupy.empty((4, 4))
    blas.axpy(0.0, x, y)
    blas.gemv("N", 0.0, a, x, 2.0, y)
    blas.ger(0.0, x, y, cupy.empty((4, 4)))
    assert y.tolist() == [2] * 4
    assert (blas.gemm("N", "N", a, a, alpha=0.0) == 0).all()
    with pytest.raises(simgpu.Uninitialised):
        blas.axpy(1.0, x, y)


def test_a_product_into_its_own_factor():
    a, b = square(), square()
    with pytest.raises(simgpu.GlobalRace, match="cublasSgemm writes C where it reads A"):
        multiply(a, b, a)
    assert (a == 1).all()


def test_a_product_between_the_columns_of_its_factor_is_none():
    # Columns 0, 2, 4, 6 are A, columns 1, 3, 5, 7 are C.
    both = square(8)
    cublas.sgemm(
        device.get_cublas_handle(), 0, 0, 4, 4, 4, ONE.ctypes.data, both.data.ptr, 16,
        both.data.ptr, 16, ZERO.ctypes.data, both.data.ptr + 32, 16,
    )  # fmt: skip
    assert (both[1::2, :4] == 4).all()
    assert (both[::2] == 1).all()


def test_a_stack_whose_products_share_an_address():
    a, c = cupy.ones((2, 4, 4), np.float32), square()
    with pytest.raises(simgpu.GlobalRace, match="writes two elements of C to one address"):
        cublas.sgemmStridedBatched(
            device.get_cublas_handle(), 0, 0, 4, 4, 4, ONE.ctypes.data, a.data.ptr, 4, 16,
            a.data.ptr, 4, 16, ZERO.ctypes.data, c.data.ptr, 4, 0, 2,
        )  # fmt: skip


def test_a_pointer_of_a_stack_that_leads_nowhere():
    a, c = square(), square()
    pointers = cupy.asarray([a.data.ptr, 4096], np.uintp)
    targets = cupy.asarray([c.data.ptr, c.data.ptr], np.uintp)
    with pytest.raises(simgpu.OutOfBounds, match=r"cublasSgemmBatched reads A\[1\]"):
        cublas.sgemmBatched(
            device.get_cublas_handle(), 0, 0, 4, 4, 4, ONE.ctypes.data, pointers.data.ptr, 4,
            pointers.data.ptr, 4, ZERO.ctypes.data, targets.data.ptr, 4, 2,
        )  # fmt: skip


def test_a_number_in_device_memory_where_the_host_is_asked():
    a, one = square(), cupy.ones((), np.float32)
    with pytest.raises(simgpu.LaunchError, match="alpha must be in host memory"):
        cublas.sgemm(
            device.get_cublas_handle(), 0, 0, 4, 4, 4, one.data.ptr, a.data.ptr, 4,
            a.data.ptr, 4, ZERO.ctypes.data, a.data.ptr, 4,
        )  # fmt: skip


def test_a_number_at_an_address_of_nothing():
    a = square()
    with pytest.raises(simgpu.LaunchError, match="alpha must be in host memory, and none is at 0x"):
        cublas.sgemm(
            device.get_cublas_handle(), 0, 0, 4, 4, 4, 0, a.data.ptr, 4, a.data.ptr, 4, 0,
            a.data.ptr, 4,
        )  # fmt: skip


def test_a_number_in_host_memory_where_the_device_is_asked():
    a, handle = square(), device.get_cublas_handle()
    cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_DEVICE)
    try:
        with pytest.raises(simgpu.OutOfBounds, match="cublasSgemm reads alpha"):
            multiply(a, a, square())
    finally:
        cublas.setPointerMode(handle, cublas.CUBLAS_POINTER_MODE_HOST)


def test_arguments_that_cannot_be():
    a, c = square(), square()
    with pytest.raises(cublas.CUBLASError, match="CUBLAS_STATUS_INVALID_VALUE"):
        multiply(a, a, c, n=4, ld=3)
    with pytest.raises(cublas.CUBLASError, match="CUBLAS_STATUS_NOT_INITIALIZED"):
        cublas.getVersion(12345)


def test_a_function_that_it_does_not_have_is_named():
    with pytest.raises(simgpu.NotEmulated, match=r"cuBLAS, .* \(sgemm3m was asked for\)"):
        cublas.sgemm3m  # noqa: B018
    a = square().astype(np.float16)
    with pytest.raises(simgpu.NotEmulated, match="computed in 64"):
        cublas.gemmEx(
            device.get_cublas_handle(), 0, 0, 4, 4, 4, ONE.ctypes.data, a.data.ptr, 2, 4,
            a.data.ptr, 2, 4, ZERO.ctypes.data, a.data.ptr, 2, 4, cublas.CUBLAS_COMPUTE_16F, -1,
        )  # fmt: skip


def test_another_devices_memory_needs_peer_access():
    program = """
import cupy, sys
from cunorm import simgpu
with cupy.cuda.Device(1):
    other = cupy.ones((4, 4), 'f4')
mine = cupy.ones((4, 4), 'f4')
from cupy_backends.cuda.libs import cublas
import numpy as np
one = np.ones((), 'f4')
try:
    cublas.sgemm(cupy.cuda.device.get_cublas_handle(), 0, 0, 4, 4, 4, one.ctypes.data,
                 other.data.ptr, 4, mine.data.ptr, 4, one.ctypes.data, mine.data.ptr, 4)
except simgpu.NoPeerAccess as error:
    print(error)
print((other @ other).device if cupy.cuda.Device(1).use() else None)
"""
    command = [sys.executable, "-m", "cunorm.simgpu", "--devices", "2", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cublasSgemm reads A: 64 bytes" in done.stdout
    assert "of device 1, to which there is no peer access" in done.stdout
    assert "<CUDA Device 1>" in done.stdout


PROGRAM = "import cupy; x = cupy.ones((2, 2)); print((x @ x)[0, 0]); x.sort(); x.T @ x; x.sort()"


def run(*options, program=PROGRAM):
    command = [sys.executable, "-m", "cunorm.simgpu", *options, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_is_named_once_on_standard_error():
    done = run()
    assert (done.returncode, done.stdout) == (0, "2.0\n")
    assert done.stderr.splitlines() == [
        f"cunorm.simgpu: {library} is a stand-in that computes with NumPy on the host "
        "(--no-stand-ins refuses it)"
        for library in ("cuBLAS", "Thrust")
    ]


def test_a_program_that_needs_none_is_told_nothing():
    assert run(program="import cupy; print(cupy.ones(3).sum())").stderr == ""


def test_without_them_the_first_product_is_refused():
    done = run("--no-stand-ins")
    assert (done.returncode, done.stdout) == (1, "")
    assert "NotEmulated: simgpu does not emulate cuBLAS, which is machine code for" in done.stderr


def test_a_child_has_none_either():
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PROGRAM!r}])"
    done = run("--no-stand-ins", program=program)
    assert "NotEmulated: simgpu does not emulate cuBLAS" in done.stderr


def test_install_takes_it_too():
    program = f"from cunorm import simgpu; simgpu.install(stand_ins=False); {PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "NotEmulated: simgpu does not emulate cuBLAS" in done.stderr


def test_the_plugin_takes_it_too(tmp_path):
    (tmp_path / "test_it.py").write_text(
        f"""
import pytest
from cunorm import simgpu

def test_it():
    with pytest.raises(simgpu.NotEmulated):
        {PROGRAM}
"""
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--simgpu-no-stand-ins"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout
    assert "simgpu: on stand_ins=False" in done.stdout
