"""Python processes that a program on simulated devices starts have them too, however started."""

import os
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest
from test_command import ENVIRONMENT, python, simgpu

from cunorm.simgpu import children

OPTIONS = ("--arch", "80", "--devices", "2", "--memory", "64")
# What a process has: the options above, and a kernel's result.
TOLD = """
import cupy
def told(n=10):
    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    sizes = runtime.getDeviceCount(), runtime.memGetInfo()[1] >> 20
    return (device.compute_capability, *sizes, int(cupy.arange(n).sum()))
"""
EXPECTED = ("80", 2, 64, 45)


@pytest.fixture
def script(tmp_path):
    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(TOLD + textwrap.dedent(text))
        return str(path)

    return write


def test_processes_of_each_start_method_have_the_devices(script):
    path = script("""
        import multiprocessing

        if __name__ == "__main__":
            for method in ("fork", "spawn", "forkserver"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    print(method, *pool.map(told, [10]))
        """)
    done = simgpu(*OPTIONS, path)
    told = "".join(f"{method} {EXPECTED}\n" for method in ("fork", "spawn", "forkserver"))
    assert (done.stdout, done.stderr) == (told, "")


def starts(*arguments):
    """Return a program that starts Python with these arguments."""
    return f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, *{arguments!r}]))"


def test_a_python_that_is_started_by_hand_has_them_and_so_has_its_own(script):
    for done in (
        simgpu(*OPTIONS, "-c", starts("-c", f"{TOLD}\nprint(told())")),
        simgpu(*OPTIONS, "-c", starts("-c", starts(script("print(told())")))),
    ):
        assert (done.stdout, done.stderr) == (f"{EXPECTED}\n", "")


def test_workers_of_xdist_have_them(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(
        f"{TOLD}\nimport pytest\n@pytest.mark.parametrize('n', [10] * 4)\n"
        f"def test_told(n, worker_id):\n    assert worker_id != 'master'\n"
        f"    assert told(n) == {EXPECTED}\n"
    )
    done = simgpu(*OPTIONS, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_workers_of_joblib_have_them(script):
    pytest.importorskip("joblib", reason="joblib is not installed")
    path = script("""
        import joblib

        if __name__ == "__main__":
            print(joblib.Parallel(n_jobs=2)(joblib.delayed(told)(10) for _ in range(2)))
        """)
    done = simgpu(*OPTIONS, path)
    assert (done.stdout, done.stderr) == (f"{[EXPECTED] * 2}\n", "")


def test_the_other_options_carry_over():
    code = (
        "import cupy; from cunorm import simgpu; machine = simgpu._machine\n"
        "print(machine.memory.uninitialised, machine.memory.warp_races, machine.budget == 1234)"
    )
    for options, told in (
        (("--uninitialised",), "True False False\n"),
        (("--warp-races", "--budget=1234"), "False True True\n"),
    ):
        assert simgpu(*options, "-c", starts("-c", code)).stdout == told


def test_the_command_in_a_child_has_options_of_its_own():
    code = "import cupy; print(cupy.cuda.Device().compute_capability)"
    inner = ("-m", "cunorm.simgpu", "--arch", "75", "-c")
    done = simgpu(*OPTIONS, "-c", starts(*inner, code))
    assert (done.stdout, done.stderr) == ("75\n", "")
    done = simgpu(*OPTIONS, "-c", starts(*inner, starts("-c", code)))
    assert (done.stdout, done.stderr) == ("75\n", "")


def test_a_child_that_asks_the_module_has_them_at_once():
    code = "from cunorm import simgpu; print(simgpu.installed()); simgpu.install(80, 2, 64 << 20)"
    done = simgpu(*OPTIONS, "-c", starts("-c", code))
    assert (done.stdout, done.stderr) == ("True\n", "")
    done = simgpu(*OPTIONS, "-c", starts("-c", "from cunorm import simgpu; simgpu.install(90)"))
    assert "is installed with (arch, devices, memory) = (80, 2," in done.stderr


def test_a_child_without_cupy_pays_nothing():
    code = "import sys; print({'cupy', 'cunorm', 'numpy', 'json'} & set(sys.modules))"
    done = simgpu("-c", starts("-c", code))
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_to_look_for_cupy_does_not_import_it_and_finds_the_real_one():
    code = """
import importlib.util, sys
where = importlib.util.find_spec("cupy").origin
print("cupy" in sys.modules)
import cupy
print(where == cupy.__file__ == cupy.__spec__.origin, type(cupy.__spec__.loader).__name__)
"""
    done = simgpu("-c", starts("-c", code))
    assert (done.stdout, done.stderr) == ("False\nTrue SourceFileLoader\n", "")


def test_a_sitecustomize_of_the_users_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.customized = __file__")
    code = f"{TOLD}\nimport sys, sitecustomize\nprint(told() == {EXPECTED}, sys.customized)"
    code += "\nprint(sys.customized == sitecustomize.__file__)"
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "cunorm.simgpu", *OPTIONS, "-c", starts("-c", code)],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = f"True {tmp_path / 'sitecustomize.py'}\nTrue\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_an_environment_without_cunorm_is_left_alone(tmp_path):
    venv.create(tmp_path / "other", symlinks=True)
    interpreter = tmp_path / "other" / "bin" / "python"
    (site,) = (tmp_path / "other" / "lib").glob("python*/site-packages")
    (site / "cupy").mkdir()
    (site / "cupy" / "__init__.py").write_text("print('its own', __name__, __spec__.origin)")
    startup = str(Path(children.__file__).with_name("startup"))
    done = subprocess.run(
        [interpreter, "-c", "import cupy, sys; print('cupy' in sys.modules)"],
        env={"CUNORM_SIMGPU": "{}", "PYTHONPATH": startup},
        cwd=tmp_path,  # where no cunorm lies
        capture_output=True,
        text=True,
        check=False,
    )
    expected = f"its own cupy {site / 'cupy' / '__init__.py'}\nTrue\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_real_devices_are_hidden_from_other_libraries_and_from_children():
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert simgpu("-c", f"{code}\n{starts('-c', code)}").stdout == "''\n''\n"
    done = python("-c", f"from cunorm import simgpu; simgpu.install(); {code}")
    assert done.stdout == "''\n"


DRIVER = """
import ctypes, os
from types import SimpleNamespace
from cunorm import simgpu

def device_count(count):
    count._obj.value = 2
    return {status}

def library(name, mode=0):
    assert name == "libcuda.so.1" and mode == os.RTLD_NOLOAD
    return SimpleNamespace(cuDeviceGetCount=device_count)

simgpu.ctypes = SimpleNamespace(CDLL=library, byref=ctypes.byref, c_int=ctypes.c_int)
simgpu.install()
print(simgpu.installed())
"""


def test_install_refuses_where_cuda_has_real_devices_at_work():
    done = python("-c", DRIVER.format(status=0))
    assert "CUDA is initialised in this process, with 2 real device(s)" in done.stderr
    not_initialised = 3
    assert python("-c", DRIVER.format(status=not_initialised)).stdout == "True\n"
