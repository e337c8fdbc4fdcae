"""What each system does for a case: a function of one set of arrays, or None without the op.

Whoever takes part is imported only when asked for, and need not be there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from cunorm._bench import cases, times
from cunorm._bench.times import LAYER_EPS, RMS_EPS

from .cases import Case
from .given import Given
from .session import DRY

Call = Callable[[Given], Any]
Formula = Callable[..., Any]


def by_cunorm(case: Case) -> Call:
    """Return the public op, with what it writes given."""
    return lambda g: cases.call(case, g.arrays)


def formula(case: Case) -> Formula:
    """Return the call as one writes it in PyTorch, of the tensors in their order."""
    n = (case.cols,)

    def rms_norm(x: Any, gamma: Any) -> Any:
        return functional.rms_norm(x, n, gamma, RMS_EPS)

    def layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
        return functional.layer_norm(x, n, gamma, beta, LAYER_EPS)

    def add_rms_norm(x: Any, residual: Any, gamma: Any) -> Any:
        h = x + residual
        return rms_norm(h, gamma), h

    def add_layer_norm(x: Any, residual: Any, gamma: Any, beta: Any) -> Any:
        h = x + residual
        return layer_norm(h, gamma, beta), h

    def rms_norm_bwd(dy: Any, x: Any, gamma: Any, rstd: Any) -> Any:
        n = x.float() * rstd[:, None]
        g = dy.float() * gamma.float()
        dx = rstd[:, None] * (g - n * (g * n).mean(-1, keepdim=True))
        return dx.to(x.dtype), (dy.float() * n).sum(0).to(gamma.dtype)

    def layer_norm_bwd(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any) -> Any:
        n = (x.float() - mean[:, None]) * rstd[:, None]
        g = dy.float() * gamma.float()
        dx = rstd[:, None] * (g - n * (g * n).mean(-1, keepdim=True) - g.mean(-1, keepdim=True))
        totals = (dy.float() * n).sum(0), dy.float().sum(0)
        return dx.to(x.dtype), *(total.to(gamma.dtype) for total in totals)

    found: Formula = locals()[case.op]
    return found


def arguments(case: Case, g: Given) -> tuple[torch.Tensor, ...]:
    """Return the tensors that `formula` takes, in its order."""
    if case.is_backward:
        return (g.dy, g.x, g.gamma, *((g.mean,) if case.is_layer_norm else ()), g.rstd)
    residual = (g.residual,) if "residual" in case.names else ()
    return (g.x, *residual, *(getattr(g, name) for name in case.parameters))


def by_torch(case: Case) -> Call | None:
    """Return PyTorch's own, which one kernel computes where it has one."""
    n = [case.cols]
    aten = torch.ops.aten
    if case.op == "layer_norm_bwd":
        return lambda g: aten.native_layer_norm_backward(
            *(g.dy, g.x, n, g.mean[:, None], g.rstd[:, None], g.gamma, g.beta, [True] * 3)
        )
    if case.op == "rms_norm_bwd":
        if DRY:
            return None  # it is there on CUDA alone
        return lambda g: aten._fused_rms_norm_backward(
            *(g.dy, g.x, n, g.rstd[:, None], g.gamma, [True] * 2)
        )
    function = formula(case)
    return lambda g: function(*arguments(case, g))


def by_compile(case: Case) -> Call:
    """Return PyTorch's compiler's; in a dry run without the C++ that it writes for a CPU."""
    torch._dynamo.reset()
    backend = "aot_eager" if DRY else "inductor"
    compiled = torch.compile(formula(case), fullgraph=True, dynamic=False, backend=backend)
    return lambda g: compiled(*arguments(case, g))


def by_liger(case: Case) -> Call | None:
    """Return Liger's Triton kernel."""
    if case.op == "layer_norm":
        from liger_kernel.ops.layer_norm import layer_norm_forward

        return lambda g: layer_norm_forward(g.x, g.gamma, g.beta, LAYER_EPS)[0]
    if case.op == "rms_norm":
        from liger_kernel.ops.rms_norm import rms_norm_forward

        return lambda g: rms_norm_forward(g.x, g.gamma, RMS_EPS, 0.0, "llama", False)[0]
    if case.op == "add_rms_norm":
        from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward

        return lambda g: fused_add_rms_norm_forward(
            *(g.x, g.residual, g.gamma, RMS_EPS, 0.0, "llama")
        )[:2]
    if case.op == "rms_norm_bwd":
        from liger_kernel.ops.rms_norm import rms_norm_backward
        from liger_kernel.ops.utils import calculate_settings

        settings = calculate_settings(case.cols)
        return lambda g: rms_norm_backward(
            *(g.dy, g.x, g.gamma, g.rstd, 0.0, 0, *settings, False, False)
        )[:2]
    if case.op == "layer_norm_bwd":
        from liger_kernel.ops.layer_norm import layer_norm_backward

        return lambda g: layer_norm_backward(g.dy, g.x, g.gamma, g.beta, g.mean, g.rstd)
    return None


def by_quack(case: Case) -> Call | None:
    """Return quack's CuTe DSL kernel."""
    from quack.rmsnorm import layernorm_fwd, rmsnorm_bwd, rmsnorm_fwd

    if case.op == "rms_norm":
        return lambda g: rmsnorm_fwd(g.x, g.gamma, eps=RMS_EPS)[0]
    if case.op == "add_rms_norm":
        return lambda g: rmsnorm_fwd(g.x, g.gamma, residual=g.residual, eps=RMS_EPS)[:2]
    if case.op == "rms_norm_bwd":
        return lambda g: rmsnorm_bwd(g.x, g.gamma, g.dy, g.rstd)[:2]
    if case.op == "layer_norm":  # its parameters must be float32
        wide: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def layer_norm(g: Given) -> Any:
            if id(g) not in wide:
                wide[id(g)] = (g.gamma.float(), g.beta.float())
            return layernorm_fwd(g.x, *wide[id(g)], eps=LAYER_EPS)

        return layer_norm
    return None


def by_fuse(case: Case) -> Call:
    """Return `cupy.fuse`, as `python -m cunorm bench` has it."""
    return lambda g: times.fused(case, g.arrays)


SYSTEMS: dict[str, Callable[[Case], Call | None]] = {
    "cunorm": by_cunorm,
    "torch": by_torch,
    "compile": by_compile,
    "liger": by_liger,
    "quack": by_quack,
    "fuse": by_fuse,
}
PACKAGES = {"liger": "liger_kernel", "quack": "quack"}  # that need not be there
