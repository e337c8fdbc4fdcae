"""The norms of other libraries, as they define them, and how a function is compared with them.

A class is known by what its ``forward`` does, never by its name: Hugging Face's transformers has
the definition of LlamaRMSNorm in more than a hundred classes, and classes of the same name that
round elsewhere. `find` compares the code that CPython made of a class's ``forward`` (and ``_norm``)
with that of the functions below, down to the last instruction; only the names of local variables
and of the attribute that holds eps are free. What differs in any way is not known.

The functions are never called by the library. They keep the order of operations of
transformers 5, where each comes from.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

EPS_NAMES = ("eps", "variance_epsilon")
JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))

Code = tuple[object, ...]
Method = Callable[..., Any]


def llama(self: Any, x: Any) -> Any:
    """Round to x's dtype before the weight multiplies: LlamaRMSNorm, Qwen2RMSNorm, Mistral's."""
    dtype = x.dtype
    x = x.to(torch.float32)
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.eps)
    return self.weight * x.to(dtype)


def olmo2(self: Any, x: Any) -> Any:
    """Round once, after the weight has multiplied: Olmo2RMSNorm, GptOssRMSNorm."""
    dtype = x.dtype
    x = x.to(torch.float32)
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.eps)
    return (self.weight * x).to(dtype)


def nemotron_h(self: Any, x: Any) -> Any:
    """Round once, as `olmo2`: NemotronHRMSNorm, HeliumRMSNorm."""
    dtype = x.dtype
    x = x.to(torch.float32)
    variance = x.pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.eps)
    return (self.weight.to(torch.float32) * x).to(dtype)


def t5(self: Any, x: Any) -> Any:
    """Round to the weight's dtype, where that has 16 bits: T5LayerNorm, MT5LayerNorm."""
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + self.eps)
    if self.weight.dtype in [torch.float16, torch.bfloat16]:
        x = x.to(self.weight.dtype)
    return self.weight * x


def rsqrt_norm(self: Any, x: Any) -> Any:
    """Normalise: the ``_norm`` of the next four."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


def gemma(self: Any, x: Any) -> Any:
    """Round once, after the weight and one have multiplied: GemmaRMSNorm, Gemma3RMSNorm."""
    y = self._norm(x.float())
    y = y * (1.0 + self.weight.float())
    return y.type_as(x)


def moshi(self: Any, x: Any) -> Any:
    """Round once, as `olmo2`: MoshiRMSNorm."""
    y = self._norm(x.float())
    y = y * self.weight.float()
    return y.type_as(x)


def llama4(self: Any, x: Any) -> Any:
    """Round before the weight multiplies, as `llama`: Llama4TextRMSNorm."""
    y = self._norm(x.float()).type_as(x)
    return y * self.weight


def l2_norm(self: Any, x: Any) -> Any:
    """Have no weight: Llama4TextL2Norm, NanoChatRMSNorm."""
    return self._norm(x.float()).type_as(x)


def power_norm(self: Any, x: Any) -> Any:
    """Normalise by a power, an ulp or so from `rsqrt_norm`: the ``_norm`` of the next."""
    mean_square = x.pow(2).mean(-1, keepdim=True) + self.eps
    return x * torch.pow(mean_square, -0.5)


def gemma4(self: Any, x: Any) -> Any:
    """Round once, and have a weight or none: Gemma3nRMSNorm, Gemma4RMSNorm."""
    y = self._norm(x.float())
    if self.with_scale:
        y = y * self.weight.float()
    return y.type_as(x)


def cohere(self: Any, x: Any) -> Any:
    """Centre rows too, with a weight and no bias, and round once: CohereLayerNorm."""
    dtype = x.dtype
    x = x.to(torch.float32)
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    x = (x - mean) * torch.rsqrt(variance + self.eps)
    x = self.weight.to(torch.float32) * x
    return x.to(dtype)


class Definition(NamedTuple):
    """What a class of norms computes, and the functions that say so."""

    forward: Method
    norm: Method | None = None

    @property
    def name(self) -> str:
        """The name of the function above."""
        return self.forward.__name__


DEFINITIONS = (
    Definition(llama),
    Definition(olmo2),
    Definition(nemotron_h),
    Definition(t5),
    Definition(gemma, rsqrt_norm),
    Definition(moshi, rsqrt_norm),
    Definition(llama4, rsqrt_norm),
    Definition(l2_norm, rsqrt_norm),
    Definition(gemma4, power_norm),
    Definition(cohere),
)


def find(cls: type) -> Definition | None:
    """Return the definition that a class's ``forward`` has, None where it has none of them."""
    forward = _code(getattr(cls, "forward", None))
    if forward is None:
        return None
    for definition in DEFINITIONS:
        if forward == _code(definition.forward):
            norm = definition.norm
            if norm is None or _code(getattr(cls, "_norm", None)) == _code(norm):
                return definition
    return None


def eps_name(cls: type, definition: Definition) -> str:
    """Return the name of the attribute that holds eps in a class of that definition."""
    method = cls.forward if definition.norm is None else cls._norm  # type: ignore[attr-defined]
    (name,) = (name for name in EPS_NAMES if name in method.__code__.co_names)
    return name


def _code(method: object) -> Code | None:
    """Return what a function does, without the names that are free; None for anything else.

    Bytecode says what runs, whatever the source file holds by now, and has neither comments nor
    annotations. Decorators make another function, whose code differs.
    """
    if not isinstance(method, types.FunctionType) or method.__globals__.get("torch") is not torch:
        return None
    code = method.__code__
    if sum(name in EPS_NAMES for name in code.co_names) > 1:
        return None
    plain = code.replace(
        co_names=tuple("eps" if name in EPS_NAMES else name for name in code.co_names),
        co_varnames=tuple(str(index) for index in range(len(code.co_varnames))),
    )
    variadic = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, variadic)
    return (*counts, *_steps(plain))


def _steps(code: types.CodeType) -> list[tuple[str, str]]:
    """Return the instructions and their operands, as they read: 2 is not 2.0 there.

    A module's own imports are called by other instructions than what another module, or the cell of
    a notebook, imported: those of a call that only make room for ``self`` count as one.
    """
    kept = [step for step in dis.get_instructions(code) if step.opname not in ("NOP", "PUSH_NULL")]
    steps = []
    for step in kept:
        value = step.argval
        if step.opname == "KW_NAMES":  # dis does not look it up, in Python 3.11
            value = code.co_consts[step.arg or 0]
        elif step.opcode in JUMPS:
            value = sum(other.offset < step.argval for other in kept)
        steps.append((step.opname.replace("LOAD_METHOD", "LOAD_ATTR"), repr(value)))
    return steps
