"""RMSNorm and LayerNorm for CuPy: one fused CUDA kernel each, testable without a GPU.

>>> y = cunorm.rms_norm(x, gamma)
>>> y = cunorm.layer_norm(x, gamma, beta)

Importing cunorm loads neither cupy nor torch; the first use of an op loads cupy, that of
`cunorm.torch` torch, and `cunorm.simgpu` is the software GPU.

PYTEST_DONT_REWRITE (to pytest: that this is imported before it, by ``python -m``, is no mistake)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import simgpu as simgpu
    from . import torch as torch
    from ._call.warm_up import warm_up
    from ._ops import (
        add_layer_norm,
        add_layer_norm_bwd,
        add_layer_norm_fwd,
        add_layer_norm_quant,
        add_rms_norm,
        add_rms_norm_bwd,
        add_rms_norm_fwd,
        add_rms_norm_quant,
        combine_moments,
        dequantize,
        layer_norm,
        layer_norm_add,
        layer_norm_add_fwd,
        layer_norm_bwd,
        layer_norm_fwd,
        layer_norm_gated,
        layer_norm_gated_bwd,
        layer_norm_gated_fwd,
        layer_norm_quant,
        qk_norm_rope,
        qk_norm_rope_fwd,
        quantize,
        rms_norm,
        rms_norm_add,
        rms_norm_add_fwd,
        rms_norm_add_rms_norm,
        rms_norm_add_rms_norm_fwd,
        rms_norm_bwd,
        rms_norm_fwd,
        rms_norm_gated,
        rms_norm_gated_bwd,
        rms_norm_gated_fwd,
        rms_norm_quant,
        rms_norm_rope,
        rms_norm_rope_bwd,
        rms_norm_rope_fwd,
        row_sums,
    )
    from ._quant import Quant

__version__ = "0.1.0"

__all__ = [
    "Quant",
    "add_layer_norm",
    "add_layer_norm_bwd",
    "add_layer_norm_fwd",
    "add_layer_norm_quant",
    "add_rms_norm",
    "add_rms_norm_bwd",
    "add_rms_norm_fwd",
    "add_rms_norm_quant",
    "combine_moments",
    "dequantize",
    "layer_norm",
    "layer_norm_add",
    "layer_norm_add_fwd",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "layer_norm_gated",
    "layer_norm_gated_bwd",
    "layer_norm_gated_fwd",
    "layer_norm_quant",
    "qk_norm_rope",
    "qk_norm_rope_fwd",
    "quantize",
    "rms_norm",
    "rms_norm_add",
    "rms_norm_add_fwd",
    "rms_norm_add_rms_norm",
    "rms_norm_add_rms_norm_fwd",
    "rms_norm_bwd",
    "rms_norm_fwd",
    "rms_norm_gated",
    "rms_norm_gated_bwd",
    "rms_norm_gated_fwd",
    "rms_norm_quant",
    "rms_norm_rope",
    "rms_norm_rope_bwd",
    "rms_norm_rope_fwd",
    "row_sums",
    "warm_up",
]

# Where public names are that are no ops.
_HOMES = {"Quant": "._quant", "warm_up": "._call.warm_up"}
# Attributes without an import of their own. Not in __all__: a star is not to import PyTorch.
_MODULES = ("simgpu", "torch")

if not TYPE_CHECKING:  # To a type checker, a module that has it has every name.

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            home = import_module(_HOMES.get(name, "._ops"), __name__)
        except ModuleNotFoundError as error:
            if error.name != "cupy":
                raise
            raise ModuleNotFoundError(
                f"cunorm.{name} needs CuPy, and none is installed: pip install 'cunorm[cuda12]', "
                "or 'cunorm[cuda13]' for CUDA 13",
                name="cupy",
            ) from error
        value = getattr(home, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    # What takes every name of a module, as help() does, is not to fail where there is no PyTorch.
    modules = [name for name in _MODULES if name != "torch" or find_spec("torch") is not None]
    return sorted(["__version__", *__all__, *modules])
