"""Swap the norms of a model for cunorm's, in place, and back."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .. import _check
from .._check.described import Described, Named
from ._attention import Attention, attention, is_called_alone
from ._checks import DTYPES
from ._known import Known, Unknown, known
from ._modules import LayerNorm, RMSNorm
from ._rotation import tables
from ._swapped import Swapped, become, bound_forward, restore, swapped_class
from ._swapped_attention import SwappedAttention, attention_class, become_attention

OF_PYTORCH = (torch.nn.LayerNorm, torch.nn.RMSNorm)
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
            restore(module)
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


def replace_norms(
    model: torch.nn.Module, *, copy_inputs: bool = False, rope: bool = False
) -> Replaced:
    """Let the norm modules of a model compute by cunorm's ops, in place.

    A norm is known by what it computes, not by its name or by how it is written. The forward that
    would run is run once on tensors without memory, for every pair of dtypes of x and the
    parameters, on CPU and CUDA, in and out of autocast, for several shapes, strides and modes; each
    operation is followed, with the dtype that it rounds to. Where all of it is what an op computes,
    with the same roundings, the norm is swapped. What differs is left alone and listed, with the
    first operation that does: so are norms that take other tensors than x and a gate, keep or
    change something, compute without gradients, or look at numbers. For the dtypes, numbers of axes
    and devices in which a forward is not known, a swapped norm calls it.

    The forward may be PyTorch's, a wrapper around it, Hugging Face's, or anyone's own, and may be
    patched: what counts is what it is at the time of the call. Where the forward of a class, a
    method that it calls, ``torch.nn.functional.layer_norm`` or ``rms_norm``, or a value that the
    forward reads of the module is another one later, the swapped norm calls the forward as it is
    then. A patch of any other function that a forward calls has to come before the swap.

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
    rope : bool
        Whether attentions that normalise queries and keys and rotate them, such as Qwen3's, do all
        of that by one `qk_norm_rope`. See the notes.

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
    their own on the instance. The hooks of accelerate, which a model loaded with ``device_map=``
    has, go on running around the swapped norm, and may be removed. Swap before
    ``DistributedDataParallel`` or ``fully_shard``, or after the former. The ops know no DTensor: of
    a model in sequence parallel, distribute first.

    With `rope` an attention is known by what it computes, too: its forward is followed once on
    tensors without memory, from the norms to the function that rotates, or the other way about, and
    that function and the modules that make the cosines and sines are run on a few numbers, which
    have to give the op's bits. It is swapped where its norms are those of the op, in their weights'
    dtype, and listed with the reason where they are not, or where it depends on a condition. Its
    forward stays the same code, caches, masks and backends among it. A norm with hooks, other
    dtypes, and a function or class that is patched later, have it computed step by step.

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
    verdicts: dict[torch.nn.Module, Known | Attention | str | None] = {}
    found = _attentions(model) if rope else {}
    swapped, left = [], []
    for path, module in model.named_modules(remove_duplicate=False):
        if verdicts.get(module) is None:
            name = path.rpartition(".")[2]
            verdicts[module] = found.get(module) or _verdict(module, name)
        verdict = verdicts[module]
        if isinstance(verdict, str):
            left.append(Left(path, type(module), verdict))
        elif verdict is not None:
            cls: Any = type(module)
            new = attention_class if isinstance(verdict, Attention) else swapped_class
            swapped.append(Swap(path, cls, new(cls)))
    modules = []
    for module, verdict in verdicts.items():
        if isinstance(verdict, Known):
            become(module, verdict, copies=copy_inputs)
            modules.append(module)
        elif isinstance(verdict, Attention):
            become_attention(module, verdict)
            modules.append(module)
    _forget_compiled(modules)
    return Replaced(modules, tuple(swapped), tuple(left))


def _verdict(module: torch.nn.Module, name: str) -> Known | str | None:
    """Return what is known of a norm, or why it is left alone; None for what is no norm.

    `name` is that of the attribute which holds it.
    """
    if isinstance(module, (RMSNorm, LayerNorm, Swapped)):
        return None
    called = _is_called_a_norm(module, name)
    if parametrize.is_parametrized(module):  # which has children, and PyTorch's own class
        return "its parameters are parametrized" if called else None
    if any(p is not None and is_lazy(p) for p in module._parameters.values()):
        return "its parameters have no shape yet" if called else None
    if type(module).__module__.startswith("torch.") and not isinstance(module, OF_PYTORCH):
        return "it is none of the norms that the ops compute" if called else None
    if not (called or _may_be_a_norm(module)):
        return None
    found = known(module)
    if isinstance(found, Unknown):
        return found.reason if found.normalises or called else None
    return _obstacle(module, found) or found


def _attentions(model: torch.nn.Module) -> dict[torch.nn.Module, Attention | str]:
    """Return what is known of each attention that normalises and rotates, or why it is left."""
    verdicts: dict[torch.nn.Module, Attention | str] = {}
    for module in model.modules():
        found = None if isinstance(module, SwappedAttention) else attention(module)
        if isinstance(found, Attention):
            verdicts[module] = _obstacle_of(module, found) or found
        elif found is not None:
            verdicts[module] = found
    if any(isinstance(found, Attention) for found in verdicts.values()):
        of_tables, why = tables(model)
        for module, found in verdicts.items():
            if isinstance(found, Attention):
                verdicts[module] = why or found.reason(module, of_tables) or found
    return verdicts


def _obstacle_of(module: torch.nn.Module, found: Attention) -> str:
    """Return why a known attention cannot be swapped, nothing where it can."""
    if bound_forward(module) is None:
        return "its forward is set on the instance"
    for name in (found.chain.q, found.chain.k):
        norm = getattr(module, name)
        if not isinstance(norm, Swapped):
            why = _verdict(norm, name)
            if isinstance(why, str):
                return f"its {name}: {why}"
        if not is_called_alone(norm):
            return f"its {name} has hooks or a forward of its own"
    return ""


def _may_be_a_norm(module: torch.nn.Module) -> bool:
    """Return whether to look at what a module computes: for that its forward is run, on no data.

    So whatever has other modules, or no parameter of some axes, is left in peace.
    """
    leaf = next(module.children(), None) is None
    return leaf and any(p is not None and p.ndim > 0 for p in module._parameters.values())


def _is_called_a_norm(module: torch.nn.Module, name: str) -> bool:
    """Return whether a reader of the model, who sees both names, would take it for a norm.

    Blocks and lists are often named after the norms that they hold, which are found by themselves.
    """
    cls = type(module).__name__
    if isinstance(module, OF_PYTORCH) or NORM_LAST.search(cls):
        return True
    if not (NORM.search(cls) or NORM.search(name)):
        return False
    within = [(path.rpartition(".")[2], m) for path, m in module.named_modules() if path]
    return not any(_is_called_a_norm(m, own) for own, m in within)


def _obstacle(module: torch.nn.Module, found: Known) -> str:
    """Return why a norm of a known class cannot be swapped, nothing where it can."""
    if bound_forward(module) is None:
        return "its forward is set on the instance"
    if type(module).__call__ is not torch.nn.Module.__call__:
        return "its class has a __call__ of its own"
    for name in found.names:
        value = getattr(module, name)
        if name in module._parameters and type(value) is not torch.nn.Parameter:
            return f"its {name} is a {type(value).__qualname__}"
        if value.dtype not in DTYPES:
            return f"its {name} is {value.dtype}"
    try:
        for plan in found.plans.values():
            _check.eps(plan.eps_of(module), ROWS)
    except (TypeError, ValueError) as error:
        return f"its {error}"
    return found.reason(module)


def _forget_compiled(changed: list[torch.nn.Module]) -> None:
    """Have models compiled again that hold norms of another class now.

    PyTorch does so by itself since 2.12. Before, compiled code goes on with the classes that it saw
    first, and nothing less than a reset takes those back.
    """
    if changed and "torch._dynamo" in sys.modules and torch.__version__ < "2.12":
        torch.compiler.reset()


def _is_swapped(module: torch.nn.Module) -> bool:
    return "_cunorm_original" in vars(type(module))
