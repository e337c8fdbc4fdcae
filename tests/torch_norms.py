"""What the tests of `cunorm.torch` share: arguments of its ops, and their definition by PyTorch."""

import torch
from arrays import random, to_torch

import cunorm.torch
from cunorm import _families
from cunorm._families import ADDED, LOADED, PLAIN, RMS_NORM

OPS = [op.name for op in PLAIN if op.source in (LOADED, ADDED)]


def names(op):
    """Return the names of an op's tensors in their order."""
    return (*_families.OPS[op].reads, *_families.OPS[op].parameters)


def arguments(op, shape, dtype, *, put=lambda tensor: tensor, grad=True, seed=0, **dtypes):
    """Return an op's tensors in their order.

    `dtypes` are those that differ from `dtype`, by name; None leaves a parameter out.
    """
    tensors = []
    for i, name in enumerate(names(op)):
        own = dtypes.get(name, dtype)
        extent = shape[-1:] if name in _families.OPS[op].parameters else shape
        array = None if own is None else random(extent, own, seed=seed + i)
        tensors.append(None if own is None else put(to_torch(array).requires_grad_(grad)))
    return tensors


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def call(op, tensors, **options):
    """Return the outputs of an op as a tuple."""
    return as_tuple(getattr(cunorm.torch, op)(*tensors, **options))


def every(op, in_place=False, **given):
    """Return all that an operator takes: what is given, and else the defaults."""
    own = _families.OPS[op]
    arguments = own.of_tensors_in_place if in_place else own.of_tensors
    return [given.get(a.name, getattr(a, "default", None)) for a in arguments]


def beside(op, in_place=False, **given):
    """Return what an operator takes after its tensors."""
    return every(op, in_place, **given)[len(names(op)) :]


def operator(op, tensors, **given):
    """Return the outputs of an operator, statistics and all."""
    return as_tuple(getattr(torch.ops.cunorm, op)(*tensors, *beside(op, **given)))


def definition(op, tensors, gamma_offset=0.0):
    """Return the outputs of an op as defined, by PyTorch's own operators."""
    given = dict(zip(names(op), tensors, strict=True))
    gamma, beta = given["gamma"], given.get("beta")
    h = given["x"] + given["residual"] if "residual" in given else given["x"]
    leader = beta if gamma is None else gamma
    axes = (-1,) if leader is None else tuple(range(-leader.ndim, 0))
    if _families.OPS[op].family is RMS_NORM:
        y = h * (h.square().mean(axes, keepdim=True) + 1e-6).rsqrt()
        y = y if gamma is None else y * (gamma + gamma_offset)
    else:
        gamma = None if gamma is None else gamma + gamma_offset
        shape = [h.shape[axis] for axis in axes]
        y = torch.nn.functional.layer_norm(h, shape, gamma, beta, 1e-5)
    return (y, h) if "residual" in given else (y,)
