"""What is known of an attention: that queries and keys are normalised and rotated, and how.

The forward is run once, on tensors without memory. The norms and the functions of its module that
it calls stand aside for it, and note what they are given and where that is used. It is known where
queries and keys go from the norms to a rotation, or from that to the norms, as they are or as views,
and nowhere else; and where no condition comes before, so that this holds for every call.

Then the same code runs with three of its names bound to other things: both norms hand on what they
are given, and the rotation is that and both norms in one call (`OneCall`). So cache, masks, attention
backends and all else that the forward has, of this version of a library or of the next, remain what
they are, which a forward of our own would have to follow.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ._known import Known, known
from ._plan import Plan, tensor_of
from ._rope import qk_norm_rope
from ._rotation import Rotation, rotation
from ._values import Differs, name_of

HANDED_ON = "_cunorm_handed_on"  # what the code calls in place of a norm
KNOWN = "_cunorm_known"
TOKENS = (2, 3)


class Chain(NamedTuple):
    """Where a forward has norms and a rotation.

    `q` and `k` are the names of the norms, `rotary` that of the function, which is called with
    `options`. The norms take "heads" of shape (B, H, T, d) as that does, "tokens" of (B, T, H, d),
    or "all" of (B, T, H * d).
    """

    q: str
    k: str
    rotary: str
    options: tuple[tuple[str, Any], ...]
    layout: str
    norm_first: bool

    def given_to_norm(self, heads: torch.Tensor) -> torch.Tensor:
        """Return heads of shape (B, H, T, d) as the norm takes them."""
        if self.layout == "heads":
            return heads
        tokens = heads.transpose(1, 2)
        return tokens if self.layout == "tokens" else tokens.flatten(2)

    def heads_of(self, y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return what the norm made of them, of shape (B, H, T, d) again."""
        if self.layout == "heads":
            return y
        tokens = y if self.layout == "tokens" else y.unflatten(2, (like.shape[1], like.shape[3]))
        return tokens.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Attention:
    """What is known of an attention: its chain, what its rotation does, and norms of which classes.

    It holds while the class has this `forward`, and that finds this `function` by its name.
    """

    chain: Chain
    norms: tuple[Known, Known]
    classes: tuple[type, type]
    rotation: Rotation
    forward: Callable[..., Any]
    function: Callable[..., Any]

    def holds(self, cls: Any) -> bool:
        """Return whether the forward of a class is still the one that is known."""
        scope = innermost(self.forward).__globals__
        return cls.forward is self.forward and scope.get(self.chain.rotary) is self.function

    def call(self, module: torch.nn.Module) -> Callable[..., Any]:
        """Return the forward of a module, with its norms and its rotation in one call."""
        return _bound(self.forward, self.chain, OneCall(self, module).__call__)

    def reason(self, module: torch.nn.Module, of_tables: set[Any]) -> str:
        """Return why nothing of it is one call in the dtype of the norms' weights, "" if it is."""
        names = (self.chain.q, self.chain.k)
        parameters = [p for name in names for p in getattr(module, name).parameters()]
        dtypes = dict.fromkeys(p.dtype for p in parameters)
        if len(dtypes) > 1:
            return f"its norms' weights are {' and '.join(map(name_of, dtypes))}"
        device = "cuda" if any(p.is_cuda for p in parameters) else "cpu"
        dtype = next(iter(dtypes), torch.float32)
        plans = [
            norm.plans.get((device, None, dtype, *dtypes), "the norms are not known")
            for norm in self.norms
        ]
        for plan in plans:
            why = plan if isinstance(plan, str) else _obstacle(plan, dtype)
            if why:
                return f"{why}, in {name_of(dtype)}"
        given = [cos for x, cos in of_tables if x == dtype]
        if not any(x == dtype and cos in given for x, cos, _ in self.rotation.of):
            return f"its rotation is not that of the op, in {name_of(dtype)}"
        return ""


class OneCall:
    """The rotation of a module as its forward calls it, on queries and keys as no norm has been."""

    def __init__(self, found: Attention, module: torch.nn.Module) -> None:
        self.found = found
        self.module = module

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries and keys, normalised and rotated."""
        chain = self.found.chain
        norms = getattr(self.module, chain.q), getattr(self.module, chain.k)
        plan = self._plan(norms, (q, k), cos, sin)
        if plan is None:
            return self._steps(norms, (q, k), cos, sin, options)
        half = cos.shape[-1] // 2
        q, k = qk_norm_rope(
            q.transpose(1, 2),
            k.transpose(1, 2),
            *(_weight(norm, plan) for norm in norms),
            cos[..., :half],
            sin[..., :half],
            eps=plan.eps_of(norms[0]),
            interleaved=self.found.rotation.interleaved,
            norm_first=chain.norm_first,
            across_heads=chain.layout == "all",
            gamma_offset=plan.offset,
        )
        return q.transpose(1, 2), k.transpose(1, 2)

    def _plan(self, norms: Any, heads: Any, cos: torch.Tensor, sin: torch.Tensor) -> Plan | None:
        """Return how both norms are computed, None where one call does not compute them."""
        chain = self.found.chain
        if cos.ndim != 3 or cos.requires_grad or sin.requires_grad or cos.dtype != sin.dtype:
            return None
        plans = []
        of = zip(norms, self.found.norms, self.found.classes, heads, strict=True)
        for norm, known_norm, cls, x in of:
            if x.ndim != 4 or not self.found.rotation.takes(x, cos):
                return None
            if _original(norm) is not cls or not is_called_alone(norm):
                return None
            plan = known_norm.find(norm, chain.given_to_norm(x))
            if plan is None or _obstacle(plan, x.dtype):
                return None
            plans.append(plan)
        first, second = plans
        same = first._replace(eps=0.0) == second._replace(eps=0.0)
        return first if same and first.eps_of(norms[0]) == second.eps_of(norms[1]) else None

    def _steps(
        self, norms: Any, heads: Any, cos: torch.Tensor, sin: torch.Tensor, options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the original does, step by step."""
        chain = self.found.chain

        def normalised(heads: Any) -> Any:
            pairs = zip(norms, heads, strict=True)
            return [chain.heads_of(norm(chain.given_to_norm(x)), x) for norm, x in pairs]

        if chain.norm_first:
            return self.found.function(*normalised(heads), cos, sin, **options)  # type: ignore[no-any-return]
        return tuple(normalised(self.found.function(*heads, cos, sin, **options)))  # type: ignore[return-value]


def attention(module: torch.nn.Module) -> Attention | str | None:
    """Return what is known of an attention, or why nothing is; None for what is none.

    An attention has norms of its own and calls a function of its module that rotates by its name.
    """
    forward = type(module).forward
    inner = innermost(forward)
    if not isinstance(inner, types.FunctionType):
        return None
    names = [n for n in inner.__code__.co_names if "rot" in n and n in inner.__globals__]
    norms = {
        name: child for name, child in module._modules.items() if child is not None and "norm" in name
    }
    if not names or len(norms) < 2:
        return None
    try:
        return _learnt(module, forward)
    except Differs as differs:
        return str(differs)


def _learnt(module: torch.nn.Module, forward: Any) -> Attention:
    inner = innermost(forward)
    chain = _chain(module, inner)
    _require_no_condition(inner.__code__, chain)
    norms, classes = [], []
    for name in (chain.q, chain.k):
        norm = getattr(module, name)
        found = vars(norm).get(KNOWN) or known(norm)
        if not isinstance(found, Known):
            raise Differs(f"its {name} is not known: {found.reason}")
        norms.append(found)
        classes.append(_original(norm))
    function = inner.__globals__[chain.rotary]
    rotated = rotation(function, chain.options)
    if rotated is None:
        raise Differs(f"{chain.rotary} is not the rotation of the op")
    return Attention(chain, (norms[0], norms[1]), (classes[0], classes[1]), rotated, forward, function)


def innermost(function: Any) -> Any:
    """Return what decorators are around."""
    return inspect.unwrap(function)


def _bound(forward: Any, chain: Chain, rotary: Any) -> Any:
    """Return a forward with its names bound anew, in decorators of its own.

    A decorator holds what it is around in a cell. The scope has no name: the compiler would read
    the original's scope by that.
    """
    inside = getattr(forward, "__wrapped__", None)
    code, scope, cells = forward.__code__, forward.__globals__, forward.__closure__
    if inside is None:
        names = [HANDED_ON if name in (chain.q, chain.k) else name for name in code.co_names]
        code = code.replace(co_names=tuple(names))
        scope = {name: value for name, value in scope.items() if name != "__name__"}
        scope[chain.rotary] = rotary
    else:
        new = types.CellType(_bound(inside, chain, rotary))
        cells = tuple(new if cell.cell_contents is inside else cell for cell in cells or ())
        if new not in cells:
            raise Differs("its forward is in a decorator that holds it elsewhere")
    made = types.FunctionType(code, scope, forward.__name__, forward.__defaults__, cells)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _require_no_condition(code: types.CodeType, chain: Chain) -> None:
    """Refuse code that may not come to all norms and the rotation, or uses their names again."""
    instructions = list(dis.get_instructions(code))
    last = 0
    for name in (chain.q, chain.k, chain.rotary):
        loads = [i for i, each in enumerate(instructions) if each.argval == name]
        kind = ("LOAD_GLOBAL", "LOAD_NAME") if name == chain.rotary else ("LOAD_ATTR", "LOAD_METHOD")
        if len(loads) != 1 or instructions[loads[0]].opname not in kind:
            raise Differs(f"its forward names {name} more than once")
        last = max(last, loads[0])
    for each in instructions[last:]:
        last += 1
        if each.opname.startswith("STORE") or each.opname.startswith("RETURN"):
            break
    jumps = {*dis.hasjrel, *dis.hasjabs}
    if any(each.opcode in jumps for each in instructions[:last]):
        raise Differs("its norms or its rotation come after a condition")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where tensors that are watched are used, but for views of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched: dict[int, torch.Tensor] = {}
        self.used: dict[int, str] = {}

    def fresh(self, like: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same strides, that is watched."""
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
        self.watched[_storage(made)] = made
        return made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for given in args:
            if not isinstance(given, torch.Tensor) or _storage(given) not in self.watched:
                continue
            is_view = isinstance(made, torch.Tensor) and _storage(made) == _storage(given)
            if func._schema.is_mutable or not is_view:
                self.used[_storage(given)] = str(func)
        return made


class _Run:
    """One run of a forward, in which norms and functions stand aside."""

    def __init__(self) -> None:
        self.watch = _Watch()
        self.normalised: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rotated: list[tuple[Any, ...]] = []

    def norm(self, name: str) -> torch.nn.Module:
        def forward(x: torch.Tensor) -> torch.Tensor:
            if name in self.normalised:
                raise Differs(f"its forward calls {name} more than once")
            self.normalised[name] = x, self.watch.fresh(x)
            return self.normalised[name][1]

        return _Stand(forward)

    def function(self, name: str, real: Any, tables: Any) -> Any:
        def stand(*args: Any, **options: Any) -> Any:
            if not any(arg is table for arg in (*args, *options.values()) for table in tables):
                return real(*args, **options)
            if self.rotated or len(args) != 4 or args[2] is not tables[0] or args[3] is not tables[1]:
                raise Differs(f"{name} is not called with queries, keys and their tables, once")
            made = tuple(self.watch.fresh(heads) for heads in args[:2])
            self.rotated.append((name, args[:2], made, tuple(options.items())))
            return made

        return stand


class _Stand(torch.nn.Module):
    """Stands for a module of an attention."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.forward = function


def _chain(module: torch.nn.Module, inner: Any) -> Chain:
    """Return where the forward of a module has norms and a rotation."""
    run = _Run()
    tables = tuple(torch.empty((*TOKENS, 8), device="meta") for _ in range(2))
    children = dict(module._modules)
    for name, child in module._modules.items():
        width = getattr(child, "out_features", None)
        if isinstance(width, int):
            children[name] = _Stand(_projection(width))
        elif child is not None and "norm" in name:
            children[name] = run.norm(name)
    shadow = object.__new__(type(module))
    vars(shadow).update({**vars(module), "_modules": children})
    scope = dict(inner.__globals__)
    for name in inner.__code__.co_names:
        if isinstance(scope.get(name), types.FunctionType):
            scope[name] = run.function(name, scope[name], tables)
    code, cells = inner.__code__, inner.__closure__
    forward: Any = types.FunctionType(code, scope, inner.__name__, inner.__defaults__, cells)
    forward.__kwdefaults__ = inner.__kwdefaults__
    given = {"position_embeddings": tables, "attention_mask": None}
    names = inspect.signature(inner).parameters
    given = {name: value for name, value in given.items() if name in names}
    try:
        with run.watch, torch.no_grad():
            forward(shadow, torch.empty((*TOKENS, 8), device="meta"), **given)
    except Differs:
        raise
    except Exception as error:  # anyone's forward; after the rotation, backends that need a device
        if not run.rotated or len(run.normalised) < 2:
            said = (str(error).splitlines() or [""])[0][:100]
            raise Differs(f"its forward raises {type(error).__qualname__}: {said}") from None
    return _read(run)


def _read(run: _Run) -> Chain:
    """Return the chain that a run has noted."""
    if not run.rotated:
        raise Differs("it is not known to rotate by cosines and sines that it is given")
    ((name, given, made, options),) = run.rotated
    found: list[tuple[str, str, bool]] = []
    for heads, rotated in zip(given, made, strict=True):
        for norm, (x, y) in run.normalised.items():
            layout = _layout(y, heads)
            if layout:
                found.append((norm, layout, True))
            layout = _layout(rotated, x) and _layout(x, rotated)
            if layout:
                found.append((norm, layout, False))
    if len(found) != 2 or found[0][1:] != found[1][1:] or found[0][0] == found[1][0]:
        raise Differs("its rotation and its norms are not of the same queries and keys")
    (q, layout, norm_first), (k, *_) = found
    between = [run.normalised[norm][1] for norm in (q, k)] if norm_first else made
    for tensor in between:
        if _storage(tensor) in run.watch.used:
            raise Differs(f"its queries or keys are used at {run.watch.used[_storage(tensor)]} beside")
    if not all(_is_plain(value) for _, value in options):
        raise Differs(f"{name} is given more than plain options")
    return Chain(q, k, name, options, layout, norm_first)


def _layout(rows: torch.Tensor, heads: torch.Tensor) -> str:
    """Return how heads of shape (B, H, T, d) lie in the rows that a norm has, "" if they do not."""
    if _storage(rows) != _storage(heads) or heads.ndim != 4 or heads.shape[2] != TOKENS[1]:
        return ""
    views = {"heads": rows}
    if rows.ndim == 4:
        views["tokens"] = rows.transpose(1, 2)
    elif rows.ndim == 3:
        shape = (heads.shape[1], heads.shape[3])
        if rows.shape[2] == shape[0] * shape[1]:
            views["all"] = rows.unflatten(2, shape).transpose(1, 2)
    for layout, view in views.items():
        if view.shape == heads.shape and view.stride() == heads.stride():
            return layout
    return ""


def _projection(width: int) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.empty((*x.shape[:-1], width), device="meta")

    return forward


def _obstacle(plan: Plan, dtype: torch.dtype) -> str:
    """Return why a norm is not that of `qk_norm_rope`, "" where it is."""
    own = Plan(False, None, plan.gamma, plan.offset, None, plan.cast, plan.eps)
    if plan != own:
        return "its norms are more than an RMSNorm with a weight"
    narrow = dtype in (torch.bfloat16, torch.float16)
    if narrow and plan.cast == "after" and plan.gamma is not None:
        return "its norms round after the weight, and each step of the rotation: the op has no both"
    return ""


def is_called_alone(norm: torch.nn.Module) -> bool:
    """Return whether to call a norm is to call its forward: no hook would be passed over."""
    hooks = (
        norm._forward_hooks,
        norm._forward_pre_hooks,
        norm._backward_hooks,
        norm._backward_pre_hooks,
    )
    return not any(hooks) and "forward" not in vars(norm)


def _original(norm: torch.nn.Module) -> type:
    """Return the class of a norm before it was swapped."""
    cls: type = vars(type(norm)).get("_cunorm_original", type(norm))
    return cls


def _weight(norm: Any, plan: Plan) -> torch.Tensor | None:
    return None if plan.gamma is None else tensor_of(norm, plan.gamma)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
