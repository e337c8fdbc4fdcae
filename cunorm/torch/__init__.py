"""The ops on PyTorch tensors, with autograd and for `torch.compile`.

>>> y = cunorm.torch.rms_norm(x, gamma)
>>> y.sum().backward()

CUDA tensors go to the kernels, without a copy and on PyTorch's current stream; CPU tensors are
computed by PyTorch, by the same definition. cupy is imported with the first CUDA tensor.
"""

from ._in_place import add_layer_norm_, add_rms_norm_, layer_norm_, rms_norm_
from ._ops import add_layer_norm, add_rms_norm, layer_norm, rms_norm

__all__ = [
    "add_layer_norm",
    "add_layer_norm_",
    "add_rms_norm",
    "add_rms_norm_",
    "layer_norm",
    "layer_norm_",
    "rms_norm",
    "rms_norm_",
]
