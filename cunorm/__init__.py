"""RMSNorm and LayerNorm for CuPy: one fused CUDA kernel each, testable without a GPU.

>>> y = cunorm.rms_norm(x, gamma)
>>> y = cunorm.layer_norm(x, gamma, beta)

Importing cunorm loads neither cupy nor torch; the first use of an op loads cupy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._backward import layer_norm_bwd, rms_norm_bwd
    from ._layer_norm import add_layer_norm, add_layer_norm_fwd, layer_norm, layer_norm_fwd
    from ._rms_norm import add_rms_norm, add_rms_norm_fwd, rms_norm, rms_norm_fwd

__version__ = "0.1.0"

__all__ = [
    "add_layer_norm",
    "add_layer_norm_fwd",
    "add_rms_norm",
    "add_rms_norm_fwd",
    "layer_norm",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "rms_norm",
    "rms_norm_bwd",
    "rms_norm_fwd",
]

_HOME = {
    "add_layer_norm": "._layer_norm",
    "add_layer_norm_fwd": "._layer_norm",
    "add_rms_norm": "._rms_norm",
    "add_rms_norm_fwd": "._rms_norm",
    "layer_norm": "._layer_norm",
    "layer_norm_bwd": "._backward",
    "layer_norm_fwd": "._layer_norm",
    "rms_norm": "._rms_norm",
    "rms_norm_bwd": "._backward",
    "rms_norm_fwd": "._rms_norm",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(_HOME[name], __name__)
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
    return sorted({*globals(), *__all__})
