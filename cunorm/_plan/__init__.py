"""Which kernel serves a row: how its columns are shared out, its parts, its translation unit.

dtypes.py and devices.py are tables; split.py shares out a row; parts.py has the parts of kernels,
of which forward_kernel.py, quant_kernel.py, backward_kernel.py and rope_kernel.py make one; plan.py
describes it and unit.py writes it down. ways.py has the other ways to share out a row, and
tuning.py says which of them serves a launch.
"""

from .backward_kernel import BackwardPlan, ColumnSums, SegmentSums, backward, column_sums
from .devices import MOST_SEAMS, Device
from .dtypes import ITEMSIZE, accumulator, promoted
from .forward_kernel import forward, row_sums
from .plan import Plan
from .quant_kernel import Dequantised, quantised
from .rope_kernel import Rotary, TooLong, cast_of_norm, heads
from .rope_plan import HeadsPlan, RopePlan
from .split import PACKET_BYTES, PACKETS_IN_FLIGHT, WARP, Split
from .unit import Reach, Try
from .ways import Way

__all__ = [
    "ITEMSIZE",
    "MOST_SEAMS",
    "PACKETS_IN_FLIGHT",
    "PACKET_BYTES",
    "WARP",
    "BackwardPlan",
    "ColumnSums",
    "Dequantised",
    "Device",
    "HeadsPlan",
    "Plan",
    "Reach",
    "RopePlan",
    "Rotary",
    "SegmentSums",
    "Split",
    "TooLong",
    "Try",
    "Way",
    "accumulator",
    "backward",
    "cast_of_norm",
    "column_sums",
    "forward",
    "heads",
    "promoted",
    "quantised",
    "row_sums",
]
