"""Plans of kernels by the dtypes of their arrays, in the words of a test."""

from cunorm import _plan
from cunorm._families import OPS, ROPE_BWD
from cunorm._plan import tuning


def served(plan, rows=10**6, *, aligned=True):
    """Return what serves so many rows where nobody has tuned anything."""
    device = _plan.Device(plan.arch, multiprocessors=132, name="untuned")
    return tuning.served(plan, device, rows, aligned=aligned)


def rms_norm(cols, x, gamma, *, cast="before", gamma_offset=False, arch=90, residual=None):
    chosen = {"cast": cast, "gamma_offset": gamma_offset}
    return _forward("rms_norm", cols, arch, {"x": x, "gamma": gamma}, residual, chosen)


def layer_norm(cols, x, gamma, beta, *, gamma_offset=False, arch=90, residual=None):
    chosen = {"gamma_offset": gamma_offset}
    dtypes = {"x": x, "gamma": gamma, "beta": beta}
    return _forward("layer_norm", cols, arch, dtypes, residual, chosen)


def add_layer_norm(cols, x, parameter, *, arch=90):
    return layer_norm(cols, x, parameter, parameter, arch=arch, residual=x)


def rms_norm_bwd(cols, x, gamma, *, gamma_offset=False, dresidual=False, arch=90, sums=True):
    return _backward("rms_norm_bwd", cols, arch, x, gamma, dresidual, sums, gamma_offset)


def layer_norm_bwd(cols, x, gamma, *, gamma_offset=False, dresidual=False, arch=90, sums=True):
    return _backward("layer_norm_bwd", cols, arch, x, gamma, dresidual, sums, gamma_offset)


def add_layer_norm_bwd(cols, x, gamma, *, arch=90):
    dtypes = dict.fromkeys(("h", "x", "dy", "dresidual"), x) | {"gamma": gamma, "gate": gamma}
    return _plan.backward(
        OPS["add_layer_norm_bwd"],
        cols,
        tuple(dtypes.items()),
        arch,
        gamma_offset=False,
        scale_offset=False,
    )


def rms_norm_rope_bwd(cols, x, beside, *, head=128, arch=90):
    dtypes = (("x", x), ("dy", x), *((name, beside) for name in ("gamma", "cos", "sin")))
    rotary = _plan.Rotary(head, head, interleaved=False, norm_first=True, back=True)
    return _plan.backward(
        ROPE_BWD, cols, (*dtypes, ("positions", "int64")), arch, gamma_offset=True, rotary=rotary
    )


def _forward(norm, cols, arch, dtypes, residual, chosen):
    dtypes = {"y": dtypes["x"], **dtypes}
    if residual is not None:
        norm = f"add_{norm}"
        dtypes |= {"residual": residual, "residual_out": residual}
    return _plan.forward(OPS[norm], cols, _given(dtypes), arch, **chosen)


def _backward(op, cols, arch, x, gamma, dresidual, sums, gamma_offset):
    dtypes = {"x": x, "dy": x, "dresidual": x if dresidual else None, "gamma": gamma}
    return _plan.backward(OPS[op], cols, _given(dtypes), arch, sums=sums, gamma_offset=gamma_offset)


def _given(dtypes):
    return tuple((name, dtype) for name, dtype in dtypes.items() if dtype is not None)
