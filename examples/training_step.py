"""Steps of gradient descent through LayerNorm, on CuPy arrays alone."""

import cupy
import numpy as np

import cunorm

ROWS, COLS, RATE = 256, 512, 0.5
rng = np.random.default_rng(0)
x, noise = (cupy.asarray(rng.standard_normal((ROWS, COLS), dtype="float32")) for _ in range(2))
target = 3 * cunorm.layer_norm(x) + 1 + noise / 10  # what gamma and beta are to learn
gamma, beta = cupy.ones(COLS, "float32"), cupy.zeros(COLS, "float32")

for step in range(6):
    y, mean, rstd = cunorm.layer_norm_fwd(x, gamma, beta)
    dy = (y - target) / ROWS  # of half the squared error of a row
    dx, dgamma, dbeta = cunorm.layer_norm_bwd(dy, x, gamma, mean, rstd)
    gamma -= RATE * dgamma
    beta -= RATE * dbeta
    print(f"step {step}: squared error {float(cupy.square(y - target).mean()):.3f}")

print(f"gamma {float(gamma.mean()):.2f}, beta {float(beta.mean()):.2f}")
