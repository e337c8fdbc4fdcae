"""Four RMSNorms of SmolLM2-135M on a real sentence, in float32 and bfloat16.

Inputs have outliers past 2e4. The bfloat16 outputs are the model's own bits, from PyTorch on a CPU.
"""

from pathlib import Path

import cupy
import numpy as np
import pytest

import cunorm
from cunorm import _reference
from cunorm._reference import BFLOAT16

FILE = Path(__file__).parents[1] / "data" / "smollm2_rms_norm.npz"
LAYERS = ["layer0", "layer15", "layer29", "final"]


@pytest.fixture(scope="module")
def tensors():
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def of_layer(tensors, kind, layer):
    dtype = np.dtype(np.float32) if kind == "f32" else BFLOAT16
    return [tensors[f"{kind}/{layer}/{name}"].view(dtype) for name in ("x", "gamma", "y")]


@pytest.mark.parametrize("layer", LAYERS)
def test_float32_is_within_4_ulp_or_1e_6_of_the_definition(tensors, layer):
    x, gamma, _ = of_layer(tensors, "f32", layer)
    eps = float(tensors["eps"])
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), eps).get()
    expected = _reference.rms_norm(x, gamma, eps)
    close = np.abs(y - expected.value) <= 1e-6 * np.abs(expected.value)
    assert ((expected.ulps(y) <= 4) | close).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_bfloat16_has_the_bits_of_the_model(tensors, layer):
    x, gamma, theirs = of_layer(tensors, "bf16", layer)
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), float(tensors["eps"])).get()
    assert np.mean(y.view(np.uint16) == theirs.view(np.uint16)) >= 0.995
    assert _reference.ulps(y, theirs.astype(np.float64), BFLOAT16).max() <= 2


def test_cast_after_does_not_have_the_bits_of_the_model(tensors):
    x, gamma, theirs = of_layer(tensors, "bf16", "layer0")
    eps = float(tensors["eps"])
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), eps, cast="after").get()
    assert np.mean(y.view(np.uint16) == theirs.view(np.uint16)) < 0.9


def test_the_data_has_the_outliers_that_it_is_kept_for(tensors):
    largest = max(np.abs(tensors[f"f32/{layer}/x"]).max() for layer in LAYERS)
    assert largest > 2e4
