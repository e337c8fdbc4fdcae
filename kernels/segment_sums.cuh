// What the blocks of each segment of rows leave, added up: the gradients of what is one row for all
// of a segment's, and each segment's share of dgamma and dbeta, which column_sums.cuh adds up.
//
// Formula      P = sum of dy * n and Q = sum of dy over the rows of a segment, column by column.
//              With t = n * (gamma + gamma_offset) + beta and y = t * (scale + scale_offset) +
//              shift: dscale = (gamma + gamma_offset) * P + beta * Q, dshift = Q, and the share of
//              dgamma is (scale + scale_offset) * P, that of dbeta (scale + scale_offset) * Q. Of h =
//              residual + gate * x, dgate = sum of dh * x.
//
// Mapping      As column_sums.cuh; a block has COLUMNS columns of one segment.

#pragma once

#include "column_sums.cuh"

// The sums of one segment. What is not wanted has a null.
template <typename DScale, typename DShift, typename DGate, typename Acc>
struct OfSegments {
  DScale* dscale;  // a row of extent.cols for each segment
  DShift* dshift;
  DGate* dgate;
  Acc* shares;  // rows of extent.pitch: of dgamma for each segment, then of dbeta
};

// What is multiplied and added in between; null where it is not there.
template <typename Gamma, typename Beta, typename Scale, typename Acc>
struct Factors {
  const Gamma* gamma;
  const Beta* beta;
  const Scale* scale;
  long long scale_pitch;  // bytes, from a segment's row to the next
  Acc gamma_offset;
  Acc scale_offset;
};

template <typename Acc, typename E>
__device__ inline Acc element(const E* from) {
  Acc value[16 / sizeof(E)];
  unpack(load<false, 16 / sizeof(E)>(from, 1), value);
  return value[0];
}

// KINDS sums a column beside those of a gate, which are the last.
template <int COLUMNS, int SLICES, int KINDS, bool OF_GATE, typename Acc, typename To, typename With>
__device__ inline void add_up_segments(const To& to, const Acc* partial, const With& with,
                                       const Extent& extent) {
  const long long blocks_of_segment = (extent.cols + COLUMNS - 1) / COLUMNS;
  const long long segments = gridDim.x / blocks_of_segment;
  const long long segment = blockIdx.x / blocks_of_segment;
  const long long column = blockIdx.x % blocks_of_segment * COLUMNS + threadIdx.x;
  const bool exists = column < extent.cols;

  const long long rows_of_kind = segments * extent.blocks;
  Acc sum[3] = {};
#pragma unroll
  for (int kind = 0; kind < KINDS + OF_GATE; ++kind) {
    if (kind > 0) __syncthreads();
    const long long row = kind * rows_of_kind + segment * extent.blocks;
    sum[kind] =
        sum_of_blocks<COLUMNS, SLICES>(partial + row * extent.pitch + column, exists, extent);
  }
  if (threadIdx.y > 0 || !exists) return;

  const long long at = segment * extent.cols + column;
  if (to.dscale != nullptr) {
    Acc made = sum[0];
    if (with.gamma != nullptr) {
      made = mul(made, add(element<Acc>(with.gamma + column), with.gamma_offset));
    }
    if (with.beta != nullptr) made = fma_rn(element<Acc>(with.beta + column), sum[1], made);
    store_sum(to.dscale + at, made);
  }
  if (to.dshift != nullptr) store_sum(to.dshift + at, sum[1]);
  if (OF_GATE) store_sum(to.dgate + at, sum[KINDS]);
  if (to.shares != nullptr) {
    Acc factor = 1;
    if (with.scale != nullptr) {
      const auto scale = bytes_after(with.scale, segment * with.scale_pitch);
      factor = add(element<Acc>(scale + column), with.scale_offset);
    }
#pragma unroll
    for (int kind = 0; kind < KINDS; ++kind) {
      const long long row = kind * segments + segment;
      to.shares[row * extent.pitch + column] = mul(factor, sum[kind]);
    }
  }
}
