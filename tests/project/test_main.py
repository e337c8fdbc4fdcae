"""`python -m cunorm check | info`: what they print, and the exit codes."""

import importlib.metadata
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cupy
import numpy as np
import pytest

import cunorm
from cunorm import __main__ as command
from cunorm import _info
from cunorm._families import OPS, ROPE_OPS
from cunorm._launch import kernels
from cunorm._selfcheck import checks, rope
from cunorm._selfcheck import run as selfcheck_run
from cunorm._selfcheck.checks import Check, Outcome

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "data" / "smollm2_rms_norm.npz"


def run(capsys, *arguments):
    code = command.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_says_which_device_it_runs_on_and_prints_a_line_for_each_call(capsys):
    code, out, _ = run(capsys, "check", "--only", "add_rms_norm float32")
    lines = out.splitlines()
    rows = lines[4:-2]
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert code == 0
    assert lines[0].startswith(f"cunorm on {name} (sm_")
    assert lines[0].endswith(f"): {len(rows)} checks")
    assert lines[3].split() == ["op", "dtype", "shape", "layout", "of", "tolerance", "verdict"]
    assert rows[0].split()[:4] == ["add_rms_norm", "float32", "(3,769)", "row-strided"]
    assert all(re.search(r" \d+ %  ok$", row) for row in rows)
    assert lines[-1].startswith(f"{len(rows)} checks in ")
    assert lines[-1].endswith(": all within tolerance")


def test_check_of_the_file_prints_a_line_for_each_norm(capsys):
    code, out, _ = run(capsys, "check", "--data", str(FILE), "--only", "/layer")
    assert code == 0
    for kind in ("f32", "bf16"):
        for layer in ("layer0", "layer15", "layer29"):
            assert f" {kind}/{layer} " in out
    assert "% the model's bits" in out


def test_the_grid_holds_every_op_dtype_and_layout():
    grid = list(checks.grid())
    ops = set(OPS | ROPE_OPS)
    assert {check.op for check in grid} == ops
    for op in ops:
        assert {check.dtype for check in grid if check.op == op} == set(checks.DTYPES)
    assert {check.where for check in grid} == {"contiguous", *checks.LAYOUTS, *rope.WAYS}
    assert len({str(check) for check in grid}) == len(grid)


def made_up(outcome, op="add_layer_norm_fwd", where="in place, row-strided"):
    return Check(op, "bfloat16", (3, 70000), where, lambda check: outcome)


def rows_of(capsys, *checks):
    """Run checks, and return the rows that were printed and whether all was right."""
    right = selfcheck_run.run(checks, "a device (sm_90)")
    return capsys.readouterr().out.splitlines()[4 : 4 + len(checks)], right


def test_every_column_is_wide_enough_for_what_is_in_it(capsys):
    short = made_up(Outcome(0.75, 1.0), "rms_norm", "contiguous")
    rows, _ = rows_of(capsys, made_up(Outcome(0.75, 1.0)), short)
    assert len({row.index("50 %") for row in rows}) == 1
    assert len({row.index("bfloat16") for row in rows}) == 1


@pytest.mark.parametrize(
    ("worst", "allowed", "shows"),
    [
        (808089.14, 9324247.72, "9 %  ok"),
        (0.5, 0.5, "0 %  ok"),  # rounded correctly, and nothing else is allowed
        (0.3, 0.8, "0 %  ok"),
        (2.0, 2.0, "100 %  ok"),
        (math.inf, 1.0, "-  ok"),
    ],
)
def test_a_row_shows_the_share_of_the_tolerance_past_correct_rounding(
    capsys, worst, allowed, shows
):
    (row,), _ = rows_of(capsys, made_up(Outcome(worst, allowed)))
    assert row.endswith(f"  {shows}")


def test_the_share_is_that_of_the_element_which_takes_most_of_its_tolerance():
    distance = np.array([[0.4, 900.0], [1.25, 0.6]])
    allowed = np.array([[0.5, 1e4], [1.5, 1e4]])
    assert checks.worst_of(distance, allowed) == (1.25, 1.5)
    allowed[1, 0] = 100
    assert checks.worst_of(distance, allowed) == (900.0, 1e4)
    assert checks.worst_of(np.zeros((0, 3)), np.zeros((0, 3))) == (0.0, 0.5)


def test_the_last_line_counts_one_check_as_one(capsys):
    selfcheck_run.run([made_up(Outcome(0.5, 0.6))], "a device (sm_90)")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cunorm on a device (sm_90): 1 check"
    assert lines[-1].startswith("1 check in ")


GRID = list(checks.grid())


@pytest.mark.parametrize(
    ("only", "finds"),
    [
        ("rms_norm_fwd    float16  (37,64)    contiguous", "rms_norm_fwd float16 (37, 64)"),
        ("(37,64)  contiguous", "(37, 64) contiguous"),
        ("(37, 64) contiguous", "(37, 64) contiguous"),
        ("float32 gamma", "float32 gamma"),
    ],
)
def test_only_takes_a_part_of_a_row_as_it_is_printed(only, finds):
    found = selfcheck_run.chosen(GRID, only)
    assert found == [check for check in GRID if finds in str(check)] != []


@pytest.mark.parametrize("said", ["0 %  ok", "-  OFF: y: 1 element off, first (0, 5)", "104 %"])
def test_only_takes_a_whole_row_and_finds_that_check_alone(said):
    row = f"rms_norm        float32  (3,769)  in place           {said}"
    (check,) = selfcheck_run.chosen(GRID, row)
    assert str(check) == "rms_norm float32 (3, 769) in place"


def test_check_asks_every_call_in_one_dtype_and_every_op_in_several():
    asked = checks.in_one_dtype(GRID)
    calls = [(check.op, check.shape, check.where) for check in asked]
    assert sorted(calls) == sorted({(check.op, check.shape, check.where) for check in GRID})
    assert all(len({c.dtype for c in asked if c.op == op}) > 1 for op, *_ in calls)


@pytest.mark.parametrize(
    ("all_of_it", "asked"), [((), checks.in_one_dtype(GRID)), (("--all",), GRID)]
)
def test_check_asks_every_dtype_where_all_is_asked_for(capsys, monkeypatch, all_of_it, asked):
    taken = []
    monkeypatch.setattr(selfcheck_run, "run", lambda checks, device: taken.extend(checks) or True)
    code, _, _ = run(capsys, "check", *all_of_it)
    assert code == 0
    assert list(map(str, taken)) == list(map(str, asked))


def test_an_interrupt_ends_check_with_what_was_done(capsys, monkeypatch):
    def interrupted(x, *arguments, **options):
        if options.get("out") is not x:
            return ORIGINAL(x, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(cunorm, "rms_norm", interrupted)
    code, out, err = run(capsys, "check", "--only", "rms_norm float32 (3, 769)")
    assert code == 130
    assert re.search(r"^stopped after \d+ of 16 checks in \d+ s: all within tolerance$", out, re.M)
    assert err == ""


def begun(*arguments):
    """Start the command, and return its process when it has printed a row of the table."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cunorm", "check", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    while " ok\n" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    return process


def test_ctrl_c_ends_check_quietly():
    process = begun()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after " in out.splitlines()[-1]
    assert "Traceback" not in err


def test_a_closed_pipe_ends_check_quietly():
    process = begun()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("arch", ["87", "103", "121"])
def test_an_architecture_that_readme_promises_runs_a_norm(arch):
    if cunorm.simgpu.hardware_devices():
        pytest.skip("it has the architecture it has")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cunorm.simgpu", "--arch", f"sm_{arch}", "-m", "cunorm"),
            *("check", "--only", "layer_norm_fwd float16 (1, 70000)"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"(sm_{arch}): 1 check" in done.stdout


def off_by_one_ulp(x, *arguments, **options):
    y = ORIGINAL(x, *arguments, **options)
    host = y.get()
    host.view(np.uint16)[0, 5] += 1
    y.set(host)
    return y


def not_in_place(x, *arguments, **options):
    return ORIGINAL(x, *arguments, **(options | {"out": None}))


def writes_beside_out(x, *arguments, **options):
    y = ORIGINAL(x, *arguments, **options)
    y.base[:1] = 0
    return y


def raises(x, *arguments, **options):
    raise RuntimeError("no such luck")


def wrong_dtype(x, *arguments, **options):
    return ORIGINAL(x, *arguments, **options).astype("float32")


ORIGINAL = cunorm.rms_norm


@pytest.mark.parametrize(
    ("op", "where", "says"),
    [
        (off_by_one_ulp, "row-strided", "y: 1 element off, first (0, 5)"),
        (not_in_place, "in place", "out was not returned"),
        (writes_beside_out, "in place", "wrote outside out"),
        (raises, "row-strided", "RuntimeError: no such luck"),
        (wrong_dtype, "row-strided", "y is float32 (3, 769)"),
    ],
)
def test_check_fails_where_an_op_is_wrong(capsys, monkeypatch, op, where, says):
    monkeypatch.setattr(cunorm, "rms_norm", op)
    code, out, _ = run(capsys, "check", "--only", f"rms_norm float16 (3, 769) {where}")
    assert code == 1
    assert says in out
    assert "OFF" in out.splitlines()[-1]


def test_check_fails_where_the_model_s_bits_differ(capsys, monkeypatch):
    monkeypatch.setattr(
        cunorm, "rms_norm", lambda x, gamma, eps: ORIGINAL(x, gamma, eps, cast="after")
    )
    code, out, _ = run(capsys, "check", "--data", str(FILE), "--only", "bf16/layer0")
    assert code == 1
    assert "OFF: bits differ" in out


def test_check_only_what_matches_nothing_is_an_error(capsys):
    code, _, err = run(capsys, "check", "--only", "batch_norm")
    assert code == 2
    assert "no line of the table holds 'batch_norm'" in err


def one_array():
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    return stream.getvalue()


def archive(path, **changes):
    with np.load(FILE) as file:
        tensors = {name: file[name] for name in file.files}
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    np.savez(path, **tensors)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot read"),
        (lambda path: path.write_bytes(b"no archive"), "cannot read"),
        (lambda path: path.write_bytes(FILE.read_bytes()[:5000]), "cannot read"),
        (lambda path: path.write_bytes(b""), "cannot read"),
        (lambda path: path.write_bytes(one_array()), "holds one array"),
        (
            lambda path: archive(path, **{"eps": None, "bf16/final/gamma": None}),
            "lacks eps, bf16/final/gamma",
        ),
        (
            lambda path: archive(path, **{"f32/layer0/x": np.ones((2, 3))}),
            "f32/layer0/x must be float32, but is float64",
        ),
        (
            lambda path: archive(path, **{"f32/layer0/x": np.ones((2, 3), np.float32)}),
            "f32/layer0 must have x and y of one shape and gamma of its last axis",
        ),
        (lambda path: archive(path, eps=np.ones(3)), "eps must be one number"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_fault_and_exits_2(
    capsys, tmp_path, make, says
):
    path = tmp_path / "file.npz"
    make(path)
    code, out, err = run(capsys, "check", "--data", str(path))
    assert code == 2
    assert says in err
    assert str(path) in err
    assert out == ""


NEEDED = [
    *("cunorm", "python", "numpy", "ml_dtypes", "kernels", "kernel_cache", "software_gpu"),
    *("device", "cupy", "nvrtc", "cuda_headers"),
]
NAMES = [*NEEDED, "tuned"]  # which is told where all of those are met


def test_info_prints_versions_device_and_folders(capsys):
    code, out, _ = run(capsys, "info")
    told = {name: line for name, _, line in (line.split(maxsplit=2) for line in out.splitlines())}
    marks = {line.split()[1] for line in out.splitlines()}
    (distribution,) = set(importlib.metadata.packages_distributions()["cupy"])
    assert code == 0
    assert marks == {"ok"}
    assert list(told) == NAMES
    assert told["cunorm"].startswith(f"{cunorm.__version__} in ")
    assert told["cupy"] == f"{distribution} {cupy.__version__}"
    assert told["numpy"] == np.__version__
    assert "(sm_" in told["device"]
    assert Path(told["nvrtc"].split(" in ")[1]).is_file()
    assert (Path(told["cuda_headers"]) / "cuda_fp16.h").is_file()
    assert told["kernels"] == str(kernels.folder())


def test_info_as_json_has_the_same_lines(capsys):
    code, out, _ = run(capsys, "info", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["met"] is True
    assert list(told["lines"]) == NAMES
    assert told["lines"]["numpy"] == {"met": True, "found": np.__version__, "todo": ""}


CUPY = "pip install 'cunorm[cuda12]', or 'cunorm[cuda13]' for CUDA 13"
PATHFINDER = """\
from cuda import pathfinder
def missing(name): raise pathfinder.DynamicLibNotFoundError("no such file: lib" + name)
"""
# sys.modules[name] = None would make CuPy look imported.
ABSENT = """\
from importlib.abc import MetaPathFinder
class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in absent or name in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
# What is broken, each in a Python of its own: the lines that are unmet, and what the first says.
BROKEN = {
    "no CuPy": (
        ABSENT + "absent = ('cupy', 'cupy_backends', 'cuda')",
        ["cupy", "nvrtc", "cuda_headers", "device"],
        f"ModuleNotFoundError: No module named 'cupy': {CUPY}",
    ),
    "an old NumPy": (
        "import numpy; numpy.__version__ = '2.0.2'",
        ["numpy"],
        "2.0.2, with which CuPy has no bfloat16: pip install 'numpy>=2.1.2'",
    ),
    "no ml_dtypes": (
        ABSENT + "absent = ('ml_dtypes',)",
        ["ml_dtypes"],
        "ModuleNotFoundError: No module named 'ml_dtypes': pip install ml_dtypes",
    ),
    "no NVRTC": (
        PATHFINDER + "pathfinder.load_nvidia_dynamic_lib = missing",
        ["nvrtc"],
        f"DynamicLibNotFoundError: no such file: libnvrtc: {CUPY}",
    ),
    "no CUDA headers": (
        PATHFINDER + "pathfinder.find_nvidia_header_directory = lambda name: None",
        ["cuda_headers"],
        f"not found: {CUPY}",
    ),
    "headers without the one": (
        PATHFINDER + "pathfinder.find_nvidia_header_directory = lambda name: '/'",
        ["cuda_headers"],
        f"/, without cuda_fp16.h: {CUPY}",
    ),
    "an unwritable home": (  # where CuPy makes its folder when it is imported
        "import os; os.environ['HOME'] = '/dev/null'; os.environ.pop('CUPY_CACHE_DIR', None)",
        ["kernel_cache", "cupy", "device"],
        "/dev/null/.cupy/kernel_cache cannot be written to (Not a directory): "
        "set CUPY_CACHE_DIR to a folder that can be written to",
    ),
    "no device and no C extension": (
        ABSENT + "absent = ('cunorm.simgpu._tables',); simgpu.hardware_devices = lambda: 0",
        ["software_gpu", "device"],
        "install a C compiler and Python's headers",
    ),
    "no kernels": (
        "from cunorm._launch import kernels\n"
        "def missing(): raise FileNotFoundError('no kernels')\n"
        "kernels.folder = missing",
        ["kernels"],
        "FileNotFoundError: no kernels: reinstall cunorm",
    ),
    "an error that nobody foresaw": (
        "from importlib import metadata\n"
        "def broken(): raise UnicodeDecodeError('utf-8', b'', 0, 1, 'a broken file')\n"
        "metadata.packages_distributions = broken",
        ["cupy"],
        f"a broken file: {CUPY}",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_info_survives_and_names_what_is_missing_and_check_ends_with_that_line(case):
    breaks, unmet, says = BROKEN[case]
    code = (
        f"import sys\nfrom cunorm import simgpu\n{breaks}\n"
        "from cunorm.__main__ import main\n"
        "codes = [main(['info']), main(['info', '--json']), main(['check'])]\n"
        "print(codes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told = json.loads("\n".join(lines[len(NEEDED) : -1]))
    found = {name: line for name, line in told["lines"].items() if not line["met"]}
    assert lines[-1] == "[1, 1, 2]"
    assert [line.split()[0] for line in lines[: len(NEEDED)]] == NEEDED
    assert [line.split()[0] for line in lines[: len(NEEDED)] if " UNMET " in line] == list(found)
    assert told["met"] is False
    assert sorted(found) == sorted(unmet)
    assert all(line["todo"] for line in found.values())
    refused = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in refused] == list(found)
    assert says in next(line for line in refused if f" check: {unmet[0]}: " in line)


def test_without_a_c_extension_hardware_is_enough(monkeypatch):
    monkeypatch.setattr(_info.simgpu, "hardware_devices", lambda: 1)
    monkeypatch.setitem(sys.modules, "cunorm.simgpu._fma", None)
    monkeypatch.delattr("cunorm.simgpu._fma", raising=False)
    line = _info.lines()["software_gpu"]
    assert line.met
    assert line.found == "not built, and not needed beside a CUDA device"


def test_the_kernel_cache_is_the_folder_that_cupy_uses(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    assert _info.cache_folder() == tmp_path
    monkeypatch.delenv("CUPY_CACHE_DIR")
    assert _info.cache_folder() == Path.home() / ".cupy" / "kernel_cache"


def test_a_cache_in_memory_needs_a_folder_but_no_leave_to_write(monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", "/proc")
    assert not _info.lines()["kernel_cache"].met
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    assert _info.lines()["kernel_cache"].found == "in memory"
    monkeypatch.setenv("CUPY_CACHE_DIR", "/proc/absent")
    assert not _info.lines()["kernel_cache"].met


def test_info_says_so_where_two_cupy_packages_are_installed(tmp_path):
    (own,) = set(importlib.metadata.packages_distributions()["cupy"])
    folder = tmp_path / "cupy_cuda99x-14.2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: cupy-cuda99x\nVersion: 14.2.0\n")
    (folder / "top_level.txt").write_text("cupy\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "cunorm", "info"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    (unmet,) = (line for line in done.stdout.splitlines() if " UNMET " in line)
    assert unmet.split()[0] == "cupy"
    assert f"{own} {cupy.__version__}, cupy-cuda99x 14.2.0: only one may be installed: " in unmet
    assert f"pip uninstall {own} cupy-cuda99x, then {CUPY}" in unmet


def test_without_a_device_the_command_chooses_the_software_one_itself():
    done = subprocess.run(
        [sys.executable, "-m", "cunorm", "check", "--only", "rms_norm float32 (3, 769) in place"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "5 checks in" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["bench", "--op"], ["check", "--data"]])
def test_a_command_line_that_makes_no_sense_exits_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m cunorm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("called", "prog"),
    [
        ("/home/me/.venv/bin/cunorm", "cunorm"),
        (r"C:\Scripts\cunorm.exe", "cunorm"),
        ("/src/cunorm/__main__.py", "python -m cunorm"),
        ("/usr/bin/pytest", "python -m cunorm"),
    ],
)
def test_messages_name_the_command_as_it_was_called(capsys, monkeypatch, called, prog):
    monkeypatch.setattr(sys, "argv", [called.replace("\\", os.sep)])
    code, _, err = run(capsys, "check", "--only", "batch_norm")
    assert (code, err.split(": ")[0]) == (2, f"{prog} check")


def test_the_console_script_is_this_command():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="cunorm")
    assert script.load() is command.main


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"cunorm {cunorm.__version__}\n"


def test_info_into_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cunorm", "info"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
