"""NVIDIA's closed libraries, answered on the host by NumPy: one module a library."""
