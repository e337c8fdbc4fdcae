"""What a user sees of calls: a line of the log for each new kernel, and ranges for a profiler."""

import logging
import re
import subprocess
import sys

import cupy
import pytest

import cunorm
from cunorm._call import remembered


@pytest.fixture(autouse=True)
def nothing_known():
    remembered.clear()


def test_each_new_kernel_is_one_line_of_the_log_that_names_what_it_is_for(caplog):
    x, gamma = cupy.ones((3, 40), "float16"), cupy.ones(40, "float32")
    with caplog.at_level(logging.DEBUG, "cunorm"):
        cunorm.rms_norm(x, gamma)
        cunorm.rms_norm(x, gamma)  # remembered
        cunorm.rms_norm(x[:2], gamma)  # another kind of call, and the same kernel
    ((name, level, line),) = caplog.record_tuples
    assert (name, level) == ("cunorm", logging.DEBUG)
    assert re.match(r"rms_norm on device 0 \(sm_\d+\) after \d+ ms: ", line)
    assert {"T=float16", "COLS=40", "LANES=4", "PACKETS=2", "LEVELS=1"} <= set(line.split())
    assert " x=Array<__half, ALIGNED, 0> gamma=Array<float, ALIGNED>" in line


def test_another_alignment_is_another_line(caplog):
    x = cupy.ones(3 * 40 + 1, "float16")
    with caplog.at_level(logging.DEBUG, "cunorm"):
        cunorm.rms_norm(x[:-1].reshape(3, 40))
        cunorm.rms_norm(x[1:].reshape(3, 40))
    assert [re.search(r" x=Array<__half, (\w+)", line)[1] for line in caplog.messages] == [
        "ALIGNED",
        "ELEMENTS",
    ]


def test_a_backward_call_logs_both_of_its_kernels(caplog):
    x, rstd, gamma = cupy.ones((3, 40)), cupy.ones(3), cupy.ones(40)
    with caplog.at_level(logging.DEBUG, "cunorm"):
        cunorm.rms_norm_bwd(x, x, gamma, rstd)
    assert [line.split()[0] for line in caplog.messages] == ["rms_norm_bwd", "column_sums"]


def test_nothing_is_logged_at_info_and_above(caplog):
    with caplog.at_level(logging.INFO):
        cunorm.rms_norm(cupy.ones((3, 40)))
    assert caplog.messages == []


RANGES = """
import os
import cunorm.simgpu
if not cunorm.simgpu.hardware_devices():
    cunorm.simgpu.install()
import cupy
import cunorm

cupy.cuda.nvtx.RangePush = lambda message, color: print("push", message)
cupy.cuda.nvtx.RangePop = lambda: print("pop")
x = cupy.ones((3, 8), "float16")
cunorm.rms_norm(x)
cunorm.rms_norm(x)
try:
    cunorm.layer_norm([1.0])
except TypeError:
    print("refused")
"""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "1",
            ["push cunorm.rms_norm (3, 8) float16", "pop"] * 2
            + ["push cunorm.layer_norm", "pop", "refused"],
        ),
        ("0", ["refused"]),
        ("", ["refused"]),
        (None, ["refused"]),
    ],
)
def test_calls_are_ranges_where_the_environment_asks_for_it(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv("CUNORM_NVTX", raising=False)
    else:
        monkeypatch.setenv("CUNORM_NVTX", value)
    run = subprocess.run([sys.executable, "-c", RANGES], capture_output=True, text=True, check=True)
    assert [line.strip() for line in run.stdout.splitlines()] == expected
