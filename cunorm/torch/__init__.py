"""The ops on PyTorch tensors, with autograd and for `torch.compile`, and modules of them.

>>> y = cunorm.torch.rms_norm(x, gamma)
>>> y.sum().backward()
>>> print(cunorm.torch.replace_norms(model))

CUDA tensors go to the kernels, without a copy and on PyTorch's current stream; CPU tensors are
computed by PyTorch, by the same definition. cupy is imported with the first CUDA tensor.
"""

from ._gated import layer_norm_gated, layer_norm_gated_, rms_norm_gated, rms_norm_gated_
from ._in_place import add_layer_norm_, add_rms_norm_, layer_norm_, rms_norm_
from ._modules import LayerNorm, RMSNorm, RMSNormGated
from ._ops import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from ._post_norm import (
    layer_norm_add,
    layer_norm_add_,
    rms_norm_add,
    rms_norm_add_,
    rms_norm_add_rms_norm,
    rms_norm_add_rms_norm_,
)
from ._quant import (
    add_layer_norm_quant,
    add_rms_norm_quant,
    dequantize,
    layer_norm_quant,
    quantize,
    rms_norm_quant,
)
from ._replace import Replaced, replace_norms
from ._rope import qk_norm_rope, qk_norm_rope_, rms_norm_rope, rms_norm_rope_
from ._with_input import layer_norm_with_input, rms_norm_with_input

__all__ = [
    "LayerNorm",
    "RMSNorm",
    "RMSNormGated",
    "Replaced",
    "add_layer_norm",
    "add_layer_norm_",
    "add_layer_norm_quant",
    "add_rms_norm",
    "add_rms_norm_",
    "add_rms_norm_quant",
    "dequantize",
    "layer_norm",
    "layer_norm_",
    "layer_norm_add",
    "layer_norm_add_",
    "layer_norm_gated",
    "layer_norm_gated_",
    "layer_norm_quant",
    "layer_norm_with_input",
    "qk_norm_rope",
    "qk_norm_rope_",
    "quantize",
    "replace_norms",
    "rms_norm",
    "rms_norm_",
    "rms_norm_add",
    "rms_norm_add_",
    "rms_norm_add_rms_norm",
    "rms_norm_add_rms_norm_",
    "rms_norm_gated",
    "rms_norm_gated_",
    "rms_norm_quant",
    "rms_norm_rope",
    "rms_norm_rope_",
    "rms_norm_with_input",
]
