"""One set of arrays of a case: PyTorch's tensors, and CuPy's arrays of the same memory."""

from __future__ import annotations

from typing import Any

import torch
from arrays import to_numpy
from arrays import to_torch as host_to_torch

from .cases import Case
from .session import DRY, start_device

cupy = start_device()
from cunorm._bench.times import LAYER_EPS, RMS_EPS  # noqa: E402

DEVICE = "cpu" if DRY else "cuda"


def to_cupy(tensor: torch.Tensor) -> Any:
    """Return CuPy's array over a tensor's memory; in a dry run a copy on the software GPU."""
    if DRY:
        return cupy.asarray(to_numpy(tensor))
    return cupy.from_dlpack(torch.utils.dlpack.to_dlpack(tensor))


def to_torch(array: Any) -> torch.Tensor:
    """Return a CuPy array as a tensor over its memory; in a dry run as a copy on the host."""
    if isinstance(array, torch.Tensor):
        return array
    if DRY:
        return host_to_torch(array.get())
    if array.dtype.name == "bfloat16":  # by its bits: CuPy does not export it
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(array)


class Given:
    """The arguments of a call, made on the device.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        What is read, by name: the parameters always, the statistics of x for a backward call.
    arrays : dict of str to cupy.ndarray
        The same memory for cunorm's call, and what a forward call writes.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        dtype = getattr(torch, case.dtype)
        random = torch.Generator(DEVICE).manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random, device=DEVICE).to(dtype)

        self.tensors = {
            name: draw(case.rows, case.cols)
            for name in case.names
            if name in ("x", "residual", "dy")
        }
        self.tensors["gamma"] = (1 + draw(case.cols) / 8).to(dtype)
        self.tensors["beta"] = draw(case.cols)
        if case.is_backward:
            self.tensors |= statistics(case, self.tensors["x"])
        self.arrays = {name: to_cupy(tensor) for name, tensor in self.tensors.items()}
        if not case.is_layer_norm or case.is_backward:
            del self.arrays["beta"]
        for name in case.names:
            if name in ("y", "residual_out"):
                self.arrays[name] = cupy.empty_like(self.arrays["x"])

    def __getattr__(self, name: str) -> torch.Tensor:
        """Return a tensor by its name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise AttributeError(name) from None


def statistics(case: Case, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a forward call keeps of x, in float32."""
    eps = LAYER_EPS if case.is_layer_norm else RMS_EPS
    kept = {}
    wide = x.float()
    if case.is_layer_norm:
        kept["mean"] = wide.mean(-1)
        wide = wide - kept["mean"][:, None]
    kept["rstd"] = (wide.square().mean(-1) + eps).rsqrt()
    return kept
