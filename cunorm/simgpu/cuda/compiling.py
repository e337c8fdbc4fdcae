"""What CuPy's compilers are asked for: PTX in place of machine code, with lines of the source."""

from __future__ import annotations

import functools
import hashlib
import importlib
from typing import Any, NoReturn

from ..device import assembler
from ..faults import NotEmulated
from ..ptx import kept
from ..ptx.module import Module, parse

# Either makes NVRTC say which source line each instruction came from; it takes one of them once.
_LINE_INFORMATION = {"-lineinfo", "--generate-line-info"}


def prepare() -> None:
    """Have CuPy compile for the software GPU."""
    compiler = importlib.import_module("cupy.cuda.compiler")
    _compile_with_lines(compiler)
    _ask_nvrtc_its_version_once(compiler)
    _have_nvcc_make_ptx(compiler)
    _refuse_jitify(compiler)


def parsed(text: str) -> Module:
    """Parse PTX; that of a kernel which CuPy keeps on disk is kept there as parsed, too."""
    source = assembler.compiled_now()
    compiler = importlib.import_module("cupy.cuda.compiler")
    if source is None or compiler._get_bool_env_variable("CUPY_CACHE_IN_MEMORY", False):
        return parse(text)
    name = hashlib.sha256((kept.version() + text).encode()).hexdigest() + ".parsed"
    stored = compiler._kernel_cache_backend.load(name)
    if stored is not None:
        return kept.unpacked(stored)
    module = parse(text)
    compiler._kernel_cache_backend.save(name, kept.packed(module), source.code)
    return module


def _compile_with_lines(compiler: Any) -> None:
    """Let faults name lines of CUDA source: have CuPy compile everything with line information.

    The option is added before CuPy makes the key of its disk cache, which so keeps this PTX apart
    from what it compiles for hardware.
    """
    compile_and_load = compiler._compile_with_cache_cuda

    @functools.wraps(compile_and_load)
    def with_lines(source: str, options: tuple[str, ...], *rest: object, **named: object) -> object:
        debug = compiler._get_bool_env_variable("CUPY_CUDA_COMPILE_WITH_DEBUG", False)
        if not debug and _LINE_INFORMATION.isdisjoint(options):
            options = (*options, "-lineinfo")
        return compile_and_load(source, options, *rest, **named)

    compiler._compile_with_cache_cuda = with_lines


def _ask_nvrtc_its_version_once(compiler: Any) -> None:
    """Compile nothing once a process, where CuPy does it for each set of options.

    What it takes from that is the version in the first lines of PTX, which options do not change;
    each time costs 30 ms.
    """
    inner = compiler._preprocess
    version = functools.cache(lambda arch: inner("", (), arch, "nvrtc"))

    @functools.wraps(inner)
    def preprocess(source: str, options: tuple[str, ...], arch: str, backend: str) -> object:
        if source or backend != "nvrtc":
            return inner(source, options, arch, backend)
        return version(arch)

    compiler._preprocess = preprocess


def _have_nvcc_make_ptx(compiler: Any) -> None:
    """Have nvcc, which ``backend="nvcc"`` asks for, make PTX too.

    Separate compilation, which links machine code, is left as it is.
    """
    inner = compiler.compile_using_nvcc

    @functools.wraps(inner)
    def compile_using_nvcc(*arguments: Any, **named: Any) -> Any:
        if named.get("code_type") == "cubin" and not named.get("separate_compilation"):
            named["code_type"] = "ptx"
        return inner(*arguments, **named)

    compiler.compile_using_nvcc = compile_using_nvcc


def _refuse_jitify(compiler: Any) -> None:
    """Refuse Jitify in words: it asks the CUDA runtime that is linked into it for a device."""

    def refuse(*_: object) -> NoReturn:
        raise NotEmulated(
            "simgpu does not emulate Jitify, which asks a CUDA runtime of its own for the device: "
            "leave jitify=True out, which CuPy deprecates"
        )

    compiler._jitify_prep = refuse
