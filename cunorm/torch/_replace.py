"""Swap the norms of a model for cunorm's, in place, and back."""

from __future__ import annotations

import re
import sys
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch.nn.utils import parametrize

from .. import _check
from .._described import Described, Named
from ._modules import LayerNorm, RMSNorm
from ._swapped import Swapped, swapped_class

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNKNOWN = "its forward is none of the definitions known"
ITSELF = "the model itself"
# The word in the name of a class or attribute, and not that of surface normals; and at its end.
NORM = re.compile(r"norm(?!al(?!i[sz]))", re.IGNORECASE)
NORM_LAST = re.compile(r"norm(\d+d)?$", re.IGNORECASE)
ROWS = Described((1, 1), Named("float32"), Named("cpu"))


class Swap(NamedTuple):
    """A norm that was swapped: where it is, the class it was of and the class it is of now."""

    path: str
    old: type[torch.nn.Module]
    new: type[torch.nn.Module]


class Left(NamedTuple):
    """What is called a norm and was left alone: where it is, its class, and why."""

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
        One for each path at which a norm was left alone, as `path`, `cls` and `reason`: whatever
        has the word in the name of its class or attribute, but for blocks that are named after a
        norm which they hold.

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
            vars(module).pop("_cunorm_copies", None)
        _forget_compiled(self._modules)
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


def replace_norms(model: torch.nn.Module, *, copy_inputs: bool = False) -> Replaced:
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
    copy_inputs : bool
        Whether each norm copies x first where a gradient is recorded. A model that writes to x
        before the backward pass needs it, as in ``x += norm(x)``: the op keeps x itself, and
        PyTorch then says that it was "modified by an inplace operation". Most originals keep a
        float32 copy of 16-bit data, and survive that. It costs a read and a write of x.

    Returns
    -------
    Replaced
        What was swapped and what was left alone. Its `undo` takes all of it back, and so does the
        end of a ``with replace_norms(model):`` block. Norms that are cunorm's already are neither
        changed nor mentioned.

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

    ``torch.compile`` takes a swapped model. While one is exported, by ``torch.export``,
    ``torch.jit.trace`` or either exporter of ``torch.onnx``, each norm is its original, so that
    what is exported needs no cunorm; and so it is for ``torch.fx.symbolic_trace``.
    ``torch.jit.script`` takes a model after `undo` alone. Before PyTorch 2.12, compiled code does
    not notice a swap: then this function and `undo` throw away all compiled code of the process,
    by ``torch.compiler.reset()``. ``torch.ao``'s eager static quantisation finds modules by their
    type: quantise first.

    Left alone, and listed, are norms whose weight is no plain parameter: parametrized, pruned,
    quantized or distributed; norms with an eps that the ops refuse; and norms with a ``forward`` of
    their own on the instance, as accelerate's hooks put there. Swap before
    ``DistributedDataParallel`` or ``fully_shard``, or after the former. The ops know no DTensor: of
    a model in sequence parallel, distribute first.

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
        if verdicts.get(module) is None:
            verdicts[module] = _verdict(module, path.rpartition(".")[2])
        verdict = verdicts[module]
        if isinstance(verdict, str):
            left.append(Left(path, type(module), verdict))
        elif verdict is not None:
            swapped.append(Swap(path, type(module), verdict))
    modules = []
    for module, verdict in verdicts.items():
        if isinstance(verdict, type):
            module.__class__ = verdict
            if copy_inputs:
                vars(module)["_cunorm_copies"] = True
            modules.append(module)
    _forget_compiled(modules)
    return Replaced(modules, tuple(swapped), tuple(left))


def _verdict(module: torch.nn.Module, name: str) -> type[Swapped] | str | None:
    """Return the class to swap to, or why a norm is left alone; None for what is no norm.

    `name` is that of the attribute which holds it.
    """
    cls: Any = type(module)
    if isinstance(module, (RMSNorm, LayerNorm, Swapped)):
        return None
    new = swapped_class(cls)
    if new is None:
        return UNKNOWN if _is_called_a_norm(module, name) else None
    return _obstacle(module, new) or new


def _is_called_a_norm(module: torch.nn.Module, name: str) -> bool:
    """Return whether a reader of the model, who sees both names, would take it for a norm.

    Blocks and lists are often named after the norms that they hold, which are found by themselves.
    """
    cls = type(module).__name__
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)) or NORM_LAST.search(cls):
        return True
    if not (NORM.search(cls) or NORM.search(name)):
        return False
    within = [(path.rpartition(".")[2], m) for path, m in module.named_modules() if path]
    return not any(_is_called_a_norm(m, own) for own, m in within)


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
    if eps is not None:
        try:
            _check.eps(eps, ROWS)
        except (TypeError, ValueError) as error:
            return f"its {error}"
    return ""


def _forget_compiled(changed: list[torch.nn.Module]) -> None:
    """Have models compiled again that hold norms of another class now.

    PyTorch does so by itself since 2.12. Before, compiled code goes on with the classes that it saw
    first, and nothing less than a reset takes those back.
    """
    if changed and "torch._dynamo" in sys.modules and torch.__version__ < "2.12":
        torch.compiler.reset()


def _is_swapped(module: torch.nn.Module) -> bool:
    original = getattr(type(module), "_cunorm_original", None)
    return original is not None and type(module) is swapped_class(original)
