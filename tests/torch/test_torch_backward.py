"""The backward operators of `cunorm.torch` refuse what the CuPy ops refuse, in the same words."""

import cupy
import pytest
import torch
from arrays import to_numpy
from torch_bridge import tensors_on

import cunorm.torch

pytestmark = pytest.mark.slow(
    "refusals in the words of the CuPy ops, which have tests of their own"
)

GIVEN = {
    "dy": torch.ones(2, 8),
    "x": torch.ones(2, 8),
    "gamma": torch.ones(8),
    "mean": torch.zeros(2),
    "rstd": torch.ones(2),
    "gamma_offset": 0.0,
    "beta": None,
    "scale": None,
    "shift": None,
    "scale_offset": 1.0,
    "dresidual": None,
    "sums": True,
}
LEFT_OUT = {"rms_norm_bwd": ("mean", "beta"), "layer_norm_bwd": ()}
WRONG = [
    {"dy": torch.ones(2, 8, dtype=torch.bfloat16)},
    {"dy": torch.ones(2, 4)},
    {"dy": torch.ones(8)},
    {"x": torch.ones(2, 8, dtype=torch.float16)},
    {"x": torch.ones(())},
    {"gamma": torch.ones(8, dtype=torch.float64)},
    {"gamma": torch.ones(4)},
    {"gamma": None, "gamma_offset": 1.0},
    {"gamma_offset": float("inf")},
    {"mean": torch.zeros(2, dtype=torch.float64)},
    {"mean": torch.zeros(2, 1)},
    {"rstd": torch.ones(2, dtype=torch.bfloat16)},
    {"rstd": torch.ones(2, 8)},
    {"dresidual": torch.ones(2, 8, dtype=torch.bfloat16)},
    {"dresidual": torch.ones(8)},
    {"beta": torch.ones(4)},
    {"scale": torch.ones(3, 1)},
    {"shift": torch.ones(2, 8, dtype=torch.float64)},
]


def raised(function, arguments):
    with pytest.raises((TypeError, ValueError)) as error:
        function(*arguments)
    return error.type, str(error.value)


def on_device(op, given):
    """Call the CuPy op of that name."""
    arrays = {
        name: cupy.asarray(to_numpy(value)) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }
    return getattr(cunorm, op)(**arrays)


@pytest.mark.parametrize("place", ["cpu", "meta", "cuda"])
@pytest.mark.parametrize(
    "wrong",
    WRONG,
    ids=lambda wrong: "-".join(f"{k} {getattr(v, 'dtype', v)}" for k, v in wrong.items()),
)
@pytest.mark.parametrize("op", LEFT_OUT)
def test_what_the_kernels_refuse_is_refused_everywhere(op, wrong, place):
    if set(LEFT_OUT[op]) & wrong.keys():
        return  # the op has no such argument
    given = {name: value for name, value in {**GIVEN, **wrong}.items() if name not in LEFT_OUT[op]}
    expected = raised(lambda: on_device(op, given), ())
    with tensors_on("cuda" if place == "cuda" else "cpu") as put:
        put = put if place != "meta" else lambda tensor: tensor.to("meta")
        # Copies: the traceback of an error keeps the memory that it was raised about registered.
        there = [put(v.clone()) if isinstance(v, torch.Tensor) else v for v in given.values()]
        assert raised(getattr(torch.ops.cunorm, op), there) == expected


@pytest.mark.parametrize("name", ["dy", "gamma", "mean", "rstd", "dresidual"])
def test_backward_operators_name_what_is_elsewhere_or_not_strided(name):
    given = GIVEN | {"dresidual": torch.ones(2, 8)}
    elsewhere = {**given, name: given[name].to("meta")}
    with pytest.raises(
        ValueError, match=f"^{name} must be on the device of x, cpu, but is on meta"
    ):
        torch.ops.cunorm.layer_norm_bwd(*elsewhere.values())
    sparse = {**given, name: given[name].to_sparse()}
    with pytest.raises(TypeError, match=f"^{name} must be a strided tensor, but has layout"):
        torch.ops.cunorm.layer_norm_bwd(*sparse.values())
