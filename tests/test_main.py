"""`python -m cunorm check | info`: what they print, and the exit codes."""

import io
import subprocess
import sys
from pathlib import Path

import cupy
import numpy as np
import pytest

import cunorm
from cunorm import __main__ as command
from cunorm import _info, _kernels, _selfcheck

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "data" / "smollm2_rms_norm.npz"


def run(capsys, *arguments):
    code = command.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_says_which_device_it_runs_on_and_prints_a_line_for_each_call(capsys):
    code, out, _ = run(capsys, "check", "--only", "rms_norm float32")
    lines = out.splitlines()
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert code == 0
    assert lines[0].startswith(f"cunorm on {name} (sm_")
    assert lines[2].split() == [
        "op",
        "dtype",
        "shape",
        "layout",
        "worst",
        "ulp",
        "allowed",
        "verdict",
    ]
    assert lines[3].startswith("rms_norm        float32   (3,769)       row-strided ")
    assert all(line.endswith(" ok") for line in lines[3:-2])
    assert lines[-1].startswith(f"{len(lines) - 5} checks in ")
    assert lines[-1].endswith(": all within tolerance")


def test_check_of_the_file_prints_a_line_for_each_norm(capsys):
    code, out, _ = run(capsys, "check", "--data", str(FILE), "--only", "/layer")
    assert code == 0
    for kind in ("f32", "bf16"):
        for layer in ("layer0", "layer15", "layer29"):
            assert f" {kind}/{layer} " in out
    assert "% the model's bits" in out


def test_the_grid_holds_every_op_dtype_and_layout():
    grid = list(_selfcheck.grid())
    assert {check.op for check in grid} == set(cunorm.__all__)
    for op in cunorm.__all__:
        assert {check.dtype for check in grid if check.op == op} == set(_selfcheck.DTYPES)
    assert {check.where for check in grid} == {"contiguous", *_selfcheck.LAYOUTS}
    assert len({str(check) for check in grid}) == len(grid)


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
        (off_by_one_ulp, "row-strided", "y: 1 elements off, first (0, 5)"),
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


def test_info_prints_versions_device_and_folders(capsys):
    code, out, _ = run(capsys, "info")
    told = dict(
        line.split(maxsplit=1)
        for line in out.replace("CUDA headers", "headers")
        .replace("kernel cache", "cache")
        .splitlines()
    )
    assert code == 0
    assert told["cupy"] == f"cupy-cuda12x {cupy.__version__}"
    assert told["numpy"] == np.__version__
    assert "(sm_" in told["device"]
    assert Path(told["NVRTC"].split(" in ")[1]).is_file()
    assert (Path(told["headers"]) / "cuda_fp16.h").is_file()
    assert told["kernels"] == str(_kernels.folder())


def test_the_kernel_cache_is_the_folder_that_cupy_uses(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    assert _info.cache_folder() == tmp_path
    monkeypatch.delenv("CUPY_CACHE_DIR")
    assert _info.cache_folder() == Path.home() / ".cupy" / "kernel_cache"


def test_info_says_so_where_two_cupy_packages_are_installed(capsys, monkeypatch):
    monkeypatch.setattr(
        _info.importlib.metadata,
        "packages_distributions",
        lambda: {"cupy": ["cupy-cuda13x", "cupy-cuda12x"]},
    )
    _, out, _ = run(capsys, "info")
    assert "cupy-cuda12x 14." in out
    assert "cupy-cuda13x not installed: only one may be installed" in out


def test_without_a_device_the_command_chooses_the_software_one_itself():
    done = subprocess.run(
        [sys.executable, "-m", "cunorm", "check", "--only", "rms_norm float32 (3, 769) in place"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "4 checks in" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["bench", "--op"], ["check", "--data"]])
def test_a_command_line_that_makes_no_sense_exits_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m cunorm" in capsys.readouterr().err
