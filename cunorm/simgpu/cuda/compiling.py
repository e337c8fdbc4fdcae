"""What CuPy's compilers are asked for: PTX in place of machine code, with lines of the source."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from .machine import Machine

# Either makes NVRTC say which source line each instruction came from; it takes one of them once.
_LINE_INFORMATION = {"-lineinfo", "--generate-line-info"}


def prepare(machine: Machine) -> None:
    """Have CuPy compile for the software GPU."""
    compiler = importlib.import_module("cupy.cuda.compiler")
    _compile_with_lines(compiler)
    _have_nvcc_make_ptx(compiler)
    _tell_jitify_the_architecture(compiler, machine)


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


def _tell_jitify_the_architecture(compiler: Any, machine: Machine) -> None:
    """Name the architecture as Jitify collects the headers that it always needs.

    CuPy's first use of Jitify does so without an ``-arch``, and then Jitify asks the CUDA runtime
    that is linked into it for a device.
    """
    core: Any = importlib.import_module("cupy._core.core")
    inner = compiler._jitify_prep

    @functools.wraps(inner)
    def prepare_with_architecture(*arguments: Any) -> Any:
        assemble = core.assemble_cupy_compiler_options
        architecture = f"-arch=compute_{machine.device.arch}"
        core.assemble_cupy_compiler_options = lambda options: (*assemble(options), architecture)
        try:
            return inner(*arguments)
        finally:
            core.assemble_cupy_compiler_options = assemble

    compiler._jitify_prep = prepare_with_architecture
