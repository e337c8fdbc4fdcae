"""Which forward kernel serves a row."""

from __future__ import annotations

from functools import cache

from . import split
from .devices import half_of_shared_bytes
from .dtypes import ITEMSIZE, accumulator
from .plan import Plan
from .split import PACKETS_IN_FLIGHT, whole_packets
from .unit import Stage, then


def _plan(
    kernel: str,
    cols: int,
    x: str,
    residual: str | None,
    arch: int,
    statistic: str,
    saves: tuple[str, ...],
    parameters: dict[str, str | None],
    scalars: tuple[str, ...],
    epilogue: Stage,
) -> Plan:
    row = residual or x
    share = split.forward(cols, row, arch, residual=residual is not None)
    given = {name: dtype for name, dtype in parameters.items() if dtype is not None}
    written = {"y": x} if residual is None else {"y": x, "residual_out": residual}
    read = {"x": x} if residual is None else {"x": x, "residual": residual}
    source, arrays = "Loaded<S, X>", "{{x, n.x}}"
    if residual is not None:
        source = "Added<S, X, Residual, ResidualOut>"
        arrays = "{{x, n.x}, {residual, n.residual}, {residual_out, n.residual_out}}"
    in_registers = whole_packets(cols, row) <= share.in_registers
    return Plan(
        kernel,
        "norm.cuh",
        row,
        cols,
        share,
        arrays=written | dict.fromkeys(saves, accumulator(row)) | read | given,
        of_rows=(*written, *read),
        statistics=saves,
        parameters=(*given,),
        written=(*written, *saves),
        scalars=scalars,
        body=f"normalise<{source}, {statistic}<S>, {epilogue.type}, Stored<S, Y>>(\n"
        f"      {arrays}, {epilogue.arrays}, {{{{y, n.y}}}}, {{{', '.join(saves)}}}, "
        "n.rows, n.eps);",
        alone=share.shared_bytes() > half_of_shared_bytes(arch),
        at_once=2 if residual is not None and not in_registers else PACKETS_IN_FLIGHT,
    )


@cache
def rms_norm_fwd(
    cols: int,
    x: str,
    gamma: str | None,
    *,
    cast_before: bool,
    gamma_offset: bool,
    arch: int,
    residual: str | None = None,
) -> Plan:
    """Plan RMSNorm forward for rows of `cols` elements.

    Parameters
    ----------
    cols : int
        N, at least 1.
    x : str
        The dtype of x and y.
    gamma : str or None
        The dtype of gamma, None where there is none.
    cast_before : bool
        Whether the normalised value is rounded to x's dtype before gamma multiplies. Data that is
        not rounded, or that gamma does not multiply, has one kernel for both.
    gamma_offset : bool
        Whether an offset is added to gamma.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    residual : str or None
        The dtype of residual and of the sum that is normalised, None where there is no residual.

    Returns
    -------
    Plan
    """
    scale = Stage(f"Scale<S, Gamma, {str(gamma_offset).lower()}>", "{gamma, n.gamma_offset}")
    if gamma is None:
        epilogue = then(())
    elif not cast_before or ITEMSIZE[x] > 2:
        epilogue = then((scale,))
    elif gamma == x and not gamma_offset:
        epilogue = Stage("ModelScale<S, Gamma>", "{gamma}")
    else:
        epilogue = then((Stage("Round<S, Y::E>", "{}"), scale))
    return _plan(
        "rms_norm_fwd" if residual is None else "add_rms_norm",
        cols,
        x,
        residual,
        arch,
        "MeanSquare",
        ("rstd",),
        {"gamma": gamma},
        ("eps", "gamma_offset"),
        epilogue,
    )


@cache
def layer_norm_fwd(
    cols: int,
    x: str,
    gamma: str | None,
    beta: str | None,
    *,
    arch: int,
    residual: str | None = None,
) -> Plan:
    """Plan LayerNorm forward for rows of `cols` elements.

    Parameters
    ----------
    cols : int
        N, at least 1.
    x : str
        The dtype of x and y.
    gamma, beta : str or None
        The dtypes of gamma and beta, None where there is none.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    residual : str or None
        The dtype of residual and of the sum that is normalised, None where there is no residual.

    Returns
    -------
    Plan
    """
    stages = []
    if gamma is not None and beta is not None:
        stages = [Stage("Affine<S, Gamma, Beta>", "{gamma, beta}")]
    elif gamma is not None:
        stages = [Stage("Scale<S, Gamma, false>", "{gamma, 0}")]
    elif beta is not None:
        stages = [Stage("AddBeta<S, Beta>", "{beta}")]
    return _plan(
        "layer_norm_fwd" if residual is None else "add_layer_norm",
        cols,
        x,
        residual,
        arch,
        "Moments",
        ("mean", "rstd"),
        {"gamma": gamma, "beta": beta},
        ("eps",),
        then(stages),
    )
