"""How other systems take part: imported only when asked for, in the memory of CuPy's arrays."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cupy

from .cases import Case
from .timing import Launch

Given = dict[str, Any]  # a set of arrays by name
Bind = Callable[[Given], Launch]


@dataclass(frozen=True)
class System:
    """A system that may take part.

    Attributes
    ----------
    name : str
        What it is called in options, tables and files.
    modules : tuple of str
        What it is imported by; the version of each is named.
    prepare : function
        Returns for a case what binds a set of arrays to a launch; None where there is no such op.
    of_tensors : bool
        Whether that takes PyTorch's tensors.
    """

    name: str
    modules: tuple[str, ...]
    prepare: Callable[[Case], Bind | None]
    of_tensors: bool = True

    def launches(self, case: Case, sets: Sequence[Given]) -> list[Launch] | None:
        """Return a launch for each set of arrays; None where there is no such op."""
        bind = self.prepare(case)
        if bind is None:
            return None
        if not self.of_tensors:
            return [bind(given) for given in sets]
        return [
            partial(on_current_stream, bind({name: tensor(a) for name, a in given.items()}))
            for given in sets
        ]

    def version(self) -> str:
        """Import it and return its version; raises whatever an import raises."""
        if self.of_tensors:
            need_cuda()
        versions = {name.split(".")[0]: _version(name) for name in self.modules}
        return ", ".join(f"{name} {version}" for name, version in versions.items())


def installed(systems: Iterable[System]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of the systems that can be imported, and why the others cannot."""
    found = {system.name: _version_or_error(system) for system in systems}
    versions = {name: version for name, version in found.items() if isinstance(version, str)}
    absent = {name: said(why) for name, why in found.items() if isinstance(why, Exception)}
    return versions, absent


def _version_or_error(system: System) -> str | Exception:
    try:
        return system.version()
    except Exception as error:  # of an import: it may be anything
        return error


def said(error: BaseException, length: int = 200) -> str:
    """Return an exception as one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _version(name: str) -> str:
    module = importlib.import_module(name)
    if version := getattr(module, "__version__", None):
        return str(version)
    distributions = importlib.metadata.packages_distributions().get(name.split(".")[0], [])
    return " ".join(sorted(map(importlib.metadata.version, set(distributions)))) or "?"


def need_cuda() -> None:
    """Raise where PyTorch cannot use the device."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} has no CUDA device")


def tensor(array: cupy.ndarray) -> Any:
    """Return a tensor in the memory of an array."""
    import torch
    from torch.utils.dlpack import from_dlpack

    if array.dtype.name == "bfloat16":  # by its bits: CuPy does not export it
        return from_dlpack(array.view("int16")).view(torch.bfloat16)
    return from_dlpack(array)


def on_current_stream(launch: Launch) -> Any:
    """Run what PyTorch enqueues on CuPy's current stream."""
    import torch

    stream_of: Callable[..., Any] = torch.cuda.ExternalStream
    stream = stream_of(cupy.cuda.get_current_stream().ptr, device=cupy.cuda.Device().id)
    with torch.cuda.stream(stream), torch.no_grad():
        return launch()


def free(systems: Iterable[System]) -> None:
    """Give back the memory that the pools of CuPy, and of PyTorch if it takes part, do not use."""
    if any(system.of_tensors for system in systems):
        import torch

        torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()
