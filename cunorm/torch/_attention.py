"""What is known of an attention: that queries and keys are normalised and rotated, and how.

Its code is run with three names bound anew: both norms hand on what they are given, and the
rotation is that and both norms in one call. So cache, masks, attention backends and all else that
the forward has, in this version of its library or in the next, remain what they are, which a
forward of our own would have to follow.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ._chain import Chain, bound, chain_of, innermost
from ._known import Known, known
from ._plan import Plan, tensor_of
from ._rope import qk_norm_rope
from ._rotation import Rotation, rotation
from ._swapped import bound_forward
from ._values import Differs, name_of

KNOWN = "_cunorm_known"


@dataclass(frozen=True, eq=False)
class Attention:
    """What is known of an attention: its chain, what its rotation does, and norms of which classes.

    It holds while the class has this `forward`, and that finds what it found by these names: the
    `function` that rotates, and all functions and classes of its module that it uses; and while the
    chain's conditions do.
    """

    chain: Chain
    norms: tuple[Known, Known]
    classes: tuple[type, type]
    rotation: Rotation
    forward: Callable[..., Any]
    function: Callable[..., Any]
    uses: tuple[tuple[str, Any], ...]

    def holds(self, cls: Any, module: torch.nn.Module) -> bool:
        """Return whether the forward of a module's class is known, and goes the way it went."""
        scope = innermost(self.forward).__globals__
        return (
            cls.forward is self.forward
            and all(scope.get(n) is used for n, used in self.uses)
            and all(condition.holds(module) for condition in self.chain.conditions)
        )

    def call(self, module: torch.nn.Module) -> Callable[..., Any]:
        """Return the forward of a module, with its norms and its rotation in one call."""
        own: Callable[..., Any] = bound(self.forward, self.chain, OneCall(self, module).__call__)
        return own

    def reason(self, module: torch.nn.Module, of_tables: set[Any]) -> str:
        """Return why nothing of it is one call in the dtype of the norms' weights, "" if it is."""
        names = (self.chain.q, self.chain.k)
        parameters = [p for name in names for p in getattr(module, name).parameters()]
        dtypes = dict.fromkeys(p.dtype for p in parameters)
        if len(dtypes) > 1:
            return f"its norms' weights are {' and '.join(map(name_of, dtypes))}"
        device = "cuda" if any(p.is_cuda for p in parameters) else "cpu"
        dtype = next(iter(dtypes), torch.float32)
        key = (device, None, dtype, *dtypes)
        plans = [n.plans.get(key) or n.reasons.get(key, "not known") for n in self.norms]
        for plan in plans:
            why = plan if isinstance(plan, str) else _obstacle(plan)
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
        plans = self._plans(norms, (q, k), cos, sin)
        if not plans or tuple(options.items()) != chain.options:
            return self._steps(norms, (q, k), cos, sin, options)
        plan = plans[0]
        half = cos.shape[-1] // 2
        weights = [_weight(norm, own) for norm, own in zip(norms, plans, strict=True)]
        q, k = qk_norm_rope(
            q.transpose(1, 2),
            k.transpose(1, 2),
            weights[0],
            weights[1],
            cos[..., :half],
            sin[..., :half],
            eps=plan.eps_of(norms[0]),
            interleaved=self.found.rotation.interleaved,
            norm_first=chain.norm_first,
            across_heads=chain.layout == "all",
            gamma_offset=plan.offset,
            cast="between" if plan.cast == "after" else "before",
        )
        return q.transpose(1, 2), k.transpose(1, 2)

    def _plans(self, norms: Any, heads: Any, cos: torch.Tensor, sin: torch.Tensor) -> list[Plan]:
        """Return how each norm is computed, nothing where one call does not compute both."""
        chain = self.found.chain
        if cos.ndim != 3 or cos.requires_grad or sin.requires_grad or cos.dtype != sin.dtype:
            return []
        plans = []
        of = zip(norms, self.found.norms, self.found.classes, heads, strict=True)
        for norm, known_norm, cls, x in of:
            if x.ndim != 4 or not self.found.rotation.takes(x, cos):
                return []
            if _original(norm) is not cls or not is_called_alone(norm):
                return []
            plan = known_norm.find(norm, chain.given_to_norm(x))
            if plan is None or _obstacle(plan):
                return []
            plans.append(plan)
        first, second = plans
        same = _options(first, norms[0]) == _options(second, norms[1])
        return plans if same else []

    def _steps(
        self, norms: Any, heads: Any, cos: torch.Tensor, sin: torch.Tensor, options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the original does, step by step."""
        chain = self.found.chain

        def normalised(heads: Any) -> Any:
            pairs = zip(norms, heads, strict=True)
            return [chain.heads_of(norm(chain.given_to_norm(x)), x) for norm, x in pairs]

        if chain.norm_first:
            q, k = self.found.function(*normalised(heads), cos, sin, **options)
        else:
            q, k = normalised(self.found.function(*heads, cos, sin, **options))
        return q, k


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
        name: child
        for name, child in module._modules.items()
        if child is not None and "norm" in name
    }
    if not names or len(norms) < 2:
        return None
    try:
        return _learnt(module, forward)
    except Differs as differs:
        return str(differs)


def _learnt(module: torch.nn.Module, forward: Any) -> Attention:
    inner = innermost(forward)
    chain = chain_of(module, inner)
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
    uses = tuple(
        (name, inner.__globals__[name])
        for name in inner.__code__.co_names
        if isinstance(inner.__globals__.get(name), (types.FunctionType, type))
    )
    return Attention(
        chain, (norms[0], norms[1]), (classes[0], classes[1]), rotated, forward, function, uses
    )


def _obstacle(plan: Plan) -> str:
    """Return why a norm is not that of `qk_norm_rope`, "" where it is."""
    own = Plan(False, None, plan.gamma, plan.offset, None, plan.cast, plan.eps)
    if plan != own:
        return "its norms are more than an RMSNorm with a weight"
    return ""


def is_called_alone(norm: torch.nn.Module) -> bool:
    """Return whether to call a norm is to call its forward: no hook would be passed over."""
    hooks = (
        norm._forward_hooks,
        norm._forward_pre_hooks,
        norm._backward_hooks,
        norm._backward_pre_hooks,
    )
    return not any(hooks) and ("forward" not in vars(norm) or _only_aligns(norm))


def _only_aligns(norm: torch.nn.Module) -> bool:
    """Return whether a hook of accelerate's does no more than take inputs to the weight's device.

    That is what a model whose layers are on several devices has around each module. Where weights
    are offloaded, the hook also fetches them.
    """
    hook: Any = vars(norm).get("_hf_hook")
    return (
        type(hook).__module__ == "accelerate.hooks"
        and type(hook).__name__ == "AlignDevicesHook"
        and not hook.offload
        and bound_forward(norm) == "_old_forward"
    )


def _original(norm: torch.nn.Module) -> type:
    """Return the class of a norm before it was swapped."""
    cls: type = vars(type(norm)).get("_cunorm_original", type(norm))
    return cls


def _options(plan: Plan, norm: torch.nn.Module) -> tuple[Any, ...]:
    """Return what a call has once for both norms."""
    return plan.eps_of(norm), plan.offset, plan.gamma is None, plan.cast


def _weight(norm: Any, plan: Plan) -> torch.Tensor | None:
    return None if plan.gamma is None else tensor_of(norm, plan.gamma)
