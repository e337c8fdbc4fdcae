"""Whether a model is being exported: what reads the graph then knows no operator of cunorm's."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Return whether `torch.export` or `torch.jit.trace` is at work, and so either ONNX exporter.

    The flag is read where ``torch.compiler.is_exporting`` has it: the compiler of PyTorch 2.11
    takes that function for true, in `torch.compile` too.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler._is_exporting_flag
