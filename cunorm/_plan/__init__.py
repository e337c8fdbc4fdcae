"""Which kernel serves a row: how its columns are shared out, its parts, its translation unit.

dtypes.py and devices.py are tables; split.py shares out a row; forward.py and backward.py choose
the parts of a kernel, which plan.py describes and unit.py writes down.
"""

from .backward import BackwardPlan, ColumnSums, column_sums, layer_norm_bwd, rms_norm_bwd
from .dtypes import ITEMSIZE, accumulator
from .forward import layer_norm_fwd, rms_norm_fwd
from .plan import Plan
from .split import PACKET_BYTES, PACKETS_IN_FLIGHT, WARP, Split
from .unit import Reach, Try

__all__ = [
    "ITEMSIZE",
    "PACKETS_IN_FLIGHT",
    "PACKET_BYTES",
    "WARP",
    "BackwardPlan",
    "ColumnSums",
    "Plan",
    "Reach",
    "Split",
    "Try",
    "accumulator",
    "column_sums",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "rms_norm_bwd",
    "rms_norm_fwd",
]
