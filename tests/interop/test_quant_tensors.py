"""Quantised ops on PyTorch's tensors: codes and scales with the same bits, as tensors."""

import cupy
import pytest
import torch
import torch_bridge
from arrays import bits, random, to_numpy, to_torch

import cunorm
from cunorm import Quant

SCHEMES = {
    "fp8 row": Quant.fp8_row(),
    "fp8 static": Quant.fp8_static(0.5),
    "deepseek": Quant.deepseek(),
    "deepseek, e8m0": Quant.deepseek(e8m0=True),
    "nvfp4": Quant.nvfp4(100.0),
}
schemes = pytest.mark.parametrize("quant", SCHEMES.values(), ids=SCHEMES)


@pytest.fixture
def put():
    """What brings a CPU tensor to the device."""
    with torch_bridge.tensors_on("cuda") as put:
        yield put


def host(tensor):
    return to_numpy(tensor.contiguous().cpu())


@schemes
def test_tensors_go_in_and_tensors_with_the_same_bits_come_out(put, quant):
    x, residual = (random((2, 3, 1024), "bfloat16", seed=seed) for seed in range(2))
    gamma = random(1024, "float32", seed=2)
    expected = cunorm.add_rms_norm_quant(*map(cupy.asarray, (x, residual, gamma)), quant=quant)
    made = cunorm.add_rms_norm_quant(*(put(to_torch(a)) for a in (x, residual, gamma)), quant=quant)
    assert {type(a) for a in made} == {torch.Tensor}
    for own, wanted in zip(made, expected, strict=True):
        assert own.shape == wanted.shape
        assert own.stride() == tuple(step // wanted.itemsize for step in wanted.strides)
        assert bits(host(own)) == bits(wanted)
    back = cunorm.dequantize(made[0], made[1], quant, "float32")
    assert bits(host(back)) == bits(cunorm.dequantize(*expected[:2], quant, "float32"))


@schemes
def test_what_is_given_to_be_written_comes_back_itself(put, quant):
    x = put(to_torch(random((5, 256), "float16")))
    q, scale = cunorm.quantize(x, quant)
    into = [torch.empty_like(q), torch.zeros_like(scale)]
    if quant.layout in ("columns", "packed"):
        into[1] = None  # of a tensor CuPy does not know how much memory lies behind it
    made = cunorm.quantize(x, quant, out=into[0], scale_out=into[1])
    assert made[0] is into[0]
    assert into[1] is None or made[1] is into[1]
    assert [bits(host(a)) for a in made] == [bits(host(a)) for a in (q, scale)]


def test_codes_have_pytorchs_dtype_by_a_view(put):
    x = put(to_torch(random((5, 256), "float32")))
    quant = Quant.fp8_row()
    q, scale = cunorm.quantize(x, quant)
    own = q.cpu().view(torch.float8_e4m3fn).float() * scale.cpu()
    assert torch.equal(own, cunorm.dequantize(q, scale, quant, "float32").cpu())
