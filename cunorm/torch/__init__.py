"""The ops on PyTorch tensors, with autograd and for `torch.compile`, and modules of them.

>>> y = cunorm.torch.rms_norm(x, gamma)
>>> y.sum().backward()
>>> print(cunorm.torch.replace_norms(model))

CUDA tensors go to the kernels, without a copy and on PyTorch's current stream; CPU tensors are
computed by PyTorch, by the same definition. cupy is imported with the first CUDA tensor.
"""

from ._in_place import add_layer_norm_, add_rms_norm_, layer_norm_, rms_norm_
from ._modules import LayerNorm, RMSNorm
from ._ops import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from ._replace import Replaced, replace_norms

__all__ = [
    "LayerNorm",
    "RMSNorm",
    "Replaced",
    "add_layer_norm",
    "add_layer_norm_",
    "add_rms_norm",
    "add_rms_norm_",
    "layer_norm",
    "layer_norm_",
    "replace_norms",
    "rms_norm",
    "rms_norm_",
]
