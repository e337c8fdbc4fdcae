"""What `python -m cunorm bench` does on hardware: dry, on the software GPU, by a made-up clock."""

import csv
import json
import re
import sys
import types

import cupy
import numpy as np
import pytest
import torch
from arrays import to_torch

import cunorm
from cunorm import __main__ as command
from cunorm._bench import cases as bench_cases
from cunorm._bench import definition, expressions, floors, peers, results, systems, timing
from cunorm._bench import run as bench_run
from cunorm._bench import times as bench_times
from cunorm._bench.cases import Case
from cunorm._bench.definition import Definition, WrongResult
from cunorm._bench.systems import System

DTYPES = ("float16", "bfloat16", "float32", "float64")
ONE_CASE = ("--op", "rms_norm", "--dtype", "float32", "--cols", "64", "--rows", "4")


@pytest.fixture
def dry(monkeypatch):
    """Have `bench` take the software GPU for hardware, with a clock that counts 1 to 9 us."""
    ticks = [0]

    def microseconds(start, end):
        ticks[0] += 1
        return float(1 + ticks[0] % 9)

    monkeypatch.setattr(timing, "microseconds", microseconds)
    monkeypatch.setattr(timing, "GRAPH_US", 1)
    monkeypatch.setattr(timing, "MOST_SETS", 2)
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "REPLAYS", 3)
    monkeypatch.setattr(bench_times, "WARM_UP_SECONDS", 0)
    monkeypatch.setattr(bench_run.simgpu, "installed", lambda: False)
    monkeypatch.setattr(command, "_device", lambda _: "some hardware (sm_90)")


@pytest.fixture
def cpu_tensors(monkeypatch):
    """Have PyTorch's CPU stand in for its CUDA: tensors are copies of CuPy's arrays."""
    monkeypatch.setattr(systems, "need_cuda", lambda: None)
    monkeypatch.setattr(systems, "tensor", lambda array: to_torch(array.get()))
    monkeypatch.setattr(systems, "on_current_stream", lambda launch: launch())
    monkeypatch.setattr(systems, "free", lambda others: None)
    monkeypatch.setattr(peers, "COMPILER", "aot_eager")  # without the C++ that it writes for a CPU


@pytest.fixture
def stranger(monkeypatch):
    """Let another system take part in place of the usual ones: what is set calls a case."""
    found = types.SimpleNamespace(call=None)

    def prepare(case):
        return lambda given: lambda: found.call(case, given)

    one = System("liger", ("json",), prepare, of_tensors=False)
    monkeypatch.setitem(peers.OTHERS, "liger", one)
    return found


def run(capsys, *arguments):
    code = command.main(["bench", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Is it right?


@pytest.mark.parametrize("op", [*bench_cases.OPS, *bench_cases.BACKWARD_OPS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cunorm_and_what_cupy_makes_of_an_op_are_right(op, dtype):
    case = Case(op, dtype, 100, 40, dresidual=False)
    given = bench_cases.arrays(case)
    right = Definition(case, given)
    calls = [bench_cases.call, expressions.expressed]
    if dtype != "bfloat16" and not case.is_backward:
        calls.append(expressions.fused)
    for call in calls:
        results = call(case, given)
        assert right.hold(results) < definition.TOLERANCE[dtype]
        results = results if isinstance(results, tuple) else (results,)
        assert {str(result.dtype) for result in results} == {dtype}


HEADS_AND_CODES = [
    *(Case(op, "bfloat16", 64, 64) for op in bench_cases.HEAD_OPS),
    *(Case(op, "bfloat16", 128, 40, quant=quant)
      for op in bench_cases.CODE_OPS for quant in ("fp8_row", "int8_row")),
    *(Case("rms_norm_quant", "float32", 128, 40, quant=quant)
      for quant in ("deepseek", "mxfp8", "nvfp4")),
]  # fmt: skip


@pytest.mark.parametrize("case", HEADS_AND_CODES, ids=str)
def test_heads_and_codes_are_right_by_whoever_has_them(case, cpu_tensors):
    given = bench_cases.arrays(case)
    right = Definition(case, given)
    right.hold(bench_cases.call(case, given))
    launched = {"cunorm"}
    for name in ("cupy", "fuse", "torch", "compile", "liger"):
        system = peers.OTHERS[name]
        if name == "liger" or (launches := system.launches(case, [given])) is None:
            continue
        right.hold(launches[0]())
        launched.add(name)
    written = case.quant in (None, "fp8_row", "int8_row")
    expected = {"cunorm"} | ({"torch", "compile"} if written else set())
    assert launched == expected | ({"cupy"} if case.quant in (None, "int8_row") else set())


@pytest.mark.parametrize("quant", bench_cases.SCHEMES)
def test_codes_and_scales_that_are_off_are_wrong(quant):
    case = Case("rms_norm_quant", "float32", 128, 40, quant=quant)
    given = bench_cases.arrays(case)
    right = Definition(case, given)
    q, scale = bench_cases.call(case, given)
    right.hold((q, scale))
    for array in (q, scale):
        kept = array.copy()
        array[...] = kept[::-1] if array.ndim > 1 else cupy.roll(kept, 1)
        with pytest.raises(WrongResult, match=r"^q is off by "):
            right.hold((q, scale))
        array[...] = kept
    with pytest.raises(WrongResult, match=r"^1 outputs, not q, scales$"):
        right.hold((q,))


def test_a_head_that_is_turned_the_other_way_is_wrong():
    case = Case("qk_norm_rope", "float32", 64, 64)
    given = bench_cases.arrays(case)
    right = Definition(case, given)
    right.hold(bench_cases.call(case, given))
    q, k = bench_cases.call(case, given | {"sin": -given["sin"]})
    with pytest.raises(WrongResult, match=r"^(q|k)_out is off by "):
        right.hold((q, k))


@pytest.mark.parametrize("op", [*bench_cases.OPS, *bench_cases.BACKWARD_OPS])
@pytest.mark.parametrize("system", ["torch", "compile"])
def test_pytorch_and_its_compiler_are_right(op, system, cpu_tensors):
    # PyTorch's CPU has a backward pass of 16-bit rows for statistics of 16 bits alone.
    dtype = "float32" if op.endswith("_bwd") else "bfloat16"
    case = Case(op, dtype, 100, 40, dresidual=False)
    if (system, op) == ("torch", "rms_norm_bwd"):
        pytest.skip("PyTorch has that kernel on CUDA alone")
    sets = [bench_cases.arrays(case) for _ in range(2)]
    launches = peers.OTHERS[system].launches(case, sets)
    assert len(launches) == 2
    for launch, given in zip(launches, sets, strict=True):
        Definition(case, given).hold(launch())


def test_a_backward_case_may_have_a_gradient_of_the_residual():
    case = Case("layer_norm_bwd", "float32", 100, 40)
    given = bench_cases.arrays(case)
    for call in (bench_cases.call, expressions.expressed):
        Definition(case, given).hold(call(case, given))


@pytest.mark.parametrize("at", [(0, 0), (15, 99), (-1, -1), (-16, 5)])
def test_one_wrong_element_of_the_first_or_last_rows_is_wrong(at):
    case = Case("layer_norm", "float32", 100, 1000)
    given = bench_cases.arrays(case)
    y = bench_cases.call(case, given)
    y[at] += 1e-2
    with pytest.raises(WrongResult, match=r"^y is off by 0\.00\d+ of its largest$"):
        Definition(case, given).hold(y)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_each_gradient_is_held_and_a_sum_over_rows_is_of_all_rows(wrong):
    case = Case("layer_norm_bwd", "float32", 100, 1000, dresidual=False)
    given = bench_cases.arrays(case)
    made = list(bench_cases.call(case, given))
    Definition(case, given).hold(made)
    given["dy"][500] *= 3  # no row that is looked at itself: what was made is now of other rows
    if wrong == 0:
        made[0][3] = float("nan")
    with pytest.raises(WrongResult, match="dx is off by inf" if wrong == 0 else "dgamma|dbeta"):
        Definition(case, given).hold(made)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda y: (y, y), "2 outputs, not y"),
        (lambda y: y[:, :50], r"y has shape \(40, 50\), not \(40, 100\)"),
        (lambda y: y.sum(0), r"y has shape \(100,\), not \(40, 100\)"),
    ],
)
def test_outputs_of_another_number_or_shape_are_wrong(make, says):
    case = Case("rms_norm", "float32", 100, 40)
    given = bench_cases.arrays(case)
    y = bench_cases.call(case, given)
    with pytest.raises(WrongResult, match=says):
        Definition(case, given).hold(make(y))


# Who takes part.


def test_every_system_that_options_name_is_there():
    assert tuple(peers.OTHERS) == bench_cases.SYSTEMS
    assert all(system.name == name for name, system in peers.OTHERS.items())


def test_systems_are_named_with_their_versions_or_why_they_are_absent(monkeypatch):
    broken = System("broken", ("cunorm_no_such_module",), None, of_tensors=False)
    unnumbered = System("unnumbered", ("pytest_benchmark.plugin",), None, of_tensors=False)
    versions, absent = systems.installed([peers.CUNORM, broken, unnumbered])
    assert versions["cunorm"] == f"cunorm {cunorm.__version__}"
    assert re.fullmatch(r"pytest_benchmark [\d.]+", versions["unnumbered"])
    assert absent == {
        "broken": "ModuleNotFoundError: No module named 'cunorm_no_such_module'",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_pytorch_without_cuda_takes_no_part():
    versions, absent = systems.installed([peers.OTHERS["torch"]])
    assert versions == {}
    assert absent["torch"].endswith(f"PyTorch {torch.__version__} has no CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_system_asked_for_by_name_must_be_there(capsys, dry):
    code, _, err = run(capsys, *ONE_CASE, "--beside", "torch")
    assert code == 2
    assert "bench: --beside torch: it cannot be used: RuntimeError: PyTorch " in err


@pytest.mark.parametrize("name", ["liger", "quack", "flashinfer"])
@pytest.mark.parametrize("op", [*bench_cases.OPS, *bench_cases.BACKWARD_OPS])
def test_other_systems_are_called_as_they_are_documented(name, op, cpu_tensors, monkeypatch):
    """By stand-ins of their functions, with the parameters that the real ones have."""
    for module, functions in STAND_INS[name].items():
        made = types.ModuleType(module)
        vars(made).update(functions)
        monkeypatch.setitem(sys.modules, module, made)
    case = Case(op, "float32", 64, 40, dresidual=False)
    given = bench_cases.arrays(case)
    launches = peers.OTHERS[name].launches(case, [given])
    assert (launches is not None) == (op in HAVE[name])
    for launch in launches or []:
        Definition(case, given).hold(launch())
        assert bench_cases.arrays(case)["x"].get().tolist() == given["x"].get().tolist()


def test_flashinfer_is_spared_rows_that_would_fault(monkeypatch):
    made = types.ModuleType("flashinfer")
    made.norm = None
    monkeypatch.setitem(sys.modules, "flashinfer", made)
    with pytest.raises(ValueError, match="takes rows that start on 16 bytes"):
        peers.OTHERS["flashinfer"].prepare(Case("rms_norm", "float16", 64, 4, offset=1))


def rms(x, weight, eps):
    return torch.nn.functional.rms_norm(x, x.shape[1:], weight, eps)


def layer(x, weight, bias, eps):
    return torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias, eps)


def rms_bwd(dy, x, weight, rstd):
    n = x * rstd[:, None]
    g = dy * weight
    return rstd[:, None] * (g - n * (g * n).mean(-1, keepdim=True)), (dy * n).sum(0)


def layer_bwd(dy, x, weight, mean, rstd):
    n = (x - mean[:, None]) * rstd[:, None]
    g = dy * weight
    inner = g - n * (g * n).mean(-1, keepdim=True) - g.mean(-1, keepdim=True)
    return rstd[:, None] * inner, (dy * n).sum(0), dy.sum(0)


def fused_add_rmsnorm(input, residual, weight, eps):
    residual += input
    input.copy_(rms(residual, weight, eps))


def of_liger(function):
    def called(*arguments):
        *tensors, offset, mode, row_mode = arguments
        assert (offset, mode, row_mode) == (0.0, "llama", False)
        return function(*tensors)

    return called


def liger_rms_bwd(dY, X, W, RSTD, offset, casting_mode, BLOCK_SIZE, num_warps, in_place, row_mode):
    assert (offset, casting_mode, BLOCK_SIZE, num_warps) == (0.0, 0, 64, 4)
    assert (in_place, row_mode) == (False, False)
    return (*rms_bwd(dY, X, W, RSTD), None)


def added(x, residual, weight, eps):
    return rms(x + residual, weight, eps), x + residual


HAVE = {
    "liger": {"rms_norm", "layer_norm", "add_rms_norm", "rms_norm_bwd", "layer_norm_bwd"},
    "quack": {"rms_norm", "layer_norm", "add_rms_norm", "rms_norm_bwd"},
    "flashinfer": {"rms_norm", "layer_norm", "add_rms_norm"},
}
STAND_INS = {
    "liger": {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.rms_norm": {
            "rms_norm_forward": of_liger(lambda x, w, eps: (rms(x, w, eps), x, None)),
            "rms_norm_backward": liger_rms_bwd,
        },
        "liger_kernel.ops.utils": {"calculate_settings": lambda n: (n, 4)},
        "liger_kernel.ops.fused_add_rms_norm": {
            "fused_add_rms_norm_forward": lambda X, R, W, eps, offset, mode: (
                *added(X, R, W, eps),
                None,
            )
        },
        "liger_kernel.ops.layer_norm": {
            "layer_norm_forward": lambda X, W, B, eps: (layer(X, W, B, eps), X, None),
            "layer_norm_backward": lambda dY, X, W, B, Mean, RSTD: layer_bwd(dY, X, W, Mean, RSTD),
        },
    },
    "quack": {
        "quack": {},
        "quack.rmsnorm": {
            "rmsnorm_fwd": lambda x, weight, residual=None, eps=1e-6: (
                (rms(x, weight, eps), x, None)
                if residual is None
                else (*added(x, residual, weight, eps), None)
            ),
            "rmsnorm_bwd": lambda x, weight, dout, rstd: (*rms_bwd(dout, x, weight, rstd), None),
            "layernorm_fwd": lambda x, weight, bias, eps: layer(x, weight, bias, eps),
        },
    },
    "flashinfer": {
        "flashinfer": {
            "norm": types.SimpleNamespace(
                rmsnorm=lambda input, weight, eps, out: out.copy_(rms(input, weight, eps)),
                fused_add_rmsnorm=fused_add_rmsnorm,
                layernorm=layer,
            )
        }
    },
}


# Floors.


@pytest.mark.parametrize("least_bytes", [1152, 5000, 1 << 20])
@pytest.mark.parametrize("name", ["memcpy", "copy kernel"])
def test_a_copy_moves_the_least_bytes(least_bytes, name):
    for copy in floors.copies(least_bytes, 2)[name]:
        target, source = copy.args
        assert least_bytes - 32 < target.nbytes + source.nbytes <= least_bytes
        source[...] = cupy.arange(source.size, dtype="uint8")
        copy()
        assert (target == source).all()


def test_clocks_come_up_by_copies_for_as_long_as_it_takes(dry, monkeypatch):
    monkeypatch.setattr(bench_times, "WARM_UP_SECONDS", 1e-6 * 4)
    seen = []
    monkeypatch.setattr(
        timing, "microseconds", lambda start, end: seen.append(1) or float(len(seen))
    )
    bench_times.warm_up()
    assert len(seen) == 5


# The whole of it.


def test_a_dry_run_prints_times_and_writes_its_files(capsys, dry, cpu_tensors, tmp_path):
    files = [tmp_path / name for name in ("a.json", "a.csv", "a.png")]
    code, out, _ = run(
        capsys,
        *("--op", "rms_norm", "layer_norm_bwd", "--dtype", "float32", "--cols", "64", "1024"),
        *("--rows", "4", "--warm", "--beside", "cupy", "fuse", "torch"),
        *("--json", str(files[0]), "--csv", str(files[1]), "--png", str(files[2])),
    )
    lines = out.splitlines()
    assert code == 0
    assert lines[:5] == [
        "cunorm on some hardware (sm_90)",
        f"cupy: cupy {cupy.__version__}",
        f"fuse: cupy {cupy.__version__}",
        f"torch: torch {torch.__version__}",
        lines[4],
    ]
    assert re.fullmatch(r"an empty kernel in a graph: \d\.\d\d us", lines[4])
    at = lines.index("rms_norm")
    assert lines[at + 1].split("  ")[0] == "dtype"
    for heading in ("us", "±", "GB/s", "of a copy", "copy us", "cupy us", "fuse us", "torch us"):
        assert f"  {heading}" in lines[at + 1]
    assert lines[at + 3].split()[:4] == ["float32", "64", "warm", "4"]
    assert lines[-1].startswith("8 cases in ")
    told = json.loads(files[0].read_text("utf-8"))
    with files[1].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(told["cases"]) == len(rows) == 8
    for case, row in zip(told["cases"], rows, strict=True):
        assert float(row["us"]) == case["systems"]["cunorm"]["median"]
        assert float(row["torch"]) == case["systems"]["torch"]["median"]
    assert files[2].stat().st_size > 10_000


def test_a_dry_run_times_heads_and_codes_beside_those_who_have_them(
    capsys, dry, cpu_tensors, tmp_path
):
    file = tmp_path / "a.json"
    code, out, _ = run(
        capsys,
        *("--op", "qk_norm_rope", "layer_norm_quant", "--quant", "fp8_row", "nvfp4", "--warm"),
        *("--dtype", "float32", "--cols", "128", "--rows", "64", "--beside", "cupy", "torch"),
        *("--json", str(file)),
    )
    assert code == 0
    assert "failed" not in out
    told = json.loads(file.read_text("utf-8"))["cases"]
    timed = {(case["op"], case["quant"], case["warm"]): set(case["systems"]) for case in told}
    assert timed == {
        (op, quant, warm): {"cunorm", *others}
        for op, quant, others in (
            ("qk_norm_rope", None, {"cupy", "torch"}),
            ("layer_norm_quant", "fp8_row", {"torch"}),
            ("layer_norm_quant", "nvfp4", set()),
        )
        for warm in (False, True)
    }


def test_the_file_of_results_has_what_it_documents(capsys, dry, tmp_path):
    file = tmp_path / "a.json"
    assert run(capsys, *ONE_CASE, "--warm", "--json", str(file))[0] == 0
    told = json.loads(file.read_text("utf-8"))
    assert list(told) == [
        *("schema", "card", "cuda", "python", "cupy", "numpy", "cunorm", "date", "method"),
        *("systems", "empty_kernel", "cases"),
    ]
    assert told["schema"] == 1
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    assert told["card"]["name"] == properties["name"].decode()
    assert told["card"]["arch"] == f"sm_{cupy.cuda.Device().compute_capability}"
    assert told["card"]["l2_bytes"] == properties["l2CacheSize"]
    assert "driver" in told["card"]
    assert all(re.fullmatch(r"\d+\.\d", version) for version in told["cuda"].values())
    assert told["cunorm"]["version"] == cunorm.__version__
    is_checkout = (results.ROOT / ".git").exists()
    commit = told["cunorm"]["commit"]
    assert re.fullmatch(r"[0-9a-f]{40}( and changes)?" if is_checkout else "None", str(commit))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["date"])
    assert told["method"] == {
        **{"graph_us": 1, "rounds": 2, "replays": 3},
        **{"caches": 4, "most_sets": 2},
    }
    assert told["systems"]["cupy"] == {"version": f"cupy {cupy.__version__}"}
    assert set(told["systems"]) == set(bench_cases.SYSTEMS)
    cold, warm = told["cases"]
    assert (cold["warm"], cold["sets"], warm["warm"], warm["sets"]) == (False, 2, True, 1)
    assert {name: cold[name] for name in ("op", "dtype", "rows", "cols", "offset")} == {
        **{"op": "rms_norm", "dtype": "float32", "rows": 4, "cols": 64, "offset": 0},
    }
    assert cold["bytes"] == (2 * 4 + 1) * 64 * 4
    own = cold["systems"]["cunorm"]
    assert own["p10"] <= own["median"] <= own["p90"]
    assert own["spread"] == pytest.approx((own["p90"] - own["p10"]) / own["median"], rel=1e-5)
    assert (own["count"], own["launches"]) == (6, 2)
    copy = min(sample["median"] for sample in cold["copies"].values())
    assert set(cold["copies"]) == {"memcpy", "copy kernel"}
    assert cold["share_of_copy"] == pytest.approx(copy / own["median"], rel=1e-5)
    assert cold["gb_per_s"] == pytest.approx(cold["bytes"] / own["median"] / 1e3, rel=1e-5)


def test_the_commit_is_null_where_it_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit_of_checkout() is None
    assert results.Run.begin({}, {}, "ab" * 20).commit == "ab" * 20
    assert results._output("no-such-command") is None
    assert results._output("false") is None


def test_without_others_cunorm_and_copies_are_timed(capsys, dry):
    code, out, _ = run(capsys, *ONE_CASE, "--beside")
    assert code == 0
    assert "copy us" in out
    assert "cupy us" not in out


def raises(case, given):
    raise RuntimeError("no such\nluck")


def raises_when_captured(case, given):
    cupy.cuda.get_current_stream().synchronize()
    if cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError("unreachable")
    return bench_cases.call(case, given).copy()


def has_too_little_memory(case, given):
    raise cupy.cuda.memory.OutOfMemoryError(1 << 40, 0)


def is_wrong(case, given):
    return bench_cases.call(case, given) * np.float32(1.01)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (raises, "RuntimeError: no such luck"),
        (raises_when_captured, "CUDARuntimeError: cudaErrorStreamCaptureUnsupported"),
        (has_too_little_memory, "OutOfMemoryError: Out of memory allocating 1,099,511,627,776"),
        (is_wrong, r"WrongResult: y is off by 0.01 of its largest"),
    ],
)
def test_another_system_that_fails_is_told_in_its_cell_and_stops_nothing(
    capsys, dry, stranger, tmp_path, call, says
):
    stranger.call = call
    file = tmp_path / "a.json"
    code, out, _ = run(
        capsys,
        *("--op", "rms_norm", "--dtype", "float32", "--cols", "64", "128", "--rows", "4"),
        *("--beside", "cupy", "liger", "--json", str(file)),
    )
    lines = out.splitlines()
    at = lines.index("rms_norm")
    assert code == 0
    assert [line.split()[-1] for line in lines[at + 2 : at + 4]] == ["failed"] * 2
    assert lines[at + 4].startswith(f"liger failed: {says}")
    assert lines[at + 4].endswith(" (2 cases)")
    for case in json.loads(file.read_text("utf-8"))["cases"]:
        assert case["systems"]["liger"]["failed"].startswith(says)
        assert case["systems"]["cupy"]["median"] > 0


def test_a_wrong_result_of_cunorm_is_not_timed_and_exits_1(capsys, dry, monkeypatch, tmp_path):
    rms_norm = cunorm.rms_norm

    def wrong(x, gamma, out):
        rms_norm(x, gamma, out=out)
        out[0, 5] += 1
        return out

    monkeypatch.setattr(cunorm, "rms_norm", wrong)
    file, chart = tmp_path / "a.json", tmp_path / "a.png"
    files = ("--json", str(file), "--png", str(chart))
    code, out, _ = run(capsys, *ONE_CASE, "--beside", "cupy", *files)
    assert code == 1
    assert chart.exists()
    assert "cunorm failed: WrongResult: y is off by 0." in out
    (case,) = json.loads(file.read_text("utf-8"))["cases"]
    assert list(case["systems"]["cunorm"]) == ["failed"]
    assert (case["gb_per_s"], case["share_of_copy"]) == (None, None)


def test_a_device_that_a_call_has_broken_ends_the_run_and_says_whose_call(
    capsys, dry, stranger, monkeypatch, tmp_path
):
    def breaks(case, given):
        if case.cols == 128:
            monkeypatch.setattr(cupy, "ones", lambda shape: raises(case, given))
            raises(case, given)
        return bench_cases.call(case, given).copy()

    stranger.call = breaks
    file = tmp_path / "a.json"
    code, out, err = run(
        capsys,
        *("--op", "rms_norm", "--dtype", "float32", "--cols", "64", "128", "256", "--rows", "4"),
        *("--beside", "liger", "--json", str(file)),
    )
    assert code == 2
    assert out.splitlines()[-1].startswith("float32  64 ")
    assert (
        "bench: the device is lost: liger on rms_norm float32 (4, 128): RuntimeError: no such luck;"
        " choose others with --beside\n" in err
    )
    assert not file.exists()


def test_a_device_that_breaks_in_a_replay_ends_the_run_too(capsys, dry, monkeypatch):
    def breaks(graph, replays):
        monkeypatch.setattr(cupy, "ones", lambda shape: raises(None, None))
        raises(None, None)

    compare = timing.compare

    def broken(launches, failures=None):
        monkeypatch.setattr(timing._Graph, "samples", breaks)
        monkeypatch.setattr(timing, "_captured", lambda *_: timing._Graph.__new__(timing._Graph))
        return compare(launches, failures)

    monkeypatch.setattr(bench_times, "empty_kernel", lambda: timing.Sample.of([1.0], 1))
    monkeypatch.setattr(timing, "compare", broken)
    code, _, err = run(capsys, *ONE_CASE, "--beside", "cupy")
    assert code == 2
    assert "the device is lost: one of cunorm, cupy on rms_norm float32 (4, 64): Runtime" in err


@pytest.mark.parametrize("at", [1, 0])
def test_an_interrupt_prints_what_was_timed_and_writes_no_file(capsys, dry, stranger, tmp_path, at):
    def interrupted(case, given):
        if case.cols == 128 or at == 0:
            raise KeyboardInterrupt
        return bench_cases.call(case, given).copy()

    stranger.call = interrupted
    file = tmp_path / "a.json"
    code, out, err = run(
        capsys,
        *("--op", "rms_norm", "--dtype", "float32", "--cols", "64", "128", "--rows", "4"),
        *("--beside", "liger", "--json", str(file)),
    )
    assert (code, err) == (130, "")
    assert out.splitlines().count("rms_norm") == (at > 0)
    assert re.fullmatch(rf"stopped after {at} of 2 cases in \d+ s", out.splitlines()[-1])
    assert not file.exists()


def test_more_rows_than_memory_holds_exit_2_after_what_was_timed(capsys, dry, tmp_path):
    file = tmp_path / "a.json"
    code, out, err = run(
        capsys,
        *("--op", "rms_norm", "--dtype", "float32", "--rows", "100000", "--cols", "1", "1000000"),
        *("--beside", "--json", str(file)),
    )
    assert code == 2
    assert "\nrms_norm\ndtype" in out
    assert "bench: too many rows: Out of memory allocating" in err
    assert not file.exists()
