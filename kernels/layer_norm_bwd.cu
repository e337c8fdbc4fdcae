// LayerNorm, backward.
//
// Formula      With n = (x - mean) * rstd and g = gamma, over the last COLS columns of each row:
//              dx = rstd * (g * dy - mean(g * dy) - n * mean(g * dy * n)), plus dresidual where
//              there is one; over rows, dgamma = sum of dy * n and dbeta = sum of dy.
//
// Mapping      As in rms_norm_bwd.cu. Both sums of a row share one barrier.
//
// Traffic      rows * COLS * 3 * sizeof(X), or 4 * sizeof(X) with dresidual; gamma and 8 bytes a
//              row of mean and rstd; 4 * blocks * COLS * 4 for the blocks' sums of dgamma and
//              dbeta, written here and read by column_sums. Long rows as in rms_norm_bwd.cu.
//
// Numerics     As in rms_norm_bwd.cu. mean and rstd are taken as given: x - mean is exact or nearly
//              so, wherever x is far from zero.
//
// Preconditions  (_check.py, _launch.py) As in rms_norm_bwd.cu.

#define CENTERED 1

#include "norm_bwd.cuh"

KERNEL __launch_bounds__(LANES* ROWS, MIN_BLOCKS<RESIDENT>)
    layer_norm_bwd(X* dx, Acc* partial, const X* x, const X* dy,
#if HAS_DRESIDUAL
                   const X* dresidual,
#endif
                   const W* __restrict__ gamma, const Acc* mean, const Acc* rstd,
                   const Backward given) {
#if !HAS_DRESIDUAL
  const X* const dresidual = nullptr;
#endif
  backward_of_block({dx, partial, x, dy, dresidual, gamma, mean, rstd}, given);
}
