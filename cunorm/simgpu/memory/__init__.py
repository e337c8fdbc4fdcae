"""The memory that kernels use, over host memory."""
