"""A software GPU under the unmodified CuPy: it executes the PTX that NVRTC produced."""
