"""The ops on CuPy arrays, as users call them; `_families.py` says what each is made of."""

from .gated import (
    layer_norm_gated,
    layer_norm_gated_fwd,
    rms_norm_gated,
    rms_norm_gated_fwd,
)
from .layer import (
    add_layer_norm,
    add_layer_norm_fwd,
    layer_norm,
    layer_norm_bwd,
    layer_norm_fwd,
)
from .rms import (
    add_rms_norm,
    add_rms_norm_fwd,
    rms_norm,
    rms_norm_bwd,
    rms_norm_fwd,
)
from .rope import qk_norm_rope, rms_norm_rope

__all__ = [
    "add_layer_norm",
    "add_layer_norm_fwd",
    "add_rms_norm",
    "add_rms_norm_fwd",
    "layer_norm",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "layer_norm_gated",
    "layer_norm_gated_fwd",
    "qk_norm_rope",
    "rms_norm",
    "rms_norm_bwd",
    "rms_norm_fwd",
    "rms_norm_gated",
    "rms_norm_gated_fwd",
    "rms_norm_rope",
]
