"""Where the forward of an attention has its norms and its rotation.

The forward is run once, on tensors without memory. Its norms and the function that is given the
cosines and sines stand aside, and note what they are given; where that is used is watched. The
chain is known where queries and keys go from the norms to the rotation, or from that to the norms,
as views or as they are, and nowhere else; and where conditions that come before ask for attributes
of the module alone, so that this holds for every call while they are what they were.
"""

from __future__ import annotations

import dis
import inspect
import types
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ._values import Differs

SELF = ("LOAD_FAST", "LOAD_FAST_BORROW")  # by which code comes to its first argument
HANDED_ON = "_cunorm_handed_on"  # the method that the code calls in place of a norm
TOKENS = (2, 3)


class Condition(NamedTuple):
    """An attribute that a forward's way depends on: its path from the module, and its value."""

    path: tuple[str, ...]
    value: Any

    @classmethod
    def of(cls, module: torch.nn.Module, path: tuple[str, ...]) -> Condition:
        """Return what a module has there, which must be a plain value."""
        value = _at(module, path)
        if not _is_plain(value):
            raise Differs(f"its norms or its rotation come after a condition on {'.'.join(path)}")
        return cls(path, value)

    def holds(self, module: torch.nn.Module) -> bool:
        """Return whether a module has the same value there."""
        value = _at(module, self.path)
        return type(value) is type(self.value) and bool(value == self.value)


class Chain(NamedTuple):
    """Where a forward has norms and a rotation.

    `q` and `k` are the names of the norms, `rotary` that of the function, which is called with
    `options`. The norms take "heads" of shape (B, H, T, d) as that does, "tokens" of (B, T, H, d),
    or "all" of (B, T, H * d). It is so under the `conditions`.
    """

    q: str
    k: str
    rotary: str
    options: tuple[tuple[str, Any], ...]
    layout: str
    norm_first: bool
    conditions: tuple[Condition, ...] = ()

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
        tokens = y.view(*y.shape[:2], like.shape[1], like.shape[3])
        return tokens.transpose(1, 2)


def innermost(function: Any) -> Any:
    """Return what decorators are around."""
    return inspect.unwrap(function)


def chain_of(module: torch.nn.Module, inner: Any) -> Chain:
    """Return where a module's forward, without decorators, has norms and a rotation."""
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
    chain = _read(run)
    paths = dict.fromkeys(_conditions(code, chain))
    return chain._replace(conditions=tuple(Condition.of(module, path) for path in paths))


def bound(forward: Any, chain: Chain, rotary: Any) -> Any:
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
        new = types.CellType(bound(inside, chain, rotary))
        cells = tuple(new if cell.cell_contents is inside else cell for cell in cells or ())
        if new not in cells:
            raise Differs("its forward is in a decorator that holds it elsewhere")
    made = types.FunctionType(code, scope, forward.__name__, forward.__defaults__, cells)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


def _conditions(code: types.CodeType, chain: Chain) -> list[tuple[str, ...]]:
    """Return the attributes on which it depends how code comes to all norms and the rotation.

    Refuses what depends on more, and code that uses their names again.
    """
    instructions = [each for each in dis.get_instructions(code) if each.opname != "EXTENDED_ARG"]
    last = 0
    for name in (chain.q, chain.k, chain.rotary):
        loads = [i for i, each in enumerate(instructions) if each.argval == name]
        kind = (
            ("LOAD_GLOBAL", "LOAD_NAME") if name == chain.rotary else ("LOAD_ATTR", "LOAD_METHOD")
        )
        if len(loads) != 1 or instructions[loads[0]].opname not in kind:
            raise Differs(f"its forward names {name} more than once")
        last = max(last, loads[0])
    for each in instructions[last:]:
        last += 1
        if each.opname.startswith("STORE") or each.opname.startswith("RETURN"):
            break
    jumps = {*dis.hasjrel, *dis.hasjabs}
    paths = []
    for i, each in enumerate(instructions[:last]):
        if each.opcode in jumps and each.opname != "JUMP_FORWARD":
            paths.append(_attribute(instructions[:i], code) if "_IF_" in each.opname else ())
    stored = {each.argval for each in instructions if each.opname == "STORE_ATTR"}
    if any(not path or stored & {*path} for path in paths):
        raise Differs("its norms or its rotation come after a condition")
    return paths


def _attribute(before: list[dis.Instruction], code: types.CodeType) -> tuple[str, ...]:
    """Return the path of the attribute that a jump is made by, () where it is by anything else.

    That is ``self.one.other``, true or not, or compared with a constant.
    """
    rest = [each for each in before if each.opname not in ("TO_BOOL", "NOT_TAKEN")]
    if rest and rest[-1].opname in ("IS_OP", "COMPARE_OP"):
        if len(rest) < 2 or rest[-2].opname not in ("LOAD_CONST", "LOAD_SMALL_INT"):
            return ()
        del rest[-2:]
    path: list[str] = []
    while rest and rest[-1].opname == "LOAD_ATTR":
        path.insert(0, rest.pop().argval)
    module = code.co_varnames[0]
    is_stored = any(each.opname == "STORE_FAST" and each.argval == module for each in rest)
    is_of_module = rest and rest[-1].opname in SELF and rest[-1].argval == module
    return tuple(path) if is_of_module and not is_stored else ()


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
            if (
                self.rotated
                or len(args) != 4
                or args[2] is not tables[0]
                or args[3] is not tables[1]
            ):
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
            raise Differs(
                f"its queries or keys are used at {run.watch.used[_storage(tensor)]} beside"
            )
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
            views["all"] = rows.view(*rows.shape[:2], *shape).transpose(1, 2)
    for layout, view in views.items():
        if view.shape == heads.shape and view.stride() == heads.stride():
            return layout
    return ""


def _projection(width: int) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.empty((*x.shape[:-1], width), device="meta")

    return forward


def _at(module: torch.nn.Module, path: tuple[str, ...]) -> Any:
    """Return the attribute at a path, a value that is not plain where there is none."""
    found: Any = module
    for name in path:
        found = getattr(found, name, _at)
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _storage(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
