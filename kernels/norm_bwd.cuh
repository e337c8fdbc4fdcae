// The backward pass of a row, and its block's share of dgamma and dbeta: what rms_norm_bwd.cu and
// layer_norm_bwd.cu, which set CENTERED, have in common.
//
// The grid is persistent: block b takes the groups of ROWS rows b, b + gridDim.x, b + 2 gridDim.x,
// ... and adds up, column by column in that order, what they give to dgamma and dbeta. A lane owns
// the columns it owns in every row, so that it adds without asking the others:
//
//   block 0   rows 0 ..        rows G * ROWS ..       ...   -> partial[0]   column_sums.cu adds
//   block 1   rows ROWS ..     rows (G + 1) * ROWS .. ...   -> partial[1]   these up in a fixed
//   ...                                                                     order
//
// row_bwd.cuh has the row and parameter_sums.cuh the sums of columns, each as one lane holds it.

#pragma once

#include "parameter_sums.cuh"
#include "reduce.cuh"

using W = GAMMA_TYPE;

// As in cunorm/_plan_backward.py: 168 registers for each thread.
constexpr int RESIDENT_THREADS = 384;

// Past the registers eight packets are added up at a time, as in row.cuh.
constexpr int CHUNK = 8;

struct Backward {
  Rows rows;
  Acc gamma_offset;
};

struct Arrays {
  X* dx;
  Acc* partial;  // PARAMETERS * gridDim.x rows
  const X* x;
  const X* dy;
  const X* dresidual;
  const W* gamma;
  const Acc* mean;
  const Acc* rstd;
};

// What a row's dx is made of besides x and dy.
struct RowOfGradient {
  Acc mean;
  Acc rstd;
  Acc mean_of_products;  // of g * dy * n
  Acc mean_of_gradient;  // of g * dy, where CENTERED

  __device__ Acc normal(Acc x) const { return mul(CENTERED ? sub(x, mean) : x, rstd); }
};

// g * dy of one packet.
__device__ inline void weigh(const Acc (&dy)[VEC], const Pack<W, VEC>& gamma, Acc gamma_offset,
                             Acc (&weighted)[VEC]) {
  Acc factor[VEC];
  unpack(gamma, factor);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    if (GAMMA_OFFSET) factor[i] = add(factor[i], gamma_offset);
    weighted[i] = HAS_GAMMA ? mul(dy[i], factor[i]) : dy[i];
  }
}

// Sums of g * dy * n, and of g * dy, over the row, divided by COLS.
__device__ inline void sum_row(const Pairs& pairs, const Arrays& arrays, const Place& place,
                               Acc gamma_offset, int buffer, RowOfGradient& row) {
  constexpr Acc PER_COLUMN = Acc(1.0 / COLS);
  constexpr int COUNT = CENTERED ? 2 : 1;
  const auto add_columns = [&](int count, const Acc(&x)[VEC], const Acc(&dy)[VEC],
                               const Pack<W, VEC>& gamma, Acc(&sums)[2][COUNT]) {
    Acc weighted[VEC];
    weigh(dy, gamma, gamma_offset, weighted);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      if (i >= count) continue;
      sums[i % 2][0] = fma_rn(weighted[i], row.normal(x[i]), sums[i % 2][0]);
      if (CENTERED) sums[i % 2][COUNT - 1] = add(sums[i % 2][COUNT - 1], weighted[i]);
    }
  };
  Acc total[COUNT] = {};
  const auto add_sums = [&](const Acc(&sums)[2][COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) total[i] = add(total[i], add(sums[0][i], sums[1][i]));
  };

  Acc kept[2][COUNT] = {};
  Acc x[VEC];
  Acc dy[VEC];
#pragma unroll
  for (int turn = 0; turn < PACKETS; ++turn) {
    if (!place.has_packet(turn)) continue;
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_parameters<GAMMA_ACCESS>(arrays.gamma, place, turn);
    pairs.in_register(turn, x, dy);
    add_columns(VEC, x, dy, gamma, kept);
  }
#pragma unroll
  for (int turn = 0; turn < TAIL_TURNS; ++turn) {
    if (!place.has_tail(turn)) continue;
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_column<true>(arrays.gamma, place.tail_column(turn));
    pairs.tail(turn, x, dy);
    add_columns(1, x, dy, gamma, kept);
  }
  add_sums(kept);
#pragma unroll 1
  for (int first = PACKETS; first < TURNS; first += CHUNK) {
    Acc sums[2][COUNT] = {};
    const int end = min(first + CHUNK, TURNS);
#pragma unroll 1
    for (int turn = first; turn < end; ++turn) {
      if (!place.has_packet(turn)) continue;
      Pack<W, VEC> gamma = {};
      if constexpr (HAS_GAMMA) gamma = load_parameters<GAMMA_ACCESS>(arrays.gamma, place, turn);
      pairs.past_registers(turn, x, dy);
      add_columns(VEC, x, dy, gamma, sums);
    }
    add_sums(sums);
  }
  row_sums<LANES, 0, 2>(total, buffer);
  row.mean_of_products = mul(total[0], PER_COLUMN);
  if (CENTERED) row.mean_of_gradient = mul(total[COUNT - 1], PER_COLUMN);
}

// dx of one packet; turns x into the normalised values.
__device__ inline Pack<X, VEC> gradient(Acc (&x)[VEC], const Acc (&dy)[VEC],
                                        const Pack<W, VEC>& gamma, Acc gamma_offset,
                                        const Pack<X, VEC>& dresidual, const RowOfGradient& row) {
  Acc value[VEC];
  weigh(dy, gamma, gamma_offset, value);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    x[i] = row.normal(x[i]);
    if (CENTERED) value[i] = sub(value[i], row.mean_of_gradient);
    value[i] = mul(fma_rn(-x[i], row.mean_of_products, value[i]), row.rstd);
  }
#if HAS_DRESIDUAL
  Acc beside[VEC];
  unpack(dresidual, beside);
#pragma unroll
  for (int i = 0; i < VEC; ++i) value[i] = add(value[i], beside[i]);
#endif
  return round_to<X>(value);
}

// One row of a group: sums, dx, and what its columns give to dgamma and dbeta.
__device__ inline void backward_of_row(const Arrays& arrays, const Place& place,
                                       const Backward& given, int buffer, ColumnSums& columns) {
  const Pairs pairs(arrays.x + offset(place.at, given.rows.x),
                    arrays.dy + offset(place.at, given.rows.dy), place);
  RowOfGradient row = {};
  if (place.exists) {
    if (CENTERED) row.mean = arrays.mean[place.row];
    row.rstd = arrays.rstd[place.row];
  }
  sum_row(pairs, arrays, place, given.gamma_offset, buffer, row);

  X* const dx = arrays.dx + offset(place.at, given.rows.dx);
  Writer<X, DX_ACCESS, OF_DX> out(dx, place);
#if HAS_DRESIDUAL
  const X* const dresidual = arrays.dresidual + offset(place.at, given.rows.dresidual);
  Reader<X, DRESIDUAL_ACCESS, OF_DRESIDUAL> beside(dresidual, place);
#endif
  // The packets of a turn beside those of x and dy. Turns come in order, and all lanes take part.
  const auto finish = [&](int turn, Acc(&x)[VEC], const Acc(&dy)[VEC]) {
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_parameters<GAMMA_ACCESS>(arrays.gamma, place, turn);
    Pack<X, VEC> added[1] = {};
#if HAS_DRESIDUAL
    beside.read(turn, TURNS, added);
#endif
    const Pack<X, VEC> made[1] = {gradient(x, dy, gamma, given.gamma_offset, added[0], row)};
    out.write(turn, TURNS, made);
  };
  Acc x[VEC];
  Acc dy[VEC];
#pragma unroll
  for (int turn = 0; turn < PACKETS; ++turn) {
    pairs.in_register(turn, x, dy);
    finish(turn, x, dy);
    columns.add_kept(turn, dy, x);
  }
#pragma unroll 1
  for (int turn = PACKETS; turn < TURNS; ++turn) {
    pairs.past_registers(turn, x, dy);
    finish(turn, x, dy);
    columns.add_past_registers(turn, dy, x);
  }
#pragma unroll
  for (int turn = 0; turn < TAIL_TURNS; ++turn) {
    if (!place.has_tail(turn)) continue;
    const int column = place.tail_column(turn);
    Pack<W, VEC> gamma = {};
    Pack<X, VEC> added = {};
    if constexpr (HAS_GAMMA) gamma = load_column<true>(arrays.gamma, column);
#if HAS_DRESIDUAL
    added = load_column<false>(dresidual, column);
#endif
    pairs.tail(turn, x, dy);
    store_column(dx, column, gradient(x, dy, gamma, given.gamma_offset, added, row));
    columns.add_tail(turn, dy, x);
  }
  out.finish();
}

// All rows of a block.
__device__ inline void backward_of_block(const Arrays& arrays, const Backward& given) {
  const long long groups = (given.rows.count + ROWS - 1) / ROWS;
  ColumnSums columns(arrays.partial, place(given.rows));
  int buffer = 0;
#pragma unroll 1
  for (long long group = blockIdx.x; group < groups; group += gridDim.x) {
    const Place here = place(given.rows, group);
    if (here.is_idle_warp()) break;
    __syncwarp();  // the ends of shifted rows are in shared memory: those of the last row are done
    backward_of_row(arrays, here, given, buffer, columns);
    buffer ^= 1;
  }
  columns.finish();
}
