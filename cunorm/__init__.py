"""RMSNorm and LayerNorm for CuPy."""
