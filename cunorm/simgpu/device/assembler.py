"""Registers, spills and stack of a kernel, asked of the real assembler.

PTX names virtual registers without end; how many of the hardware's a thread takes is decided by
ptxas. NVRTC contains it: compiled for a real architecture (``-arch=sm_90``) instead of a virtual
one, with ``--ptxas-options=-v``, it says of each kernel what it takes. For that the CUDA source is
needed again, so `observe` notes what CuPy compiles; nothing is assembled until it is asked for.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from ..ptx.module import Function, Module

_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for")
_FRAME = re.compile(
    r"Function properties for (?P<name>\S+)\s*(?:ptxas\s*(?:info)?\s*[.:])?\s*"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)")
_CUMULATIVE = re.compile(r"(\d+) bytes cumulative stack size")


@dataclass(frozen=True)
class Source:
    """What CuPy's compiler was given for a module, and the digest of the PTX it gave back."""

    code: str
    options: tuple[str, ...]
    names: tuple[str, ...]
    ptx: str = ""


@dataclass(frozen=True)
class Resources:
    """What one thread of a kernel takes; the numbers are None where they are not known.

    Attributes
    ----------
    registers : int or None
        32-bit registers.
    spill_stores, spill_loads : int or None
        Bytes that the assembler's code moves out of registers and back for want of them, of the
        kernel and of the functions that it calls.
    stack_bytes : int or None
        Local memory: arrays with computed indices, spills, frames of calls.
    unknown : str
        Why the numbers are not known; empty where they are.
    """

    registers: int | None = None
    spill_stores: int | None = None
    spill_loads: int | None = None
    stack_bytes: int | None = None
    unknown: str = ""


_sources: WeakKeyDictionary[Function, Source] = WeakKeyDictionary()
_compiling = threading.local()


@contextmanager
def compiling(source: Source) -> Iterator[None]:
    """Within it, a module that this thread loads was compiled from `source`."""
    before = getattr(_compiling, "source", None)
    _compiling.source = source
    try:
        yield
    finally:
        _compiling.source = before


def compiled_now() -> Source | None:
    """Return what CuPy compiles at this moment, or takes from its disk cache, in this thread."""
    source: Source | None = getattr(_compiling, "source", None)
    return source


def remember(module: Module, image: bytes) -> None:
    """Associate a module just loaded with what is being compiled, if anything is."""
    source = compiled_now()
    if source is not None:
        source = replace(source, ptx=hashlib.sha256(image).hexdigest())
        for function in module.functions.values():
            _sources[function] = source


def source_of(function: Function) -> str | None:
    """Return the CUDA source that CuPy compiled a kernel from; None where it came as PTX."""
    source = _sources.get(function)
    return None if source is None else source.code


def observe(compiler: Any) -> None:
    """Have ``cupy.cuda.compiler`` tell what it compiles, or takes from its disk cache."""
    inner = compiler._compile_with_cache_cuda

    @functools.wraps(inner)
    def compile_with_cache(
        source: str, options: tuple[str, ...], arch: object, *rest: Any, **named: Any
    ) -> Any:
        names = named.get("name_expressions", rest[3] if len(rest) > 3 else None)
        with compiling(Source(source, tuple(options), tuple(names or ()))):
            return inner(source, options, arch, *rest, **named)

    compiler._compile_with_cache_cuda = compile_with_cache


def resources(function: Function, arch: int) -> Resources:
    """Return what a thread of a kernel takes on ``sm_<arch>``."""
    source = _sources.get(function)
    if source is None:
        return Resources(unknown="it was loaded as PTX, without its CUDA source")
    try:
        assembled = assemble(source, arch)
    except AssemblyError as error:
        return Resources(unknown=str(error))
    missing = Resources(unknown=f"the assembler says nothing of {function.name}")
    return assembled.get(function.name, missing)


class AssemblyError(Exception):
    """NVRTC could not compile again what it had compiled."""


@functools.lru_cache(maxsize=1024)
def assemble(source: Source, arch: int) -> dict[str, Resources]:
    """Compile to machine code, and return what each kernel takes.

    A compilation takes a tenth of a second or more, so that what it found is kept in CuPy's cache
    of kernels, under the PTX: the source does not say what its headers hold.
    """
    compiler: Any = importlib.import_module("cupy.cuda.compiler")
    if not source.ptx or compiler._get_bool_env_variable("CUPY_CACHE_IN_MEMORY", False):
        return _compile(source, arch)
    cache = compiler._kernel_cache_backend
    key = (source.ptx, source.options, arch, compiler._get_nvrtc_version())
    name = hashlib.sha256(repr(key).encode()).hexdigest() + ".resources"
    stored = cache.load(name)
    if stored is not None:
        return {kernel: Resources(*taken) for kernel, taken in json.loads(stored).items()}
    found = _compile(source, arch)
    taken = {kernel: astuple(each)[:4] for kernel, each in found.items()}
    cache.save(name, json.dumps(taken).encode(), source.code)
    return found


def _compile(source: Source, arch: int) -> dict[str, Resources]:
    nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
    options = (
        *source.options,
        "-ftz=true",  # as CuPy adds to all it compiles
        "--device-as-default-execution-space",
        f"-arch=sm_{arch}",
        "--ptxas-options=-v",
    )
    program = nvrtc.createProgram(source.code, "kernel.cu", (), ())
    try:
        for name in source.names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            lines = nvrtc.getProgramLog(program).splitlines()
            said = next((line for line in lines if "error" in line), error)
            raise AssemblyError(f"NVRTC refuses it for sm_{arch}: {said}") from None
        return read_log(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def read_log(log: str) -> dict[str, Resources]:
    """Read what ``--ptxas-options=-v`` printed, kernel by kernel."""
    entries = list(_ENTRY.finditer(log))
    found: dict[str, Resources] = {}
    for at, entry in enumerate(entries):
        end = entries[at + 1].start() if at + 1 < len(entries) else len(log)
        section = log[entry.end() : end]
        used = _USED.search(section)
        frames = list(_FRAME.finditer(section))
        own = [frame for frame in frames if frame["name"] == entry["name"]]
        if used is None or not own:
            continue
        cumulative = _CUMULATIVE.search(used["rest"])
        found[entry["name"]] = Resources(
            int(used["registers"]),
            sum(int(frame["stores"]) for frame in frames),
            sum(int(frame["loads"]) for frame in frames),
            int(cumulative[1]) if cumulative else int(own[0]["stack"]),
        )
    return found
