"""Heads that are normalised and rotated: the bits of the norm and of NumPy's operators."""

import cupy
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import assert_matches, bits, random, to_numpy, to_torch
from kinds import covering, these
from test_modulated import operate

import cunorm
from cunorm import _reference, simgpu
from cunorm._call import remembered
from cunorm._reference import DTYPES
from cunorm._selfcheck.layouts import GUARD, around, place

PAIRS = [
    *(("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")),
    *(("float16", "bfloat16"), ("float32", "float32"), ("float32", "bfloat16")),
    *(("float64", "float64"), ("float64", "float32")),
]
TOKENS, TABLE = (2, 3), 11  # rows of a table, more than there are tokens
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def tables(shape, dtype, seed=7):
    """Return cosines and sines of random angles."""
    angles = np.random.default_rng(seed).uniform(-4, 4, shape)
    return np.cos(angles).astype(DTYPES[dtype]), np.sin(angles).astype(DTYPES[dtype])


def rotated(n, cos, sin, interleaved, rounds=True):
    """Return n with its first columns rotated, each operator's result rounded; or none of them."""
    act = operate if rounds else (lambda operator, a, b: operator(a, b))
    cos, sin = (a if rounds else a.astype(n.dtype) for a in (cos, sin))
    count = 2 * cos.shape[-1]
    pairs = (slice(0, count, 2), slice(1, count, 2))
    if not interleaved:
        pairs = (slice(0, count // 2), slice(count // 2, count))
    a, b = (n[..., pair] for pair in pairs)
    first = act(np.subtract, act(np.multiply, a, cos), act(np.multiply, b, sin))
    second = act(np.add, act(np.multiply, b, cos), act(np.multiply, a, sin))
    y = n.astype(first.dtype)
    y[..., pairs[0]], y[..., pairs[1]] = first, second
    return y


def normalised(x, gamma, across, once):
    """Return the norm of heads, in x's dtype; `once`: with no rounding, in the accumulator's."""
    rows = x.reshape(*x.shape[:-2], -1) if across else x
    if not once:
        if gamma is None or gamma.ndim == 1:
            n = cunorm.rms_norm(cupy.asarray(rows), gamma if gamma is None else cupy.asarray(gamma))
        else:
            n = cunorm.rms_norm(cupy.asarray(rows), scale=cupy.asarray(gamma), scale_offset=0.0)
        return n.get().reshape(x.shape)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    rstd = cunorm.rms_norm_fwd(cupy.asarray(rows))[1].get()[..., None]
    n = rows.astype(wide) * rstd
    return (n if gamma is None else n * gamma.astype(wide)).reshape(x.shape)


def composed(x, gamma, cos, sin, *, interleaved=False, first=True, across=False, once=False):
    """Return the parts of an op one after the other; cos and sin have a row for each token."""
    angles = (cos[..., None, :], sin[..., None, :])
    if first:
        y = rotated(normalised(x, gamma, across, once), *angles, interleaved, not once)
    else:
        wide = np.float64 if x.dtype == np.float64 else np.float32
        v = rotated(x.astype(wide) if once else x, *angles, interleaved, not once)
        y = normalised(v, gamma, across, once)
    return y.astype(x.dtype)


def laid_out(a, layout):
    """Return heads on the device: packed with others, with tokens innermost, off 16 bytes."""
    if layout == "a slice of a projection":
        packed = np.zeros((*a.shape[:-2], 2 * a.shape[-2] + 1, a.shape[-1]), a.dtype)
        packed[..., 1 : a.shape[-2] + 1, :] = a
        return cupy.asarray(packed)[..., 1 : a.shape[-2] + 1, :]
    if layout == "heads before tokens":
        return cupy.asarray(np.ascontiguousarray(a.swapaxes(-2, -3))).swapaxes(-2, -3)
    return place(a, layout)[1]


ROPE = {
    "cols": [64, 80, 96, 128, 192, 256, 512],
    "share": [1, 2, 4],  # of the columns, one in so many is rotated
    "interleaved": [False, True],
    "dtypes": PAIRS,
    "positions": [None, "a row a token", *INTEGERS],
    "layout": ["contiguous", "a slice of a projection", "heads before tokens", "base + 1 element"],
    "first": [True, False],
    "heads": ["each", "a weight each", "across", "no weight"],
    "once": [False, True],
}
# Rows that are no whole packets, or whose halves are none; 770 of 16 bits compile in up to 7 s.
ODD = {"cols": [2, 6, 34, 66, 100, 130, 258, 770]}


def always():
    """Yield points of which each pair occurs, but for those that take seconds."""
    few = {
        "cols": [64, 80, 96, 256],
        "share": [1, 2],
        "positions": [None, "a row a token", "int32"],
    }
    yield from covering((ROPE | few).values(), "heads")
    narrow = {"cols": [6, 34, 100], "layout": ROPE["layout"][:3], "dtypes": PAIRS[:3]}
    yield from covering((ROPE | few | narrow).values(), "odd heads")
    yield 770, 1, False, PAIRS[4], "int16", "contiguous", True, "each", False


EVERY_OTHER = list(always())


@these(
    ",".join(ROPE),
    EVERY_OTHER[::2],
    [
        *EVERY_OTHER[1::2],
        *covering((ROPE | {"cols": ROPE["cols"] + ODD["cols"]}).values(), "all heads"),
    ],
    "every integer, and rows that start anywhere, which compile in up to 7 s",
)
def test_rotated_heads_have_the_bits_of_their_parts(
    cols, share, interleaved, dtypes, positions, layout, first, heads, once
):
    dtype, of_angles = dtypes
    x = random((*TOKENS, 3, cols), dtype, scale=2)
    across = heads == "across"
    weights = {
        "each": (cols,),
        "a weight each": (3, cols),
        "across": (3 * cols,),
        "no weight": None,
    }
    shape = weights[heads]
    gamma = None if shape is None else random(shape, dtype, seed=3, scale=0.3, shift=1)
    pairs = max(1, cols // 2 // share)
    given = {}
    if positions == "a row a token":
        cos, sin = of_token = tables((*TOKENS, pairs), of_angles)
    else:
        cos, sin = tables((TABLE, pairs), of_angles)
        rows = np.arange(3)
        if positions is not None:
            rows = np.random.default_rng(0).integers(0, TABLE, TOKENS).astype(positions)
            given["positions"] = cupy.asarray(rows)
        of_token = cos[rows], sin[rows]
    options = {"interleaved": interleaved, "across": across, "first": first, "once": once}
    expected = composed(x, gamma, *of_token, **options)
    y = cunorm.rms_norm_rope(
        laid_out(x, layout),
        None if gamma is None else cupy.asarray(gamma),
        *map(cupy.asarray, (cos, sin)),
        **given,
        interleaved=interleaved,
        norm_first=first,
        across_heads=across,
        cast="after" if once else "before",
    )
    assert y.dtype == x.dtype
    assert bits(y) == bits(expected)


def a_layer(*, q_heads=4, k_heads=2, cols=64, dtype="bfloat16", of_angles="bfloat16", tokens=(5,)):
    """Return q and k as slices of a projection, their weights, tables and positions."""
    projection = cupy.asarray(random((*tokens, q_heads + 2 * k_heads, cols), dtype, scale=2))
    q, k = projection[..., :q_heads, :], projection[..., q_heads : q_heads + k_heads, :]
    gammas = [cupy.asarray(random(cols, dtype, seed=i, scale=0.3, shift=1)) for i in (1, 2)]
    cos, sin = map(cupy.asarray, tables((TABLE, cols // 2), of_angles))
    positions = cupy.asarray(np.random.default_rng(1).integers(0, TABLE, tokens))
    return projection, (q, k, *gammas, cos, sin, positions)


QK = {
    "heads": [(4, 2), (8, 1), (3, 3), (1, 4)],
    "cols": [64, 96, 128],
    "dtype": ["bfloat16", "float32"],
    "of_angles": ["bfloat16", "float32"],
    "interleaved": [False, True],
    "first": [True, False],
    "across": [False, True],
}
LONGER = {"cols": [34, 770, 4096], "dtype": ["float16", "bfloat16", "float32", "float64"]}


@these(
    ",".join(QK),
    list(covering(QK.values(), "q and k")),
    list(covering((QK | LONGER).values(), "all q and k")),
    "longer heads, and those that start anywhere, which compile in seconds",
)
def test_q_and_k_have_the_bits_of_one_at_a_time(
    heads, cols, dtype, of_angles, interleaved, first, across
):
    if dtype == "float64":
        of_angles = "float32"
    layer = {"q_heads": heads[0], "k_heads": heads[1], "cols": cols, "dtype": dtype}
    _, (q, k, *gammas, cos, sin, positions) = a_layer(**layer, of_angles=of_angles)
    if across:
        gammas = [cupy.tile(g, n) for g, n in zip(gammas, heads, strict=True)]
    options = {"interleaved": interleaved, "norm_first": first, "across_heads": across}
    given = (cos, sin, positions)
    expected = [
        cunorm.rms_norm_rope(x, gamma, *given, **options)
        for x, gamma in zip((q, k), gammas, strict=True)
    ]
    made = cunorm.qk_norm_rope(q, k, *gammas, *given, **options)
    assert [bits(a) for a in made] == [bits(a) for a in expected]


def test_q_and_k_may_differ_in_dtype_and_weights():
    _, (q, k, gamma, _, cos, sin, positions) = a_layer()
    k = k.astype("float32")
    made = cunorm.qk_norm_rope(q, k, gamma, None, cos, sin, positions)
    assert bits(made[0]) == bits(cunorm.rms_norm_rope(q, gamma, cos, sin, positions))
    assert bits(made[1]) == bits(cunorm.rms_norm_rope(k, None, cos, sin, positions))
    assert [a.dtype for a in made] == [q.dtype, k.dtype]


# As transformers has it, in modeling_llama.py, modeling_qwen3.py and modeling_gemma3.py.


def rotate_half(x):
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def rotary_embedding(positions, cols, theta, dtype):
    """Return cos and sin of each token, (B, T, d): their halves are the same."""
    frequencies = 1.0 / theta ** (torch.arange(0, cols, 2).float() / cols)
    angles = positions[..., None].float() * frequencies
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize(
    ("cols", "theta", "offset", "cast"),
    [
        pytest.param(128, 1e6, 0.0, "before", id="qwen3"),
        pytest.param(256, 1e4, 1.0, "between", id="gemma3"),
    ],
)
def test_bfloat16_heads_have_the_bits_of_the_models_of_transformers(cols, theta, offset, cast):
    """Given the norm's n, whose last bit a reduction in another order may change."""
    q, k = (random((2, 7, heads, cols), "bfloat16", seed=heads) for heads in (4, 2))
    weights = [random(cols, "bfloat16", seed=i, scale=0.3, shift=1 - offset) for i in (1, 2)]
    given = [cupy.asarray(a) for a in (q, k, *weights)]
    positions = torch.arange(7).expand(2, 7) + torch.tensor([[0], [20]])
    angles = rotary_embedding(positions, cols, theta, torch.bfloat16)
    # Heads before tokens, as attention takes them.
    own = {"gamma_offset": offset, "cast": "before" if cast == "before" else "after"}
    n = [
        to_torch(cunorm.rms_norm(x, gamma, **own).get()).transpose(1, 2)
        for x, gamma in zip(given[:2], given[2:], strict=True)
    ]
    expected = apply_rotary_pos_emb(*n, *angles)
    halves = [cupy.asarray(to_numpy(a[..., : cols // 2].contiguous())) for a in angles]
    made = cunorm.qk_norm_rope(*given, *halves, gamma_offset=offset, cast=cast)
    for actual, wanted in zip(made, expected, strict=True):
        assert bits(actual) == bits(to_numpy(wanted.transpose(1, 2).contiguous()))


IN_PLACE = {
    "cols": [64, 96, 100, 256],
    "dtype": ["bfloat16", "float32"],
    "interleaved": [False, True],
    "first": [True, False],
    "layout": ["contiguous", "base + 1 element", "row-strided"],
    "share": [1, 2],
}


@these(
    ",".join(IN_PLACE),
    [point for point in covering(IN_PLACE.values(), "in place") if point[0] != 100],
    list(covering((IN_PLACE | {"cols": [100, 770]}).values(), "odd in place")),
    "rows that start anywhere compile in seconds",
)
def test_results_are_the_same_in_place_and_nothing_else_is_written(
    cols, dtype, interleaved, first, layout, share
):
    x = random((5, 3, cols), dtype)
    given = list(map(cupy.asarray, tables((TABLE, cols // 2 // share), dtype)))
    options = {"interleaved": interleaved, "norm_first": first}
    expected = cunorm.rms_norm_rope(cupy.asarray(x), None, *given, **options)
    for in_place in (False, True):
        whole, view = place(x, layout)
        if in_place:
            out = view
        else:
            whole, out = place(np.zeros_like(x), layout)
        assert cunorm.rms_norm_rope(view, None, *given, **options, out=out) is out
        assert bits(out) == bits(expected)
        assert (around(whole, x.shape, layout).astype(np.float64) == GUARD).all()


def test_a_packed_projection_is_rotated_in_place_and_the_rest_of_it_stays():
    projection, (q, k, *others) = a_layer()
    before = projection.get()
    expected = cunorm.qk_norm_rope(q.copy(), k.copy(), *others)
    made = cunorm.qk_norm_rope(q, k, *others, q_out=q, k_out=k)
    assert made[0] is q
    assert made[1] is k
    assert [bits(a) for a in made] == [bits(a) for a in expected]
    assert bits(projection[:, 6:]) == bits(before[:, 6:])


def test_a_token_has_the_same_bits_alone_as_in_a_batch():
    x = cupy.asarray(random((4, 9, 3, 96), "bfloat16"))
    cos, sin = map(cupy.asarray, tables((TABLE, 48), "float32"))
    positions = cupy.asarray(np.random.default_rng(0).integers(0, TABLE, (4, 9)))
    y = cunorm.rms_norm_rope(x, None, cos, sin, positions)
    alone = cunorm.rms_norm_rope(x[2, 5], None, cos, sin, positions[2, 5])
    assert bits(y[2, 5]) == bits(alone)
    of_head = cunorm.rms_norm_rope(x[2, 5, 1:2], None, cos[positions[2, 5]], sin[positions[2, 5]])
    assert bits(y[2, 5, 1:2]) == bits(of_head)


def test_positions_and_rows_of_tokens_broadcast():
    x = cupy.asarray(random((4, 3, 2, 64), "float16"))
    cos, sin = map(cupy.asarray, tables((TABLE, 32), "float16"))
    positions = cupy.asarray([7, 0, 9])
    y = cunorm.rms_norm_rope(x, None, cos, sin, positions)
    for same in (positions[None], cupy.broadcast_to(positions, (4, 3))):
        assert bits(cunorm.rms_norm_rope(x, None, cos, sin, same)) == bits(y)
    rows = cos[positions][None], sin[positions][None]
    assert bits(cunorm.rms_norm_rope(x, None, *rows)) == bits(y)
    assert bits(cunorm.rms_norm_rope(x, None, *(a[0] for a in rows))) == bits(y)
    column = positions[:2, None].repeat(2, axis=0)  # a position for each sample
    each = cunorm.rms_norm_rope(x, None, cos, sin, column)
    assert bits(each[3]) == bits(cunorm.rms_norm_rope(x[3], None, cos, sin, column[3]))


def test_without_positions_a_token_has_the_row_of_its_index_in_each_sample():
    x = cupy.asarray(random((4, 3, 2, 64), "float16"))
    cos, sin = map(cupy.asarray, tables((TABLE, 32), "float16"))
    y = cunorm.rms_norm_rope(x, None, cos, sin)
    assert bits(y) == bits(cunorm.rms_norm_rope(x, None, cos, sin, cupy.arange(3)))


def test_a_cache_of_both_is_given_as_two_slices():
    x = cupy.asarray(random((5, 2, 64), "bfloat16"))
    cos, sin = tables((TABLE, 32), "bfloat16")
    cache = cupy.asarray(np.concatenate((cos, sin), axis=-1))
    halves = cache[:, :32], cache[:, 32:]
    expected = cunorm.rms_norm_rope(x, None, cupy.asarray(cos), cupy.asarray(sin))
    assert bits(cunorm.rms_norm_rope(x, None, *halves)) == bits(expected)
    interleaved = cupy.asarray(np.stack((cos, sin), axis=-1))  # which is copied
    halves = interleaved[..., 0], interleaved[..., 1]
    assert bits(cunorm.rms_norm_rope(x, None, *halves)) == bits(expected)


@pytest.mark.parametrize("shape", [(0, 2, 64), (3, 0, 64), (2, 0, 4, 64)])
def test_no_tokens_and_no_heads_are_none(shape):
    cos, sin = map(cupy.asarray, tables((TABLE, 32), "float32"))
    x = cupy.empty(shape, "float32")
    y = cunorm.rms_norm_rope(x, None, cos, sin)
    assert y.shape == shape
    k = cupy.asarray(random((*shape[:-2], 3, 64), "float32"))
    made = cunorm.qk_norm_rope(x, k, None, None, cos, sin)
    assert bits(made[1]) == bits(cunorm.rms_norm_rope(k, None, cos, sin))


def test_rows_that_step_on_four_levels_are_copied():
    x = cupy.asarray(random((2, 3, 4, 5, 64), "float16")).transpose(3, 2, 1, 0, 4)[:, :, ::2]
    cos, sin = map(cupy.asarray, tables((TABLE, 32), "float16"))
    positions = cupy.asarray(np.random.default_rng(0).integers(0, TABLE, (2, 4, 5))).T
    expected = cunorm.rms_norm_rope(x.copy(), None, cos, sin, positions)
    assert bits(cunorm.rms_norm_rope(x, None, cos, sin, positions)) == bits(expected)
    assert bits(cunorm.rms_norm_rope(x, None, cos, sin, positions, out=x)) == bits(expected)


LONG = {
    "dtypes": [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")],
    "first": [True, False],
    "once": [False, True],
    "weight": [True, False],
}


@these(
    ",".join(LONG),
    list(covering(LONG.values(), "long rows"))[:3],
    list(covering(LONG.values(), "long rows")),
    "rows of 40 kB and more",
)
def test_heads_too_many_for_registers_have_the_bits_of_their_parts_too(dtypes, first, once, weight):
    x = random((2, 170, 128), dtypes[0])
    gamma = random(170 * 128, dtypes[0], seed=1, scale=0.3, shift=1) if weight else None
    cos, sin = tables((2, 64), dtypes[1])
    expected = composed(x, gamma, cos, sin, first=first, across=True, once=once)
    given = cupy.asarray(x)
    y = cunorm.rms_norm_rope(
        given,
        gamma if gamma is None else cupy.asarray(gamma),
        *map(cupy.asarray, (cos, sin)),
        norm_first=first,
        across_heads=True,
        cast="after" if once else "before",
        out=given,
    )
    assert y is given
    assert bits(y) == bits(expected)


def test_heads_too_many_for_registers_round_once_after_their_weight_between_norm_and_rotation():
    x = random((2, 170, 128), "bfloat16")
    gamma = random(170 * 128, "bfloat16", seed=1, scale=0.3, shift=1)
    cos, sin = tables((2, 64), "bfloat16")
    given = [cupy.asarray(a) for a in (x, gamma, cos, sin)]
    n = cunorm.rms_norm(given[0].reshape(2, -1), given[1], cast="after").get().reshape(x.shape)
    expected = rotated(n, cos[:, None], sin[:, None], False, True)
    y = cunorm.rms_norm_rope(*given, across_heads=True, cast="between")
    assert bits(y) == bits(expected)


@pytest.mark.parametrize("cast", ["before", "between", "after"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_results_are_as_defined(dtype, first, cast):
    x, gamma = random((4, 3, 64), dtype), random(64, dtype, seed=1)
    cos, sin = tables((TABLE, 16), dtype)
    positions = np.array([3, 0, 10, 3])
    options = {"norm_first": first, "cast": cast, "gamma_offset": 1.0}
    expected = _reference.rms_norm_rope(x, gamma, cos, sin, positions, **options)
    given = [cupy.asarray(a) for a in (x, gamma, cos, sin, positions)]
    assert_matches(cunorm.rms_norm_rope(*given, **options), expected)


@pytest.mark.simgpu
@pytest.mark.parametrize(
    ("cols", "interleaved"),
    [*((cols, False) for cols in ROPE["cols"]), (96, True), (128, True)],
)
def test_heads_are_read_once_and_written_once_in_one_launch(cols, interleaved):
    _, (q, k, *others) = a_layer(tokens=(32,), cols=cols)
    out = cupy.empty_like(q), cupy.empty_like(k)
    with simgpu.profile(registers=False) as profile:
        cunorm.qk_norm_rope(q, k, *others, interleaved=interleaved, q_out=out[0], k_out=out[1])
    (launch,) = profile.launches
    arrays = {array.address: array for array in launch.arrays}
    read = arrays[q.data.ptr].loads  # of the projection
    assert read.bytes == q.nbytes + k.nbytes
    assert read.requested_per_distinct == 1
    for y in out:
        written = arrays[y.data.ptr].stores
        assert written.bytes == y.nbytes
        assert written.requested_per_distinct == 1
    # Where a lane has the partners of its packets, no other has to hand them over.
    in_lanes = interleaved or cols in (64, 128, 256, 512)
    assert (launch.shared_dynamic == 0) == in_lanes
    assert launch.barriers == 0
    if cols != 80:
        assert launch.bank_conflicts == 0


def test_a_repeated_call_is_remembered_in_place_too(monkeypatch):
    _, (q, k, *others) = a_layer()
    out = {"q_out": q, "k_out": k}
    copies = q.copy(), k.copy()
    cunorm.qk_norm_rope(q, k, *others, **out)
    expected = cunorm.qk_norm_rope(*copies, *others)
    known = len(remembered._known)
    monkeypatch.setattr("cunorm._check.rope", lambda *_: pytest.fail("worked out again"))
    again = cunorm.qk_norm_rope(*copies, *others)
    assert [bits(a) for a in again] == [bits(a) for a in expected]
    cunorm.qk_norm_rope(q, k, *others, **out)
    assert len(remembered._known) == known


def test_a_repeated_call_still_sees_an_overlap():
    _, (q, k, *others) = a_layer()
    memory = cupy.zeros(q.size + k.size + 64, q.dtype)
    first, second = memory[: q.size].reshape(q.shape), memory[q.size : q.size + k.size]
    q, k = q.copy(), k.copy()
    cunorm.qk_norm_rope(q, k, *others, q_out=first, k_out=second.reshape(k.shape))
    on_it = memory[q.size - 64 : q.size - 64 + k.size].reshape(k.shape)
    with pytest.raises(ValueError, match=r"^q_out must not overlap k_out"):
        cunorm.qk_norm_rope(q, k, *others, q_out=first, k_out=on_it)


def test_a_call_is_captured_in_a_graph():
    _, (q, k, *others) = a_layer()
    expected = cunorm.qk_norm_rope(q, k, *others)
    out = [cupy.zeros_like(a) for a in expected]
    cunorm.qk_norm_rope(q, k, *others, q_out=out[0], k_out=out[1])  # compiles
    for a in out:
        a[...] = 0
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(lambda nbytes: pytest.fail(f"{nbytes} bytes")):
        stream.begin_capture()
        cunorm.qk_norm_rope(q, k, *others, q_out=out[0], k_out=out[1])
        graph = stream.end_capture()
    graph.launch(stream)
    stream.synchronize()
    assert [bits(a) for a in out] == [bits(a) for a in expected]


def test_tensors_stand_for_arrays():
    _, given = a_layer()
    expected = cunorm.qk_norm_rope(*given)
    with torch_bridge.tensors_on("cuda") as put:
        tensors = [put(to_torch(a.get())) for a in given]
        made = cunorm.qk_norm_rope(*tensors)
        assert all(isinstance(a, torch.Tensor) for a in made)
        assert [bits(to_numpy(a.cpu())) for a in made] == [bits(a) for a in expected]
        with pytest.raises(TypeError, match=r"^positions must be of integers, but is float32"):
            cunorm.qk_norm_rope(*tensors[:-1], tensors[-1].float())


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_a_call_runs_on_the_device_of_its_heads():
    _, given = a_layer()
    expected = cunorm.qk_norm_rope(*given)
    with cupy.cuda.Device(1):
        _, there = a_layer()
    for _ in range(2):  # the second one is repeated
        made = cunorm.qk_norm_rope(*there)
        assert cupy.cuda.runtime.getDevice() == 0
        assert [a.device.id for a in made] == [1, 1]
        assert [bits(a) for a in made] == [bits(a) for a in expected]
    for index, name in enumerate(("k", "q_gamma", "k_gamma", "cos", "sin", "positions"), 1):
        wrong = [*given[:index], there[index], *given[index + 1 :]]
        of = "k" if name == "k_gamma" else "q"
        with pytest.raises(ValueError, match=f"^{name} must be on the device of {of}, 0, but is"):
            cunorm.qk_norm_rope(*wrong)


@pytest.mark.simgpu("on hardware nothing may tell")
@pytest.mark.parametrize("position", [TABLE, TABLE + 5, -1, 2**40])
def test_a_position_out_of_range_is_a_fault(position):
    x = cupy.ones((1, 2, 64), "float16")
    cos, sin = map(cupy.asarray, tables((TABLE, 32), "float32"))
    with pytest.raises(simgpu.faults.OutOfBounds):
        cunorm.rms_norm_rope(x, None, cos, sin, cupy.asarray([position]))


X, T = cupy.ones((5, 4, 64), "float16"), cupy.ones((7, 32), "float32")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": X[..., :63]}, ValueError, "x must have an even number of columns, but has 63"),
        ({"x": X[0, 0]}, ValueError, "x must have an axis of heads and one of their columns"),
        ({"x": X.astype("int16")}, TypeError, "x must be float16, .* but is int16"),
        ({"x": X.get()}, TypeError, "x must be a cupy.ndarray, but is a numpy.ndarray"),
        (
            {"x": cupy.ones((1, 1, 8194), "float32")},
            ValueError,
            "x must have heads of at most 32 KiB in float32, but has 8194 columns",
        ),
        (
            {"gamma": X[0, 0, :32]},
            ValueError,
            r"gamma must have .* \(64,\), or .* has shape \(32,\)",
        ),
        ({"gamma": X[0, :3]}, ValueError, r"gamma must have .* \(4, 64\), but has shape \(3, 64\)"),
        ({"gamma": T[0].astype("float64")}, TypeError, "gamma must be float16, .* where x is"),
        (
            {"gamma": X[0, 0], "across_heads": True},
            ValueError,
            r"gamma must have the columns of all heads of x, \(256,\), where across_heads is True",
        ),
        ({"cos": T[:, :0], "sin": T[:, :0]}, ValueError, "cos must have a column for each pair"),
        (
            {"cos": cupy.ones((7, 33), "f4"), "sin": cupy.ones((7, 33), "f4")},
            ValueError,
            r"cos must .* from 1 to 32 where x has 64 columns, but has shape \(7, 33\)",
        ),
        ({"sin": T[:, :16]}, ValueError, "sin must have the shape of cos"),
        ({"sin": T.astype("float16")}, TypeError, "sin must have the dtype of cos, float32, but"),
        ({"cos": T.astype("float64")}, TypeError, "cos must be float16, .* but is float64"),
        ({"cos": None}, TypeError, "cos must be a cupy.ndarray, but is a NoneType"),
        (
            {"cos": T[:4], "sin": T[:4]},
            ValueError,
            "cos must have a row for each of 5 tokens where",
        ),
        (
            {"x": X[:4].reshape(2, 2, 4, 64), "cos": T[:4], "sin": T[:4]},
            ValueError,
            r"cos must have rows for 2 positions, or be of shape \(2, 2, 32\) .* or cos\[:2\]",
        ),
        (
            {"cos": T[None, :4], "sin": T[None, :4]},
            ValueError,
            r"cos must be a table of rows, or have one for each token of x, \(5, 32\), but has",
        ),
        ({"positions": T[:5, 0]}, TypeError, "positions must be of integers, but is float32"),
        (
            {"positions": cupy.ones(5, bool)},
            TypeError,
            "positions must be of integers, but is bool",
        ),
        ({"positions": [1, 2]}, TypeError, "positions must be a cupy.ndarray or None"),
        (
            {"positions": cupy.arange(4)},
            ValueError,
            r"positions must broadcast to the tokens of x, \(5,\), but has shape \(4,\)",
        ),
        (
            {"positions": cupy.arange(5), "cos": T[:5, None], "sin": T[:5, None]},
            ValueError,
            "cos must be a table of a row for each position where positions are given",
        ),
        (
            {"positions": cupy.arange(5), "cos": T[:0], "sin": T[:0]},
            ValueError,
            r"cos must be a table of a row for each position .* but has shape \(0, 32\)",
        ),
        ({"out": X[:, ::-1]}, ValueError, "out must be x itself or not overlap it"),
        ({"out": X.astype("float32")}, TypeError, "out must have the dtype of x, float16"),
        ({"out": X[:4]}, ValueError, "out must have the shape of x"),
        ({"gamma_offset": 1.0}, ValueError, "gamma_offset must be 0 where gamma is None"),
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
        (
            {"cast": "never"},
            ValueError,
            "cast must be 'before', 'between' or 'after', but is 'never'",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_nothing_is_written(change, error, message):
    given = {"x": X, "gamma": None, "cos": T, "sin": T} | change
    before = bits(X)
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm_rope(**{"out": X, **given} if change.get("x") is None else given)
    assert bits(X) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": X[:4]}, r"k must have the shape of q, \(5, 4, 64\), but for the number of heads"),
        ({"k": X[..., :32]}, "k must have the shape of q"),
        ({"k_gamma": X[0, 0, :32]}, r"k_gamma must have the columns of k, \(64,\)"),
        ({"q_out": X}, "q_out must not overlap k"),
        ({"k_out": X}, "k_out must not overlap q"),
    ],
)
def test_wrong_q_and_k_are_refused_by_name_and_nothing_is_written(change, message):
    q = X.copy()
    given = {"q": q, "k": X, "q_gamma": None, "k_gamma": None, "cos": T, "sin": T}
    before = bits(q), bits(X)
    if "k_out" in change:
        given |= {"q": X, "k": q}
    with pytest.raises(ValueError, match=f"^{message}"):
        cunorm.qk_norm_rope(**given | change)
    assert (bits(q), bits(X)) == before


def test_results_of_q_and_k_must_not_overlap_each_other():
    q, out = X.copy(), X.copy()
    with pytest.raises(ValueError, match=r"^q_out must not overlap k_out"):
        cunorm.qk_norm_rope(q, X, None, None, T, T, q_out=out, k_out=out)


def test_a_result_must_not_overlap_the_tables():
    memory = cupy.zeros(5 * 4 * 64 + 7 * 32, "float32")
    x = cupy.ones((5, 4, 64), "float32")
    cos, out = memory[-224:].reshape(7, 32), memory[-1280:].reshape(5, 4, 64)
    with pytest.raises(ValueError, match=r"^out must not overlap cos"):
        cunorm.rms_norm_rope(x, None, cos, T, out=out)
