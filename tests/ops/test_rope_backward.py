"""Gradients of heads that are normalised and rotated: those of the definition, on any heads."""

import cupy
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import assert_matches, bits, random, to_numpy, to_torch
from kinds import covering, these
from test_rope import INTEGERS, PAIRS, TABLE, a_layer, laid_out, tables

import cunorm
from cunorm import _reference, simgpu
from cunorm._call import remembered, rope_backward

TOKENS = (2, 3)
ROPE = {
    "cols": [64, 80, 96, 128, 192, 256],
    "share": [1, 2, 4],  # of the columns, one in so many is rotated
    "interleaved": [False, True],
    "dtypes": PAIRS,
    "positions": [None, "a row a token", *INTEGERS],
    "layout": ["contiguous", "a slice of a projection", "heads before tokens", "base + 1 element"],
    "first": [True, False],
    "heads": ["each", "a weight each", "across", "no weight"],
    "sums": [True, False],
}
# Rows that are no whole packets, or whose halves are none.
ODD = {"cols": [2, 6, 34, 66, 100, 130, 258, 770]}
ALWAYS = [
    # A lane has the partners of its packets; another one has; they are in the same packet.
    (128, 1, False, PAIRS[0], "int32", "a slice of a projection", True, "each", True),
    (96, 2, False, PAIRS[3], None, "contiguous", True, "across", True),
    (96, 1, True, PAIRS[1], "a row a token", "heads before tokens", True, "no weight", True),
    # Rows with a tail, and in parts: rotated first, and with a weight for each head.
    (34, 1, False, PAIRS[0], "int64", "a slice of a projection", True, "each", True),
    (64, 2, True, PAIRS[5], "int32", "a slice of a projection", False, "each", True),
    (64, 1, False, PAIRS[2], None, "contiguous", True, "a weight each", True),
]


def arguments(cols, share, dtypes, positions, heads, tokens=TOKENS, count=3):
    """Return x, dy, gamma, cos, sin and positions on the host, the last as far as there are any."""
    dtype, of_angles = dtypes
    x, dy = (random((*tokens, count, cols), dtype, seed=seed, scale=2) for seed in range(2))
    weights = {"each": (cols,), "a weight each": (count, cols), "across": (count * cols,)}
    gamma = random(weights[heads], dtype, seed=3, scale=0.3) if heads in weights else None
    pairs = max(1, cols // 2 // share)
    if positions == "a row a token":
        return x, dy, gamma, *tables((*tokens, pairs), of_angles), None
    rows = None
    if positions is not None:
        rows = np.random.default_rng(0).integers(0, TABLE, tokens).astype(positions)
    return x, dy, gamma, *tables((TABLE, pairs), of_angles), rows


def on_device(*arrays):
    return [None if a is None else cupy.asarray(a) for a in arrays]


@these(
    ",".join(ROPE),
    ALWAYS,
    [
        *covering(ROPE.values(), "gradients"),
        *covering((ROPE | ODD).values(), "odd gradients"),
    ],
    "two kernels each or more, of which those of rows that start anywhere compile in up to 7 s",
)
def test_gradients_are_as_defined(
    cols, share, interleaved, dtypes, positions, layout, first, heads, sums
):
    x, dy, gamma, cos, sin, rows = arguments(cols, share, dtypes, positions, heads)
    options = {
        "interleaved": interleaved,
        "norm_first": first,
        "across_heads": heads == "across",
        "gamma_offset": 0.0 if gamma is None else 1.0,
    }
    own, own_dy = (laid_out(a, layout) for a in (x, dy))
    *beside, own_rows = on_device(gamma, cos, sin, rows)
    y, rstd = cunorm.rms_norm_rope_fwd(own, *beside, own_rows, **options)
    assert bits(y) == bits(cunorm.rms_norm_rope(own, *beside, own_rows, **options))
    assert_matches(rstd, _reference.rms_norm_rope_fwd(x, gamma, cos, sin, rows, **options)[1])
    options["sums"] = sums
    dx, dgamma = cunorm.rms_norm_rope_bwd(own_dy, own, *beside, rstd, own_rows, **options)
    expected, total = _reference.rms_norm_rope_bwd(
        dy, x, gamma, cos, sin, rstd.get(), rows, **options
    )
    assert_matches(dx, expected)
    assert dx.flags.c_contiguous
    if total is None:
        assert dgamma is None
    else:
        assert_matches(dgamma, total)


@these(
    "first,heads",
    [(True, "each"), (False, "across")],
    [(True, "a weight each"), (True, "across"), (False, "each"), (False, "a weight each")],
    "two kernels each or more",
)
def test_float64_gradients_are_finite_differences_of_the_forward_op(first, heads):
    x, dy, gamma, cos, sin, _ = arguments(6, 1, PAIRS[6], None, heads, tokens=(2,), count=2)
    options = {"norm_first": first, "across_heads": heads == "across", "gamma_offset": 1.0}
    angles = on_device(cos, sin)
    _, rstd = cunorm.rms_norm_rope_fwd(*on_device(x, gamma), *angles, **options)
    gradients = cunorm.rms_norm_rope_bwd(*on_device(dy, x, gamma), *angles, rstd, **options)
    step = 1e-5  # balances a third derivative against roundings, each near 1e-10
    for position, gradient in enumerate(gradients):
        assert gradient.shape == (x, gamma)[position].shape
        for index in np.ndindex(gradient.shape):
            values = []
            for sign in (1, -1):
                moved = [x.copy(), gamma.copy()]
                moved[position][index] += sign * step
                y = cunorm.rms_norm_rope(*on_device(*moved), *angles, **options).get()
                values.append(float((y * dy).sum()))
            difference = (values[0] - values[1]) / (2 * step)
            assert gradient.get()[index] == pytest.approx(difference, rel=1e-7, abs=1e-8)


def layer(dtype="bfloat16", tokens=(40,)):
    """Return dy, q as a slice of a projection, its weight, tables, rstd and positions."""
    _, (q, _, gamma, _, cos, sin, positions) = a_layer(dtype=dtype, of_angles=dtype, tokens=tokens)
    dy = cupy.asarray(random(q.shape, dtype, seed=9))
    _, rstd = cunorm.rms_norm_rope_fwd(q, gamma, cos, sin, positions)
    return dy, q, gamma, cos, sin, rstd, positions


def test_in_one_kernel_float32_gradients_have_the_bits_of_their_parts(monkeypatch):
    given = layer("float32")
    expected = [bits(a) for a in cunorm.rms_norm_rope_bwd(*given)]
    cos, sin = (a[given[-1]][:, None] for a in given[3:5])
    a, b = given[0][..., :32], given[0][..., 32:]
    dn = cupy.concatenate((a * cos + b * sin, b * cos - a * sin), axis=-1)
    made = cunorm.rms_norm_bwd(dn, given[1], given[2], given[5])
    assert [bits(a) for a in made] == expected

    remembered.clear()
    monkeypatch.setattr(rope_backward, "_of_one_kernel", lambda *_: None)
    assert [bits(a) for a in cunorm.rms_norm_rope_bwd(*given)] == expected


def test_a_repeated_call_has_the_same_bits_and_sees_other_arrays(monkeypatch):
    given = layer()
    others = [cupy.asarray(random(given[0].shape, "bfloat16", seed=7)), *given[1:]]
    expected = [[bits(a) for a in cunorm.rms_norm_rope_bwd(*of)] for of in (given, others)]
    assert expected[0][0] != expected[1][0]
    assert expected[0][1] != expected[1][1]
    monkeypatch.setattr("cunorm._check.rope_backward", lambda *_: pytest.fail("worked out again"))
    for _ in range(10):
        for of, bits_of in zip((given, others), expected, strict=True):
            assert [bits(a) for a in cunorm.rms_norm_rope_bwd(*of)] == bits_of


def test_a_token_has_the_same_gradient_alone_as_in_a_batch():
    dy, q, gamma, cos, sin, rstd, positions = layer()
    dx, dgamma = cunorm.rms_norm_rope_bwd(dy, q, gamma, cos, sin, rstd, positions)
    copies = cupy.ascontiguousarray(dy), cupy.ascontiguousarray(q)
    contiguous = cunorm.rms_norm_rope_bwd(*copies, gamma, cos, sin, rstd, positions)
    assert [bits(a) for a in contiguous] == [bits(dx), bits(dgamma)]
    for some in (slice(5, 8), slice(7, 8)):
        rows = rstd[some], positions[some]
        alone, _ = cunorm.rms_norm_rope_bwd(dy[some], q[some], gamma, cos, sin, *rows)
        assert bits(alone) == bits(dx[some])
    of_one = cunorm.rms_norm_rope_bwd(
        dy[7], q[7], gamma, cos, sin, rstd[7], positions[7], sums=False
    )
    assert bits(of_one[0]) == bits(dx[7])
    assert of_one[1] is None


def test_statistics_of_q_and_k_are_those_of_one_at_a_time():
    _, (q, k, *gammas, cos, sin, positions) = a_layer()
    made = cunorm.qk_norm_rope_fwd(q, k, *gammas, cos, sin, positions)
    expected = [
        cunorm.rms_norm_rope_fwd(x, gamma, cos, sin, positions)
        for x, gamma in zip((q, k), gammas, strict=True)
    ]
    assert [bits(a) for a in made] == [bits(of[i]) for i in range(2) for of in expected]
    assert [a.shape for a in made[2:]] == [q.shape[:-1], k.shape[:-1]]
    again = cunorm.qk_norm_rope_fwd(q, k, *gammas, cos, sin, positions)
    assert [bits(a) for a in again] == [bits(a) for a in made]
    out = cunorm.qk_norm_rope_fwd(
        *(q, k, *gammas, cos, sin, positions), q_out=q, k_out=k, across_heads=False
    )
    assert out[0] is q
    assert bits(out[3]) == bits(made[3])


@pytest.mark.simgpu
@pytest.mark.parametrize(("cols", "interleaved"), [(128, False), (96, False)])
def test_heads_and_their_gradients_are_read_once_in_one_launch(cols, interleaved):
    _, (q, _, gamma, _, *angles) = a_layer(tokens=(32,), cols=cols)
    dy = cupy.asarray(random(q.shape, "bfloat16", seed=9))
    _, rstd = cunorm.rms_norm_rope_fwd(q, gamma, *angles, interleaved=interleaved)
    given = (dy, q, gamma, *angles[:2], rstd, *angles[2:])
    with simgpu.profile(registers=False) as profile:
        dx, _ = cunorm.rms_norm_rope_bwd(*given, interleaved=interleaved)
    launch, _ = profile.launches  # the other one adds up dgamma
    arrays = {array.address: array for array in launch.arrays}
    for a in (q, dy):
        read = arrays[a.data.ptr].loads
        assert read.bytes == a.nbytes
        assert read.requested_per_distinct == 1
    written = arrays[dx.data.ptr].stores
    assert written.bytes == dx.nbytes
    assert written.requested_per_distinct == 1
    assert (launch.shared_dynamic == 0) == (cols == 128)


@pytest.mark.simgpu
def test_rows_that_a_block_takes_in_turn_are_apart_in_shared_memory():
    _, (q, _, gamma, _, cos, sin, positions) = a_layer(tokens=(700,), cols=96)
    _, rstd = cunorm.rms_norm_rope_fwd(q, gamma, cos, sin, positions)
    given = (q.copy(), q, gamma, cos, sin, rstd, positions)
    expected = [bits(a) for a in cunorm.rms_norm_rope_bwd(*given)]
    with simgpu.warp_races():
        assert [bits(a) for a in cunorm.rms_norm_rope_bwd(*given)] == expected


@pytest.mark.slow("rows of 40 kB and more, in parts")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weight", [True, False])
def test_gradients_of_heads_too_many_for_registers_are_as_defined(first, weight):
    x, dy, gamma, cos, sin, _ = arguments(
        128, 1, PAIRS[1], None, "across" if weight else "no weight", tokens=(2,), count=170
    )
    options = {"norm_first": first, "across_heads": True}
    _, rstd = cunorm.rms_norm_rope_fwd(*on_device(x, gamma, cos, sin), **options)
    assert_matches(rstd, _reference.rms_norm_rope_fwd(x, gamma, cos, sin, **options)[1])
    made = cunorm.rms_norm_rope_bwd(*on_device(dy, x, gamma, cos, sin), rstd, **options)
    expected = _reference.rms_norm_rope_bwd(dy, x, gamma, cos, sin, rstd.get(), **options)
    assert_matches(made[0], expected[0])
    if weight:
        assert_matches(made[1], expected[1])


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 64), (3, 0, 64)])
def test_no_tokens_and_no_heads_give_zeros(shape, across):
    x, gamma = cupy.empty(shape, "float16"), cupy.ones(64 * shape[1] if across else 64, "float32")
    cos, sin = on_device(*tables((TABLE, 32), "float32"))
    y, rstd = cunorm.rms_norm_rope_fwd(x, gamma, cos, sin, across_heads=across)
    assert y.shape == shape
    assert rstd.shape == shape[: -2 if across else -1]
    assert cupy.isnan(rstd).all()
    dx, dgamma = cunorm.rms_norm_rope_bwd(x, x, gamma, cos, sin, rstd, across_heads=across)
    assert dx.shape == shape
    assert bits(dgamma) == bits(cupy.zeros_like(gamma))


def test_tensors_stand_for_arrays():
    given = layer()
    expected = cunorm.rms_norm_rope_bwd(*given)
    with torch_bridge.tensors_on("cuda") as put:
        made = cunorm.rms_norm_rope_bwd(*(put(to_torch(a.get())) for a in given))
        assert all(isinstance(a, torch.Tensor) for a in made)
        assert [bits(to_numpy(a.cpu())) for a in made] == [bits(a) for a in expected]


X, T = cupy.ones((5, 4, 64), "float16"), cupy.ones((7, 32), "float32")
GAMMA, RSTD = cupy.ones(64, "float16"), cupy.ones((5, 4), "float32")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dy": X[:4]}, ValueError, r"dy must have the shape of x, \(5, 4, 64\), but has \(4, 4"),
        ({"dy": T}, TypeError, "dy must have the dtype of x, float16, but has float32"),
        ({"dy": None}, TypeError, "dy must be a cupy.ndarray, but is a NoneType"),
        ({"x": X[..., :63], "dy": X[..., :63]}, ValueError, "x must have an even number of col"),
        ({"x": X.astype("int16")}, TypeError, "x must be float16, .* but is int16"),
        ({"x": X[0, 0], "dy": X[0, 0]}, ValueError, "x must have an axis of heads and one of"),
        ({"gamma": GAMMA[:32]}, ValueError, r"gamma must have .* \(64,\), or .* shape \(32,\)"),
        ({"gamma": X[0, :3]}, ValueError, r"gamma must have .* \(4, 64\), but has shape \(3, 64\)"),
        ({"gamma": T[0].astype("float64")}, TypeError, "gamma must be float16, .* where x is"),
        ({"cos": T[:, :0], "sin": T[:, :0]}, ValueError, "cos must have a column for each pair"),
        ({"cos": T.astype("float64")}, TypeError, "cos must be float16, .* but is float64"),
        ({"cos": T[:4], "sin": T[:4]}, ValueError, "cos must have a row for each of 5 tokens"),
        ({"sin": T[:, :16]}, ValueError, "sin must have the shape of cos"),
        ({"sin": None}, TypeError, "sin must be a cupy.ndarray, but is a NoneType"),
        ({"positions": T[:5, 0]}, TypeError, "positions must be of integers, but is float32"),
        (
            {"positions": cupy.arange(4)},
            ValueError,
            r"positions must broadcast to the tokens of x, \(5,\), but has shape \(4,\)",
        ),
        ({"rstd": X[..., 0]}, TypeError, "rstd must be float32 where x is float16, but is float16"),
        (
            {"rstd": RSTD[:, 0]},
            ValueError,
            r"rstd must have one number a row, \(5, 4\), but has \(5,\)",
        ),
        (
            {"across_heads": True, "gamma": X[0].ravel()},
            ValueError,
            r"rstd must have one number a row, \(5,\), but has \(5, 4\)",
        ),
        ({"across_heads": True}, ValueError, "gamma must have the columns of all heads of x"),
        (
            {"gamma": None, "gamma_offset": 1.0},
            ValueError,
            "gamma_offset must be 0 where gamma is None",
        ),
        ({"gamma_offset": "1"}, TypeError, "gamma_offset must be a real number, but is a str"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, message):
    given = {"dy": X, "x": X, "gamma": GAMMA, "cos": T, "sin": T, "rstd": RSTD}
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm_rope_bwd(**given | change)


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
def test_a_call_runs_on_the_device_of_its_heads():
    given = layer()
    expected = cunorm.rms_norm_rope_bwd(*given)
    with cupy.cuda.Device(1):
        there = layer()
    for _ in range(2):  # the second one is repeated
        made = cunorm.rms_norm_rope_bwd(*there)
        assert cupy.cuda.runtime.getDevice() == 0
        assert [a.device.id for a in made] == [1, 1]
        assert [bits(a) for a in made] == [bits(a) for a in expected]
    for index, name in enumerate(("dy", "x", "gamma", "cos", "sin", "rstd", "positions")):
        if name != "x":
            wrong = [*given[:index], there[index], *given[index + 1 :]]
            with pytest.raises(ValueError, match=f"^{name} must be on the device of x, 0, but is"):
                cunorm.rms_norm_rope_bwd(*wrong)
