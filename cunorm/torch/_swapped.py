"""Classes that known norms become: the same modules, whose forward is one fused op.

A swapped class derives from the class that it takes the place of. So ``isinstance`` holds as
before, each attribute is read where it always was, and an input that the op does not treat as the
original does (float64 where Hugging Face computes in float32, a device that is neither a CPU nor a
GPU, a nested tensor) reaches the original's forward, and so does all of a model that is exported.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, ClassVar

import torch

from . import _definitions
from ._export import exporting
from ._modules import copied, machine_epsilon, rows_of
from ._ops import layer_norm, rms_norm

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# What autocast has a rule for on CUDA: of these operators, that they compute in float32.
WIDENED = frozenset(
    op
    for op in ("aten::rms_norm", "aten::layer_norm")
    if torch._C._dispatch_has_kernel_for_dispatch_key(op, "AutocastCUDA")
)


class Swapped(torch.nn.Module):
    """A norm whose forward calls an op, and the original's forward where the op is not the same."""

    weight: Any
    _cunorm_original: ClassVar[type[torch.nn.Module]]
    _cunorm_argument: ClassVar[str]
    _cunorm_eps: ClassVar[str]
    _cunorm_reads: ClassVar[tuple[str, ...]] = ("weight",)
    _cunorm_copies: bool = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the original's forward does, fused where that can be."""
        x = args[0] if args else kwargs.get(self._cunorm_argument)
        if (
            len(args) + len(kwargs) == 1
            and isinstance(x, torch.Tensor)
            and not exporting()
            and self._cunorm_takes(x)
        ):
            given = copied(x, *self._parameters.values()) if self._cunorm_copies else x
            return self._cunorm_forward(given)
        return super().forward(*args, **kwargs)

    def _cunorm_takes(self, x: torch.Tensor) -> bool:
        """Return whether the op has the original's dtypes and shapes for x."""
        weight = self._parameters.get("weight")
        return (
            x.dtype in FLOATS
            and _plain(x)
            and (weight is None or (weight.dtype in FLOATS and x.shape[-1:] == weight.shape))
        )

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as what can be made again from the original's class."""
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        return (_unpickled, (self._cunorm_original,), *reduced[2:])


class Llama(Swapped):
    """The result is rounded before the weight multiplies, and has the wider dtype of the two."""

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, eps = self.weight, getattr(self, self._cunorm_eps)
        if torch.promote_types(x.dtype, weight.dtype) == x.dtype:
            return rms_norm(x, weight, eps)
        wide: torch.Tensor = weight * rms_norm(x, None, eps)
        return wide


class T5(Swapped):
    """As `Llama`, but a 16-bit weight says what is rounded to."""

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, eps = self.weight, getattr(self, self._cunorm_eps)
        if x.dtype == weight.dtype:
            return rms_norm(x, weight, eps)
        if weight.dtype == torch.float32:
            return rms_norm(x.float(), weight, eps)
        narrow: torch.Tensor = weight * rms_norm(x.float(), None, eps).to(weight.dtype)
        return narrow


class After(Swapped):
    """The result is rounded once, after the weight has multiplied."""

    _cunorm_offset: ClassVar[float] = 0.0

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, eps = self.weight, getattr(self, self._cunorm_eps)
        return rms_norm(x, weight, eps, gamma_offset=self._cunorm_offset, cast="after")


class Gemma(After):
    """As `After`, of a weight that is stored less one."""

    _cunorm_offset = 1.0


class Gemma4(Swapped):
    """As `After`, of a weight that may be missing."""

    with_scale: bool

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight if self.with_scale else None
        return rms_norm(x, weight, getattr(self, self._cunorm_eps), cast="after")


class Weightless(Swapped):
    """There is no weight."""

    _cunorm_reads = ()

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, None, getattr(self, self._cunorm_eps))


class Cohere(Swapped):
    """LayerNorm with a weight and no bias."""

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.weight, None, getattr(self, self._cunorm_eps))


class _Torch(Swapped):
    """A norm of torch itself: any trailing axes, float64 too, and what autocast makes of it."""

    normalized_shape: tuple[int, ...]
    bias: Any
    eps: Any
    _cunorm_reads = ("weight", "bias")
    _cunorm_op: ClassVar[str]

    def _cunorm_takes(self, x: torch.Tensor) -> bool:
        shape = self.normalized_shape
        if not _plain(x) or tuple(x.shape[-len(shape) :]) != shape:
            return False
        given = [p.dtype for p in self._parameters.values() if p is not None]
        if x.dtype == torch.float64:
            return all(dtype in (torch.float64, torch.float32) for dtype in given)
        return x.dtype in FLOATS and all(dtype in FLOATS for dtype in given)

    def _cunorm_rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return x as the op takes it: float32 where autocast computes the original in it.

        That is on CUDA alone, and RMSNorm since PyTorch 2.12.
        """
        if x.is_cuda and x.dtype in FLOATS and torch.is_autocast_enabled("cuda"):
            x = x.float() if self._cunorm_op in WIDENED else x
        return rows_of(x, self.normalized_shape, self.weight)


class TorchRMSNorm(_Torch):
    """torch.nn.RMSNorm."""

    _cunorm_op = "aten::rms_norm"

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, eps = self._cunorm_rows(x), machine_epsilon(x) if self.eps is None else self.eps
        y = rms_norm(rows, self.weight, eps, cast="after")
        return y if y.shape == x.shape else y.view(x.shape)


class TorchLayerNorm(_Torch):
    """torch.nn.LayerNorm."""

    _cunorm_op = "aten::layer_norm"

    def _cunorm_forward(self, x: torch.Tensor) -> torch.Tensor:
        y = layer_norm(self._cunorm_rows(x), self.weight, self.bias, self.eps)
        return y if y.shape == x.shape else y.view(x.shape)


CLASSES: dict[str, type[Swapped]] = {
    "llama": Llama,
    "llama4": Llama,
    "olmo2": After,
    "nemotron_h": After,
    "moshi": After,
    "gemma": Gemma,
    "gemma4": Gemma4,
    "l2_norm": Weightless,
    "t5": T5,
    "cohere": Cohere,
}


@functools.cache
def swapped_class(original: Any) -> type[Swapped] | None:
    """Return the class that modules of a class become, None where its definition is not known."""
    forward: Any = getattr(original, "forward", None)
    eps = "eps"
    if forward is torch.nn.RMSNorm.forward:
        base: type[Swapped] = TorchRMSNorm
    elif forward is torch.nn.LayerNorm.forward:
        base = TorchLayerNorm
    else:
        definition = _definitions.find(original)
        if definition is None:
            return None
        base = CLASSES[definition.name]
        eps = _definitions.eps_name(original, definition)
    names = {
        "__doc__": f"`{original.__qualname__}`, computed by cunorm.",
        "__module__": __name__,
        "_cunorm_original": original,
        "_cunorm_argument": list(inspect.signature(forward).parameters)[1],
        "_cunorm_eps": eps,
    }
    metaclass: Any = type(original)
    new: type[Swapped] = metaclass(f"Cunorm{original.__name__}", (base, original), names)
    return new


def _plain(x: torch.Tensor) -> bool:
    """Return whether a tensor is of the kind and on the devices that the ops take."""
    return x.layout == torch.strided and (x.is_cuda or x.is_cpu or x.is_meta)


def _unpickled(original: Any) -> torch.nn.Module:
    """Return an empty module of the swapped class, or of `original` where it is not known here."""
    cls: type[torch.nn.Module] = swapped_class(original) or original
    return cls.__new__(cls)
