"""What CuPy sees: the tables of the CUDA runtime and driver, and what is behind them."""
