"""Rows that lie any way that up to three strided levels can say: no copy, and the same bits."""

from __future__ import annotations

from itertools import product

import cupy
import numpy as np
import pytest
from arrays import bits, random
from kinds import these

import cunorm

OPS = {
    "rms_norm_fwd": lambda x, gamma, beta: cunorm.rms_norm_fwd(x, gamma),
    "layer_norm_fwd": lambda x, gamma, beta: cunorm.layer_norm_fwd(x, gamma, beta),
    "add_rms_norm": lambda x, gamma, beta: cunorm.add_rms_norm(x, x, gamma),
    "add_layer_norm": lambda x, gamma, beta: cunorm.add_layer_norm(x, x, gamma, beta),
}
# Each takes a (6, 4, 5, cols) array apart without moving anything.
VIEWS = {
    "heads of a packed qkv": lambda a: a[:, 1:3],
    "every other token": lambda a: a[::2, :, 0],
    "transposed leading axes": lambda a: a.transpose(1, 0, 2, 3),
    "transposed and sliced": lambda a: a.transpose(2, 1, 0, 3)[1:, ::3],
    "reversed": lambda a: a[::-1],
    "reversed and sliced": lambda a: a[::-2, :, ::-1],
    "half of each row": lambda a: a[..., : a.shape[-1] // 2],
    "the other half of each row": lambda a: a[..., a.shape[-1] // 2 :],
    "one row": lambda a: a[3, 2, 1],
    "broadcast rows": lambda a: cupy.broadcast_to(a[0, :1], (3, 4, *a.shape[2:])),
}


def of_one_op():
    """Yield each view with one of the ops, of rows within a warp, and some of longer ones."""
    for i, view in enumerate(VIEWS):
        op = list(OPS)[i % 4]
        yield op, view, 96
        if i % 3 == 0:
            yield op, view, 1536
        elif i % 3 == 1:
            yield op, view, 258


@these(
    "op,view,cols",
    [*of_one_op()],
    list(product(OPS, VIEWS, [96, 258, 1536])),
    "each view with the other ops",
)
def test_a_strided_view_has_the_bits_of_its_copy_and_is_not_copied(op, view, cols, monkeypatch):
    x = VIEWS[view](cupy.asarray(random((6, 4, 5, cols), "float16")))
    gamma, beta = (cupy.asarray(random(x.shape[-1], "float16", seed=seed)) for seed in (1, 2))
    expected = [bits(output) for output in OPS[op](x.copy(), gamma, beta)]

    def no_copy(a):
        if not a.flags.c_contiguous:
            raise AssertionError("copied")
        return a

    monkeypatch.setattr(cupy, "ascontiguousarray", no_copy)
    assert [bits(output) for output in OPS[op](x, gamma, beta)] == expected


@pytest.mark.parametrize("op", OPS)
def test_what_four_levels_or_strided_columns_take_is_copied_and_comes_out_the_same(op, monkeypatch):
    a = cupy.asarray(random((3, 4, 5, 16, 32), "float32"))
    gamma, beta = (cupy.asarray(random(16, "float32", seed=seed)) for seed in (1, 2))
    copied = []
    contiguous = cupy.ascontiguousarray
    monkeypatch.setattr(cupy, "ascontiguousarray", lambda a: copied.append(a) or contiguous(a))
    for x in (a[::2, ::2, ::2, ::2, :16], a[..., ::2], a.swapaxes(3, 4)):
        expected = [bits(output) for output in OPS[op](x.copy(), gamma, beta)]
        copied.clear()
        assert [bits(output) for output in OPS[op](x, gamma, beta)] == expected
        assert any(each is x for each in copied)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_out_may_lie_any_way_that_x_may(dtype):
    x = random((4, 3, 768), dtype)
    expected = bits(cunorm.rms_norm(cupy.asarray(x)))
    for out in (
        cupy.empty((4, 6, 768), dtype)[:, ::2],
        cupy.empty((3, 4, 768), dtype).transpose(1, 0, 2),
        cupy.empty((4, 3, 769), dtype)[..., 1:],
        cupy.empty((4, 3, 1536), dtype)[..., ::2],
        cupy.empty((5, 3, 768), dtype)[:0:-1],
    ):
        assert cunorm.rms_norm(cupy.asarray(x), out=out) is out
        assert bits(np.ascontiguousarray(out.get())) == expected
