"""The ops on CuPy arrays, as users call them; `_families/` says what each is made of."""

from .added import add_layer_norm_bwd, add_rms_norm_bwd
from .gated import (
    layer_norm_gated,
    layer_norm_gated_bwd,
    layer_norm_gated_fwd,
    rms_norm_gated,
    rms_norm_gated_bwd,
    rms_norm_gated_fwd,
)
from .layer import (
    add_layer_norm,
    add_layer_norm_fwd,
    layer_norm,
    layer_norm_bwd,
    layer_norm_fwd,
)
from .post_norm import (
    layer_norm_add,
    layer_norm_add_fwd,
    rms_norm_add,
    rms_norm_add_fwd,
    rms_norm_add_rms_norm,
    rms_norm_add_rms_norm_fwd,
)
from .quant import (
    add_layer_norm_quant,
    add_rms_norm_quant,
    dequantize,
    layer_norm_quant,
    quantize,
    rms_norm_quant,
)
from .rms import (
    add_rms_norm,
    add_rms_norm_fwd,
    rms_norm,
    rms_norm_bwd,
    rms_norm_fwd,
)
from .rope import (
    qk_norm_rope,
    qk_norm_rope_fwd,
    rms_norm_rope,
    rms_norm_rope_bwd,
    rms_norm_rope_fwd,
)
from .sums import combine_moments, row_sums

__all__ = [
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
]
