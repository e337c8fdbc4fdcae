"""The chart of `python -m cunorm bench`: by N, a line for each dtype, a column for each op."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from .counters import Counters
from .report import is_aligned

if TYPE_CHECKING:
    from .report import Measurement

    # A row of panels: its title, the value that it shows, and whether that is a share of 1.
    Panel = tuple[str, Callable[[Measurement], float | None], bool]

# Colours of Okabe and Ito, for every eye. Shares lie on each other at 100 %, and stay visible: the
# first to be drawn is the widest.
LOOKS = {
    "float64": ("#BBBBBB", 9.0),
    "float32": ("#E69F00", 6.6),
    "bfloat16": ("#009E73", 4.2),
    "float16": ("#0072B2", 1.8),
}
LINE = 1.8
INK, PALE, FAINT = "#333333", "#777777", "#E4E4E4"
TICKS = [4**power for power in range(3, 13)]


def save(measured: Sequence[Measurement], file: Path, device: str) -> None:
    """Draw the chart into a PNG file, without cases of a warm cache."""
    measured = [m for m in measured if not getattr(m, "warm", False)]
    ops = list(dict.fromkeys(map(_called, measured)))
    panels = _panels(measured)
    width = 1.2 + 3.3 * max(2, len(ops))
    figure = Figure(figsize=(width, 7), facecolor="white")
    grid = figure.subplots(
        len(panels), len(ops), sharex=True, sharey="row", squeeze=False, height_ratios=(2, 3)
    )
    figure.subplots_adjust(0.6 / width, 0.075, 1 - 0.2 / width, 0.77, 0.08, 0.34)
    for line, (title, value, is_share) in zip(grid, panels, strict=True):
        for axes, op in zip(line, ops, strict=True):
            _draw(axes, [m for m in measured if _called(m) == op], value, is_share)
            _dress(axes, op, is_share)
        # Of an op that failed there is nothing to draw.
        greatest = max((y for axes in line if math.isfinite(y := axes.dataLim.y1)), default=1.0)
        # A share may be greater than 1: a call can take less time than a copy.
        line[0].set_ylim(0, max(1.12, 1.06 * greatest) if is_share else 1.06 * greatest)
        at = line[0].get_position()
        figure.text(at.x0, at.y1 + 0.042, title, color=INK, fontsize=11, weight="bold")
    sizes = [m.cols for m in measured]
    grid[0][0].set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    for axes in grid[-1]:
        axes.set_xlabel("N, elements of a row", color=PALE, fontsize=9)
    _head(figure, grid[0][0].get_position().x0, measured, device)
    figure.savefig(file, dpi=150)


def _called(measurement: Measurement) -> str:
    """Return the title of a column: an op, of codes with their scheme."""
    return " ".join(filter(None, (measurement.op, measurement.quant)))


def _panels(measured: Sequence[Measurement]) -> list[Panel]:
    if isinstance(measured[0], Counters):
        return [
            (
                "Share of the byte floor: sectors that must move, of those requested",
                lambda m: m.share,
                True,
            ),
            (
                "PTX warp instructions for each 512 bytes of x",
                lambda m: getattr(m, "instructions_per_packet", None),
                False,
            ),
        ]
    return [
        (
            "Share of the speed of a device-to-device copy of the same bytes, cold cache",
            lambda m: m.share,
            True,
        ),
        (
            "GB/s of the bytes that must move, cold cache",
            lambda m: getattr(m, "gb_per_s", None),
            False,
        ),
    ]


def _draw(
    axes: Any,
    measured: Sequence[Measurement],
    value: Callable[[Measurement], float | None],
    is_share: bool,
) -> None:
    """Draw a line through the aligned rows of each dtype, and a ring for each of the others."""
    for dtype, (colour, width) in LOOKS.items():
        mine = [m for m in measured if m.dtype == dtype]
        aligned = sorted((m for m in mine if is_aligned(m)), key=lambda m: m.cols)
        axes.plot(
            [m.cols for m in aligned],
            [value(m) for m in aligned],
            color=colour,
            linewidth=width if is_share else LINE,
            marker="o",
            markersize=2.4 + (width if is_share else LINE),
            markeredgewidth=0,
            solid_capstyle="round",
        )
        others = [m for m in mine if not is_aligned(m)]
        axes.plot(
            [m.cols for m in others],
            [value(m) for m in others],
            color=colour,
            linestyle="none",
            marker="o",
            markersize=5.5,
            markerfacecolor="white",
            markeredgewidth=1.4,
            zorder=4,
        )


def _dress(axes: Any, op: str, is_share: bool) -> None:
    """Set the scales, and take away what is no data."""
    axes.set_title(op, loc="left", fontsize=9.5, color=PALE, family="monospace", pad=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda n, _: f"{n / 1024:g}k" if n >= 1024 else f"{n:g}")
    )
    axes.xaxis.set_minor_locator(NullLocator())
    if is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.axhline(1, color=PALE, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=PALE, labelsize=8.5, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _head(figure: Figure, left: float, measured: Sequence[Measurement], device: str) -> None:
    """Say what was measured on what, and which line is which."""
    counted = isinstance(measured[0], Counters)
    told = "counters of the software GPU" if counted else "times on hardware"
    figure.text(left, 0.952, f"cunorm: {told}", color=INK, fontsize=14, weight="bold")
    figure.text(left, 0.92, device, color=PALE, fontsize=9.5)
    present = [dtype for dtype in reversed(LOOKS) if any(m.dtype == dtype for m in measured)]
    handles = [
        Line2D([], [], color=LOOKS[dtype][0], linewidth=LINE, marker="o", label=dtype)
        for dtype in present
    ]
    if not all(is_aligned(m) for m in measured):
        ring: dict[str, Any] = {
            "markerfacecolor": "white",
            "markeredgecolor": PALE,
            "markeredgewidth": 1.4,
        }
        handles.append(
            Line2D([], [], linestyle="none", marker="o", label="rows not on 16 bytes", **ring)
        )
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, 0.912),
        borderpad=0,
        ncols=len(handles),
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )
