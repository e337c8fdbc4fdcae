"""The norms of a transformer's layer on CuPy arrays, in place: each is one kernel."""

import cupy
import numpy as np

import cunorm

TOKENS, HEADS, HEAD_DIM = 6, 4, 128
rng = np.random.default_rng(0)


def draw(*shape):
    """Return random numbers, which stand for the other layers."""
    return cupy.asarray(rng.standard_normal(shape).astype("float16"))


h = draw(TOKENS, HEADS * HEAD_DIM)  # the residual stream
gamma = cupy.ones(HEADS * HEAD_DIM, "float16")
gamma_of_heads = cupy.ones(HEAD_DIM, "float16")

y = cunorm.rms_norm(h, gamma)
print("what attention reads:", y.shape, y.dtype)

qkv = draw(TOKENS, 3, HEADS, HEAD_DIM)
for heads in (qkv[:, 0], qkv[:, 1]):  # q and k, strided views of the packed heads
    cunorm.rms_norm(heads, gamma_of_heads, out=heads)
squares = cupy.square(qkv, dtype="float32").mean(axis=(0, 2, 3))
print("mean squares of q, k and v:", squares.get().round(2))

attended = draw(TOKENS, HEADS * HEAD_DIM)
y, h = cunorm.add_rms_norm(attended, h, gamma, out=attended, residual_out=h)
print("what the MLP reads is in attention's memory:", y is attended)
print(f"standard deviation of the stream: {float(h.std()):.2f}")
