// What a block's rows give to dgamma, dbeta and dgate, a sum for each column that a lane owns; and
// the kernel that adds up what the blocks have left.
//
// A block's sums lie beside the packets of x and dy that they belong to (pairs.cuh), in registers
// or in shared memory. Those of what is left of a longer row are kept in `partial` itself.

#pragma once

#include "pairs.cuh"

// Nothing that is added up beside dy and n.
struct NoTerms {};

// KINDS sums a column, which are those of dgamma and of dbeta; 0 where none is wanted. One more, of
// dh * x, is a gate's.
template <class S, class Partial, int KINDS, bool OF_GATE = false>
class ColumnSums {
  using Acc = typename S::Acc;
  using Sums = Pack<Acc, S::VEC>;

 public:
  // The sums of the lane's columns begin as zeros wherever they are kept.
  __device__ ColumnSums(Acc* partial, const Place<S>& place)
      : partial_(partial + blockIdx.x * PITCH), place_(place) {
    const Values<S> zeros = {};
#pragma unroll 1
    for (int turn = S::PACKETS; turn < S::TURNS; ++turn) {
      for (int kind = 0; kind < ALL_KINDS; ++kind) put(kind, turn, zeros);
    }
  }

  // Terms are those of a gate's sum: NoTerms, or dh and x.
  template <class Terms>
  __device__ void add_in_register(int turn, const Values<S>& dy, const Values<S>& normal,
                                  const Terms& terms) {
    add_to(in_registers_[turn], dy, normal, terms);
  }

  template <class Terms>
  __device__ void add_past_registers(int turn, const Values<S>& dy, const Values<S>& normal,
                                     const Terms& terms) {
    if (ALL_KINDS == 0) return;
    Values<S> sums[HELD];
#pragma unroll
    for (int kind = 0; kind < ALL_KINDS; ++kind) get(kind, turn, sums[kind]);
    add_to(sums, dy, normal, terms);
#pragma unroll
    for (int kind = 0; kind < ALL_KINDS; ++kind) put(kind, turn, sums[kind]);
  }

  template <class Terms>
  __device__ void add_tail(int turn, const Values<S>& dy, const Values<S>& normal,
                           const Terms& terms) {
    add_to(tail_[turn], dy, normal, terms);
  }

  // Writes the block's row of `partial`. All threads of the block call together.
  __device__ void finish() {
#pragma unroll
    for (int kind = 0; kind < ALL_KINDS; ++kind) {
      Acc* const out = partial_ + kind * gridDim.x * PITCH;
      if constexpr (S::ROWS == 1) {
        write(kind, out);
#pragma unroll 1
        for (int turn = S::PACKETS; turn < S::KEPT; ++turn) {
          Values<S> sums;
          get(kind, turn, sums);
          if (place_.has_packet(turn))
            store<ALIGNED_SUMS>(column(out, turn), round_to<Acc>(sums), S::VEC);
        }
      } else {
        // Rows that share a block: added up column by column, in the order of threadIdx.y.
        __shared__ uint4 memory[S::ROWS][PITCH * sizeof(Acc) / 16];
        Acc(*const sums)[PITCH] = reinterpret_cast<Acc(*)[PITCH]>(memory);
        if (kind > 0) __syncthreads();
        write(kind, sums[threadIdx.y]);
        __syncthreads();
        for (int c = threadIdx.y * S::LANES + threadIdx.x; c < S::COLS; c += S::LANES * S::ROWS) {
          Acc sum = sums[0][c];
          for (int row = 1; row < S::ROWS; ++row) sum = add(sum, sums[row][c]);
          out[c] = sum;
        }
      }
    }
  }

 private:
  static constexpr int ALL_KINDS = KINDS + OF_GATE;
  static constexpr int HELD = ALL_KINDS > 0 ? ALL_KINDS : 1;  // C++ has no arrays of nothing
  static constexpr int QUADS = Sums::BYTES / 16;
  static constexpr bool ALIGNED_SUMS = Partial::ACCESS == ALIGNED;
  // From one row of `partial` to the next: packets of sums start on 16 bytes where `partial` does.
  static constexpr long long PITCH = (S::COLS + 3) / 4 * 4;

  // Adds a packet, or the first COUNT of its columns, to sums of all kinds.
  template <int COUNT, class Terms>
  __device__ static void add_to(Acc (&sums)[HELD][COUNT], const Values<S>& dy,
                                const Values<S>& normal, const Terms& terms) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if constexpr (KINDS > 0) sums[0][i] = fma_rn(dy[i], normal[i], sums[0][i]);
      if constexpr (KINDS > 1) sums[1][i] = add(sums[1][i], dy[i]);
      if constexpr (OF_GATE) sums[KINDS][i] = fma_rn(terms.dh[i], terms.x[i], sums[KINDS][i]);
    }
  }

  // Sums of a packet past the registers.
  __device__ void get(int kind, int turn, Values<S>& sums) const {
    Sums pack = {};
    if (turn < S::KEPT) {
      uint4 quads[QUADS];
#pragma unroll
      for (int q = 0; q < QUADS; ++q) quads[q] = *in_shared<S>(2 + kind * QUADS + q, turn);
      memcpy(&pack, quads, sizeof(pack));
    } else if (place_.has_packet(turn)) {
      pack = load<ALIGNED_SUMS, S::VEC>(column(partial_ + kind * gridDim.x * PITCH, turn), S::VEC);
    }
    unpack(pack, sums);
  }

  __device__ void put(int kind, int turn, const Values<S>& sums) {
    const Sums pack = round_to<Acc>(sums);
    if (turn < S::KEPT) {
      uint4 quads[QUADS];
      memcpy(quads, &pack, sizeof(pack));
#pragma unroll
      for (int q = 0; q < QUADS; ++q) *in_shared<S>(2 + kind * QUADS + q, turn) = quads[q];
    } else if (place_.has_packet(turn)) {
      store<ALIGNED_SUMS>(column(partial_ + kind * gridDim.x * PITCH, turn), pack, S::VEC);
    }
  }

  // Writes what registers hold to the lane's columns of `row`.
  __device__ void write(int kind, Acc* row) const {
#pragma unroll
    for (int turn = 0; turn < S::PACKETS; ++turn) {
      if (place_.owns_packet(turn))
        store<ALIGNED_SUMS>(column(row, turn), round_to<Acc>(in_registers_[turn][kind]), S::VEC);
    }
#pragma unroll
    for (int turn = 0; turn < S::TAIL_TURNS; ++turn) {
      const int tail = turn * S::ROW_LANES + place_.lane;
      if (tail < S::TAIL) row[S::WHOLE * S::VEC + tail] = tail_[turn][kind][0];
    }
  }

  __device__ Acc* column(Acc* row, int turn) const {
    return packet_at<S>(row, place_.first_packet()) + turn * S::TURN_COLS;
  }

  Acc* partial_;
  const Place<S> place_;
  Acc in_registers_[S::PACKETS][HELD][S::VEC] = {};
  Acc tail_[S::TAIL_TURNS + 1][HELD][1] = {};
};

// Adds up the blocks' sums: dgamma[c] = sum over b of partial[b][c], b = 0 .. blocks - 1. The rows
// after those are the blocks' sums of dbeta, which the grid's second y takes.
//
// A block owns COLUMNS neighbouring columns, one a lane. Its SLICES warps share out the rows: warp
// s adds up rows s, s + SLICES, ... in that order, and the first warp adds up the warps' sums in
// the order of the warps, through shared memory. So the order follows from the number of blocks
// alone. One rounding, to W. blocks >= 1, and pitch, the distance of two rows, is at least cols.

struct Extent {
  long long cols;
  long long pitch;
  long long blocks;
};

// The sum of one column, whose rows begin at `first`, in the threads of the first warp.
template <int COLUMNS, int SLICES, typename Acc>
__device__ inline Acc sum_of_blocks(const Acc* first, bool exists, const Extent& extent) {
  __shared__ Acc sums[SLICES][COLUMNS];
  Acc sum = 0;
  if (exists) {
#pragma unroll 4
    for (long long b = threadIdx.y; b < extent.blocks; b += SLICES) {
      sum = add(sum, first[b * extent.pitch]);
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0) return 0;
#pragma unroll
  for (int slice = 1; slice < SLICES; ++slice) sum = add(sum, sums[slice][threadIdx.x]);
  return sum;
}

template <typename W, typename Acc>
__device__ inline void store_sum(W* to, Acc sum) {
  const Acc value[16 / sizeof(W)] = {sum};
  store<false>(to, round_to<W>(value), 1);
}

template <int COLUMNS, int SLICES, typename W, typename Acc>
__device__ inline void add_up_blocks(W* dgamma, W* dbeta, const Acc* partial,
                                     const Extent& extent) {
  const long long column = static_cast<long long>(blockIdx.x) * COLUMNS + threadIdx.x;
  const bool exists = column < extent.cols;
  const Acc* const first = partial + blockIdx.y * extent.blocks * extent.pitch + column;
  const Acc sum = sum_of_blocks<COLUMNS, SLICES>(first, exists, extent);
  if (threadIdx.y == 0 && exists) store_sum((blockIdx.y == 0 ? dgamma : dbeta) + column, sum);
}
