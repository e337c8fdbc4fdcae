"""Faults name lines of CUDA source, whoever wrote it and however it was compiled."""

import inspect

import cupy
import numpy as np
import pytest
from cupy.cuda import compiler

from cunorm import simgpu
from cunorm.simgpu.ptx import module as ptx

pytestmark = pytest.mark.simgpu

SOURCE = """template <typename T> __device__ void put(T *at, T value) {
  *at = value;
}
extern "C" __global__ void fill(float *x) {
  put(x + threadIdx.x, 1.f);
}
"""


def fault_of(kernel):
    with pytest.raises(simgpu.OutOfBounds) as raised:
        kernel((1,), (9,), (cupy.zeros(8, np.float32),))
    return raised.value.place


def test_an_inlined_function_has_lines_of_its_own():
    assert fault_of(cupy.RawKernel(SOURCE, "fill")).source == "<source>:2"


def test_a_line_directive_names_the_file():
    kernel = cupy.RawKernel('#line 11 "kernels/fill.cu"\n' + SOURCE, "fill")
    assert fault_of(kernel).source == "kernels/fill.cu:12"


def test_an_included_file_is_named(tmp_path):
    (tmp_path / "fill.cuh").write_text(SOURCE)
    kernel = cupy.RawKernel('#include "fill.cuh"\n', "fill", (f"-I{tmp_path}",))
    assert fault_of(kernel).source == f"{tmp_path.name}/fill.cuh:2"


def test_a_caret_shows_where_the_statement_of_a_line_begins():
    place = fault_of(cupy.RawKernel(SOURCE.replace("  *at", "  /* here */ *at"), "fill"))
    assert place.caret == "  /* here */ *at = value;\n             ^"


def test_of_several_statements_in_a_line_the_compiler_names_none():
    place = fault_of(cupy.RawKernel(SOURCE.replace("  *at", "  T own = value; *at"), "fill"))
    assert place.source_text == "T own = value; *at = value;"
    assert place.caret is None


@pytest.mark.parametrize("option", ["-lineinfo", "--generate-line-info"])
def test_a_program_may_ask_for_lines_itself(option):
    assert fault_of(cupy.RawKernel(SOURCE, "fill", (option,))).source == "<source>:2"


class Cache(dict):
    """CuPy's disk cache, in a dictionary."""

    def load(self, name):
        return self.get(name)

    def save(self, name, payload, source):
        self[name] = payload

    @property
    def images(self):
        return [name for name in self if name.endswith(".cubin")]


@pytest.fixture
def cache(monkeypatch):
    cache = Cache()
    monkeypatch.setattr(compiler, "_kernel_cache_backend", cache)
    cupy.clear_memo()
    return cache


def test_cupys_disk_cache_keeps_the_lines(cache):
    for _ in range(2):  # compiled, then loaded
        assert fault_of(cupy.RawKernel(SOURCE, "fill")).source == "<source>:2"
        assert len(cache.images) == 1
        cupy.clear_memo()


def test_code_without_lines_is_not_taken_from_the_cache(cache, monkeypatch):
    # As a run on hardware with CUPY_COMPILE_WITH_PTX leaves it behind.
    with_lines = compiler._compile_with_cache_cuda
    monkeypatch.setattr(compiler, "_compile_with_cache_cuda", inspect.unwrap(with_lines))
    assert fault_of(cupy.RawKernel(SOURCE, "fill")).source is None
    cupy.clear_memo()
    monkeypatch.setattr(compiler, "_compile_with_cache_cuda", with_lines)
    assert fault_of(cupy.RawKernel(SOURCE, "fill")).source == "<source>:2"
    assert len(cache.images) == 2


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/norm/kernels/rms_norm.cu", "kernels/rms_norm.cu"),
        ("/tmp/tmpab_c1/0123456789abcdef0123456789abcdef01234567.cubin.cu", "<source>"),
        ("norm.cu", "norm.cu"),
    ],
)
def test_names_of_files(path, name):
    text = f"""
.version 8.8
.target sm_90
.visible .entry k()
{{
.loc 1 7 3
ret;
}}
.file 1 "{path}"
"""
    assert ptx.parse(text).functions["k"].statements[0].source == f"{name}:7"
