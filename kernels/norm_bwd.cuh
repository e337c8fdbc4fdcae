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

// Past the registers eight packets are added up at a time, as in row.cuh.
constexpr int CHUNK = 8;

// Whether registers have room for more than they must hold: for g * dy until dx is made of it, and
// for dresidual from before the row's sums are there. With the one LayerNorm spilled up to 36 bytes
// of float64 rows, with the other both ops up to 8 of float32 rows that are partly in shared memory,
// and up to 116 of shifted ones; LayerNorm up to 32 of shifted 16-bit rows partly in shared memory.
constexpr bool KEEPS_WEIGHTED = !CENTERED || sizeof(X) < 8;
constexpr bool ASKS_EARLY =
    KEEPS_WEIGHTED &&
    (sizeof(X) < 4 ? !CENTERED || SHARED == 0 || !ROWS_SHIFTED : SHARED == 0 && !ROWS_SHIFTED);

// Gamma is the same for all of a block's rows, and is kept from one to the next but where registers
// are too few: with the assembler of sm_100 LayerNorm's 16-bit rows spilled up to 8 bytes.
constexpr bool LOADS_GAMMA_AGAIN =
    CENTERED && HAS_GAMMA && sizeof(X) == 2 && !ROWS_SHIFTED && __CUDA_ARCH__ >= 1000;

// Some of LayerNorm's 16-bit rows spilled up to 44 bytes in the 128 registers that 512 threads have,
// and have those of 384: those whose gamma comes one element at a time, or whose arrays are not all
// reached alike, and shifted ones, where gamma is wide or the assembler is that of sm_75 or of sm_100
// and later, which takes more registers.
constexpr bool WIDE_GAMMA = sizeof(W) > sizeof(X);
constexpr bool CROWDED =
    CENTERED && sizeof(X) == 2 &&
    (GAMMA_ACCESS != ALIGNED || ROWS_DIFFER ||
     (ROWS_SHIFTED && (WIDE_GAMMA || __CUDA_ARCH__ < 800 || __CUDA_ARCH__ >= 1000)));
constexpr int RESIDENT = CROWDED && RESIDENT_THREADS > 384 ? 384 : RESIDENT_THREADS;

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

  // n of a packet; `normal` may be x.
  __device__ void normalise(const Acc (&x)[VEC], Acc (&normal)[VEC]) const {
#pragma unroll
    for (int i = 0; i < VEC; ++i) normal[i] = mul(CENTERED ? sub(x[i], mean) : x[i], rstd);
  }
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

// What the second pass over the packets in registers takes over from the first.
struct Kept {
  Acc normal[PACKETS][VEC];
  Acc weighted[KEEPS_WEIGHTED ? PACKETS : 1][VEC];
};

// Sums of g * dy * n, and of g * dy, over the row, divided by COLS.
__device__ inline void sum_row(const Pairs& pairs, const Arrays& arrays, const Place& place,
                               Acc gamma_offset, int buffer, Kept& kept, RowOfGradient& row) {
  constexpr Acc PER_COLUMN = Acc(1.0 / COLS);
  constexpr int COUNT = CENTERED ? 2 : 1;
  const auto add_columns = [&](int count, const Acc(&normal)[VEC], const Acc(&weighted)[VEC],
                               Acc(&sums)[2][COUNT]) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      if (i >= count) continue;
      sums[i % 2][0] = fma_rn(weighted[i], normal[i], sums[i % 2][0]);
      if (CENTERED) sums[i % 2][COUNT - 1] = add(sums[i % 2][COUNT - 1], weighted[i]);
    }
  };
  Acc total[COUNT] = {};
  const auto add_sums = [&](const Acc(&sums)[2][COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) total[i] = add(total[i], add(sums[0][i], sums[1][i]));
  };

  Acc first_sums[2][COUNT] = {};
  Acc x[VEC];
  Acc dy[VEC];
  Acc other[VEC];
#pragma unroll
  for (int turn = 0; turn < PACKETS; ++turn) {
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_parameters<GAMMA_ACCESS>(arrays.gamma, place, turn);
    Acc(&weighted)[VEC] = KEEPS_WEIGHTED ? kept.weighted[KEEPS_WEIGHTED ? turn : 0] : other;
    pairs.in_register(turn, x, dy);
    weigh(dy, gamma, gamma_offset, weighted);
    row.normalise(x, kept.normal[turn]);
    if (place.has_packet(turn)) add_columns(VEC, kept.normal[turn], weighted, first_sums);
  }
#pragma unroll
  for (int turn = 0; turn < TAIL_TURNS; ++turn) {
    if (!place.has_tail(turn)) continue;
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_column(arrays.gamma, place.tail_column(turn));
    pairs.tail(turn, x, dy);
    weigh(dy, gamma, gamma_offset, other);
    row.normalise(x, x);
    add_columns(1, x, other, first_sums);
  }
  add_sums(first_sums);
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
      weigh(dy, gamma, gamma_offset, other);
      row.normalise(x, x);
      add_columns(VEC, x, other, sums);
    }
    add_sums(sums);
  }
  row_sums<LANES, 0, 2>(total, buffer);
  row.mean_of_products = mul(total[0], PER_COLUMN);
  if (CENTERED) row.mean_of_gradient = mul(total[COUNT - 1], PER_COLUMN);
}

// dx of one packet.
__device__ inline Pack<X, VEC> gradient(const Acc (&normal)[VEC], const Acc (&weighted)[VEC],
                                        const Pack<X, VEC>& dresidual, const RowOfGradient& row) {
  Acc value[VEC];
  Acc beside[VEC];
  unpack(dresidual, beside);
#pragma unroll
  for (int i = 0; i < VEC; ++i) {
    const Acc centred = CENTERED ? sub(weighted[i], row.mean_of_gradient) : weighted[i];
    const Acc inner = fma_rn(-normal[i], row.mean_of_products, centred);
    value[i] = HAS_DRESIDUAL ? fma_rn(inner, row.rstd, beside[i]) : mul(inner, row.rstd);
  }
  return round_to<X>(value);
}

// dresidual of a row, whose packets are taken in order; zeros where there is none.
class Beside {
 public:
#if HAS_DRESIDUAL
  __device__ Beside(const Arrays& arrays, const Backward& given, const Place& place)
      : row_(row_at(arrays.dresidual, place.at, given.rows.dresidual)), reader_(row_, place) {}

  // Asks for what take() returns, and for the first packet after those.
  __device__ void ask() {
    reader_.read(0, PACKETS, kept_);
    reader_.read(PACKETS, TURNS, next_);
  }

  __device__ Pack<X, VEC> take(int turn) {
    if (!ASKS_EARLY) reader_.read(turn, TURNS, next_);
    return ASKS_EARLY ? kept_[turn] : next_[0];
  }

  // Asks for the next packet while this one is used.
  __device__ Pack<X, VEC> take_past_registers(int turn) {
    if (!ASKS_EARLY) reader_.read(turn, TURNS, next_);
    const Pack<X, VEC> taken = next_[0];
    if (ASKS_EARLY) reader_.read(turn + 1, TURNS, next_);
    return taken;
  }

  __device__ Pack<X, VEC> tail(int column) const { return load_column(row_, column); }

 private:
  const X* row_;
  Reader<X, DRESIDUAL_ACCESS, OF_DRESIDUAL> reader_;
  Pack<X, VEC> kept_[PACKETS];
  Pack<X, VEC> next_[1];
#else
  __device__ Beside(const Arrays&, const Backward&, const Place&) {}
  __device__ void ask() {}
  __device__ Pack<X, VEC> take(int) const { return {}; }
  __device__ Pack<X, VEC> take_past_registers(int) const { return {}; }
  __device__ Pack<X, VEC> tail(int) const { return {}; }
#endif
};

// One row of a group: sums, dx, and what its columns give to dgamma and dbeta.
__device__ inline void backward_of_row(const Arrays& arrays, const Place& place,
                                       const Backward& given, int buffer, ColumnSums& columns) {
  const Pairs pairs(row_at(arrays.x, place.at, given.rows.x),
                    row_at(arrays.dy, place.at, given.rows.dy), place);
  // Asked for now, dresidual is on its way while the row is summed.
  Beside beside(arrays, given, place);
  if (ASKS_EARLY) beside.ask();
  RowOfGradient row = {};
  if (place.exists) {
    if (CENTERED) row.mean = arrays.mean[place.row];
    row.rstd = arrays.rstd[place.row];
  }
  Kept kept;
  sum_row(pairs, arrays, place, given.gamma_offset, buffer, kept, row);

  X* const dx = row_at(arrays.dx, place.at, given.rows.dx);
  Writer<X, DX_ACCESS, OF_DX> out(dx, place);
  const auto weighted_again = [&](int turn, const Acc(&dy)[VEC], Acc(&weighted)[VEC]) {
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_parameters<GAMMA_ACCESS>(arrays.gamma, place, turn);
    weigh(dy, gamma, given.gamma_offset, weighted);
  };
  Acc x[VEC];
  Acc dy[VEC];
  Acc weighted[VEC];
  // Turns come in order, and all lanes take part. What is shifted is shifted once for all packets.
  Pack<X, VEC> of_kept[PACKETS];
#pragma unroll
  for (int turn = 0; turn < PACKETS; ++turn) {
    pairs.in_register(turn, x, dy);
    const Acc(&normal)[VEC] = kept.normal[turn];
    if (!KEEPS_WEIGHTED) weighted_again(turn, dy, weighted);
    of_kept[turn] =
        gradient(normal, KEEPS_WEIGHTED ? kept.weighted[KEEPS_WEIGHTED ? turn : 0] : weighted,
                 beside.take(turn), row);
    columns.add_kept(turn, dy, normal);
  }
  out.write(0, TURNS, of_kept);
#pragma unroll 1
  for (int turn = PACKETS; turn < TURNS; ++turn) {
    const Pack<X, VEC> added = beside.take_past_registers(turn);
    pairs.past_registers(turn, x, dy);
    weighted_again(turn, dy, weighted);
    row.normalise(x, x);
    const Pack<X, VEC> made[1] = {gradient(x, weighted, added, row)};
    out.write(turn, TURNS, made);
    columns.add_past_registers(turn, dy, x);
  }
#pragma unroll
  for (int turn = 0; turn < TAIL_TURNS; ++turn) {
    if (!place.has_tail(turn)) continue;
    const int column = place.tail_column(turn);
    Pack<W, VEC> gamma = {};
    if constexpr (HAS_GAMMA) gamma = load_column(arrays.gamma, column);
    pairs.tail(turn, x, dy);
    weigh(dy, gamma, given.gamma_offset, weighted);
    row.normalise(x, x);
    store_column(dx, column, gradient(x, weighted, beside.tail(column), row));
    columns.add_tail(turn, dy, x);
  }
  out.finish();
}

// All rows of a block.
__device__ inline void backward_of_block(const Arrays& arrays, const Backward& given) {
  const long long groups = (given.rows.count + ROWS - 1) / ROWS;
  Arrays of_row = arrays;
  ColumnSums columns(arrays.partial, place(given.rows));
  int buffer = 0;
#pragma unroll 1
  for (long long group = blockIdx.x; group < groups; group += gridDim.x) {
    const Place here = place(given.rows, group);
    if (here.is_idle_warp()) break;
    __syncwarp();  // the ends of shifted rows are in shared memory: those of the last row are done
    if constexpr (LOADS_GAMMA_AGAIN) of_row.gamma = in_order(arrays.gamma);
    backward_of_row(of_row, here, given, buffer, columns);
    buffer ^= 1;
  }
  columns.finish();
}
