"""`python -m cunorm.simgpu` and `simgpu.install()`, each in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

import cunorm

PROGRAM = """
import sys
import cupy
device = cupy.cuda.Device()
print(sys.argv[1:], __name__, device.compute_capability, cupy.cuda.runtime.getDeviceCount())
"""


# The package under test, installed or not, wherever the program runs; no devices to inherit.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cunorm.__file__).parents[1])}
ENVIRONMENT.pop("CUNORM_SIMGPU", None)


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def simgpu(*arguments, **options):
    return python("-m", "cunorm.simgpu", *arguments, **options)


@pytest.fixture
def script(tmp_path):
    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def test_a_script_sees_its_own_arguments(script):
    done = simgpu("--arch", "80", "--devices", "3", script(PROGRAM), "--arch", "x", "-m")
    assert done.stdout == "['--arch', 'x', '-m'] __main__ 80 3\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_a_script_imports_from_its_own_folder(script):
    script("value = 41 + 1", "neighbour.py")
    done = simgpu(script("import neighbour; print(neighbour.value)"))
    assert done.stdout == "42\n"


def test_a_module_runs_from_the_working_directory(script, tmp_path):
    script(PROGRAM)
    done = simgpu("-m", "program", "a", "-c", cwd=tmp_path)
    assert done.stdout == "['a', '-c'] __main__ 90 1\n"


def test_code_runs_with_its_arguments():
    done = simgpu("-c", PROGRAM, "a", "-m")
    assert done.stdout == "['a', '-m'] __main__ 90 1\n"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('bye')", 1, "bye\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_the_exit_status_passes_through(code, status, error, script):
    for done in (simgpu("-c", code), simgpu(script(code))):
        assert done.returncode == status
        assert error in done.stderr


def test_memory_is_as_large_as_asked():
    done = simgpu("--memory", "64", "-c", "import cupy; print(cupy.cuda.runtime.memGetInfo())")
    assert done.stdout == f"({64 << 20}, {64 << 20})\n"


@pytest.mark.parametrize("arguments", [(), ("-", "a", "-m")])
def test_a_program_may_come_on_the_standard_input(arguments):
    done = simgpu("--arch", "80", *arguments, input=PROGRAM)
    assert done.stdout == f"{list(arguments[1:])} __main__ 80 1\n"
    failing = "x = 1\n1 / 0"
    done = simgpu(*arguments, input=failing)
    assert (done.returncode, done.stderr) == (1, python("-", input=failing).stderr)


def test_without_a_program_a_terminal_is_pythons_prompt():
    pty = pytest.importorskip("pty", reason="there are no terminals like that here")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cunorm.simgpu", "--arch", "80"]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT | {"TERM": "dumb"}
    ) as process:
        os.close(theirs)
        os.write(ours, PROGRAM.split("device =")[0].lstrip().encode())
        os.write(ours, b"print(cupy.arange(3) + 6, __name__)\n1 / 0\nraise SystemExit(7)\n")
        said = b""
        with suppress(OSError):  # which the end of a terminal is
            while more := os.read(ours, 4096):
                said += more
        os.close(ours)
    lines = said.decode().splitlines()
    assert process.returncode == 7
    assert "1 simulated device(s) of sm_80" in lines
    assert "[6 7 8] __main__" in lines
    assert "ZeroDivisionError: division by zero" in lines
    assert not any("code.py" in line for line in lines)


def test_an_unknown_architecture_is_an_error_that_lists_the_known_ones():
    done = simgpu("--arch", "70", "-c", "")
    assert done.returncode == 2
    assert "75, 80, 86, 87, 89, 90, 100, 103, 120, 121" in done.stderr


@pytest.mark.parametrize("arch", ["80", "sm_80"])
def test_an_architecture_is_given_as_80_or_as_sm_80(arch):
    code = "import cupy; print(cupy.cuda.Device().compute_capability)"
    assert simgpu("--arch", arch, "-c", code).stdout == "80\n"


@pytest.mark.parametrize("text", ["sm80", "sm_", "x", "-1"])
def test_an_architecture_that_is_no_number_is_an_error_that_says_so(text):
    done = simgpu(f"--arch={text}", "-c", "")
    assert done.returncode == 2
    assert f"argument --arch: must be like 80 or sm_80, not {text}" in done.stderr


@pytest.mark.parametrize("option", ["--devices", "--memory"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_count_that_is_none_is_an_error_that_says_so(option, value):
    done = simgpu(f"{option}={value}", "-c", "")
    assert done.returncode == 2
    assert f"argument {option}: must be a number of at least 1, not {value}" in done.stderr


def test_a_script_that_is_not_there_is_an_error_that_says_so(tmp_path):
    done = simgpu(str(tmp_path / "absent.py"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"error: there is no file {tmp_path / 'absent.py'}\n")


def test_help_says_how_each_program_is_given():
    done = simgpu("--help")
    assert done.returncode == 0
    for word in ("--arch", "--devices", "--memory", "script.py", "-m module", "-c code"):
        assert word in done.stdout


def test_a_traceback_is_the_one_python_would_print(script):
    path = script("""\
        def divide():
            return 1 / 0
        divide()
        """)
    assert simgpu(path).stderr == python(path).stderr
    assert simgpu("-c", "1 / 0").stderr == python("-c", "1 / 0").stderr


def test_a_faults_traceback_ends_at_the_launch(script):
    path = script("""\
        import cupy
        put = cupy.RawKernel('extern "C" __global__ void put(int* x) { x[8] = 1; }', "put")
        put((1,), (1,), (cupy.zeros(8, "i4"),))
        """)
    done = simgpu(path)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[:2] == [
        "Traceback (most recent call last):",
        f'  File "{path}", line 3, in <module>',
    ]
    assert lines[-4].startswith("cunorm.simgpu.faults.OutOfBounds: 4-byte ")  # then its notes
    assert not any(f"simgpu{os.sep}launch.py" in line for line in lines)


def test_importing_it_imports_neither_cupy_nor_numpy():
    code = "import sys, cunorm.simgpu; print({'cupy', 'cupy_backends', 'numpy'} & set(sys.modules))"
    assert python("-c", code).stdout == "set()\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import cupy; simgpu.install()", "before cupy is imported"),
        ("simgpu.install(); simgpu.install(arch=80)", "cannot change to (80, 1, 8589934592)"),
        ("simgpu.install(devices=0)", "must be at least 1, not 0"),
        ("simgpu.install(arch=12)", "75, 80, 86, 87, 89, 90, 100, 103, 120, 121, not 12"),
        ("simgpu.enqueue_only()", "simgpu is not installed"),
        (
            "import sys; sys.modules['cunorm.simgpu._tables'] = None; simgpu.install()",
            "cunorm.simgpu needs its C extension, which was not built, though there are a C "
            "compiler and Python's headers here. Reinstall cunorm",
        ),
        (
            "import sys; sys.modules['cupy_backends'] = None; simgpu.install()",
            "none is installed: pip install 'cunorm[cuda12]', or 'cunorm[cuda13]' for CUDA 13",
        ),
        (
            "from cunorm.simgpu import _tables; del _tables.given_arguments; simgpu.install()",
            "a C extension of another version: reinstall cunorm",
        ),
    ],
)
def test_what_install_refuses(code, message):
    done = python("-c", f"from cunorm import simgpu; {code}")
    assert done.returncode == 1
    assert message in done.stderr


def test_installing_twice_with_the_same_options_is_nothing_new():
    code = "from cunorm import simgpu; simgpu.install(80); simgpu.install(80); import cupy"
    assert python("-c", f"{code}; print(simgpu.installed())").stdout == "True\n"


def test_a_process_ends_quietly_with_everything_alive():
    code = """
import cupy, numpy
array = cupy.asarray(numpy.ones(3))
pinned = cupy.cuda.alloc_pinned_memory(64)
stream, event = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Event()
stream.begin_capture()
array.data.memset_async(0, 8, stream)
graph = stream.end_capture()
module = cupy.RawModule(code='extern "C" __global__ void f() {}')
function = module.get_function("f")
"""
    done = simgpu("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_hardware_is_counted_without_importing_cupy():
    code = "import sys; from cunorm import simgpu; count = simgpu.hardware_devices()"
    done = python("-c", f"{code}; print(count >= 0, 'cupy' in sys.modules)")
    assert done.stdout == "True False\n"


FAULTY = """
import cupy
put = cupy.RawKernel(
    'extern "C" __global__ void put(float *x) { x[threadIdx.x] = 1; }', "put"
)
put((1,), (9,), (cupy.zeros(8, "f4"),))
"""


def test_the_fault_that_ends_a_program_goes_to_a_file(script, tmp_path):
    program = script(FAULTY)
    done = simgpu("--fault-to", str(tmp_path / "fault.json"), program)
    assert done.returncode == 1
    told = json.loads((tmp_path / "fault.json").read_text())
    assert told["fault"] == "OutOfBounds"
    assert f"{told['what']} (kernel put, " in done.stderr
    assert f"Usually: {told['usually']}\n" in done.stderr
    assert told["program"] == f"{program}:6"
    assert (told["kernel"], told["block"], told["thread"]) == ("put", [0, 0, 0], [8, 0, 0])
    assert (told["source"], told["ptx_text"][:13]) == ("<source>:1", "st.global.u32")


def test_without_a_fault_there_is_no_file(script, tmp_path):
    done = simgpu("--fault-to", str(tmp_path / "fault.json"), script("raise ValueError('mine')"))
    assert done.returncode == 1
    assert not (tmp_path / "fault.json").exists()


def test_the_file_of_a_fault_is_json():
    done = simgpu("--fault-to", "fault.txt", "-c", "pass")
    assert done.returncode == 2
    assert "fault.txt must end in .json" in done.stderr
