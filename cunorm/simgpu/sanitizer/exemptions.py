"""What kernels of CuPy's own do on purpose, and a check would take for an error."""

from __future__ import annotations

import functools
import re
from enum import Enum


class Exemption(Enum):
    """A pattern for the names of kernels, for each thing that they may do."""

    # CuPy's scan of rows, `sosfilt` of a last block that is not full, and `Delaunay` where it
    # measures distances, read a place that they may not have written, and then do not use it.
    READS_IN_VAIN = (
        r"cupy_inclusive_batch_scan_kernel|_Z\d+correct_carries.*|_Z\d+computeDistance2D.*"
    )
    # CuPy's kernels that copy an array to another of its dtype, or rows of it that are asked for,
    # each element by a lane of its own. Like a copy without a kernel they copy what is known to be
    # written: `cupyx.scipy.signal.lfilter` and `cupyx.scipy.spatial.Delaunay` begin with copies of
    # arrays that are still to be written in part.
    COPIES_UNWRITTEN = r"cupy_copy__(\w+)_\1|cupy_take"
    # How CuPy labels connected regions: each kernel reads links that other blocks are shortening,
    # and finds its way from old links too. And how it makes triangles: it raises the best vote by
    # an atomic where that looks lower, and cuts triangles off from others that go as well.
    RACES = r"cupyx_scipy_ndimage_label_.*|_Z\d+ker(VoteForPoint|MarkInfinityTri)P.*"
    # How CuPy filters (`lfilter`, `sosfilt`): threads past the end of a row break out of a loop
    # that has a barrier in it, and end. Hardware lets the others go.
    BREAKS_OUT_OF_BARRIERS = r"_Z\d+first_pass_iir.*"

    @functools.cache
    def of(self, kernel: str) -> bool:
        """Return whether a kernel of this name has the exemption."""
        return re.fullmatch(self.value, kernel) is not None
