"""What a type checker makes of a user's script: results are what x is, and words are words."""

import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import cunorm
from cunorm import _check, _typing

ROOT = Path(__file__).parents[2]

SCRIPT = """
from typing import Any

import cupy
import dask.array
import torch
from typing_extensions import assert_type

import cunorm


def of_tensors(x: torch.Tensor, gamma: torch.Tensor, rstd: torch.Tensor) -> None:
    assert_type(cunorm.rms_norm(x, gamma, cast="after", out=x), torch.Tensor)
    assert_type(cunorm.layer_norm_fwd(x), tuple[torch.Tensor, torch.Tensor, torch.Tensor])
    assert_type(cunorm.add_rms_norm(x, x, residual_out=x), tuple[torch.Tensor, torch.Tensor])
    dx, dgamma = cunorm.rms_norm_bwd(x, x, gamma, rstd)
    assert_type(gamma - dgamma, torch.Tensor)  # there, where gamma is and sums are wanted
    _, frozen = cunorm.rms_norm_bwd(x, x, gamma, rstd, sums=False)
    assert_type(frozen, torch.Tensor | None)
    _, of_heads = cunorm.rms_norm_rope_bwd(x, x, gamma, x, x, rstd)
    assert_type(of_heads, torch.Tensor)
    _, frozen = cunorm.rms_norm_rope_bwd(x, x, None, x, x, rstd)
    assert_type(frozen, torch.Tensor | None)
    _, absent, _ = cunorm.layer_norm_bwd(x, x, None, rstd, rstd)
    assert_type(absent, torch.Tensor | None)
    assert_type(cunorm.torch.rms_norm(x, gamma), torch.Tensor)
    assert_type(cunorm.torch.RMSNorm(8)(x), Any)  # as torch types its own modules


def of_dask_arrays(x: dask.array.Array, gamma: cupy.ndarray) -> None:
    assert_type(cunorm.rms_norm(x, gamma), dask.array.Array)
    assert_type(cunorm.layer_norm(x, gamma, x), dask.array.Array)


def of_cupy_arrays(x: cupy.ndarray, gamma: cupy.ndarray) -> None:
    y, rstd = cunorm.rms_norm_fwd(x, gamma)
    dx, dgamma = cunorm.rms_norm_bwd(y, x, gamma, rstd)
    gamma -= 0.5 * dgamma
    assert_type(cunorm.rms_norm(x), Any)  # CuPy has no types
    cunorm.add_layer_norm(x, x, gamma, gamma, out=x)


class Numbas:
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {}


def of_others(x: Numbas) -> None:
    cunorm.rms_norm(x, x)


cunorm.warm_up("rms_norm", [(1, 64)], ["float16", torch.float16], cast="after")
print(cunorm.simgpu.installed())
"""

# Each line is wrong, and what mypy says of it.
WRONG = {
    'cunorm.rms_norm(x, cast="never")': "arg-type",
    'cunorm.torch.RMSNorm(8, cast="never")': "arg-type",
    "cunorm.rms_norm([1.0, 2.0])": "type-var",
    "cunorm.add_rms_norm(lazy, lazy)": "type-var",
    "cunorm.rms_norm(x, 1e-6)": "arg-type",
    "cunorm.batch_norm(x)": "attr-defined",
    "dx, _ = cunorm.rms_norm_bwd(x, x, x, x); dx.nothing()": "attr-defined",
}
# Packages of torch that none of its names in the script is from: without them mypy reads 1,000
# files in place of 2,800, in 13 s of a CPU in place of 38.
UNREAD = (
    *("_decomp", "_dynamo", "_export", "_functorch", "_higher_order_ops", "_inductor", "_library"),
    *("_logging", "_prims", "_prims_common", "_refs", "_subclasses", "accelerator", "ao"),
    *("compiler", "cuda", "distributed", "distributions", "export", "func", "fx", "jit", "library"),
    *("masked", "mps", "nested", "onnx", "optim", "package", "profiler", "quantization", "sparse"),
    *("testing", "utils", "xpu"),
)


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Check a script as its user would, and return what mypy says, line by line."""
    folder = tmp_path_factory.mktemp("user")
    unread = ",".join(f"torch.{package}.*" for package in UNREAD)
    (folder / "mypy.ini").write_text(f"[mypy]\n[mypy-{unread}]\nfollow_imports = skip\n")

    def check(text):
        (folder / "script.py").write_text(text)
        # Only what the script itself is told: other libraries have mistakes of their own.
        options = ["--strict", "--follow-imports=silent", "--disable-error-code=import-untyped"]
        run = subprocess.run(
            [sys.executable, "-m", "mypy", *options, "--no-error-summary", "script.py"],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ | {"MYPYPATH": str(ROOT)},
        )
        assert run.stderr == ""
        return run.stdout.splitlines()

    return check


def test_a_users_script_is_understood(checked):
    assert checked(SCRIPT) == []


def test_what_is_wrong_is_found_where_it_stands(checked):
    head = (
        "import dask.array, torch\nimport cunorm\n"
        "def f(x: torch.Tensor, lazy: dask.array.Array) -> None:\n"
    )
    told = checked(head + "".join(f"    {line}\n" for line in WRONG))
    errors = [line for line in told if ": error: " in line]
    first = head.count("\n") + 1
    found = {(int(line.split(":")[1]) - first, line.split("[")[-1].rstrip("]")) for line in errors}
    assert found >= set(enumerate(WRONG.values())), told
    assert {line for line, _ in found} == set(range(len(WRONG)))


def test_the_words_of_the_types_are_those_of_the_checks():
    assert typing.get_args(_typing.Cast) == _check.CASTS
    assert typing.get_args(_typing.RopeCast) == _check.ROPE_CASTS


@pytest.mark.parametrize("name", [name for name in cunorm.__all__ if name != "Quant"])
def test_annotations_can_be_read_at_run_time(name):
    assert "return" in typing.get_type_hints(getattr(cunorm, name))
