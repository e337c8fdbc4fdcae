"""`python -m cunorm bench`: what it measures, what it prints and writes, and what it refuses."""

import csv
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cupy
import pytest

from cunorm import __main__ as command
from cunorm import _progress, simgpu
from cunorm._bench import cases as bench_cases
from cunorm._bench import chart, report
from cunorm._bench import counters as bench_counters
from cunorm._bench import run as bench_run
from cunorm._bench.cases import Case
from cunorm._bench.counters import Counters
from cunorm._bench.times import Times
from cunorm._bench.timing import Sample

ROOT = Path(__file__).parents[2]
COUNTERS = Counters(
    *("rms_norm", "float16", 4096, 256, 0, 90, 1.0, None, 1.25, None, 1.0, 16.0, 64.75, 1.0),
    *(62, 0, 0.5, 1.0),
)


def sample(us, spread=0.0):
    return Sample(us, us - spread / 2, us + spread / 2, us - spread / 2, 56, 160)


TIMES = Times(
    op="rms_norm",
    dtype="bfloat16",
    cols=4097,
    rows=64,
    offset=1,
    sets=512,
    systems={"cunorm": sample(2.0, spread=0.1), "cupy": sample(20.0)},
    copies={"memcpy": sample(1.9), "copy kernel": sample(1.8)},
    failed={"liger": "ValueError: no such luck"},
)
LINES = {"counters": COUNTERS, "times": TIMES.line()}


def run(capsys, *arguments):
    code = command.main(["bench", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def lines_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


# Which cases.


def test_the_default_grid_is_every_op_dtype_and_length():
    cases = list(bench_cases.grid(bench_cases.OPS, bench_cases.DTYPES, None, None, False, 1))
    assert len(set(cases)) == len(cases) == 9 * 3 * 15
    assert {case.offset for case in cases} == {0}
    assert {64, 768, 5120, 65536, 131072, 262144} < {case.cols for case in cases}


def test_odd_adds_odd_rows_and_views_off_by_one_element():
    cases = list(bench_cases.grid(["rms_norm"], ["float32"], [1024], None, True, 1))
    assert [(case.cols, case.offset) for case in cases] == [
        *((1024, 0), (769, 0), (1025, 0), (4097, 0), (5125, 0)),
        *((512, 1), (1024, 1), (4096, 1), (8192, 1)),
    ]


@pytest.mark.parametrize(("cols", "rows"), [(64, 16384), (4096, 256), (1 << 20, 1), (1 << 24, 1)])
def test_a_launch_has_2_mib_of_x_and_at_least_one_row(cols, rows):
    (case,) = bench_cases.grid(["rms_norm"], ["float16"], [cols], None, False, 2 << 20)
    assert case.rows == rows


def test_the_floor_is_every_array_once():
    assert Case("rms_norm", "float16", 100, 3).floor_bytes == 2 * 600 + 200
    assert Case("add_layer_norm", "float32", 100, 3).floor_bytes == 4 * 1200 + 2 * 400
    # A backward pass writes dgamma and dbeta too.
    assert Case("rms_norm_bwd", "float32", 100, 3).floor_bytes == 4 * 1200 + 2 * 400
    assert Case("layer_norm_bwd", "float32", 100, 3).floor_bytes == 4 * 1200 + 3 * 400
    # 2 tokens of 32 heads of queries and 8 of keys, each of 64 numbers, and 32 angles.
    heads = 2 * 2 * (32 + 8) * 64 * 2
    assert Case("qk_norm_rope", "float16", 64, 64).floor_bytes == heads + 2 * 2 * 64 + 2 * 2 * 64
    of_groups = Case("add_rms_norm_quant", "float16", 256, 3, quant="deepseek")
    assert of_groups.floor_bytes == 3 * 3 * 512 + 3 * 256 + 512 + 2 * 4 * 4
    of_halves = Case("rms_norm_quant", "float16", 256, 3, quant="nvfp4")
    assert of_halves.floor_bytes == 3 * 512 + 3 * 128 + 512 + 128 * 16


def test_heads_and_codes_have_the_sizes_that_their_ops_take():
    heads = list(bench_cases.grid(bench_cases.HEAD_OPS, ["float32"], None, 100, True, 1))
    assert {case.rows for case in heads} == {96}
    sizes = [(64, 0), (80, 0), (96, 0), (128, 0), (256, 0), (128, 1)]
    assert [(case.cols, case.offset) for case in heads] == 2 * sizes
    given = (["rms_norm_quant"], ["float32"], None, 1, True, 1, ["int8_row", "mxfp8"])
    codes = list(bench_cases.grid(*given))
    of_rows = {(case.cols, case.offset) for case in codes if case.quant == "int8_row"}
    of_groups = {(case.cols, case.offset) for case in codes if case.quant == "mxfp8"}
    assert of_rows - of_groups == {(769, 0), (1025, 0), (4097, 0), (5125, 0)}
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("case", [
    *(Case(op, "bfloat16", 64, 96) for op in bench_cases.HEAD_OPS),
    *(Case(op, "bfloat16", 128, 5, quant=quant)
      for op, quant in zip(2 * bench_cases.CODE_OPS, bench_cases.SCHEMES, strict=False)),
], ids=str)  # fmt: skip
def test_heads_and_codes_lie_where_the_case_says_and_are_all_written(case, offset):
    case = dataclasses.replace(case, offset=offset)
    given = bench_cases.arrays(case)
    sizes = {name: given[name].itemsize for name in case.names}
    assert {n: given[n].data.ptr % 16 for n in case.names} == {
        n: size * offset for n, size in sizes.items()
    }
    written = [given[name] for name in case.kind.returns]
    for array in written:
        array[...] = 99
    made = bench_cases.call(case, given)
    made = made if isinstance(made, tuple) else (made,)
    assert all(one.data.ptr == other.data.ptr for one, other in zip(made, written, strict=True))
    assert all((array != 99).any() for array in written)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("op", bench_cases.OPS)
def test_the_arrays_lie_where_the_case_says_and_the_op_fills_them(op, offset):
    case = Case(op, "bfloat16", 64, 5, offset)
    given = bench_cases.arrays(case)
    assert list(given) == [*case.names, *case.parameters]
    assert {given[name].data.ptr % 16 for name in case.names} == {2 * offset}
    assert {given[name].data.ptr % 16 for name in case.parameters} == {0}
    written = [given[name] for name in ("y", "residual_out") if name in given]
    for array in written:
        array[...] = 99
    bench_cases.call(case, given)
    assert not any((array == 99).any() for array in written)
    assert given["x"].shape == (5, 64)


# Counting.


@pytest.mark.simgpu
@pytest.mark.parametrize(
    ("op", "names"),
    [("rms_norm", {"x", "y"}), ("add_layer_norm", {"x", "residual", "y", "residual_out"})],
)
def test_aligned_rows_are_counted_at_the_floor(op, names):
    counters = bench_counters.count(Case(op, "float16", 1024, 8))
    for name in ("x", "residual", "y", "residual_out"):
        assert getattr(counters, name) == (1 if name in names else None)
    assert counters.gamma == 1
    assert counters.sectors_per_request == 16
    assert counters.reads == 1
    assert counters.share == 1
    assert counters.registers > 0
    assert counters.arch == int(cupy.cuda.Device().compute_capability)


@pytest.mark.simgpu
def test_heads_and_codes_are_counted_at_the_floor():
    heads = bench_counters.count(Case("qk_norm_rope", "float16", 128, 64))
    assert (heads.q, heads.k, heads.q_out, heads.k_out) == (1, 1, 1, 1)
    codes = bench_counters.count(Case("add_rms_norm_quant", "float16", 1024, 8, quant="fp8_row"))
    assert (codes.x, codes.residual, codes.q, codes.residual_out) == (1, 1, 1, 1)
    assert (codes.quant, codes.y, heads.quant) == ("fp8_row", None, None)
    assert heads.share == codes.share == heads.reads == 1


@pytest.mark.simgpu
def test_what_is_counted_is_the_launch_itself():
    case = Case("layer_norm", "float32", 4096, 6, 1)
    with simgpu.profile() as profile:
        counters = bench_counters.count(case)
    (launch,) = profile.launches
    x = next(array for array in launch.arrays if 3 in array.arguments)
    assert counters.x == x.loads.sectors / (6 * 4096 * 4 / 32) > 1
    assert counters.sectors_per_request == x.loads.sectors_per_request < 16
    assert counters.instructions_per_packet == launch.instructions_unfolded / (6 * 4096 * 4 / 512)
    assert counters.barriers_per_row == launch.barriers / 6 > 0
    assert counters.occupancy == launch.occupancy.share
    assert counters.registers == launch.resources.registers
    assert counters.spill_bytes == launch.resources.spill_stores


@pytest.mark.simgpu
def test_a_row_that_nothing_can_hold_is_read_again():
    counters = bench_counters.count(Case("rms_norm", "float32", 1 << 20, 1))
    assert 1.4 < counters.reads < 2
    assert counters.x == pytest.approx(counters.reads)
    assert counters.share < 0.85


@pytest.mark.simgpu
def test_several_processes_count_what_one_does(monkeypatch):
    cases = [Case("rms_norm", "float16", cols, 4) for cols in (64, 128, 256)]
    monkeypatch.setattr(bench_counters, "_cores", lambda: 2)
    alone = list(bench_counters.count_all(cases))
    monkeypatch.setattr(bench_counters, "FEW_CASES", 2)
    monkeypatch.setattr(bench_counters, "count", remote_count)
    assert list(bench_counters.count_all(cases)) == alone


def remote_count(case):
    """Count in another process, where nothing is patched."""
    assert bench_counters.count is not remote_count
    return bench_counters.count(case)


@pytest.mark.simgpu
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("op", "totals"), [("rms_norm_bwd", 1), ("layer_norm_bwd", 2)])
def test_both_launches_of_a_backward_pass_are_counted(op, totals, offset):
    case = Case(op, "float16", 1024, 8, offset)
    with simgpu.profile() as profile:
        counters = bench_counters.count(case)
    *_, main, sums = profile.launches  # after those that fill mean and rstd
    assert counters.dx == 1
    for name in ("x", "dy", "dresidual"):
        assert 1 <= getattr(counters, name) <= (1 if offset == 0 else 1.15)
    assert (counters.residual, counters.y, counters.residual_out) == (None, None, None)
    # Eight blocks of a row each leave 1024 sums of 4 bytes for each parameter.
    assert counters.sums == 2 * totals * 8 * 4096 / case.x_bytes
    assert counters.instructions_per_packet == main.instructions_unfolded / (case.x_bytes / 512)
    assert counters.sums_instructions == sums.instructions_unfolded / (case.x_bytes / 512)
    assert counters.share == 1 if offset == 0 else 0.9 < counters.share < 1


# Showing.


@pytest.mark.parametrize("kind", LINES)
def test_every_column_shows_an_attribute(kind):
    text = report.table([LINES[kind]], {"counters": report.COUNTED, "times": report.TIMED}[kind])
    heads, values = (line.split("  ") for line in text.splitlines())
    assert len([head for head in heads if head]) == len([value for value in values if value])


def test_a_table_leaves_out_what_the_op_does_not_have_and_tells_views_apart():
    assert report.counted_table([COUNTERS]).split() == [
        *("dtype", "N", "rows", "x", "y", "gamma", "sectors/request", "instructions/packet"),
        *("barriers/row", "registers", "spills", "occupancy", "row", "read"),
        *("float16", "4,096", "256", "1.000", "1.250", "1.000", "16.00", "64.8", "1", "62", "0"),
        *("50", "%", "1.00"),
    ]
    other = dataclasses.replace(
        TIMES, offset=0, warm=True, systems={"cupy": sample(3.0)}, failed={"cunorm": "off"}
    )
    heads, first, second, *why = report.timed_table([TIMES, other, TIMES]).splitlines()
    assert heads.split("  ")[-1].strip() == "liger us"
    assert " 4,097 + 1 " in first
    assert first.split()[-9:] == ["2.00", "5", "%", "529", "90", "%", "1.80", "20.00", "failed"]
    assert "+" not in second
    assert " 4,097 warm " in second
    assert why[1:] == [
        "liger failed: ValueError: no such luck (2 cases)",
        "cunorm failed: off (1 case)",
    ]


def test_the_share_counts_every_array_of_rows():
    assert COUNTERS.share == 2 / 2.25
    assert dataclasses.replace(COUNTERS, residual=1.0, residual_out=2.0).share == 4 / 5.25
    assert TIMES.share == 0.9


@pytest.mark.parametrize("kind", LINES)
def test_the_csv_has_every_attribute(tmp_path, kind):
    report.save_csv([LINES[kind]] * 2, tmp_path / "a.csv")
    lines = lines_of(tmp_path / "a.csv")
    assert len(lines) == 2
    assert lines[0] == {
        name: "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        for name, value in vars(LINES[kind]).items()
    }


@pytest.mark.parametrize("kind", [COUNTERS, TIMES], ids=["counters", "times"])
def test_the_chart_has_a_column_for_each_op_and_draws_every_cold_case(tmp_path, kind, monkeypatch):
    drawn = []
    draw = chart._draw

    def watched(axes, measured, value, is_share):
        draw(axes, measured, value, is_share)
        drawn.append(sum(len(line.get_xdata()) for line in axes.lines))

    monkeypatch.setattr(chart, "_draw", watched)
    other = dataclasses.replace(kind, op="layer_norm")
    odd = dataclasses.replace(kind, cols=769)
    warm = [dataclasses.replace(kind, warm=True)] if isinstance(kind, Times) else []
    chart.save([kind, odd, other, *warm], tmp_path / "a.png", "a device")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert drawn == [2, 1, 2, 1]


# The command.


@pytest.mark.simgpu
def test_the_command_prints_a_table_for_each_op_and_writes_its_files(capsys, tmp_path):
    files = tmp_path / "a.csv", tmp_path / "a.png"
    code, out, _ = run(
        capsys,
        *("--op", "rms_norm", "add_rms_norm", "--dtype", "float32", "--cols", "64", "128"),
        *("--rows", "8", "--csv", str(files[0]), "--png", str(files[1])),
    )
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("cunorm on cunorm.simgpu with")
    assert lines[0].endswith(": no hardware, a software GPU that counts and takes no times")
    tables = lines.index("rms_norm"), lines.index("add_rms_norm")
    for at, arrays in zip(tables, (["x", "y"], ["x", "residual", "y", "h"]), strict=True):
        assert lines[at + 1].split()[: 4 + len(arrays)] == ["dtype", "N", "rows", *arrays, "gamma"]
        assert lines[at + 2].split()[:5] == ["float32", "64", "8", "1.000", "1.000"]
        assert lines[at + 3].split()[:3] == ["float32", "128", "8"]
    assert lines[-1].startswith("4 cases in ")
    assert [(line["op"], line["cols"], line["residual"]) for line in lines_of(files[0])] == [
        *(("rms_norm", "64", ""), ("rms_norm", "128", "")),
        *(("add_rms_norm", "64", "1"), ("add_rms_norm", "128", "1")),
    ]
    assert files[1].stat().st_size > 10_000


@pytest.mark.simgpu
def test_on_the_software_gpu_the_command_prints_no_times(capsys):
    _, out, _ = run(
        capsys, *("--op", "rms_norm", "--dtype", "float16", "--cols", "64", "--rows", "4")
    )
    assert " us" not in out
    assert "GB/s" not in out


@pytest.mark.simgpu
@pytest.mark.parametrize(
    "arguments", [["--json", "a.json"], ["--warm"], ["--beside", "torch"], ["--beside"]]
)
def test_what_only_hardware_can_give_is_refused_where_there_is_none(
    capsys, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert f"bench: {arguments[0]} needs a CUDA device: a software GPU takes no times" in err
    assert not any(tmp_path.iterdir())


def test_progress_is_told_on_stderr_and_not_too_often(capsys, monkeypatch):
    progress = _progress.Progress(2)
    progress.show("the first")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_progress, "PLAIN_SECONDS", -1)
    progress.show("the second")
    assert capsys.readouterr() == ("", "1/2, 0 s, about 0 s left: the second\n")


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "about 9 s left"), (30, "about 90 s left"), (100, "about 5 min left")]
)
def test_progress_says_how_long_the_rest_takes(capsys, monkeypatch, seconds, said):
    monkeypatch.setattr(_progress, "PLAIN_SECONDS", -1)
    clock = iter([0.0] + [seconds] * 9)
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    progress = _progress.Progress(4)
    progress._done = 1
    progress.show("the second")
    assert capsys.readouterr().err == f"1/4, {seconds} s, {said}: the second\n"


def test_progress_fits_a_line_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(_progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    _progress.Progress(2).show("what is being done, at length")
    assert capsys.readouterr().err == "\r\x1b[K0/2, 0 s: what is being done,"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--op", "batch_norm"], "invalid choice: 'batch_norm'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--cols", "0"], "--cols: must be a whole number of at least 1, not '0'"),
        (["--cols", "64", "-1"], "--cols: must be a whole number of at least 1, not '-1'"),
        (["--cols", "4k"], "--cols: must be a whole number of at least 1, not '4k'"),
        (["--rows", "1.5"], "--rows: must be a whole number of at least 1, not '1.5'"),
        (["--rows"], "--rows: expected one argument"),
        (["--beside", "apex"], "--beside: invalid choice: 'apex'"),
        (["--json"], "--json: expected one argument"),
    ],
)
def test_arguments_that_make_no_sense_exit_2(capsys, arguments, says):
    with pytest.raises(SystemExit) as exit_:
        run(capsys, *arguments)
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--op", "qk_norm_rope"], "--cols 7: qk_norm_rope takes an even number of columns"),
        (
            ["--op", "rms_norm_quant", "--quant", "fp8_row", "deepseek"],
            "--cols 7: rms_norm_quant with deepseek takes a multiple of 128 columns",
        ),
    ],
)
def test_rows_that_an_op_does_not_take_exit_2(capsys, monkeypatch, arguments, says):
    monkeypatch.setattr(command, "_device", lambda _: pytest.fail("measured"))
    code, _, error = run(capsys, *arguments, "--cols", "128", "7")
    assert code == 2
    assert error.endswith(f"{says}\n")


def test_the_command_prints_heads_and_codes_each_scheme_a_line(capsys, tmp_path):
    file = tmp_path / "a.csv"
    code, out, _ = run(
        capsys,
        *("--op", "qk_norm_rope", "rms_norm_quant", "--quant", "int8_row", "mxfp8"),
        *("--dtype", "float32", "--cols", "128", "--rows", "32", "--csv", str(file)),
        *("--png", str(tmp_path / "a.png")),
    )
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    at = lines.index(["rms_norm_quant"])
    assert lines[at + 1][:5] == ["dtype", "quant", "N", "rows", "x"]
    assert [line[:4] for line in lines[at + 2 : at + 4]] == [
        ["float32", "int8_row", "128", "32"],
        ["float32", "mxfp8", "128", "32"],
    ]
    assert [line["quant"] for line in lines_of(file)] == ["", "int8_row", "mxfp8"]


def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(command, "_device", lambda _: pytest.fail("measured"))
    code, _, err = run(capsys, "--csv", "no/such/folder/a.csv")
    assert code == 2
    assert "no/such/folder/a.csv cannot be written: there is no folder " in err
    code, _, err = run(capsys, "--csv", ".")
    assert code == 2
    assert ". cannot be written: it is a folder" in err
    code, _, err = run(capsys, "--png", "a.svg")
    assert code == 2
    assert "--png must name a file that ends in .png, not a.svg" in err
    monkeypatch.setattr(bench_run.importlib.util, "find_spec", lambda name: None)
    code, _, err = run(capsys, "--png", "a.png")
    assert code == 2
    assert "--png needs matplotlib: pip install 'cunorm[bench]'" in err


@pytest.fixture
def folder():
    """Give a folder, and for a while be a user who may not write everywhere, as root may."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)  # pytest's own are for their owner alone
    root = os.geteuid() == 0
    if root:
        os.chown(path, 65534, 65534)
        os.seteuid(65534)
    yield path
    if root:
        os.seteuid(0)
    path.chmod(0o755)
    shutil.rmtree(path)


@pytest.mark.parametrize("option", ["--csv", "--png", "--json"])
@pytest.mark.parametrize("protected", ["folder", "file"])
def test_what_may_not_be_written_is_refused_before_anything_is_measured(
    capsys, monkeypatch, folder, option, protected
):
    monkeypatch.setattr(command, "_device", lambda _: pytest.fail("measured"))
    file = folder / "a.png"
    if protected == "file":
        file.write_text("what it holds")
        file.chmod(0o444)
    else:
        folder.chmod(0o555)
    code, _, err = run(capsys, option, str(file))
    assert code == 2
    assert f"bench: {file} cannot be written: Permission denied" in err


def test_asking_whether_a_file_can_be_written_leaves_no_trace(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_device", lambda _: None)
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("what it holds")
    for file in (old, new):
        assert run(capsys, "--csv", str(file))[0] == 2
    assert old.read_text() == "what it holds"
    assert not new.exists()


def test_help_names_each_choice_once(capsys):
    with pytest.raises(SystemExit):
        run(capsys, "--help")
    words = re.findall(r"\w+", capsys.readouterr().out)
    for choice in (*bench_cases.OPS, *bench_cases.BACKWARD_OPS, "float16", "bfloat16"):
        assert words.count(choice) == 1


@pytest.mark.parametrize("cols", [["4096"], [str(n) for n in range(4096, 4110)]])
def test_more_rows_than_memory_holds_exit_2(capsys, cols):
    arguments = ("--op", "rms_norm", "--dtype", "float32", "--rows", "10000000000")
    code, _, err = run(capsys, *arguments, "--cols", *cols)
    assert code == 2
    assert "python -m cunorm bench: too many rows: Out of memory allocating" in err


def test_without_a_device_the_command_chooses_the_software_one_itself():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cunorm", "bench", "--op", "rms_norm"),
            *("--dtype", "float16", "--cols", "64", "--rows", "4"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 case in ")


@pytest.mark.simgpu
@pytest.mark.parametrize("at", [1, 0])
def test_an_interrupt_ends_bench_with_what_was_measured_and_writes_no_file(
    capsys, monkeypatch, tmp_path, at
):
    def interrupted(case):
        if case.cols == 128 or at == 0:
            raise KeyboardInterrupt
        return dataclasses.replace(COUNTERS, op=case.op)

    monkeypatch.setattr(bench_counters, "count", interrupted)
    file = tmp_path / "a.csv"
    code, out, err = run(
        capsys,
        *("--dtype", "float16", "--cols", "64", "128", "--csv", str(file), "--op", "rms_norm"),
    )
    lines = out.splitlines()
    assert code == 130
    assert err == ""
    assert lines.count("rms_norm") == (at > 0)
    assert re.fullmatch(rf"stopped after {at} of 2 cases in \d+ s", lines[-1])
    assert not file.exists()


@pytest.mark.simgpu
def test_ctrl_c_ends_every_process_of_bench_quietly():
    # Enough for several processes, and few enough until the first table.
    cases = ("--op", *bench_cases.OPS, "--dtype", "float16", "--cols", "64", "72", "80", "88")
    process = subprocess.Popen(
        [sys.executable, "-m", "cunorm", "bench", "--rows", "4", *cases],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    while "dtype" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert re.match(r"stopped after \d+ of 36 cases", out.splitlines()[-1])
    assert "Traceback" not in err


@pytest.mark.simgpu
def test_a_process_of_bench_that_waits_for_work_leaves_ctrl_c_to_the_first_one():
    code = (
        "import os, signal; from cunorm._bench import counters; counters._install(90)\n"
        "os.kill(os.getpid(), signal.SIGINT); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("still here\n", "")
