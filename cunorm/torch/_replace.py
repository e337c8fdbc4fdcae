"""Swap the norms of a model for cunorm's, in place, and back."""

from __future__ import annotations

import re
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from ._modules import LayerNorm, RMSNorm
from ._swapped import Swapped, swapped_class

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNKNOWN = "its forward is none of the definitions known"
ITSELF = "the model itself"
LOOKS_LIKE_A_NORM = re.compile(r"(rms|layer|l2)_?norm", re.IGNORECASE)


class Swap(NamedTuple):
    """A norm that was swapped: where it is, the class it was of and the class it is of now."""

    path: str
    old: type[torch.nn.Module]
    new: type[torch.nn.Module]


class Left(NamedTuple):
    """What looked like a norm and was left alone: where it is, its class, and why."""

    path: str
    cls: type[torch.nn.Module]
    reason: str


class Replaced:  # numpydoc ignore=PR01
    """What `replace_norms` did to a model: ``print`` it to read it, `undo` it to take it back.

    Attributes
    ----------
    swapped : tuple of Swap
        One for each path at which a swapped module is found, as `path`, `old` and `new`. A module
        that is found at several paths was swapped once.
    left : tuple of Left
        One for each path at which something looked like a norm and was left alone, as `path`,
        `cls` and `reason`.

    See Also
    --------
    replace_norms : What returns it.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    >>> with cunorm.torch.replace_norms(model) as replaced:
    ...     replaced
    <Replaced: 1 swapped, 0 left alone>
    >>> type(model[1])
    <class 'torch.nn.modules.normalization.LayerNorm'>
    """

    def __init__(
        self, modules: list[Any], swapped: tuple[Swap, ...], left: tuple[Left, ...]
    ) -> None:
        self._modules = modules
        self.swapped = swapped
        self.left = left

    def undo(self) -> None:
        """Give every swapped module its class back. A second call does nothing.

        Raises
        ------
        RuntimeError
            Where a module has become of another class since, by ``parametrize`` or
            ``fully_shard``, say: that has to be taken back first. Nothing is changed then.
        """
        changed = [type(m).__qualname__ for m in self._modules if not _is_swapped(m)]
        if changed:
            raise RuntimeError(
                f"undo needs every module to be of the class that replace_norms gave it, but "
                f"{len(changed)} of {len(self._modules)} are not: {', '.join(sorted(set(changed)))}"
            )
        for module in self._modules:
            module.__class__ = module._cunorm_original
        self._modules = []

    def __enter__(self) -> Replaced:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Replaced: {len(self.swapped)} swapped, {len(self.left)} left alone>"

    def __str__(self) -> str:
        lines = [f"swapped: {len(self.swapped)}"]
        for path, old, new in self.swapped:
            lines.append(f"  {path or ITSELF}: {old.__qualname__} -> {new.__qualname__}")
        lines.append(f"left alone: {len(self.left)}")
        for path, cls, reason in self.left:
            lines.append(f"  {path or ITSELF}: {cls.__qualname__}, {reason}")
        return "\n".join(lines)


def replace_norms(model: torch.nn.Module) -> Replaced:
    """Let the norm modules of a model compute by cunorm's ops, in place.

    Known are ``torch.nn.RMSNorm`` and ``torch.nn.LayerNorm``, their subclasses that keep the
    ``forward``, and each class whose ``forward`` is one of those of Hugging Face's transformers
    (Llama's, which Qwen2, Mistral and a hundred others share, Gemma's, T5's, Olmo2's, Cohere's). A
    class is known by the code of its ``forward``, never by its name, because what is called
    RMSNorm rounds in different places. So anyone's own copy of LlamaRMSNorm is swapped, and what
    rounds elsewhere, or in a way not known, is left alone and listed.

    A module is not exchanged: it gets another class, a subclass of its own, as
    ``torch.nn.utils.parametrize`` and ``fully_shard`` do it. So everything that holds the module
    still does, ties and Python attributes among it, hooks and their handles go on working, and so
    do optimizers, ``isinstance``, ``state_dict``, ``copy.deepcopy`` and ``pickle``; device, dtype,
    training mode, parameters, buffers and ``requires_grad`` are not touched; and a model that is a
    norm itself is swapped like any other.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    Replaced
        What was swapped and what was left alone. Its `undo` takes all of it back, and so does the
        end of a ``with replace_norms(model):`` block. Norms that are cunorm's already are not
        mentioned.

    Raises
    ------
    TypeError
        Where `model` is no module.

    See Also
    --------
    RMSNorm : For a model that you write.
    LayerNorm : The same.

    Notes
    -----
    Roundings are the original's; the statistics are the op's. So an rstd may differ in its last
    bits, which lets a rounding flip now and then, and rows whose squares overflow float32 are
    normalised where Hugging Face's originals give zeros.

    Where the op does not compute what the original does, the original's forward is called: float64
    for Hugging Face's classes, which compute in float32 then, devices that are neither CPU nor
    CUDA, and nested tensors. As with the ops, a second derivative is refused. In eval mode without
    gradients ``torch.nn.TransformerEncoderLayer`` calls no norm: PyTorch computes the layer whole.

    ``torch.compile`` and ``torch.export`` take a swapped model, ``torch.jit.script`` and
    ``torch.fx.symbolic_trace`` do not.

    Left alone, and listed, are norms whose weight is no plain parameter: parametrized, pruned,
    quantized or distributed; and norms with a ``forward`` of their own on the instance, as
    accelerate's hooks put there. Swap before ``DistributedDataParallel`` or ``fully_shard``, or
    after the former. The ops know no DTensor: of a model in sequence parallel, distribute first.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    >>> replaced = cunorm.torch.replace_norms(model)
    >>> [swap.path for swap in replaced.swapped]
    ['1']
    >>> replaced.undo()
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, but is a {type(model).__qualname__}")
    verdicts: dict[torch.nn.Module, type[Swapped] | str | None] = {}
    swapped, left = [], []
    for path, module in model.named_modules(remove_duplicate=False):
        if module not in verdicts:
            verdicts[module] = _verdict(module)
        verdict = verdicts[module]
        if isinstance(verdict, str):
            left.append(Left(path, type(module), verdict))
        elif verdict is not None:
            swapped.append(Swap(path, type(module), verdict))
    modules = []
    for module, verdict in verdicts.items():
        if isinstance(verdict, type):
            module.__class__ = verdict
            modules.append(module)
    return Replaced(modules, tuple(swapped), tuple(left))


def _verdict(module: torch.nn.Module) -> type[Swapped] | str | None:
    """Return the class to swap to, or why a norm is left alone; None for what is no norm."""
    cls: Any = type(module)
    if isinstance(module, (RMSNorm, LayerNorm, Swapped)):
        return None
    new = swapped_class(cls)
    if new is None:
        return UNKNOWN if _looks_like_a_norm(module) else None
    return _obstacle(module, new) or new


def _looks_like_a_norm(module: torch.nn.Module) -> bool:
    """Return whether a reader of the model would take it for one of the norms.

    Blocks are often named after the norms that they hold: what has children is no norm.
    """
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
        return True
    leaf = next(module.children(), None) is None
    return leaf and LOOKS_LIKE_A_NORM.search(type(module).__name__) is not None


def _obstacle(module: torch.nn.Module, new: type[Swapped]) -> str:
    """Return why a norm of a known class cannot be swapped, nothing where it can."""
    if "forward" in vars(module):
        return "its forward is set on the instance"
    if type(module).__call__ is not torch.nn.Module.__call__:
        return "its class has a __call__ of its own"
    if parametrize.is_parametrized(module):
        return "its parameters are parametrized"
    for name in new._cunorm_reads:
        value = module._parameters.get(name)
        if value is None and getattr(module, name, None) is not None:
            return f"its {name} is no parameter of its own"
        if value is not None and type(value) is not torch.nn.Parameter:
            return f"its {name} is a {type(value).__qualname__}"
        if value is not None and value.dtype not in DTYPES:
            return f"its {name} is {value.dtype}"
        if value is not None and not hasattr(module, "normalized_shape") and value.ndim != 1:
            return f"its {name} has {value.ndim} axes, its rows have one"
    eps = getattr(module, new._cunorm_eps, None)
    if not (isinstance(eps, Real) or (eps is None and isinstance(module, torch.nn.RMSNorm))):
        return f"its eps is a {type(eps).__qualname__}"
    return ""


def _is_swapped(module: torch.nn.Module) -> bool:
    original = getattr(type(module), "_cunorm_original", None)
    return original is not None and type(module) is swapped_class(original)
