"""What each system does for a case. Whoever takes part need not be there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .._quant import LARGEST
from . import cases, expressions
from .cases import Case
from .expressions import LAYER_EPS, RMS_EPS, composed, rotated
from .systems import Bind, Given, System
from .timing import Launch

COMPILER = "inductor"


def _by_cunorm(case: Case) -> Bind:
    return lambda given: partial(cases.call, case, given)


def _by_cupy(case: Case) -> Bind | None:
    if case.quant not in (None, "int8_row"):  # it has no floats of 8 bits
        return None
    return lambda given: partial(expressions.expressed, case, given)


def _by_fuse(case: Case) -> Bind | None:
    if case.dtype == "bfloat16" or case.is_backward or case.is_of_heads or case.quant:
        return None
    return lambda given: partial(expressions.fused, case, given)


def _by_torch(case: Case) -> Bind | None:
    """Call eager PyTorch, which has one kernel for a norm, and for most of its backward pass."""
    import torch

    aten, shape = torch.ops.aten, [case.cols]

    def layer_norm_bwd(g: Given) -> Launch:
        statistics = (g["mean"][:, None], g["rstd"][:, None])
        beta = torch.zeros_like(g["gamma"])
        take = (g["dy"], g["x"], shape, *statistics, g["gamma"], beta, [True] * 3)
        return partial(aten.native_layer_norm_backward, *take)

    def rms_norm_bwd(g: Given) -> Launch:
        take = (g["dy"], g["x"], shape, g["rstd"][:, None], g["gamma"], [True] * 2)
        return partial(aten._fused_rms_norm_backward, *take)

    if not _is_written(case):
        return None
    if not case.is_backward:
        return lambda g: partial(_formula(case), g)
    return layer_norm_bwd if case.is_layer_norm else rms_norm_bwd


def _is_written(case: Case) -> bool:
    """Return whether the formula is written down: of codes that of scales for a row alone."""
    return case.quant in (None, "fp8_row", "int8_row")


def _by_compiler(case: Case) -> Bind | None:
    """Call what PyTorch's compiler makes of the formula."""
    import torch

    if not _is_written(case):
        return None
    torch._dynamo.reset()
    compiled = torch.compile(_formula(case), fullgraph=True, dynamic=False, backend=COMPILER)
    return lambda g: partial(compiled, dict(g))


def _formula(case: Case) -> Callable[[Any], Any]:
    """Return an op as one writes it in PyTorch, of tensors by name."""
    import torch
    from torch.nn import functional

    shape, is_layer_norm = (case.cols,), case.is_layer_norm

    def norm(_: Case, h: Any, gamma: Any, beta: Any) -> Any:
        if is_layer_norm:
            return functional.layer_norm(h, shape, gamma, beta, LAYER_EPS)
        return functional.rms_norm(h, shape, gamma, RMS_EPS)

    def gated(y: Any, gate: Any) -> Any:
        return y * functional.silu(gate)

    def backward(g: Any) -> Any:
        dy, rstd = g["dy"].float(), g["rstd"][:, None]
        n = (g["x"].float() - g["mean"][:, None] if is_layer_norm else g["x"].float()) * rstd
        weighted = dy * g["gamma"].float()
        inner = weighted - n * (weighted * n).mean(-1, keepdim=True)
        if is_layer_norm:
            inner = inner - weighted.mean(-1, keepdim=True)
        sums = ((dy * n).sum(0), *((dy.sum(0),) if is_layer_norm else ()))
        return (rstd * inner).to(g["x"].dtype), *(each.to(g["gamma"].dtype) for each in sums)

    if case.is_of_heads:
        return rotated(case, norm, torch.cat)
    forward = composed(case, norm, gated)
    scheme = case.scheme
    if scheme is None:
        return backward if case.is_backward else forward
    is_int8 = scheme.format == "int8"
    most, dtype = LARGEST[scheme.format], torch.int8 if is_int8 else torch.float8_e4m3fn

    def quantised(g: Any) -> Any:
        made = forward(g)
        y, *h = made if isinstance(made, tuple) else (made,)
        y = y.float()
        scale = (y.abs().amax(-1, keepdim=True) / most).clamp_min(scheme.minimum)
        q = (y / scale).clamp(-most, most)
        return ((q.round() if is_int8 else q).to(dtype), scale, *h)

    return quantised


def _by_liger(case: Case) -> Bind | None:
    """Call Liger's Triton kernels."""
    if case.op == "rms_norm":
        from liger_kernel.ops.rms_norm import rms_norm_forward

        return lambda g: (
            lambda: rms_norm_forward(*(g["x"], g["gamma"], RMS_EPS, 0.0, "llama", False))[0]
        )
    if case.op == "layer_norm":
        from liger_kernel.ops.layer_norm import layer_norm_forward

        return lambda g: lambda: layer_norm_forward(g["x"], g["gamma"], g["beta"], LAYER_EPS)[0]
    if case.op == "add_rms_norm":
        from liger_kernel.ops.fused_add_rms_norm import fused_add_rms_norm_forward

        return lambda g: (
            lambda: fused_add_rms_norm_forward(
                *(g["x"], g["residual"], g["gamma"], RMS_EPS, 0.0, "llama")
            )[:2]
        )
    if case.op == "rms_norm_bwd":
        from liger_kernel.ops.rms_norm import rms_norm_backward
        from liger_kernel.ops.utils import calculate_settings

        settings = (0.0, 0, *calculate_settings(case.cols), False, False)
        return lambda g: (
            lambda: rms_norm_backward(*(g["dy"], g["x"], g["gamma"], g["rstd"], *settings))[:2]
        )
    if case.op == "layer_norm_bwd":
        from liger_kernel.ops.layer_norm import layer_norm_backward

        return lambda g: partial(  # of beta it asks the dtype alone
            layer_norm_backward, *(g[n] for n in ("dy", "x", "gamma", "gamma", "mean", "rstd"))
        )
    return None


def _by_quack(case: Case) -> Bind | None:
    """Call quack's kernels, written in the CuTe DSL."""
    from quack.rmsnorm import layernorm_fwd, rmsnorm_bwd, rmsnorm_fwd

    def layer_norm(g: Given) -> Launch:
        parameters = (g["gamma"].float(), g["beta"].float())  # it takes no others
        return partial(layernorm_fwd, g["x"], *parameters, eps=LAYER_EPS)

    calls: dict[str, Bind] = {
        "rms_norm": lambda g: lambda: rmsnorm_fwd(g["x"], g["gamma"], eps=RMS_EPS)[0],
        "add_rms_norm": lambda g: (
            lambda: rmsnorm_fwd(g["x"], g["gamma"], residual=g["residual"], eps=RMS_EPS)[:2]
        ),
        "rms_norm_bwd": lambda g: lambda: rmsnorm_bwd(g["x"], g["gamma"], g["dy"], g["rstd"])[:2],
        "layer_norm": layer_norm,
    }
    return calls.get(case.op)


def _by_flashinfer(case: Case) -> Bind | None:
    """Call FlashInfer's kernels, of serving; a sum is written over its inputs, here copies."""
    from flashinfer import norm

    def add_rms_norm(g: Given) -> Launch:
        x, residual = g["x"].clone(), g["residual"].clone()

        def launch() -> Any:
            norm.fused_add_rmsnorm(x, residual, g["gamma"], RMS_EPS)
            return x, residual

        return launch

    def layer_norm(g: Given) -> Launch:
        parameters = (g["gamma"].float(), g["beta"].float())  # it takes no others
        return partial(norm.layernorm, g["x"], *parameters, LAYER_EPS)

    calls: dict[str, Bind] = {
        "rms_norm": lambda g: partial(norm.rmsnorm, g["x"], g["gamma"], RMS_EPS, out=g["y"]),
        "add_rms_norm": add_rms_norm,
        "layer_norm": layer_norm,
    }
    if case.op in calls and case.offset:  # a fault would end the process
        raise ValueError("takes rows that start on 16 bytes")
    return calls.get(case.op)


CUNORM = System("cunorm", ("cunorm",), _by_cunorm, of_tensors=False)
OTHERS = {
    system.name: system
    for system in (
        System("cupy", ("cupy",), _by_cupy, of_tensors=False),
        System("fuse", ("cupy",), _by_fuse, of_tensors=False),
        System("torch", ("torch",), _by_torch),
        System("compile", ("torch", "triton"), _by_compiler),
        System("liger", ("liger_kernel", "triton"), _by_liger),
        System("quack", ("quack", "cutlass"), _by_quack),
        System("flashinfer", ("flashinfer",), _by_flashinfer),
    )
}
