"""Parsed modules that are kept on disk, next to CuPy's PTX."""

import pickle

import cupy
import pytest

from cunorm.simgpu.cuda import compiling
from cunorm.simgpu.execution.decode import Decoder
from cunorm.simgpu.ptx import kept
from cunorm.simgpu.ptx.module import parse

PTX = """
.version 8.0
.target sm_90
.address_size 64
.file 1 "kernel.cu"
.global .align 4 .u32 table[2] = {1, 2};
.func (.param .b32 result) twice (.param .b32 given) {
  .reg .b32 %r<3>;
  ld.param.u32 %r1, [given];
  add.s32 %r2, %r1, %r1;
  st.param.b32 [result], %r2;
  ret;
}
.visible .entry kernel (.param .u64 kernel_param_0) .maxntid 64 {
  .reg .pred %p<2>;
  .reg .b32 %r<4>;
  .shared .align 4 .b8 shared[16];
  .loc 1 3 5
  mov.u32 %r1, %tid.x;
  { .reg .b32 %temp; mov.b32 %temp, %r1; add.s32 %r2, %temp, 1; }
  setp.eq.s32 %p1, %r1, 0;
  @!%p1 bra $done;
$done:
  ret;
}
"""


def test_what_is_unpacked_is_what_was_parsed():
    parsed = parse(PTX)
    again = kept.unpacked(kept.packed(parsed))
    # A module and its functions know each other, and are compared by what they print and hold.
    assert repr(again) == repr(parsed)
    kernel, other = again.functions["kernel"], parsed.functions["kernel"]
    for name in ("statements", "registers", "frame", "shared", "tables", "uses"):
        assert getattr(kernel, name) == getattr(other, name)
    assert kernel.module is again
    assert len(Decoder(kernel).decode().blocks) == len(Decoder(other).decode().blocks)


@pytest.mark.parametrize("other", [print, pickle.Pickler, ["a list"]], ids=["call", "kind", "list"])
def test_bytes_that_name_anything_else_are_refused(other):
    with pytest.raises(pickle.UnpicklingError, match=r"no part of a parsed module|a list where"):
        kept.unpacked(pickle.dumps(other))


def test_a_kernel_of_cupys_cache_is_parsed_once(monkeypatch):
    class Cache(dict):
        def load(self, name):
            return self.get(name)

        def save(self, name, payload, source):
            self[name] = payload

    cache, parsed = Cache(), []
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    monkeypatch.setattr(cupy.cuda.compiler, "_kernel_cache_backend", cache)
    monkeypatch.setattr(compiling, "parse", lambda text: parsed.append(text) or parse(text))
    source = 'extern "C" __global__ void f(int *x) { *x = 7; }'
    found = cupy.zeros(2, "i4")
    for at in range(2):
        cupy.RawModule(code=source, options=("-DKEPT",)).get_function("f")(
            (1,), (1,), (found[at:],)
        )
    assert found.tolist() == [7, 7]
    assert len(parsed) == 1
    assert sorted(name.rpartition(".")[2] for name in cache) == ["cubin", "parsed"]


@pytest.mark.parametrize("options", [("-lineinfo",), ("--device-debug", "-DX=1"), ("-std=c++17",)])
def test_options_do_not_change_what_cupy_takes_from_a_compilation_of_nothing(options):
    preprocess = cupy.cuda.compiler._preprocess
    assert preprocess("", options, "80", "nvrtc") is preprocess("", (), "80", "nvrtc")
    assert preprocess.__wrapped__("", options, "80", "nvrtc") == preprocess("", (), "80", "nvrtc")
    assert "Cuda compilation tools, release" in preprocess("", options, "80", "nvrtc")


def test_another_parser_finds_nothing(monkeypatch):
    names = {kept.version()}
    kept.version.cache_clear()
    monkeypatch.setattr(kept.Path, "read_bytes", lambda path: b"another parser")
    names.add(kept.version())
    kept.version.cache_clear()
    assert len(names) == 2
