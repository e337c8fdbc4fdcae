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
// A lane keeps its first PACKETS packets of x and dy and the sums beside them in registers, the
// next SHARED in shared memory. What is left of a longer row is read twice, and its sums are kept
// in `partial` itself.

#pragma once

#define BACKWARD 1

#include "access.cuh"
#include "reduce.cuh"

using W = GAMMA_TYPE;

// What is summed over rows: dgamma, and dbeta.
constexpr int PARAMETERS = HAS_GAMMA ? (CENTERED ? 2 : 1) : 0;
constexpr int KINDS = PARAMETERS > 0 ? PARAMETERS : 1;  // C++ has no arrays of nothing

// From one row of `partial` to the next: packets of sums start on 16 bytes.
constexpr long long PITCH = (COLS + 3) / 4 * 4;

// As in cunorm/_plan.py: 168 registers for each thread.
constexpr int RESIDENT_THREADS = 384;

// Past the registers eight packets are added up at a time, as in row.cuh.
constexpr int CHUNK = 8;

using Sums = Pack<Acc, VEC>;
constexpr int QUADS = Sums::BYTES / 16;

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

// Dynamic shared memory: SHARED packets of x, as many of dy, then sums, each [packet][lane]. All
// are their lane's own, and need no barrier.
extern __shared__ uint4 parked[];

__device__ inline uint4* parking(int array, int turn) {
  return parked + (array * SHARED + turn - PACKETS) * LANES + threadIdx.x;
}

// x and dy of a row, as one lane holds them.
class Pairs {
 public:
  __device__ Pairs(const X* x, const X* dy, const Place& place) : x_(x, place), dy_(dy, place) {
    x_.read(0, PACKETS, x_kept_);
    dy_.read(0, PACKETS, dy_kept_);
#pragma unroll 1
    for (int turn = PACKETS; turn < PACKETS + SHARED; ++turn) {
      Pack<X, VEC> packet[2][1];
      x_.read(turn, TURNS, packet[0]);
      dy_.read(turn, TURNS, packet[1]);
      *parking(0, turn) = bits<uint4>(packet[0][0]);
      *parking(1, turn) = bits<uint4>(packet[1][0]);
    }
#pragma unroll
    for (int turn = 0; turn < TAIL_TURNS; ++turn) {
      if (!place.has_tail(turn)) continue;
      x_tail_[turn] = load_column<false>(x, place.tail_column(turn));
      dy_tail_[turn] = load_column<false>(dy, place.tail_column(turn));
    }
  }

  // One of the first PACKETS packets; `turn` must be a constant once loops are unrolled.
  __device__ void in_register(int turn, Acc (&x)[VEC], Acc (&dy)[VEC]) const {
    unpack(x_kept_[turn], x);
    unpack(dy_kept_[turn], dy);
  }

  // One of the packets after those.
  __device__ void past_registers(int turn, Acc (&x)[VEC], Acc (&dy)[VEC]) const {
    if (turn < PACKETS + SHARED) {
      unpack(bits<Pack<X, VEC>>(*parking(0, turn)), x);
      unpack(bits<Pack<X, VEC>>(*parking(1, turn)), dy);
    } else {
      unpack(x_.again(turn), x);
      unpack(dy_.again(turn), dy);
    }
  }

  // A column of the tail, in the first element.
  __device__ void tail(int turn, Acc (&x)[VEC], Acc (&dy)[VEC]) const {
    unpack(x_tail_[turn], x);
    unpack(dy_tail_[turn], dy);
  }

 private:
  Reader<X, X_ACCESS, OF_X> x_;
  Reader<X, DY_ACCESS, OF_DY> dy_;
  Pack<X, VEC> x_kept_[PACKETS];
  Pack<X, VEC> dy_kept_[PACKETS];
  Pack<X, VEC> x_tail_[TAIL_TURNS + 1];
  Pack<X, VEC> dy_tail_[TAIL_TURNS + 1];
};

// What a lane's columns have given to dgamma and dbeta so far.
class ColumnSums {
 public:
  // The sums of the lane's columns begin as zeros wherever they are kept.
  __device__ ColumnSums(Acc* partial, const Place& place)
      : partial_(partial + blockIdx.x * PITCH), place_(place) {
    const Acc zeros[VEC] = {};
#pragma unroll 1
    for (int turn = PACKETS; turn < TURNS; ++turn) {
      for (int kind = 0; kind < PARAMETERS; ++kind) put(kind, turn, zeros);
    }
  }

  // Adds a packet, or the first COUNT of its columns, to sums of both kinds.
  template <int COUNT>
  __device__ static void add_to(Acc (&sums)[KINDS][COUNT], const Acc (&dy)[VEC],
                                const Acc (&normal)[VEC]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (PARAMETERS > 0) sums[0][i] = fma_rn(dy[i], normal[i], sums[0][i]);
      if (PARAMETERS > 1) sums[KINDS - 1][i] = add(sums[KINDS - 1][i], dy[i]);
    }
  }

  __device__ void add_kept(int turn, const Acc (&dy)[VEC], const Acc (&normal)[VEC]) {
    add_to(kept_[turn], dy, normal);
  }

  __device__ void add_past_registers(int turn, const Acc (&dy)[VEC], const Acc (&normal)[VEC]) {
    if (PARAMETERS == 0) return;
    Acc sums[KINDS][VEC];
#pragma unroll
    for (int kind = 0; kind < PARAMETERS; ++kind) get(kind, turn, sums[kind]);
    add_to(sums, dy, normal);
#pragma unroll
    for (int kind = 0; kind < PARAMETERS; ++kind) put(kind, turn, sums[kind]);
  }

  __device__ void add_tail(int turn, const Acc (&dy)[VEC], const Acc (&normal)[VEC]) {
    add_to(tail_[turn], dy, normal);
  }

  // Writes the block's row of `partial`. All threads of the block call together.
  __device__ void finish() {
#pragma unroll
    for (int kind = 0; kind < PARAMETERS; ++kind) {
      Acc* const out = partial_ + kind * gridDim.x * PITCH;
      if constexpr (ROWS == 1) {
        write(kind, out);
#pragma unroll 1
        for (int turn = PACKETS; turn < PACKETS + SHARED; ++turn) {
          Acc sums[VEC];
          get(kind, turn, sums);
          if (place_.has_packet(turn)) store<true>(column(out, turn), round_to<Acc>(sums), VEC);
        }
      } else {
        // Rows that share a block: added up column by column, in the order of threadIdx.y.
        __shared__ uint4 memory[ROWS][PITCH * sizeof(Acc) / 16];
        Acc(*const sums)[PITCH] = reinterpret_cast<Acc(*)[PITCH]>(memory);
        if (kind > 0) __syncthreads();
        write(kind, sums[threadIdx.y]);
        __syncthreads();
        for (int c = threadIdx.y * LANES + threadIdx.x; c < COLS; c += LANES * ROWS) {
          Acc sum = sums[0][c];
          for (int row = 1; row < ROWS; ++row) sum = add(sum, sums[row][c]);
          out[c] = sum;
        }
      }
    }
  }

 private:
  // Sums of a packet past the registers.
  __device__ void get(int kind, int turn, Acc (&sums)[VEC]) const {
    Sums pack = {};
    if (turn < PACKETS + SHARED) {
      uint4 quads[QUADS];
#pragma unroll
      for (int q = 0; q < QUADS; ++q) quads[q] = *parking(2 + kind * QUADS + q, turn);
      memcpy(&pack, quads, sizeof(pack));
    } else if (place_.has_packet(turn)) {
      pack = load<true, false, VEC>(column(partial_ + kind * gridDim.x * PITCH, turn), VEC);
    }
    unpack(pack, sums);
  }

  __device__ void put(int kind, int turn, const Acc (&sums)[VEC]) {
    const Sums pack = round_to<Acc>(sums);
    if (turn < PACKETS + SHARED) {
      uint4 quads[QUADS];
      memcpy(quads, &pack, sizeof(pack));
#pragma unroll
      for (int q = 0; q < QUADS; ++q) *parking(2 + kind * QUADS + q, turn) = quads[q];
    } else if (place_.has_packet(turn)) {
      store<true>(column(partial_ + kind * gridDim.x * PITCH, turn), pack, VEC);
    }
  }

  // Writes what registers hold to the lane's columns of `row`.
  __device__ void write(int kind, Acc* row) const {
#pragma unroll
    for (int turn = 0; turn < PACKETS; ++turn) {
      if (owns(turn)) store<true>(column(row, turn), round_to<Acc>(kept_[turn][kind]), VEC);
    }
#pragma unroll
    for (int turn = 0; turn < TAIL_TURNS; ++turn) {
      const int tail = turn * ROW_LANES + place_.lane;
      if (tail < TAIL) row[WHOLE * VEC + tail] = tail_[turn][kind][0];
    }
  }

  // As Place::has_packet, of any row: one past the last has sums too, of nothing.
  __device__ bool owns(int turn) const { return place_.first_packet() + turn * SPAN < WHOLE; }

  __device__ Acc* column(Acc* row, int turn) const {
    return row + place_.first_packet() * VEC + turn * TURN_COLS;
  }

  Acc* partial_;
  const Place place_;
  Acc kept_[PACKETS][KINDS][VEC] = {};
  Acc tail_[TAIL_TURNS + 1][KINDS][1] = {};
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
