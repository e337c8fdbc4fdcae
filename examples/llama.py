"""A Llama-like language model in plain CuPy with random weights: a forward pass and two tokens."""

import cupy

import cunorm

VOCABULARY, LAYERS, HIDDEN, HEADS, KV_HEADS, INNER = 128, 2, 64, 4, 2, 172
HEAD_DIM = HIDDEN // HEADS
cupy.random.seed(0)


def weight(rows, columns):
    """Return a matrix that keeps the size of what it multiplies."""
    return cupy.random.standard_normal((rows, columns), dtype="float32") / rows**0.5


def rotate(x):
    """Turn pairs of each head by their token's place, as RoPE does."""
    half = HEAD_DIM // 2
    rates = 10000.0 ** (-cupy.arange(half, dtype="float32") / half)
    angles = cupy.arange(x.shape[2], dtype="float32")[:, None] * rates
    cos, sin = cupy.cos(angles), cupy.sin(angles)
    left, right = x[..., :half], x[..., half:]
    return cupy.concatenate((left * cos - right * sin, right * cos + left * sin), axis=-1)


def softmax(x):
    """Return the probabilities of the last axis."""
    powers = cupy.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


class Layer:
    """Attention and an MLP, each after a norm."""

    def __init__(self):
        self.norms = cupy.ones((2, HIDDEN), "float32")
        self.q = weight(HIDDEN, HEADS * HEAD_DIM)
        self.k, self.v = weight(HIDDEN, KV_HEADS * HEAD_DIM), weight(HIDDEN, KV_HEADS * HEAD_DIM)
        self.o = weight(HEADS * HEAD_DIM, HIDDEN)
        self.gate, self.up = weight(HIDDEN, INNER), weight(HIDDEN, INNER)
        self.down = weight(INNER, HIDDEN)

    def attend(self, x):
        """Let each token look at those before it."""
        batch, tokens, _ = x.shape
        q, k, v = (
            (x @ w).reshape(batch, tokens, -1, HEAD_DIM).swapaxes(1, 2)
            for w in (self.q, self.k, self.v)
        )
        q, k = rotate(q), rotate(k)
        k, v = (each.repeat(HEADS // KV_HEADS, axis=1) for each in (k, v))
        scores = cupy.einsum("bhqd,bhkd->bhqk", q, k) / HEAD_DIM**0.5
        later = cupy.triu(cupy.ones((tokens, tokens), bool), 1)
        found = softmax(cupy.where(later, -cupy.inf, scores)) @ v
        return found.swapaxes(1, 2).reshape(batch, tokens, -1) @ self.o

    def transform(self, x):
        """Pass each token through the gated MLP."""
        gate = x @ self.gate
        return (gate / (1 + cupy.exp(-gate)) * (x @ self.up)) @ self.down


embedding, head = weight(HIDDEN, VOCABULARY).T.copy(), weight(HIDDEN, VOCABULARY)
layers, last_norm = [Layer() for _ in range(LAYERS)], cupy.ones(HIDDEN, "float32")


def logits(tokens):
    """Return what the model thinks comes after each token."""
    h, x = embedding[tokens], None
    for layer in layers:
        if x is None:
            y = cunorm.rms_norm(h, layer.norms[0])
        else:
            y, h = cunorm.add_rms_norm(x, h, layer.norms[0])
        y, h = cunorm.add_rms_norm(layer.attend(y), h, layer.norms[1])
        x = layer.transform(y)
    y, _ = cunorm.add_rms_norm(x, h, last_norm)
    return y @ head


tokens = cupy.random.randint(0, VOCABULARY, (2, 16))
found = logits(tokens)
chances = cupy.take_along_axis(softmax(found[:, :-1]), tokens[:, 1:, None], axis=-1)
print("logits:", found.shape, found.dtype)
print(f"loss: {float(-cupy.log(chances).mean()):.2f}")
print(f"spread of the logits: {float(found.std()):.2f}")
for _ in range(2):
    tokens = cupy.concatenate((tokens, logits(tokens)[:, -1].argmax(axis=-1)[:, None]), axis=1)
print("the next two tokens:", tokens[:, -2:].tolist())
