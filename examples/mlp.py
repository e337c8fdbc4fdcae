"""Steps of Adam through a small MLP with RMSNorm, its gradients written out, in plain CuPy."""

import cupy

import cunorm

ROWS, INPUTS, HIDDEN, CLASSES, RATE = 128, 32, 64, 4, 0.02
cupy.random.seed(0)
x = cupy.random.standard_normal((ROWS, INPUTS), dtype="float32")
labels = (x @ cupy.random.standard_normal((INPUTS, CLASSES), dtype="float32")).argmax(axis=1)
wanted = cupy.eye(CLASSES, dtype="float32")[labels]

weights = [
    cupy.random.standard_normal((INPUTS, HIDDEN), dtype="float32") / INPUTS**0.5,
    cupy.ones(HIDDEN, "float32"),  # gamma
    cupy.random.standard_normal((HIDDEN, CLASSES), dtype="float32") / HIDDEN**0.5,
]
means, squares = ([cupy.zeros_like(each) for each in weights] for _ in range(2))

for step in range(1, 9):
    first, gamma, second = weights
    h = x @ first
    normed, rstd = cunorm.rms_norm_fwd(h, gamma)
    active = cupy.maximum(normed, 0)
    scores = active @ second
    powers = cupy.exp(scores - scores.max(axis=1, keepdims=True))
    chances = powers / powers.sum(axis=1, keepdims=True)
    loss = -cupy.log((chances * wanted).sum(axis=1)).mean()
    right = (scores.argmax(axis=1) == labels).mean()
    print(f"step {step}: loss {float(loss):.2f}, {float(right):.0%} right")

    dscores = (chances - wanted) / ROWS
    dnormed = (dscores @ second.T) * (normed > 0)
    dh, dgamma = cunorm.rms_norm_bwd(dnormed, h, gamma, rstd)
    for at, gradient in enumerate((x.T @ dh, dgamma, active.T @ dscores)):
        means[at] += 0.1 * (gradient - means[at])
        squares[at] += 0.01 * (gradient**2 - squares[at])
        mean, square = means[at] / (1 - 0.9**step), squares[at] / (1 - 0.99**step)
        weights[at] -= RATE * mean / (cupy.sqrt(square) + 1e-8)
