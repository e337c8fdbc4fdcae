// Sums of columns: what blocks of a backward pass have left, added up to dgamma and dbeta.
//
// Formula      dgamma[c] = sum over b of partial[b][c], b = 0 .. blocks - 1. The rows after those
//              are the blocks' sums of dbeta, which the grid's second y takes.
//
// Mapping      A block owns COLUMNS neighbouring columns, one a lane. Its SLICES warps share out
//              the rows: warp s adds up rows s, s + SLICES, ... in that order, and the first warp
//              adds up the warps' sums in the order of the warps, through shared memory.
//
// Traffic      blocks * cols * sizeof(Acc) read, and cols * sizeof(W) written, for each parameter.
//
// Numerics     Sums are float32 (float64 for float64 data), rounded once, to W. The order of the
//              additions follows from the number of blocks alone.
//
// Preconditions  (_launch.py) blocks >= 1. pitch, the distance of two rows, is at least cols.

#include "vec.cuh"

using W = GAMMA_TYPE;
using Acc = ACC_TYPE;

struct Extent {
  long long cols;
  long long pitch;
  long long blocks;
};

extern "C" __global__ void __launch_bounds__(COLUMNS* SLICES)
    column_sums(W* dgamma, W* dbeta, const Acc* partial, const Extent extent) {
  __shared__ Acc sums[SLICES][COLUMNS];
  const long long column = static_cast<long long>(blockIdx.x) * COLUMNS + threadIdx.x;
  const Acc* const rows = partial + blockIdx.y * extent.blocks * extent.pitch + column;
  Acc sum = 0;
  if (column < extent.cols) {
#pragma unroll 4
    for (long long b = threadIdx.y; b < extent.blocks; b += SLICES) {
      sum = add(sum, rows[b * extent.pitch]);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= extent.cols) return;
#pragma unroll
  for (int slice = 1; slice < SLICES; ++slice) sum = add(sum, sums[slice][threadIdx.x]);
  const Acc value[16 / sizeof(W)] = {sum};
  store<false>((blockIdx.y == 0 ? dgamma : dbeta) + column, round_to<W>(value), 1);
}
