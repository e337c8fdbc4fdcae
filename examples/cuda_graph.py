"""A norm in a CUDA graph: captured once, launched for each batch that lies in its place."""

import cupy

import cunorm

x, gamma = cupy.empty((4, 8), "float32"), cupy.full(8, 3, "float32")
y = cupy.empty_like(x)

with cupy.cuda.Stream() as stream:
    x.fill(1)
    cunorm.rms_norm(x, gamma, out=y)  # compiles the kernel, which a capture must not
    stream.begin_capture()
    cunorm.rms_norm(x, gamma, out=y)
    graph = stream.end_capture()

    for batch in (2.0, 0.0, -5.0):
        x[:2] = batch
        graph.launch()
        print(f"rows of {batch:4.1f} and of 1.0:", y[1:3, 0].get().round(3))
