// RMSNorm, backward.
//
// Formula      With g = gamma + gamma_offset and n = x * rstd, over the last COLS columns of each
//              row: dx = rstd * (g * dy - n * mean(g * dy * n)), plus dresidual where there is one,
//              and dgamma = sum over rows of dy * n.
//
// Mapping      LANES threads own a row and ROWS rows are a block's at a time, as in rms_norm.cu.
//              Blocks are as many as the device holds at once, and take rows in turns
//              (norm_bwd.cuh); each leaves one row of sums, which column_sums.cu adds up.
//
// Traffic      rows * COLS * 3 * sizeof(X), or 4 * sizeof(X) with dresidual;
//              gamma and 4 bytes a row of rstd; 2 * blocks * COLS * 4 for the blocks'
//              sums of dgamma, written here and read by column_sums. Rows too long for registers
//              and shared memory read x and dy once more, and their sums stay in L2.
//
// Numerics     All products and sums are float32 (float64 for float64), one rounding to X at the
//              end. dx of a row is the same in any batch. The order in which dgamma is added up
//              follows from the number of rows and of blocks; there are no atomics.
//
// Preconditions  (_check.py, _launch.py) Columns have unit stride. dx and the sums overlap nothing.
//              *_ACCESS hold for every row. rows.count >= 1, and no block is without rows.

#define CENTERED 0

#include "norm_bwd.cuh"

KERNEL __launch_bounds__(LANES* ROWS, MIN_BLOCKS<RESIDENT>)
    rms_norm_bwd(X* dx, Acc* partial, const X* x, const X* dy,
#if HAS_DRESIDUAL
                 const X* dresidual,
#endif
                 const W* __restrict__ gamma, const Acc* rstd, const Backward given) {
#if !HAS_DRESIDUAL
  const X* const dresidual = nullptr;
#endif
  backward_of_block({dx, partial, x, dy, dresidual, gamma, nullptr, rstd}, given);
}
